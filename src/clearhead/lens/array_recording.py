"""Record the activations of a network in NumPy: `run_with_cache` without PyTorch, one text after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from clearhead.lens.results import ActivationCache
from clearhead.lens.selection import Selection, select
from clearhead.numpy_model import Floats, NumpyModel


def record_arrays(
    model: NumpyModel,
    texts: Sequence[Sequence[int]],
    wanted: str | Iterable[str] = "*",
    positions: int | Sequence[int] | None = None,
) -> ActivationCache[Floats]:
    """Run texts through a network and return chosen activations of all of them, as `cache.run_with_cache` does.

    Args:
        model: the network.
        texts: token ids of each text, at least one token and at most context_length.
        wanted: names of activations, here or in TransformerLens, with wildcards.
        positions: keep the tokens at these positions only; negative ones count from each text's end.

    Raises:
        InputError: if there is no text, a name is unknown, a text is empty, too long or has an unknown id, or a
            position is outside a text.
    """
    selection = select(model.config, texts, wanted, positions)
    longest = max(map(len, texts))
    whole: dict[str, Floats] = {}
    for row in range(len(texts)):
        for name, value in _record(model, selection, row).items():
            if len(texts) == 1:
                whole[name] = value[None]
                continue
            if name not in whole:
                shape = list(selection.known[name].shape(model.config, longest))
                if selection.positions is not None:
                    shape[selection.known[name].token_axis] = selection.positions.shape[1]
                whole[name] = np.zeros((len(texts), *shape), np.float32)
            whole[name][row][tuple(slice(0, size) for size in value.shape)] = value
    return selection.cache(whole)


def _record(model: NumpyModel, selection: Selection, row: int) -> dict[str, Floats]:
    """Run one text, up to the last wanted activation, and return copies of the wanted values by name."""
    wanted = {one.name: one for one in selection.activations}
    found: dict[str, Floats] = {}
    with np.errstate(all="ignore"):  # broken weights give NaN and infinity, as in PyTorch
        for name, value in model.activations(selection.texts[row]):
            if name in wanted:
                at = None if selection.positions is None else selection.positions[row]
                found[name] = value.copy() if at is None else value.take(at, axis=wanted[name].token_axis)
                if len(found) == len(wanted):
                    break
    return found
