"""Reaching the values inside a running model, without a line of the model knowing of it.

While a `Tap` is installed, each value that it asks for passes through its `at`, which may keep it, change it, or
both. Most values are the input or the output of a module, where torch's own hooks reach them. Those between a
module's lines are reached by a replacement of what computes them:

- queries, keys, values, scores, pattern, mixed: attention is handed a function to attend with that has a name for
  each step, as `model.plain_attention` takes them;
- a norm's mean and variance are computed beside it, and the norm itself again where one was changed;
- a changed embedding.token is added to the position's again;
- residual_mid is both what norm_2 reads and what the feed-forward's output is added to, so that a changed one is
  added again where the block ends.

Without a Tap there is no hook at all: a model that nobody watches runs as if this file did not exist.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.errors import InputError
from clearhead.lens.catalogue import Value
from clearhead.model import Attend, Block, CausalSelfAttention, GPTModel, LayerNorm


class Tap(Protocol):
    """What values pass through."""

    values: tuple[Value, ...]

    def at(self, value: Value, tensor: Tensor, positions: Tensor) -> Tensor:
        """Called with each value as it is computed; the model goes on with what it returns.

        Args:
            value: which one.
            tensor: [B, *value's shape], with T the tokens of this pass; in a pass that goes on from a cache, the
                last axis of scores and pattern counts the cached tokens too.
            positions: the place of each token in its sequence, int64 [B, T].
        """


class _Hooks:
    """The hooks on one model, for all the Taps that are installed on it: each value passes through them in turn."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.taps: list[Tap] = []
        self.values: dict[str, Value] = {}
        self.positions = torch.zeros(1, 1, dtype=torch.int64)
        self.handles: list[Any] = []

    def set(self, taps: list[Tap]) -> None:
        """Removes all hooks and makes those that these taps need."""
        while self.handles:
            self.handles.pop().remove()
        self.taps = taps
        self.values = {value.name: value for tap in taps for value in tap.values}
        if taps:
            self._hook(self.model)

    def wants(self, *names: str) -> bool:
        """Whether any of these values is asked for."""
        return any(name in self.values for name in names)

    def at(self, name: str, tensor: Tensor) -> Tensor:
        """Passes a value [B, ...] through the taps that ask for it."""
        if name not in self.values:
            return tensor
        value = self.values[name]
        tokens = tensor.shape[1 + value.token_axis]
        positions = self.positions[:, -tokens:].expand(tensor.shape[0], -1)
        for tap in self.taps:
            if value in tap.values:
                tensor = tap.at(value, tensor, positions)
        return tensor

    # What follows makes the hooks, in the order of the model.

    def _hook(self, model: GPTModel) -> None:
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
        # The model looks up tokens before places, and a tap must know the places: it is asked when both are added.
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
        """A value that a module returns."""
        if not self.wants(name):
            return

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            if output.ndim == 1 + len(self.values[name].letters):
                return self.at(name, output)
            # Positions that are the same for all have no batch; logits after the last token alone have no tokens.
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
        if self.wants(*(prefix + step for step in _Attention.STEPS)):

            def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                x, attend = (*args, None)[:2]
                return x, _Attention(self, prefix, attention, attend)

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


class _Attention:
    """Attends in steps that have names, for the model without a cache and with one."""

    STEPS = ("queries", "keys", "values", "scores", "pattern", "mixed")

    def __init__(self, hooks: _Hooks, prefix: str, attention: CausalSelfAttention, attend: Attend | None) -> None:
        self.hooks, self.prefix, self.attention, self.attend = hooks, prefix, attention, attend

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys, values = self._at("queries", queries), self._at("keys", keys), self._at("values", values)
        if self.hooks.wants(self.prefix + "scores", self.prefix + "pattern"):
            mixed = self._in_steps(queries, keys, values)
        elif self.attend is not None:
            mixed = self.attend(queries, keys, values)
        else:
            mixed = self.attention.mix(queries, keys, values, self._drop_rate)
        return self._at("mixed", mixed)

    def _in_steps(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen: Tensor | None  # true where a new token may look; None where it may look everywhere
        if self.attend is None:
            tokens = queries.shape[-2]
            seen = torch.ones(tokens, tokens, dtype=torch.bool, device=queries.device).tril()  # [T, T]
        else:
            keys, values, seen = _recall(self.attend)(keys, values)  # [B, H, S, D]: with those of earlier tokens
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


def _recall(attend: Attend) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]:
    """What stores keys and values and returns all of them: `recall` of the memory whose `attend` a block was given."""
    memory: Any = getattr(
        getattr(attend, "func", None), "__self__", None
    )  # model.py hands on partial(memory.attend, layer)
    if not isinstance(attend, partial) or not hasattr(memory, "recall"):
        raise InputError(
            "what runs this model has a cache that does not show its keys, so scores and patterns cannot be reached "
            "while it generates; load the model with backend='torch'."
        )
    return partial(memory.recall, *attend.args)


# Only the models that have hooks now: an entry holds on to its model, and goes when the last Tap is removed.
_hooked: dict[int, _Hooks] = {}


@contextmanager
def installed(model: GPTModel, tap: Tap) -> Iterator[None]:
    """While it is open, the values that the tap asks for pass through it. Afterwards the model is as it was."""
    hooks = _hooked.setdefault(id(model), _Hooks(model))

    def remove() -> None:
        hooks.set([other for other in hooks.taps if other is not tap])
        if not hooks.taps:
            del _hooked[id(model)]

    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # What torch.compile made of the model does not look for hooks, so the model itself runs meanwhile.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(remove)
        hooks.set([*hooks.taps, tap])
        yield
