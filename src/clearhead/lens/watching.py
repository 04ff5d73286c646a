"""Run a model on one text and return its activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.lens.activations import check_indices
from clearhead.lens.array_recording import record_arrays
from clearhead.lens.results import Trace, numpy_trace
from clearhead.numpy_model import Floats, NumpyModel

if TYPE_CHECKING:
    from torch import Tensor

    from clearhead.lens.cache import Metric
    from clearhead.model import GPTModel


class WatchOptions(TypedDict, total=False):
    """The options of `watch`."""

    positions: int | Sequence[int] | None
    tokens: Sequence[str] | None
    metric: Metric | None


def watch(
    model: GPTModel | NumpyModel, ids: Sequence[int], wanted: str | Iterable[str] = "*", **options: Unpack[WatchOptions]
) -> Trace[Floats]:
    """Run a text through a network once and return its activations as float32 arrays; see `watch_tensors`.

    Args:
        model: the network, in PyTorch or NumPy; in NumPy it has no gradients, so there is no `metric`.
        ids: the text's tokens, at most context_length.
        wanted: names of activations, with wildcards.
        options: as those of `watch_tensors`.

    Raises:
        InputError: as `watch_tensors`.
    """
    if not isinstance(model, NumpyModel):
        return numpy_trace(watch_tensors(model, ids, wanted, **options))
    chosen = _check_text(model.config, ids, options.get("positions"))
    return record_arrays(model, [ids], wanted, chosen).text(0, options.get("tokens"))


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
    from clearhead.lens.cache import run_with_cache

    chosen = _check_text(model.config, ids, positions)
    return run_with_cache(model, [ids], wanted, positions=chosen, metric=metric).text(0, tokens)


def _check_text(config: GPTConfig, ids: Sequence[int], positions: int | Sequence[int] | None) -> list[int] | None:
    """Return the positions to record, None for all.

    Raises:
        InputError: if there are no tokens or too many, or a position is outside the text.
    """
    if not len(ids):
        raise InputError("there are no tokens to watch; give a text with at least one.")
    if len(ids) > (most := config.context_length):
        raise InputError(f"the text has {len(ids):,} tokens, but the model reads {most:,}; shorten it.")
    return None if positions is None else check_indices("position", positions, len(ids), "text")
