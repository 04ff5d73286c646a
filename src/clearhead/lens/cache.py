"""Run a batch of texts once and keep chosen activations, by our names or TransformerLens'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.activations import Activation
from clearhead.lens.editing import Edit, EditedRows
from clearhead.lens.hooks import check_network, installed
from clearhead.lens.results import ActivationCache
from clearhead.lens.selection import check_texts, select
from clearhead.model import GPTModel

Metric = Callable[[Tensor], Tensor]
"""From logits [B, T, V] to one number for each text, [B]."""

BATCH_SIZE = 32
"""Texts that run together; more take memory and save no time."""


class CacheOptions(TypedDict, total=False):
    """The options of `run_with_cache`."""

    positions: int | Sequence[int] | None
    metric: Metric | None
    edits: Sequence[Edit | Sequence[Edit]] | None
    batch_size: int


def run_with_cache(
    model: GPTModel,
    texts: Sequence[Sequence[int]],
    wanted: str | Iterable[str] = "*",
    *,
    positions: int | Sequence[int] | None = None,
    metric: Metric | None = None,
    edits: Sequence[Edit | Sequence[Edit]] | None = None,
    batch_size: int = BATCH_SIZE,
) -> ActivationCache[Tensor]:
    """Run texts through a model and return chosen activations of all of them.

    The weights are never changed. Without a metric no gradients are computed, and a pass ends as soon as the last
    wanted activation is computed: the layers above it are not run.

    Args:
        model: run in evaluation mode, and put back into its own mode afterwards.
        texts: token ids of each text, at least one token and at most context_length.
        wanted: names of activations, with wildcards; TransformerLens' names (`blocks.0.hook_resid_pre`) give its axis
            order.
        positions: keep the tokens at these positions only (for scores and patterns, their rows); negative ones count
            from each text's end.
        metric: from logits [B, T, V] to one number a text; then `gradients` has the derivative of their sum with
            respect to each wanted activation, and all texts run together.
        edits: what to change in each text: for each one an `Edit`, or a list of them. To compare many edits of one
            text, give the text many times.
        batch_size: how many texts run together; texts of similar length do.

    Raises:
        InputError: if there is no text, a name is unknown, a text is empty, too long or has an unknown id, or a
            position is outside a text.
    """
    check_network(model)
    selection = select(model.config, texts, wanted, positions)
    if edits is not None and len(edits) != len(texts):
        raise InputError(f"there are {len(edits)} edits for {len(texts)} texts; give one, or a list, for each text.")
    chosen = None if selection.positions is None else torch.from_numpy(selection.positions)
    edited = None if edits is None else EditedRows(model.config, edits)
    plan = _PassPlan(model, selection.activations, metric, edited)
    if metric is not None or len(texts) <= batch_size:
        values, gradients = plan.run(texts, chosen, list(range(len(texts))))
    else:
        values, gradients = _in_batches(plan, texts, chosen, batch_size), {}
    return selection.cache(values, gradients)


@dataclass(frozen=True)
class _PassPlan:
    """What to record and edit in passes over batches of texts."""

    model: GPTModel
    activations: tuple[Activation, ...]
    metric: Metric | None
    edits: EditedRows | None

    def run(
        self, texts: Sequence[Sequence[int]], positions: Tensor | None, rows: list[int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run one batch: return its activations and gradients by name, [B, *shape], with 0 for padding.

        Args:
            texts: the texts of the batch.
            positions: the positions to keep of each, int64 [B, P].
            rows: the index of each text among all, to find its edits.
        """
        batch = padded(self.model, texts)
        recorder = _BatchRecorder(self.activations, self.metric is not None)
        at = torch.arange(batch.shape[1], device=batch.device).expand(batch.shape)  # [B, T]
        gradients: list[Tensor | None] = []
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(torch.enable_grad() if self.metric is not None else torch.no_grad())
            if self.edits is not None:
                stack.enter_context(installed(self.model, self.edits.of(rows)))
            stack.enter_context(installed(self.model, recorder))
            try:
                logits = self.model(batch, at)
                if self.metric is not None:
                    scores = self.metric(logits)
                    _check_metric(scores, len(texts))
                    wrt = list(recorder.recorded.values())
                    gradients = list(torch.autograd.grad(scores.sum(), wrt, allow_unused=True))
            except _StopPass:
                pass
        mask = at < torch.tensor([len(ids) for ids in texts], device=batch.device)[:, None]
        found = {one.name: recorder.recorded[one.name].detach() for one in self.activations}
        by_name = dict(zip(recorder.recorded, gradients, strict=True)) if gradients else {}
        slopes = {name: _or_zero(by_name[name], value) for name, value in found.items()} if gradients else {}
        kept = [
            {one.name: _kept(one, values[one.name], mask, positions) for one in self.activations if values}
            for values in (found, slopes)
        ]
        return kept[0], kept[1]


def _in_batches(
    plan: _PassPlan, texts: Sequence[Sequence[int]], positions: Tensor | None, batch_size: int
) -> dict[str, Tensor]:
    """Return the activations of many texts, run one batch at a time."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of similar length: little padding
    longest = len(texts[order[-1]])
    whole: dict[str, Tensor] = {}
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        values, _ = plan.run([texts[i] for i in rows], None if positions is None else positions[rows], rows)
        for activation in plan.activations:
            value = values[activation.name]
            if activation.name not in whole:
                shape = list(activation.shape(plan.model.config, longest))
                if positions is not None:
                    shape[activation.token_axis] = positions.shape[1]
                whole[activation.name] = value.new_zeros(len(texts), *shape)
            for row, one in zip(rows, value, strict=True):
                whole[activation.name][row][tuple(slice(0, size) for size in one.shape)] = one
    return whole


class _StopPass(Exception):  # noqa: N818 - it ends a pass on purpose and never leaves this module
    """Every wanted activation is recorded."""


class _BatchRecorder:
    """An ActivationHook that keeps whole batches, and without gradients ends the pass after the last wanted one."""

    def __init__(self, activations: tuple[Activation, ...], keep_graph: bool) -> None:
        self.activations = activations
        self.recorded: dict[str, Tensor] = {}
        self._keep_graph = keep_graph

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        if self._keep_graph:
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            self.recorded[activation.name] = tensor
            return tensor
        # A copy: an edit's function may still write into the tensor.
        self.recorded[activation.name] = tensor.detach().clone()
        if len(self.recorded) == len(self.activations):
            raise _StopPass
        return tensor


@contextmanager
def evaluating(model: GPTModel) -> Iterator[None]:
    """Put a model into evaluation mode inside a `with`, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def padded(model: GPTModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return texts as one int64 batch [B, T] on the model's device, with id 0 after the end of shorter ones.

    Raises:
        InputError: as `selection.check_texts`.
    """
    check_network(model)
    check_texts(model.config, texts)
    longest = max(map(len, texts))
    rows = [[*ids, *[0] * (longest - len(ids))] for ids in texts]
    return torch.tensor(rows, device=model.token_embedding.weight.device)


def _kept(activation: Activation, value: Tensor, mask: Tensor, positions: Tensor | None) -> Tensor:
    """Return a recorded batch with 0 for padding, at the chosen positions only.

    Args:
        activation: what it is.
        value: [B, *shape].
        mask: True for tokens and False for padding, [B, T].
        positions: [B, P], or None for all.
    """
    if not bool(mask.all()):
        for axis, letter in enumerate(activation.letters, start=1):
            if letter == "T":
                value = value.masked_fill(~_along(mask, axis, value.ndim), 0.0)
    if positions is None:
        return value
    axis = activation.token_axis + 1
    return torch.take_along_dim(value, _along(positions.to(value.device), axis, value.ndim), dim=axis)


def _along(rows: Tensor, axis: int, ndim: int) -> Tensor:
    """Return rows [B, T] as a view whose second axis is the given one of ndim."""
    shape = [rows.shape[0], *([1] * (ndim - 1))]
    shape[axis] = rows.shape[1]
    return rows.view(shape)


def _check_metric(scores: Tensor, n_texts: int) -> None:
    if scores.shape != (n_texts,):
        raise InputError(
            f"the metric returned shape {list(scores.shape)} for {n_texts} texts; one number for each text, "
            f"[{n_texts}], was expected."
        )


def _or_zero(gradient: Tensor | None, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if gradient is None else gradient
