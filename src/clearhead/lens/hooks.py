"""Reach the activations inside a running model, without any code for it in the model.

While an `ActivationHook` is installed, each activation that it names is passed to it; it may record it, return a
changed one, or both. Most activations are the input or the output of a module and are reached by torch's own hooks. The
others are computed inside a module, and are reached by replacing that computation:

- queries, keys, values, scores, pattern, mixed: attention gets an attention function that has these steps one by one,
  as `model.plain_attention` does;
- a norm's mean and variance are computed in addition to it, and its output again if one of them was changed;
- a changed embedding.token is added to the position embedding again;
- residual_mid is both the input of norm_2 and what the feed-forward's output is added to, so a changed one is added
  again at the end of the block.

Without an ActivationHook there is no torch hook either: a model that is not watched runs as if this file did not exist.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.errors import InputError
from clearhead.lens.activations import Activation
from clearhead.model import AttentionFn, Block, CausalSelfAttention, GPTModel, LayerNorm


class ActivationHook(Protocol):
    """A function that is called with activations, and the activations that it asks for."""

    activations: tuple[Activation, ...]

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        """Receive an activation when it is computed, and return the tensor that the model continues with.

        Args:
            activation: which one.
            tensor: [B, *the activation's shape], with T the tokens of this pass; in a pass that continues from a
                cache, the last axis of scores and pattern counts the cached tokens too.
            positions: the position of each token in its sequence, int64 [B, T].
        """


class _ModelHooks:
    """The torch hooks on one model, for all installed ActivationHooks: each activation passes through them in turn."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.installed: list[ActivationHook] = []
        self.activations: dict[str, Activation] = {}
        self.positions = torch.zeros(1, 1, dtype=torch.int64)
        self.handles: list[Any] = []

    def set(self, hooks: list[ActivationHook]) -> None:
        """Remove all torch hooks and register those that these hooks need."""
        while self.handles:
            self.handles.pop().remove()
        self.installed = hooks
        self.activations = {one.name: one for hook in hooks for one in hook.activations}
        if hooks:
            self._register(self.model)

    def wants(self, *names: str) -> bool:
        """Return whether any of these activations is asked for."""
        return any(name in self.activations for name in names)

    def at(self, name: str, tensor: Tensor) -> Tensor:
        """Pass an activation [B, ...] through the hooks that ask for it."""
        if name not in self.activations:
            return tensor
        activation = self.activations[name]
        tokens = tensor.shape[1 + activation.token_axis]
        positions = self.positions[:, -tokens:].expand(tensor.shape[0], -1)
        for hook in self.installed:
            if activation in hook.activations:
                tensor = hook(activation, tensor, positions)
        return tensor

    # The rest registers the torch hooks, in the order of the model.

    def _register(self, model: GPTModel) -> None:
        def keep_positions(_: nn.Module, args: tuple[Tensor]) -> None:
            self.positions = args[0] if args[0].ndim == 2 else args[0][None]  # [B, T], or [1, T] for all alike

        self.handles.append(model.position_embedding.register_forward_pre_hook(keep_positions))
        self._output(model.position_embedding, "embedding.position")
        if self.wants("embedding.token"):
            self._token_embedding(model)
        self._output(model.dropout, "embedding")
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            self._block(block, f"blocks.{layer}.")
        self._norm(model.final_norm, "final_norm.")
        self._output(model.head, "logits")

    def _token_embedding(self, model: GPTModel) -> None:
        # The model looks up tokens before positions, and a hook gets the positions: it is called when both are added.
        looked_up: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            looked_up[module] = output

        def after_sum(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            token = looked_up[model.token_embedding]
            new = self.at("embedding.token", token)
            return args if new is token else (new + looked_up[model.position_embedding],)

        self.handles += [
            model.token_embedding.register_forward_hook(keep),
            model.position_embedding.register_forward_hook(keep),
            model.dropout.register_forward_pre_hook(after_sum),
        ]

    def _block(self, block: Block, prefix: str) -> None:
        if self.wants(prefix + "residual_in"):

            def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                return (self.at(prefix + "residual_in", args[0]), *args[1:])

            self.handles.append(block.register_forward_pre_hook(enter))
        self._norm(block.norm_1, prefix + "norm_1.")
        self._attention(block.attention, prefix + "attention.")
        self._output(block.attention, prefix + "attention.output")
        if self.wants(prefix + "residual_mid"):
            self._residual_mid(block, prefix + "residual_mid")
        self._norm(block.norm_2, prefix + "norm_2.")
        self._output(block.feed_forward.up, prefix + "feed_forward.up")
        self._output(block.feed_forward.gelu, prefix + "feed_forward.activated")
        self._output(block.feed_forward, prefix + "feed_forward.output")
        self._output(block, prefix + "residual_out")

    def _output(self, module: nn.Module, name: str) -> None:
        """Register a hook for an activation that a module returns."""
        if not self.wants(name):
            return

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            if output.ndim == 1 + len(self.activations[name].letters):
                return self.at(name, output)
            # Shared position embeddings have no batch axis; logits of last tokens only have no token axis.
            axis = 0 if name == "embedding.position" else 1
            return self.at(name, output.unsqueeze(axis)).squeeze(axis)

        self.handles.append(module.register_forward_hook(hook))

    def _norm(self, norm: LayerNorm, prefix: str) -> None:
        if self.wants(prefix + "mean", prefix + "variance"):

            def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
                x = args[0]
                mean, variance = x.mean(-1), x.var(-1, correction=0)  # [B, T] each
                new_mean, new_variance = self.at(prefix + "mean", mean), self.at(prefix + "variance", variance)
                if new_mean is mean and new_variance is variance:
                    return output
                x = (x - new_mean[..., None]) / (new_variance[..., None] + norm.eps).sqrt()  # [B, T, C]
                return x * norm.weight + norm.bias

            self.handles.append(norm.register_forward_hook(hook))
        self._output(norm, prefix + "output")

    def _attention(self, attention: CausalSelfAttention, prefix: str) -> None:
        if self.wants(*(prefix + step for step in _WatchedAttention.STEPS)):

            def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                x, attend = (*args, None)[:2]
                return x, _WatchedAttention(self, prefix, attention, attend)

            self.handles.append(attention.register_forward_pre_hook(enter))

    def _residual_mid(self, block: Block, name: str) -> None:
        changed: list[Tensor] = []
        added: list[Tensor] = []

        def before_norm(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            residual = self.at(name, args[0])
            changed[:] = [] if residual is args[0] else [residual]
            return (residual,)

        def after_dropout(_: nn.Module, __: Any, output: Tensor) -> None:
            added[:] = [output]  # called twice in a block; the second time it is the feed-forward's

        def leave(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            found = changed[0] + added[0] if changed else output
            changed.clear()
            added.clear()
            return found

        self.handles += [
            block.norm_2.register_forward_pre_hook(before_norm),
            block.dropout.register_forward_hook(after_dropout),
            block.register_forward_hook(leave),
        ]


class _WatchedAttention:
    """An attention function whose steps are activations, with and without a cache."""

    STEPS = ("queries", "keys", "values", "scores", "pattern", "mixed")

    def __init__(
        self, hooks: _ModelHooks, prefix: str, attention: CausalSelfAttention, attend: AttentionFn | None
    ) -> None:
        self.hooks, self.prefix, self.attention, self.attend = hooks, prefix, attention, attend

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys, values = self._at("queries", queries), self._at("keys", keys), self._at("values", values)
        if self.hooks.wants(self.prefix + "scores", self.prefix + "pattern"):
            mixed = self._in_steps(queries, keys, values)
        elif self.attend is not None:
            mixed = self.attend(queries, keys, values)
        else:
            mixed = self.attention.attention_fn(queries, keys, values, self._drop_rate)
        return self._at("mixed", mixed)

    def _in_steps(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen: Tensor | None  # true for each key that a new token may attend to; None if it may attend to all
        if self.attend is None:
            tokens = queries.shape[-2]
            seen = torch.ones(tokens, tokens, dtype=torch.bool, device=queries.device).tril()  # [T, T]
        else:
            keys, values, seen = _cache_update(self.attend)(keys, values)  # [B, H, S, D]: all tokens so far
        scores = self._at("scores", queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1]))  # [B, H, T, S]
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        pattern = self._at("pattern", scores.softmax(dim=-1))  # [B, H, T, S]
        return F.dropout(pattern, self._drop_rate) @ values  # [B, H, T, D]

    @property
    def _drop_rate(self) -> float:
        return self.attention.drop_rate if self.attention.training else 0.0

    def _at(self, step: str, tensor: Tensor) -> Tensor:
        return self.hooks.at(self.prefix + step, tensor)


def _cache_update(attend: AttentionFn) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]:
    """Return the cache's function that stores keys and values and returns all of them, from its `attend`."""
    # model.py passes partial(cache.attend, layer) to each block.
    cache: Any = getattr(getattr(attend, "func", None), "__self__", None)
    if not isinstance(attend, partial) or not hasattr(cache, "update"):
        raise InputError(
            "the cache that this model runs with does not expose its keys, so scores and patterns cannot be reached "
            "while it generates; load the model with backend='torch'."
        )
    return partial(cache.update, *attend.args)


class _EagerStance:
    """Run models eagerly, because graphs of torch.compile ignore hooks.

    The stance is global to the process, so the first of several threads sets it and the last restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stance.close()


_EAGER = _EagerStance()

# Only the models that have hooks now: an entry keeps its model alive, and is removed with the last ActivationHook.
_hooked: dict[int, _ModelHooks] = {}


def check_network(model: object) -> None:
    """Refuse what is not a network.

    Raises:
        InputError: for a `GPT`, for example, whose network is its attribute `model`.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__} was given where a network was expected; of a GPT give gpt.model.")


_hooked_here: ContextVar[frozenset[int]] = ContextVar("hooked", default=frozenset())


def is_hooked(model: GPTModel) -> bool:
    """Return whether hooks are installed on a model now, by this thread or asynchronous task."""
    return id(model) in _hooked_here.get()


@contextmanager
def installed(model: GPTModel, hook: ActivationHook) -> Iterator[None]:
    """Pass the activations that the hook asks for through it, inside a `with`. Afterwards the model is as before."""
    check_network(model)
    hooks = _hooked.setdefault(id(model), _ModelHooks(model))

    def remove() -> None:
        hooks.set([other for other in hooks.installed if other is not hook])
        if not hooks.installed:
            del _hooked[id(model)]

    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(_EAGER)
        stack.callback(remove)
        stack.callback(_hooked_here.set, _hooked_here.get())
        _hooked_here.set(_hooked_here.get() | {id(model)})
        hooks.set([*hooks.installed, hook])
        yield
