"""Recognize the layout of tensors and infer the model's shape, both from the table of layouts.

Names and shapes decide, never a file's name. Hugging Face and nanoGPT, for example, use the same names, but one stores
its matrices transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.layouts import LAYOUTS, TABLE, Dims, parse
from clearhead.weights.tensors import TensorInfo

NAMED = ("huggingface", "canonical", "book", "nanogpt", "transformerlens")
"""The layouts of files that hold named tensors and nothing that tells the layout."""

_GIVE_CONFIG = (
    'say so with --config \'{"n_heads": ...}\' (in Python: config={"n_heads": ...}), or put a config.json with the '
    "model's shape (n_head and the rest) into the same folder"
)
_HEAD_WIDTH = 64  # numbers per attention head, in all released GPT-2s


@dataclass(frozen=True)
class _Match:
    """A stored tensor that a layout knows: its row in the table, its dimensions, and its layer."""

    name: str
    row: int
    dims: Dims
    layer: int | None


@cache
def _known(layout: str) -> dict[str, tuple[int, Dims]]:
    """Return the bare names of a layout, `{i}` for the layer, with their row in the table and their dimensions."""
    found = {}
    for index, row in enumerate(TABLE):
        cell = row.cells.get(layout, ())
        for one in (cell,) if isinstance(cell, str) else cell:
            name, dims = parse(one)
            found[LAYOUTS[layout].bare(name)] = (index, dims)
    return found


def _matches(layout: str, tensors: Mapping[str, TensorInfo]) -> Iterator[_Match]:
    known = _known(layout)
    for name, info in tensors.items():
        bare = LAYOUTS[layout].bare(name)
        layer = re.search(r"\.(\d+)\.", bare)
        pattern = bare if layer is None else f"{bare[: layer.start()]}.{{i}}.{bare[layer.end() :]}"
        if pattern in known and len(known[pattern][1]) == len(info.shape):
            yield _Match(name, *known[pattern], None if layer is None else int(layer[1]))


def recognize(tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return the layout that matches the most tensors by name and shape; None if none matches a tensor of a block."""
    scores = {layout: _score(layout, tensors) for layout in NAMED}
    best = max(scores, key=lambda layout: scores[layout])
    return best if scores[best] else None


def _score(layout: str, tensors: Mapping[str, TensorInfo]) -> int:
    matches = list(_matches(layout, tensors))
    if all(match.layer is None for match in matches):
        return 0
    width = next((tensors[match.name].shape[1] for match in matches if match.row == 0), None)
    return sum(width is None or _fits(match.dims, tensors[match.name].shape, width) for match in matches)


def _fits(dims: Dims, shape: tuple[int, ...], width: int) -> bool:
    """Return whether a shape is possible, given emb_dim only."""
    known = {("C",): width, ("H", "D"): width, ("S", "H", "D"): 3 * width}
    return all(known.get(dim, size) == size for dim, size in zip(dims, shape, strict=True))


def refuse_unknown(path: Path, tensors: Mapping[str, TensorInfo]) -> WeightsError:
    """Return the error for tensors of an unknown layout."""
    names = ", ".join(list(tensors)[:4]) + (", …" if len(tensors) > 4 else "")
    known = ", ".join(f"{name} ({next(iter(_known(name)))}, …)" for name in NAMED)
    return WeightsError(
        f"{path} holds {len(tensors)} tensors whose names belong to no layout that Clearhead knows: {names}; "
        f"it knows {known}."
    )


def stored_name(canonical: str, layout: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return the name under which a tensor that is not per layer is stored, or None."""
    index = next(index for index, row in enumerate(TABLE) if row.name == canonical)
    return next((match.name for match in _matches(layout, tensors) if match.row == index), None)


def has_qkv_bias(layout: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether any layer stores a bias of q, k and v."""
    return any(TABLE[match.row].needs == "qkv_bias" for match in _matches(layout, tensors))


_SAME_SHAPE = ("emb_dim", "n_layers", "context_length")


def same_shape(config: GPTConfig, beside: GPTConfig) -> bool:
    """Return whether a config found next to weights belongs to them, by width, layers and context."""
    return all(getattr(config, name) == getattr(beside, name) for name in _SAME_SHAPE)


def config_from_shapes(
    path: Path,
    layout: str,
    tensors: Mapping[str, TensorInfo],
    beside: GPTConfig | None = None,
    n_heads: int | None = None,
) -> tuple[GPTConfig, tuple[str, ...]]:
    """Infer a model's config from the shapes of its tensors (the head as if tied); return it with notes.

    Args:
        path: the file, for messages.
        layout: their naming scheme.
        tensors: the stored tensors.
        beside: the config in the same folder; if it has the same emb_dim, layers and context, it supplies what shapes
            do not tell (heads, dropout, the norm's epsilon, the activation function).

        n_heads: the number of heads, if the user says it.

    Raises:
        WeightsError: if a tensor that determines a size is missing, or the number of heads is unknown.
    """
    sizes: dict[str, int] = {}
    layers = set()
    for match in _matches(layout, tensors):
        layers |= {match.layer} - {None}
        for dim, size in zip(match.dims, tensors[match.name].shape, strict=True):
            if len(dim) == 1:
                sizes.setdefault(dim[0], size)
    for axis, canonical in _GIVES.items():
        if axis not in sizes:
            row = next(row for row in TABLE if row.name == canonical)
            cell = row.cells[layout]
            name = parse(cell if isinstance(cell, str) else cell[0])[0].replace("{i}", "0")
            raise WeightsError(f"{path} has no {name!r}; {LAYOUTS[layout].title} names were expected.")
    shape: dict[str, Any] = {
        "vocab_size": sizes["V"],
        "context_length": sizes["T"],
        "emb_dim": sizes["C"],
        "n_layers": 1 + max(layer for layer in layers if layer is not None),
        "ff_dim": sizes["F"],
    }
    flags: dict[str, Any] = {"qkv_bias": has_qkv_bias(layout, tensors), "tie_weights": True}
    if beside is not None and all(getattr(beside, name) == shape[name] for name in _SAME_SHAPE):
        return beside.replace(**shape, **flags), ()
    known = sizes.get("H", n_heads)
    heads, notes = _guess_heads(path, sizes["C"]) if known is None else (known, ())
    return GPTConfig(**shape, n_heads=heads, **flags), notes


_GIVES = {
    "V": "token_embedding.weight",
    "C": "token_embedding.weight",
    "T": "position_embedding.weight",
    "F": "blocks.{i}.feed_forward.up.weight",
}  # the tensor to name if the length of an axis is unknown


def _guess_heads(path: Path, width: int) -> tuple[int, tuple[str, ...]]:
    if width % _HEAD_WIDTH:
        raise WeightsError(
            f"{path} does not say how many attention heads the model has, and emb_dim {width} is no multiple of "
            f"{_HEAD_WIDTH}, the width of a head in the released GPT-2s; {_GIVE_CONFIG}."
        )
    heads = width // _HEAD_WIDTH
    return heads, (
        f"the file does not say how many attention heads the model has; {heads} are taken, {_HEAD_WIDTH} numbers "
        f"each as in the released GPT-2s. If the model was made with another number, {_GIVE_CONFIG}.",
    )
