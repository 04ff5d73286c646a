"""Make a conversion plan from names and shapes.

`make_plan` decides for every target tensor from which sources it comes. A target that no source fills, a source that
no target needs and no rule explains, and a shape that does not fit the model are errors that name the tensor.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.layouts import LAYOUTS, TABLE, Layout, LayoutRow, LayoutTensor, axis_sizes, layout_tensors
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.steps import SourceSlice, TargetStep, TensorReader
from clearhead.weights.tensors import FLOATS, TensorInfo, shape_words


def make_plan(
    sources: Mapping[str, TensorInfo],
    read: TensorReader,
    config: GPTConfig,
    origin: str,
    to: str,
    where: str,
    query_scales: tuple[float, ...] = (),
) -> ConversionPlan:
    """Decide how every tensor of the layout `to` is made from sources in the layout `origin`.

    Args:
        sources: the stored tensors, by name.
        read: returns a source's values by its stored name, when the plan runs.
        config: the shape of the model.
        origin: the sources' layout, a key of `LAYOUTS`.
        to: the targets' layout.
        where: what to call the sources in messages, such as the file's path.
        query_scales: for each layer, what the queries are multiplied by, if the stored model scales attention in
            another way than GPT-2.

    Raises:
        WeightsError: if a target is not filled, a source is not explained, or a shape does not fit.
    """
    stored = _StoredTensors(sources, LAYOUTS[origin], config, where)
    layout = LAYOUTS[to]
    steps: list[tuple[tuple[int, int, int], TargetStep]] = []
    tied: dict[str, str] = {}
    for index, row in enumerate(TABLE):
        if row.needs == "head" and not config.tie_weights and (to not in row.cells or layout.always_tied):
            raise WeightsError(
                f"{layout.title} cannot hold an output head of its own, and this model's head is not tied to its "
                "token embedding; save it in another layout."
            )
        for tensor in layout_tensors(row, to, config.n_layers):
            if row.needs == "head" and config.tie_weights and to == "canonical":
                tied[tensor.name] = TABLE[0].name
            elif (step := _step(row, tensor, layout, stored)) is not None:
                if query_scales and row.name in _QUERY_ROWS and tensor.fixed.get("S", 0) == 0 and step.slices:
                    step = replace(step, query_scales=query_scales, reason=_SCALED)
                steps.append((_model_order(index, tensor), step))
    ordered = tuple(step for _, step in sorted(steps, key=lambda pair: pair[0]))
    return ConversionPlan(origin, to, config, ordered, tied, stored.explain_unused(), sources, read)


_QUERY_ROWS = ("blocks.{i}.attention.qkv.weight", "blocks.{i}.attention.qkv.bias")
_SCALED = "the config scales attention in another way than GPT-2; the queries take that in"


def invert_plan(plan: ConversionPlan, read: TensorReader | None = None) -> ConversionPlan:
    """Return the plan in the other direction: from a plan's targets to its sources' layout.

    Args:
        plan: the plan to invert.
        read: returns a target's values by name; `plan.read` if None.

    Raises:
        WeightsError: if the origin's layout cannot hold the model.
    """
    infos = {name: TensorInfo(shape, "float32") for name, shape in plan.targets.items()}
    return make_plan(infos, read or plan.read, plan.config, plan.to, plan.origin, where="the plan's own targets")


def _step(row: LayoutRow, tensor: LayoutTensor, layout: Layout, stored: _StoredTensors) -> TargetStep | None:
    """Return the step that fills a target tensor; None if files in this layout omit the tensor for this model."""
    config = stored.config
    if row.needs == "head" and config.tie_weights:
        if not layout.keeps_head:
            return None
        reason = "the head is tied: a copy of the token embedding"
        return TargetStep(tensor.name, tensor, stored.slices(TABLE[0], tensor), reason)
    if row.needs == "qkv_bias" and not config.qkv_bias:
        reason = "the model has no bias on q, k and v"
        return TargetStep(tensor.name, tensor, (), reason) if layout.keeps_qkv_bias else None
    slices = stored.slices(row, tensor)
    return TargetStep(tensor.name, tensor, slices, "" if slices else "the model has no such bias")


_FIRST_OF_BLOCK = next(index for index, row in enumerate(TABLE) if "{i}" in row.name)


def _model_order(index: int, tensor: LayoutTensor) -> tuple[int, int, int]:
    """Return a sort key for targets: the rows of a block together, layer after layer."""
    return (_FIRST_OF_BLOCK, tensor.fixed["L"], index) if "L" in tensor.fixed else (index, 0, 0)


class _StoredTensors:
    """The tensors of a source, found by the names of its layout; keeps account of those that were used."""

    def __init__(self, sources: Mapping[str, TensorInfo], layout: Layout, config: GPTConfig, where: str) -> None:
        self.sources, self.layout, self.config, self.where = sources, layout, config, where
        self.sizes = axis_sizes(config)
        self.used: set[str] = set()
        self.missing: dict[str, str] = {}  # the stored name that was not found, and the target that needs it
        self.by_bare_name: dict[str, str] = {}
        for name in sources:
            first = self.by_bare_name.setdefault(layout.bare(name), name)
            if first != name:
                raise WeightsError(f"{where} holds both {first!r} and {name!r}, two names of one tensor; keep one.")

    def slices(self, row: LayoutRow, target: LayoutTensor) -> tuple[SourceSlice, ...]:
        """Return the source slices that fill a target; none if the layout allows them to be absent."""
        wanted = [
            tensor
            for tensor in layout_tensors(row, self.layout.name, self.config.n_layers, target.fixed.get("L"))
            if all(target.fixed.get(axis, at) == at for axis, at in tensor.fixed.items())
        ]
        present = [tensor for tensor in wanted if self.layout.bare(tensor.name) in self.by_bare_name]
        if not present and row.name in self.layout.may_lack:
            return ()
        if not wanted:
            self.missing.setdefault(target.name, target.name)
        for tensor in wanted:
            if tensor not in present:
                self.missing.setdefault(tensor.name, target.name)
        found = []
        for tensor in present:
            name = self.by_bare_name[self.layout.bare(tensor.name)]
            self.used.add(name)
            self._check(name, tensor)
            source_index = {axis: at for axis, at in target.fixed.items() if axis in tensor.axes}
            target_index = {axis: at for axis, at in tensor.fixed.items() if axis in target.axes}
            found.append(SourceSlice(name, self.sources[name], tensor, source_index, target_index))
        return tuple(found)

    def _check(self, name: str, tensor: LayoutTensor) -> None:
        """Raise if a source's shape or dtype is not the one that the model needs."""
        info, expected = self.sources[name], tensor.shape(self.sizes)
        if info.shape != expected:
            raise WeightsError(
                f"{self.where}: {name} has the shape {shape_words(info.shape)}, and the model's config "
                f"({_config_words(self.config)}) needs {shape_words(expected)}; "
                "the weights and the config belong to different models."
            )
        if info.dtype not in FLOATS:
            raise WeightsError(
                f"{self.where}: {name} is stored as {info.dtype}; weights in {', '.join(FLOATS[:-1])} or "
                f"{FLOATS[-1]} were expected. Quantized weights must be converted back first."
            )

    def explain_unused(self) -> dict[str, str]:
        """Return the sources that no target needed, each with its reason.

        Raises:
            WeightsError: if a target was left unfilled, or a source has no reason.
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
                f"{self.where} holds {_first(unexplained)}, which a GPT-2 with {_config_words(self.config)} "
                "does not have; the weights and the config belong to different models, or this is not a GPT-2."
            )
        return reasons

    def _not_needed(self) -> dict[str, str]:
        """Return the bare names of this layout that this model's settings make superfluous."""
        found = {}
        for row in TABLE:
            if row.needs == "head" and self.config.tie_weights:
                reason = "the head is tied: the same numbers as the token embedding"
            elif row.needs == "qkv_bias" and not self.config.qkv_bias and self.layout.keeps_qkv_bias:
                reason = "all zeros: the model has no bias on q, k and v"
            else:
                continue
            for tensor in layout_tensors(row, self.layout.name, self.config.n_layers):
                found[self.layout.bare(tensor.name)] = reason
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
        hint = f" (it does hold {near[0]!r}, which is not a name of that layout)" if near else ""
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
