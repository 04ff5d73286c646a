"""Run a batch of texts once and keep chosen activations, by our names or TransformerLens'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.inference.runner import check_token_ids
from clearhead.lens.activations import Activation, names
from clearhead.lens.aliases import Alias, resolve
from clearhead.lens.hooks import installed
from clearhead.lens.watching import Trace
from clearhead.model import GPTModel

Metric = Callable[[Tensor], Tensor]
"""From logits [B, T, V] to one number for each text, [B]."""


class ActivationCache(Mapping[str, Tensor]):
    """Activations of a batch of texts, by name, each [B, *shape of the longest text].

    Texts are padded at the end, and attention never looks ahead, so padding changes nothing before it. Entries of
    padding are 0.

    Attributes:
        ids: the tokens of each text.
        lengths: how many tokens each text has.
        gradients: of the metric with respect to each activation, by the same names; empty without a metric.
    """

    def __init__(self, ids: Sequence[Sequence[int]], values: Mapping[str, Tensor]) -> None:
        self.ids = tuple(tuple(text) for text in ids)
        self.lengths = tuple(len(text) for text in ids)
        self.gradients: dict[str, Tensor] = {}
        self._values = dict(values)

    def __getitem__(self, name: str) -> Tensor:
        """Return one activation of all texts.

        Raises:
            KeyError: if it was not asked for.
        """
        if name not in self._values:
            raise KeyError(f"{name!r} is not in the cache, which has {', '.join(list(self._values)[:8])}, ...")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def nbytes(self) -> int:
        """The memory that the values take, in bytes."""
        return sum(value.nbytes for value in self._values.values())

    def numpy(self, name: str) -> npt.NDArray[np.float32]:
        """Return one activation of all texts as a float32 array."""
        return np.asarray(self[name].float().cpu().numpy(), np.float32)

    def text(self, index: int, known: Iterable[Activation]) -> Trace[npt.NDArray[np.float32]]:
        """Return the activations of one text without padding; `known` tells which axes count tokens."""
        by_name = {one.name: one for one in known}
        n = self.lengths[index]
        values = {}
        for name, value in self._values.items():
            if name not in by_name:
                continue
            one = value[index]
            for axis, letter in enumerate(by_name[name].letters):
                if letter == "T":
                    one = one.narrow(axis, 0, n)
            values[name] = np.asarray(one.float().cpu().numpy(), np.float32)
        return Trace(values, self.ids[index])

    def __repr__(self) -> str:
        rows = [f"{name}  {list(value.shape)}" for name, value in self.items()]
        return "\n".join([f"{len(self.ids)} texts of {min(self.lengths)} to {max(self.lengths)} tokens", *rows])


class _StopPass(Exception):  # noqa: N818 - it ends a pass on purpose and never leaves this module
    """Every wanted activation is recorded."""


class _BatchRecorder:
    """An ActivationHook that keeps whole batches, and ends the pass after the last one that is wanted."""

    def __init__(self, activations: tuple[Activation, ...], keep_graph: bool, stop: bool) -> None:
        self.activations = activations
        self.recorded: dict[str, Tensor] = {}
        self._keep_graph, self._stop = keep_graph, stop

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        if self._keep_graph:
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            tensor.retain_grad()
            self.recorded[activation.name] = tensor
        else:
            self.recorded[activation.name] = tensor.detach().clone()
        if self._stop and len(self.recorded) == len(self.activations):
            raise _StopPass
        return tensor


def run_with_cache(
    model: GPTModel,
    texts: Sequence[Sequence[int]],
    wanted: str | Iterable[str] = "*",
    *,
    metric: Metric | None = None,
    hooks: Sequence[object] = (),
) -> ActivationCache:
    """Run a batch of texts through a model and return chosen activations of all of them.

    The weights are never changed. Without a metric no gradients are computed, and the pass ends as soon as the last
    wanted activation is computed: the layers above it are not run.

    Args:
        model: run in evaluation mode, and put back into its own mode afterwards.
        texts: token ids of each text, at least one token and at most context_length.
        wanted: names of activations, with wildcards; TransformerLens' names (`blocks.0.hook_resid_pre`) give its axis
            order.
        metric: from logits [B, T, V] to one number a text; then `gradients` has the derivative of their sum with
            respect to each wanted activation.
        hooks: more ActivationHooks that are installed in the pass.

    Raises:
        InputError: if there is no text, a name is unknown, or a text is empty, too long or has an unknown id.
    """
    aliases = resolve(wanted, names(model.config))
    ours = names(model.config).find({alias.activation for alias in aliases.values()})
    batch = padded(model, texts)
    recorder = _BatchRecorder(ours, metric is not None, metric is None)
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad() if metric is not None else torch.no_grad())
            for hook in hooks:
                stack.enter_context(installed(model, hook))  # type: ignore[arg-type]
            stack.enter_context(installed(model, recorder))
            try:
                logits = model(batch)
                if metric is not None:
                    scores = metric(logits)
                    _check_metric(scores, len(texts))
                    wrt = list(recorder.recorded.values())
                    found = torch.autograd.grad(scores.sum(), wrt, allow_unused=True)
            except _StopPass:
                pass
    finally:
        model.train(training)
    mask = _token_mask(batch, texts)
    values = {name: _converted(alias, recorder.recorded, ours, mask, model) for name, alias in aliases.items()}
    cache = ActivationCache(texts, values)
    if metric is not None:
        gradients = dict(zip(recorder.recorded, (_or_zero(g, t) for g, t in zip(found, wrt, strict=True)), strict=True))
        cache.gradients = {name: gradients[alias.activation].detach() for name, alias in aliases.items()}
    return cache


def padded(model: GPTModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return texts as one int64 batch [B, T], with id 0 after the end of shorter ones.

    Raises:
        InputError: if there is no text, or one is empty, too long or has an id outside the vocabulary.
    """
    config = model.config
    if not texts:
        raise InputError("there are no texts to run; give at least one.")
    for number, ids in enumerate(texts):
        if not 1 <= len(ids) <= config.context_length:
            raise InputError(
                f"text {number} has {len(ids):,} tokens; the model reads 1 to {config.context_length:,}. Shorten it, "
                "or leave it out."
            )
        check_token_ids(ids, config.vocab_size)
    longest = max(map(len, texts))
    rows = [[*ids, *[0] * (longest - len(ids))] for ids in texts]
    return torch.tensor(rows, device=model.token_embedding.weight.device)


def _check_metric(scores: Tensor, n_texts: int) -> None:
    if scores.shape != (n_texts,):
        raise InputError(
            f"the metric returned shape {list(scores.shape)} for {n_texts} texts; one number for each text, "
            f"[{n_texts}], was expected."
        )


def _or_zero(gradient: Tensor | None, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if gradient is None else gradient


def _token_mask(batch: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    lengths = torch.tensor([len(ids) for ids in texts], device=batch.device)
    return torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]  # [B, T]


def _converted(
    alias: Alias,
    recorded: Mapping[str, Tensor],
    ours: tuple[Activation, ...],
    mask: Tensor,
    model: GPTModel,
) -> Tensor:
    """Return one activation with zeros for padding, under the wanted name's axis order."""
    activation = next(one for one in ours if one.name == alias.activation)
    value = recorded[alias.activation].detach()
    if value.shape[0] != mask.shape[0]:  # position embeddings are shared by all texts
        value = value.expand(mask.shape[0], *value.shape[1:])
    if not bool(mask.all()):
        for axis, letter in enumerate(activation.letters, start=1):
            if letter == "T":
                shape = [mask.shape[0], *([1] * (value.ndim - 1))]
                shape[axis] = mask.shape[1]
                value = value.masked_fill(~mask.view(shape), 0.0)
    return alias.convert(value, model.config)
