"""Run a model on one text and return its activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.activations import check_indices
from clearhead.lens.cache import Metric, run_with_cache
from clearhead.lens.results import Trace, numpy_trace
from clearhead.model import GPTModel


class WatchOptions(TypedDict, total=False):
    """The options of `watch`."""

    positions: int | Sequence[int] | None
    tokens: Sequence[str] | None
    metric: Metric | None


def watch(
    model: GPTModel, ids: Sequence[int], wanted: str | Iterable[str] = "*", **options: Unpack[WatchOptions]
) -> Trace[npt.NDArray[np.float32]]:
    """Run a text through a model once and return its activations as float32 arrays; see `watch_tensors`."""
    return numpy_trace(watch_tensors(model, ids, wanted, **options))


def watch_tensors(
    model: GPTModel,
    ids: Sequence[int],
    wanted: str | Iterable[str] = "*",
    *,
    positions: int | Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
    metric: Metric | None = None,
) -> Trace[Tensor]:
    """Run a text through a model once and return its activations as tensors, on the model's device and in its dtype.

    Args:
        model: run in evaluation mode, and put back into its own mode afterwards.
        ids: the text's tokens, at most context_length.
        wanted: names of activations, with wildcards; all of them by default, of which scores, patterns and logits are
            the large ones (for 1,024 tokens of the 124M 604 MB, 604 MB and 206 MB).
        positions: record the tokens at these positions only, in this order; for scores and patterns, their rows. All
            of them by default.
        tokens: the text of each id, to print.
        metric: from logits [1, T, V] to one number, [1]; then `gradients` has its derivative with respect to each
            named activation.

    Raises:
        InputError: if a name is unknown, there are no tokens, too many, one outside the vocabulary, or a position
            outside the text.
    """
    if not len(ids):
        raise InputError("there are no tokens to watch; give a text with at least one.")
    if len(ids) > (most := model.config.context_length):
        raise InputError(f"the text has {len(ids):,} tokens, but the model reads {most:,}; shorten it.")
    chosen = None if positions is None else check_indices("position", positions, len(ids), "text")
    return run_with_cache(model, [ids], wanted, positions=chosen, metric=metric).text(0, tokens)
