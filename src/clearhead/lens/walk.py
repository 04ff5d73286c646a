"""One prompt on its way through a model, as data: what `clearhead walk` prints and writes.

All of it comes from one forward pass. Numbers are rounded for display.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clearhead.inference.filters import top_k_ids
from clearhead.inference.options import SamplingParams
from clearhead.inference.sampling import Sampler
from clearhead.lens.reading import logit_lens, pieces
from clearhead.lens.results import Trace
from clearhead.lens.watching import watch
from clearhead.numpy_model import NumpyModel

if TYPE_CHECKING:
    from clearhead.model import GPTModel
    from clearhead.tokenizer import Tokenizer

MOST_TOKENS = 64
"""Beyond this, the heat map's cells are too small to read or to tap."""
_MOST_WEIGHTS = 600_000  # of all heads together: a page of about 6 MB

FIRST_NUMBERS = 8  # how many numbers of a vector are shown
_FIRST_IN_HEAD = 4
_LENS_TOP = 5
_NEXT_TOP = 100
_LOGIT_STEP = 0.01  # the width of the steps in which the logits after the first _NEXT_TOP are counted

_WATCHED = (
    "embedding.token",
    "embedding.position",
    "embedding",
    "*.mean",
    "*.variance",
    "*.output",
    "*.attention.scores",
    "*.attention.pattern",
    "*.attention.values",
    "*.attention.mixed",
    "*.residual_mid",
    "*.residual_out",
    "*.feed_forward.up",
    "*.feed_forward.activated",
    "logits",
)


def shown_tokens(model: GPTModel | NumpyModel, tokens: int) -> range:
    """Return the positions that the pictures show: the last ones, as many as fit on a page for all heads of a model."""
    heads = model.config.n_layers * model.config.n_heads
    most = max(8, min(MOST_TOKENS, math.isqrt(_MOST_WEIGHTS // heads)))
    return range(max(0, tokens - most), tokens)


def walk(
    model: GPTModel | NumpyModel, ids: Sequence[int], tokenizer: Tokenizer | None, params: SamplingParams
) -> dict[str, Any]:
    """Run a prompt and collect the result of each step.

    Args:
        model: the network, in PyTorch or NumPy.
        ids: the prompt's tokens, at most context_length.
        tokenizer: turns ids into text; without one, tokens are shown as numbers.
        params: how the next token is chosen.

    Returns:
        a value for `json.dumps`, in which [T] means the shown tokens, `tokens`:

        - `config`: the model's shape; `prompt_tokens`: the prompt's length; `first_shown`: the position of the first
          shown token
        - `tokens` [T] of {id, text}
        - `embedding` {token, position, sum}, each [T][first 8 numbers]
        - `blocks` [n_layers] of `norm_1`, `norm_2` (mean and variance [T] before, after normalising, and after the
          norm's own scale and shift), `scores` [H][T][T] before the mask, `pattern` [H][T][up to T] (if the prompt is
          longer than what is shown, the rest of a row up to 1 went to the tokens before), `values` and
          `mixed` [H][T][first 4 numbers], `gelu`, and the sizes of what attention and feed-forward add [T]
        - `residual_size` [n_layers + 1][T]: the root mean square of each vector, of the embedding and after each block
        - `final_norm` as the other norms; `lens` [n_layers + 1][T] of the likeliest [id, probability]
        - `next`: the likeliest tokens after the prompt as [id, logit], with their probabilities at temperature 1
          (`plain`), at the one given (`tempered`) and with top-k too (`kept`); the other logits, counted in steps;
          and which token is sampled
        - `pieces`: the text of every id in this value

    Raises:
        InputError: if the prompt cannot run; see `watch`.
        WeightsError: if the logits are NaN or infinite.
    """
    config = model.config
    shown = shown_tokens(model, len(ids))
    n_choices = config.vocab_size if tokenizer is None else min(config.vocab_size, tokenizer.vocab_size)
    trace = watch(model, ids, _WATCHED, positions=list(shown) or None)
    lens = _lens(model, trace, n_choices)
    chosen = _next(trace["logits"][-1, :n_choices], params)
    used = {*ids[shown.start :], *(id for rows in lens for row in rows for id, _ in row), chosen["chosen"]}
    used |= {id for id, _ in chosen["top"]}
    text = {id: str(id) if tokenizer is None else pieces(tokenizer, [id])[0] for id in sorted(used)}
    return {
        "config": {name: getattr(config, name) for name in ("vocab_size", "context_length", "emb_dim", "n_heads")}
        | {"n_layers": config.n_layers, "ff_dim": config.ff_dim, "norm_eps": config.norm_eps},
        "prompt_tokens": len(ids),
        "first_shown": shown.start,
        "tokens": [{"id": id, "text": text[id]} for id in ids[shown.start :]],
        "embedding": {
            part: _rounded(trace[name][:, :FIRST_NUMBERS])
            for part, name in (("token", "embedding.token"), ("position", "embedding.position"), ("sum", "embedding"))
        },
        "blocks": [_block(trace, layer, shown, config.norm_eps) for layer in range(config.n_layers)],
        "residual_size": [_rounded(_size(residual)) for residual in _residuals(trace)],
        "final_norm": _norm(trace, "final_norm", _residuals(trace)[-1], config.norm_eps),
        "lens": lens,
        "next": chosen,
        "pieces": text,
    }


def _residuals(trace: Trace[npt.NDArray[np.float32]]) -> list[np.ndarray]:
    """Return the input of the first block and the output of each block: [T, C] each."""
    return [trace["embedding"], *(value for name, value in trace.items() if name.endswith("residual_out"))]


def _block(trace: Trace[npt.NDArray[np.float32]], layer: int, shown: range, eps: float) -> dict[str, Any]:
    at = f"blocks.{layer}."
    before = trace["embedding"] if layer == 0 else trace[f"blocks.{layer - 1}.residual_out"]
    # Scores and patterns have a column for each token of the prompt, and rows for those that are shown.
    scores = trace[at + "attention.scores"][:, :, shown.start :]
    pattern = trace[at + "attention.pattern"][:, :, shown.start :]
    return {
        "norm_1": _norm(trace, at + "norm_1", before, eps),
        "scores": _rounded(scores, 3),
        "pattern": [[_rounded(row[: t + 1]) for t, row in enumerate(head)] for head in pattern],
        "values": _rounded(trace[at + "attention.values"][:, :, :_FIRST_IN_HEAD]),
        "mixed": _rounded(trace[at + "attention.mixed"][:, :, :_FIRST_IN_HEAD]),
        "attention_size": _rounded(_size(trace[at + "attention.output"])),
        "residual_mid_size": _rounded(_size(trace[at + "residual_mid"])),
        "norm_2": _norm(trace, at + "norm_2", trace[at + "residual_mid"], eps),
        "gelu": _gelu(trace[at + "feed_forward.up"], trace[at + "feed_forward.activated"]),
        "feed_forward_size": _rounded(_size(trace[at + "feed_forward.output"])),
    }


def _norm(trace: Trace[npt.NDArray[np.float32]], name: str, before: np.ndarray, eps: float) -> dict[str, Any]:
    mean, variance, after = trace[name + ".mean"], trace[name + ".variance"], trace[name + ".output"]
    normed = (before - mean[:, None]) / np.sqrt(variance[:, None] + eps)  # [T, C]: before the norm's scale and shift
    stages = {"before": (mean, variance)}
    stages |= {stage: (x.mean(-1), x.var(-1)) for stage, x in (("normed", normed), ("after", after))}
    return {stage: {"mean": _rounded(m), "variance": _rounded(v)} for stage, (m, v) in stages.items()}


def _gelu(up: np.ndarray, activated: np.ndarray) -> dict[str, Any]:
    """Return a histogram of a block's numbers before GELU, and the first numbers of each token before and after."""
    edges = np.arange(-6, 6.01, 0.25)
    counts, _ = np.histogram(np.clip(up, edges[0], edges[-1]), edges)  # the outermost bins include everything beyond
    return {
        "below_zero": round(float((up < 0).mean()), 4),
        "nearly_zero": round(float((np.abs(activated) < 0.1).mean()), 4),
        "lowest": -6,
        "step": 0.25,
        "counts": counts.tolist(),
        "before": _rounded(up[:, :FIRST_NUMBERS]),
        "after": _rounded(activated[:, :FIRST_NUMBERS]),
    }


def _lens(
    model: GPTModel | NumpyModel, trace: Trace[npt.NDArray[np.float32]], n_choices: int
) -> list[list[list[list[Any]]]]:
    """Return the likeliest tokens and their probabilities after each block and token: [n_layers + 1][T][5] pairs."""
    found = []
    for residual in _residuals(trace):
        rows = []
        for logits in logit_lens(model, residual)[:, :n_choices]:
            weights = np.exp(logits - logits.max(), dtype=np.float64)
            ids = _largest(logits, _LENS_TOP)
            rows.append([[id, round(float(weights[id] / weights.sum()), 4)] for id in ids])
        found.append(rows)
    return found


def _next(logits: np.ndarray, params: SamplingParams) -> dict[str, Any]:
    """Return the choice after the last token, and what a page needs of the logits to repeat it with other settings."""
    top = _largest(logits, _NEXT_TOP)
    rest = np.delete(logits.astype(np.float64), top)
    steps, counts = np.unique(np.round(rest / _LOGIT_STEP).astype(int), return_counts=True)
    sampler = Sampler(params, vocab_size=len(logits))
    found = {
        "temperature": params.temperature,
        "top_k": params.top_k,
        "seed": sampler.seed,
        "top": [[id, round(float(logits[id]), 4)] for id in top],
        "rest": {"step": _LOGIT_STEP, "logits": steps.tolist(), "counts": counts.tolist()},
    }
    settings = {"plain": SamplingParams(), "tempered": SamplingParams(temperature=params.temperature), "kept": params}
    for name, setting in settings.items():
        ids, probabilities = Sampler(setting, vocab_size=len(logits)).distribution(logits)
        share = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
        found[name] = [round(share.get(id, 0.0), 6) for id in top]
    return {**found, "chosen": sampler.sample(logits)}


def _largest(logits: np.ndarray, k: int) -> list[int]:
    """Return the ids of the largest logits, the largest first."""
    ids = top_k_ids(logits, min(k, len(logits)))
    return [int(id) for id in ids[np.argsort(-logits[ids], kind="stable")]]


def _size(vectors: np.ndarray) -> np.ndarray:
    """Return the root mean square of each vector: [T, C] -> [T]."""
    size: np.ndarray = np.sqrt((vectors.astype(np.float64) ** 2).mean(-1))
    return size


def _rounded(values: np.ndarray | Iterable[float], digits: int = 4) -> Any:
    # float64 first: float32 has no 0.1, and would print as 0.10000000149.
    return (np.round(np.asarray(values, np.float64), digits) + 0.0).tolist()  # + 0.0 turns -0 into 0
