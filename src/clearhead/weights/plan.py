"""The plan that turns one scheme's tensors into another's: made from names and shapes, looked at, then run.

`make_plan` decides for every target tensor from which sources it comes. Nothing is left to chance: a
target that no source fills, a source that no target needs and no rule explains, and a shape that does
not fit the model are errors that name the tensor. Data is read only when the plan runs, one target at a
time, and a plan between two schemes can be made in either direction (`Plan.invert`).

Example:
    >>> plan = clearhead.weights.open("models/gpt2").plan()
    >>> for row in plan.rows():
    ...     print(row.target, row.shape, row.operations, row.sources)
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.layouts import LAYOUTS, TABLE, Layout, Piece, Row, axis_sizes, pieces
from clearhead.weights.tensors import FLOATS, TensorInfo, shape_words

_MOST_THREADS = 4  # more do not move memory faster

Read = Callable[[str], np.ndarray]
"""Gives a source's values by name. One with a method `layer(name, i)` also gives one layer of a stack of them,
for files in which reading the whole stack would be a lot of work or memory."""


@dataclass(frozen=True)
class PlanRow:
    """One line of a plan, for printing.

    Attributes:
        target: the tensor that is made; empty for a source that is ignored.
        shape: the target's shape (the source's, where it is ignored).
        sources: the stored tensors that it comes from.
        operations: what is done, in order: `take`, `squeeze`, `split`, `transpose`, `rearrange`, `reshape`, `stack`,
            `unsqueeze`, `cast`, `zeros`, `tie`, `ignore`.
        reason: why, where the tensor is tied, filled with zeros or ignored.
    """

    target: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    operations: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """What one source gives to a target.

    Attributes:
        source: the stored name.
        info: what is stored under it.
        piece: its axes.
        pick: the place to take on axes that the source has and the target has not (one layer, or one of q, k, v).
        put: where it goes on axes that the target has and the source has not.
    """

    source: str
    info: TensorInfo
    piece: Piece
    pick: dict[str, int] = field(hash=False)
    put: dict[str, int] = field(hash=False)

    def moved(self, values: np.ndarray, target: Piece, sizes: dict[str, int]) -> np.ndarray:
        """The source's values with one dimension per axis, in the target's order; a view of contiguous `values`."""
        axes = self.piece.axes
        spread = values.reshape([sizes[axis] for axis in axes])
        picked = spread[tuple(self.pick.get(axis, slice(None)) for axis in axes)]
        left = [axis for axis in axes if axis not in self.pick]
        return picked.transpose([left.index(axis) for axis in target.axes if axis not in self.put])

    def take(self, read: Read, target: Piece, sizes: dict[str, int]) -> np.ndarray:
        """The source's values as `moved` gives them, read."""
        read_layer = getattr(read, "layer", None)
        if read_layer is None or "L" not in self.pick or self.piece.dims[0] != ("L",):
            return self.moved(read(self.source), target, sizes)
        pick = {axis: place for axis, place in self.pick.items() if axis != "L"}
        one = replace(self, piece=replace(self.piece, dims=self.piece.dims[1:]), pick=pick)
        return one.moved(read_layer(self.source, self.pick["L"]), target, sizes)

    def operations(self, target: Piece) -> list[str]:
        """The names of what `moved` does, for a table."""
        found = ["take"]
        if () in self.piece.dims:
            found.append("squeeze")
        if self.pick:
            found.append("split")
        before = [tuple(a for a in dim if a not in self.pick) for dim in self.piece.dims]
        before = [dim for dim in before if dim]
        after = [tuple(a for a in dim if a not in self.put) for dim in target.dims]
        after = [dim for dim in after if dim]
        if before == after:
            pass
        elif len(before) == 2 and before == after[::-1]:
            found.append("transpose")
        elif [a for dim in before for a in dim] == [a for dim in after for a in dim]:
            found.append("reshape")
        else:
            found.append("rearrange")
        return found


@dataclass(frozen=True)
class Fill:
    """One target tensor and the sources that fill it; none: zeros.

    Attributes:
        target: the name to make.
        piece: its axes.
        parts: what it is made of.
        reason: why it is zeros, or a copy.
    """

    target: str
    piece: Piece
    parts: tuple[Part, ...]
    reason: str = ""

    def make(self, read: Read, sizes: dict[str, int], dtype: np.dtype | None, in_rows: bool = True) -> np.ndarray:
        """The target's values; the source's own memory where nothing has to be done.

        Contiguous; where `in_rows` is False, a matrix that is stored turned is given as a view, column by column.
        """
        shape = self.piece.shape(sizes)
        if not self.parts:
            return np.zeros(shape, dtype or np.float32)
        if not self.parts[0].put:
            (part,) = self.parts
            # A view, unless axes are merged that do not lie side by side.
            moved = part.take(read, self.piece, sizes).reshape(shape)
            if moved.ndim == 2 and moved.strides[0] == moved.itemsize and moved.size > _TILE**2:
                if not in_rows and dtype in (None, moved.dtype):
                    return moved
                return _turned(moved, dtype or moved.dtype)
            return np.ascontiguousarray(moved, dtype)
        out: np.ndarray | None = None
        for part in self.parts:
            values = part.take(read, self.piece, sizes)
            if out is None:
                out = np.empty([sizes[axis] for axis in self.piece.axes], dtype or values.dtype)
            out[tuple(part.put.get(axis, slice(None)) for axis in self.piece.axes)] = values
        assert out is not None
        return out.reshape(shape)

    def layers(self, n_layers: int) -> list[Fill]:
        """The fills of each layer alone, where the target is a stack of layers; else this one.

        Made one after another they give the target's values in order, with one layer in memory at a time.
        """
        if not self.piece.dims or self.piece.dims[0] != ("L",):
            return [self]
        found = []
        for layer in range(n_layers):
            piece = replace(self.piece, dims=self.piece.dims[1:], at={**self.piece.at, "L": layer})
            parts = [  # a source that is itself a stack gives every layer, another only its own
                replace(part, pick={**part.pick, "L": layer})
                if "L" not in part.put
                else replace(part, put={axis: place for axis, place in part.put.items() if axis != "L"})
                for part in self.parts
                if part.put.get("L", layer) == layer
            ]
            found.append(replace(self, piece=piece, parts=tuple(parts)))
        return found

    def operations(self) -> tuple[str, ...]:
        """The names of what `make` does to give float32."""
        if not self.parts:
            return ("zeros",)
        found = self.parts[0].operations(self.piece)
        if self.parts[0].put:
            found.append("stack")
        if () in self.piece.dims:
            found.append("unsqueeze")
        if any(part.info.dtype != "float32" for part in self.parts):
            found.append("cast")
        return tuple(found)


_TILE = 192  # rows and columns: 147 KB in float32, which the processor has at hand


def _turned(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy of a matrix that lies column by column; twice as fast as NumPy's own.

    Going down one of the two, every number lies in another line of the cache, and where a row has a power of two
    bytes all of them want the same few places there. So a tile is first copied row by row to where rows have an
    odd length, and turned from there.
    """
    rows, columns = values.shape
    out = np.empty((rows, columns), dtype)
    beside = np.empty((_TILE, _TILE + 16), dtype)
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = values[row : row + _TILE, column : column + _TILE].T
            near = beside[: tile.shape[0], : tile.shape[1]]
            near[:] = tile
            out[row : row + _TILE, column : column + _TILE] = near.T
    return out


@dataclass(frozen=True)
class Plan:
    """How every tensor of one scheme is made from another's.

    Attributes:
        origin: the layout of the sources.
        to: the layout of the targets.
        config: the model's shape.
        fills: the targets, in the order of the model.
        tied: targets that are another target's own tensor, by name; `run` gives each tensor once.
        ignored: sources that are not used, with the reason.
        sources: everything that the source holds.
    """

    origin: str
    to: str
    config: GPTConfig
    fills: tuple[Fill, ...]
    tied: Mapping[str, str]
    ignored: Mapping[str, str]
    sources: Mapping[str, TensorInfo]
    _read: Read = field(repr=False, compare=False)

    @cached_property
    def _by_target(self) -> dict[str, Fill]:
        return {fill.target: fill for fill in self.fills}

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """The shape of every target that `run` gives, by name."""
        sizes = axis_sizes(self.config)
        return {fill.target: fill.piece.shape(sizes) for fill in self.fills}

    def rows(self) -> list[PlanRow]:
        """The plan as lines of a table: every target, then every source that is ignored."""
        shapes = self.targets
        rows = [
            PlanRow(f.target, shapes[f.target], tuple(p.source for p in f.parts), f.operations(), f.reason)
            for f in self.fills
        ]
        for name, other in self.tied.items():
            rows.append(PlanRow(name, shapes[other], (other,), ("tie",), "the head is the token embedding"))
        for name, reason in self.ignored.items():
            rows.append(PlanRow("", self.sources[name].shape, (name,), ("ignore",), reason))
        return rows

    def read(self, target: str, dtype: str | None = "float32", in_rows: bool = True) -> np.ndarray:
        """One target's values; see `run`.

        Args:
            target: its name.
            dtype: as `run` takes it.
            in_rows: False lets a matrix that is stored turned stay as it lies, column by column: nothing is copied.

        Raises:
            KeyError: where the plan makes no such target.
            WeightsError: where the data cannot be read.
        """
        fill = self._by_target[self.tied.get(target, target)]
        return fill.make(self._read, axis_sizes(self.config), None if dtype is None else np.dtype(dtype), in_rows)

    def run(self, dtype: str | None = "float32") -> Iterator[tuple[str, np.ndarray]]:
        """Every target with its values, one at a time, in the order of the model.

        Args:
            dtype: the NumPy type to give; None for the stored one (bfloat16, which NumPy lacks, as float32).

        Yields:
            A name and a contiguous array. It may be a view of the file; changing it changes no file.

        Raises:
            WeightsError: where the data cannot be read.
        """
        sizes = axis_sizes(self.config)
        for fill in self.fills:
            yield fill.target, fill.make(self._read, sizes, None if dtype is None else np.dtype(dtype))

    def run_ahead(self) -> Iterator[tuple[str, np.ndarray]]:
        """The same as `run`, with several targets made at a time: for who keeps them all."""
        from concurrent.futures import ThreadPoolExecutor  # here, as a plan that is only looked at needs no threads

        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            try:
                yield from zip(self.targets, pool.map(self.read, self.targets), strict=True)
            finally:
                pool.shutdown(cancel_futures=True)

    def pieces(self, target: str) -> Iterator[np.ndarray]:
        """One target's values as stored (see `run`), in order and in pieces: layer by layer, where it is a stack.

        Raises:
            KeyError: where the plan makes no such target.
            WeightsError: where the data cannot be read.
        """
        sizes = axis_sizes(self.config)
        for fill in self._by_target[target].layers(self.config.n_layers):
            yield fill.make(self._read, sizes, None)

    def watched(self, tell: Callable[[int], None]) -> Plan:
        """The same plan; whenever a source is read, `tell` hears how many bytes of the file that was."""
        return replace(self, _read=_Watched(self._read, self.sources, self.config.n_layers, tell))

    @property
    def used_bytes(self) -> int:
        """How many bytes the sources have that the plan reads."""
        used = {part.source: part.info.nbytes for fill in self.fills for part in fill.parts}
        return sum(used.values())

    def invert(self, read: Read | None = None) -> Plan:
        """The plan that leads back: from this one's targets to its sources' scheme.

        Args:
            read: gives a target's values by name; this plan's own reading where it is left out.
        """
        infos = {name: TensorInfo(shape, "float32") for name, shape in self.targets.items()}
        return make_plan(infos, read or self.read, self.config, self.to, self.origin, where="the plan's own targets")


class _Watched:
    """Reads as another reader does, and tells how much."""

    def __init__(
        self, read: Read, sources: Mapping[str, TensorInfo], n_layers: int, tell: Callable[[int], None]
    ) -> None:
        self._read, self._sources, self._n_layers, self._tell = read, sources, n_layers, tell
        if (read_layer := getattr(read, "layer", None)) is not None:
            self._read_layer = read_layer
            self.layer = self._one_layer

    def __call__(self, name: str) -> np.ndarray:
        """One tensor."""
        values = self._read(name)
        self._tell(self._sources[name].nbytes)
        return values

    def _one_layer(self, name: str, layer: int) -> np.ndarray:
        values: np.ndarray = self._read_layer(name, layer)
        self._tell(self._sources[name].nbytes // self._n_layers)
        return values


class LazyTensors(Mapping[str, np.ndarray]):
    """A plan's targets as a mapping that reads a tensor when it is asked for; tied names are in it too.

    With `in_rows` False, matrices that are stored turned are not copied: they lie column by column.
    """

    def __init__(self, plan: Plan, in_rows: bool = True) -> None:
        self._plan, self._in_rows = plan, in_rows
        self._names = [*plan.targets, *plan.tied]

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor as float32, read anew each time."""
        return self._plan.read(name, in_rows=self._in_rows)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        return self._plan.targets[self._plan.tied.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the model."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._names)


def make_plan(
    sources: Mapping[str, TensorInfo], read: Read, config: GPTConfig, origin: str, to: str, where: str
) -> Plan:
    """Decides how every tensor of the layout `to` is made from sources in the layout `origin`.

    Args:
        sources: what is there, by stored name.
        read: gives a source's values by its stored name, when the plan runs.
        config: the shape of the model.
        origin: the sources' layout, a key of `LAYOUTS`.
        to: the targets' layout.
        where: what to call the sources in messages, such as the file's path.

    Raises:
        WeightsError: where a target is not filled, a source is not explained, or a shape does not fit.
    """
    stored = _Stored(sources, LAYOUTS[origin], config, where)
    target = LAYOUTS[to]
    fills: list[tuple[tuple[int, int, int], Fill]] = []
    tied: dict[str, str] = {}
    for index, row in enumerate(TABLE):
        if row.needs == "head" and not config.tie_weights and (to not in row.cells or target.always_tied):
            raise WeightsError(
                f"{target.title} has no place for an output head of its own, and this model's head is not tied "
                "to its token embedding; save it in another form."
            )
        for piece in pieces(row, to, config.n_layers):
            if row.needs == "head" and config.tie_weights and to == "canonical":
                tied[piece.name] = TABLE[0].name
            elif (fill := _fill(row, piece, target, stored)) is not None:
                fills.append((_place(index, piece), fill))
    ordered = tuple(fill for _, fill in sorted(fills, key=lambda placed: placed[0]))
    return Plan(origin, to, config, ordered, tied, stored.explain_the_rest(), sources, read)


def _fill(row: Row, piece: Piece, target: Layout, stored: _Stored) -> Fill | None:
    """What fills one tensor of the target layout; None where this model's files in that layout do not hold it."""
    config = stored.config
    if row.needs == "head" and config.tie_weights:
        if not target.keeps_head:
            return None
        return Fill(piece.name, piece, stored.parts(TABLE[0], piece), "the head is tied: a copy of the token embedding")
    if row.needs == "qkv_bias" and not config.qkv_bias:
        return Fill(piece.name, piece, (), "the model has no bias on q, k and v") if target.keeps_qkv_bias else None
    parts = stored.parts(row, piece)
    return Fill(piece.name, piece, parts, "" if parts else "the model has no such bias")


_FIRST_OF_BLOCK = next(index for index, row in enumerate(TABLE) if "{i}" in row.name)


def _place(index: int, piece: Piece) -> tuple[int, int, int]:
    """Where a target stands in the order of the model: the rows of a block together, layer after layer."""
    return (_FIRST_OF_BLOCK, piece.at["L"], index) if "L" in piece.at else (index, 0, 0)


class _Stored:
    """What a source holds, looked up by the names of its layout; keeps account of what has been used."""

    def __init__(self, sources: Mapping[str, TensorInfo], layout: Layout, config: GPTConfig, where: str) -> None:
        self.sources, self.layout, self.config, self.where = sources, layout, config, where
        self.sizes = axis_sizes(config)
        self.used: set[str] = set()
        self.missing: dict[str, str] = {}  # the stored name that is not there, and the target that needs it
        self.by_bare: dict[str, str] = {}
        for name in sources:
            first = self.by_bare.setdefault(layout.bare(name), name)
            if first != name:
                raise WeightsError(f"{where} holds both {first!r} and {name!r}, two names of one tensor; keep one.")

    def parts(self, row: Row, target: Piece) -> tuple[Part, ...]:
        """The sources that fill a target; empty where the layout lets them be absent."""
        wanted = [
            piece
            for piece in pieces(row, self.layout.name, self.config.n_layers)
            if all(target.at.get(axis, place) == place for axis, place in piece.at.items())
        ]
        there = [piece for piece in wanted if self.layout.bare(piece.name) in self.by_bare]
        if not there and row.name in self.layout.may_lack:
            return ()
        if not wanted:
            self.missing.setdefault(target.name, target.name)
        for piece in wanted:
            if piece not in there:
                self.missing.setdefault(piece.name, target.name)
        found = []
        for piece in there:
            name = self.by_bare[self.layout.bare(piece.name)]
            self.used.add(name)
            self._check(name, piece)
            pick = {axis: place for axis, place in target.at.items() if axis in piece.axes}
            put = {axis: place for axis, place in piece.at.items() if axis in target.axes}
            found.append(Part(name, self.sources[name], piece, pick, put))
        return tuple(found)

    def _check(self, name: str, piece: Piece) -> None:
        """Raises where a source's shape or number format is not what the model needs."""
        info, due = self.sources[name], piece.shape(self.sizes)
        if info.shape != due:
            raise WeightsError(
                f"{self.where}: {name} has the shape {shape_words(info.shape)}, and the model's config "
                f"({_config_words(self.config)}) needs {shape_words(due)}; "
                "the weights and the config belong to different models."
            )
        if info.dtype not in FLOATS:
            raise WeightsError(
                f"{self.where}: {name} is stored as {info.dtype}; weights in {', '.join(FLOATS[:-1])} or "
                f"{FLOATS[-1]} were expected. Quantized weights must be converted back first."
            )

    def explain_the_rest(self) -> dict[str, str]:
        """The sources that no target needed, each with its reason.

        Raises:
            WeightsError: where a target was left unfilled, or a source has no reason.
        """
        reasons, unexplained = {}, []
        optional = self._not_needed()
        for name in self.sources:
            if name in self.used:
                continue
            reason = optional.get(self.layout.bare(name)) or self.layout.reason_to_ignore(name)
            if reason is None:
                unexplained.append(name)
            else:
                reasons[name] = reason
        if self.missing:
            self._refuse_missing(unexplained)
        if unexplained:
            raise WeightsError(
                f"{self.where} holds {_first(unexplained)}, for which a GPT-2 with {_config_words(self.config)} "
                "has no place; the weights and the config belong to different models, or this is no GPT-2."
            )
        return reasons

    def _not_needed(self) -> dict[str, str]:
        """Bare names of this layout that this model's settings make superfluous."""
        found = {}
        for row in TABLE:
            if row.needs == "head" and self.config.tie_weights:
                reason = "the head is tied: the same numbers as the token embedding"
            elif row.needs == "qkv_bias" and not self.config.qkv_bias and self.layout.keeps_qkv_bias:
                reason = "all zeros: the model has no bias on q, k and v"
            else:
                continue
            for piece in pieces(row, self.layout.name, self.config.n_layers):
                found[self.layout.bare(piece.name)] = reason
        return found

    def _refuse_missing(self, unexplained: list[str]) -> None:
        name, target = next(iter(self.missing.items()))
        if target == "head.weight":
            raise WeightsError(
                f"{self.where} has no {name}, and the model's config says that the output head is not tied to the "
                "token embedding; if it is, say so in the config (tie_word_embeddings: true)."
            )
        more = f" and {len(self.missing) - 1} more tensors" if len(self.missing) > 1 else ""
        near = difflib.get_close_matches(name, unexplained, n=1)
        hint = f" (it does hold {near[0]!r}, which is no name of that scheme)" if near else ""
        raise WeightsError(
            f"{self.where} has no {name!r}{more}{hint}, so {target} of a model with {_config_words(self.config)} "
            f"cannot be filled; {self.layout.title} names were expected."
        )


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return repr(listed[0]) + (f" and {len(listed) - 1} more tensors" if len(listed) > 1 else "")


def _config_words(config: GPTConfig) -> str:
    return (
        f"vocab_size {config.vocab_size}, context_length {config.context_length}, emb_dim {config.emb_dim}, "
        f"n_heads {config.n_heads}, n_layers {config.n_layers}"
    )
