"""Measure how a model uses its weights, which int4 needs for good rounding.

Sixteen levels are coarse, and errors in columns whose inputs are large or correlated add up. So the model writes some
text, and the second moments of each matrix's inputs, H = X^T X, are summed up meanwhile. With them `rounding.py` makes
up for one weight's error in those after it.

The engine runs the model in int8, which takes less than half the time of float32. Its text and inputs are so close to
those of float32 that int4 comes out no worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.engine.building import matrices
from clearhead.engine.moments import InputRecord, Moments

if TYPE_CHECKING:
    from clearhead.engine.runner import EngineRunner

Floats = npt.NDArray[np.float32]

_SEQUENCES, _TOKENS = 16, 256
"""Texts that are written, and their length. As many tokens in shorter texts tell less; longer texts take more steps."""
_BLOCK = 256
"""Tokens whose probabilities are added up together when one is sampled."""


def needed_bytes(config: GPTConfig) -> int:
    """Return the memory that inputs and the moments of one matrix take."""
    columns = [columns for _, columns in matrices(config)]
    inputs = _SEQUENCES * (min(_TOKENS, config.context_length) + 1)
    return 4 * (inputs * sum(columns) + (max(columns) + 2 * inputs) * max(columns))


def calibrate(runner: EngineRunner, seed: int = 0) -> tuple[npt.NDArray[np.int64], Moments]:
    """Let a model write texts, and measure the inputs of its matrices meanwhile.

    Each text starts at the last token id (GPT-2's end of text), and each token is sampled from the model's own
    distribution.

    Args:
        runner: the model; it is of no use afterwards, as it goes on recording.
        seed: of the sampling.

    Returns:
        the texts, int64 [16, up to 256], and X^T X of the inputs of every matrix, from all tokens but each text's last,
        by the matrix's canonical name, float32 [columns, columns]. The head's moments are under the token embedding's
        name if they are tied.
    """
    random, config = np.random.default_rng(seed), runner.config
    length = min(_TOKENS, config.context_length)
    ids = np.full((_SEQUENCES, length), config.vocab_size - 1, np.int64)
    inputs = runner.record_inputs(_SEQUENCES)
    records = {name: InputRecord(columns, _SEQUENCES * (length - 1)) for name, columns in matrices(config)}
    slots = [runner.open() for _ in ids]
    for position in range(length - 1):
        logits = runner.extend([(slot, [int(text[position])]) for slot, text in zip(slots, ids, strict=True)])
        for own, record in zip(inputs, records.values(), strict=True):
            record.add(own[:, : record.columns])
        ids[:, position + 1] = _sample(logits, random.random(_SEQUENCES))
    return ids, Moments(records, runner.threads)


def _sample(logits: Floats, uniform: npt.NDArray[np.float64]) -> list[int]:
    """Return a token for each row of logits, [n, V]: the one at which the sum of probabilities passes its number.

    Probabilities are added up in blocks, so that only one block of a row is added up number by number.
    """
    n, size = logits.shape
    blocks = -(-size // _BLOCK)
    weights = np.zeros((n, blocks * _BLOCK), np.float32)
    np.exp(logits - logits.max(axis=1, keepdims=True), out=weights[:, :size])
    ends = np.cumsum(weights.reshape(n, blocks, _BLOCK).sum(axis=2), axis=1, dtype=np.float64)
    found = []
    for row, goal in enumerate(uniform * ends[:, -1]):
        block = int(np.searchsorted(ends[row, :-1], goal, "right"))
        before = ends[row, block - 1] if block else 0.0
        inside = np.cumsum(weights[row, block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
        last = int(np.flatnonzero(np.diff(inside, prepend=0))[-1])  # rounding must not lead past it
        found.append(block * _BLOCK + min(last, int(np.searchsorted(inside, goal - before, "right"))))
    return found
