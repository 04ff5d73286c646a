"""Group names that differ in their layer only: `blocks.{0..11}.norm_1.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from clearhead.utils.text import printable
from clearhead.weights.layouts import LAYOUTS, TABLE, Layout, parse

# The first part of a name that is a number, or h and a number. It is not used for names of the table, whose layer
# is known.
_NUMBER = re.compile(r"(?:(?<![^./])|(?<=/h))\d+(?=[./])")


@dataclass(frozen=True)
class NamePattern:
    """One name, or the names that one pattern gives for several layers.

    Attributes:
        template: the name, with `{i}` for the layer if there are layers.
        layers: the layers, ascending; empty for a name without one.
    """

    template: str
    layers: tuple[int, ...] = ()

    def at(self, layer: int) -> str:
        """Return the name for one layer; the name itself if it has no layer."""
        return self.template.replace("{i}", str(layer)) if self.layers else self.template

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the pattern."""
        return tuple(self.at(layer) for layer in self.layers) if self.layers else (self.template,)

    @property
    def label(self) -> str:
        """The pattern as text: `h.{0..11}.ln_1.weight`; for one layer its name."""
        words = layer_words(self.layers)
        return printable(self.template.replace("{i}", words) if self.layers else self.template)


def layer_words(layers: tuple[int, ...]) -> str:
    """Return layers as text: `{0..11}`, `{0..3,7}`; a single layer without braces."""
    if len(layers) == 1:
        return str(layers[0])
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs) + "}"


def layer_of(name: str, layout: Layout) -> tuple[str, int | None]:
    """Split a name into template and layer: `("transformer.h.{i}.ln_1.weight", 3)`; the layer is None if it has none.

    Args:
        name: as stored; prefixes of the layout stay in the template.
        layout: the layout of the name.
    """
    bare = layout.bare(name)
    start = len(name) - len(bare)
    known = next((match for pattern in _patterns(layout.name) if (match := pattern.fullmatch(bare))), None)
    match = known or _NUMBER.search(bare)
    if match is None or bare in _without_layer(layout.name):
        return name, None
    first, last = match.span(1) if known else match.span()
    return name[: start + first] + "{i}" + name[start + last :], int(bare[first:last])


def group_layers(names: Iterable[str], layout: Layout) -> list[NamePattern]:
    """Group names that differ in their layer only, in the order of first occurrence."""
    layers: dict[str, list[int]] = {}
    for name in names:
        template, layer = layer_of(name, layout)
        layers.setdefault(template, []).extend([] if layer is None else [layer])
    return [NamePattern(template, tuple(sorted(found))) for template, found in layers.items()]


def _names(layout: str) -> list[str]:
    """Return the names in a layout's column without prefixes, with `{i}` for the layer."""
    cells = [cell for row in TABLE if (cell := row.cells.get(layout)) is not None]
    written = [one for cell in cells for one in ((cell,) if isinstance(cell, str) else cell)]
    return [LAYOUTS[layout].bare(parse(one)[0]) for one in written]


@cache
def _patterns(layout: str) -> tuple[re.Pattern[str], ...]:
    parts = [name.split("{i}") for name in _names(layout) if "{i}" in name]
    return tuple(re.compile(r"(\d+)".join(map(re.escape, part))) for part in parts)


@cache
def _without_layer(layout: str) -> frozenset[str]:
    return frozenset(name for name in _names(layout) if "{i}" not in name)
