"""A block that computes itself at once against the same block operation by operation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from reference_models import SMALL
from torch import Tensor, nn

from clearhead.config import GPTConfig
from clearhead.model import Block, GPTModel
from clearhead.training.cpu import block as block_module
from clearhead.training.cpu.block import CompiledBlock
from clearhead.training.cpu.choices import use_cpu_kernels

LONG = SMALL.replace(context_length=160)


def models(config: GPTConfig, dtype: torch.dtype) -> tuple[GPTModel, GPTModel]:
    """Return a model whose blocks compute themselves at once, and the same whose blocks do not."""
    torch.manual_seed(0)
    whole = GPTModel(config).train()
    for name, parameter in whole.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    parts = copy.deepcopy(whole)
    for model in (whole, parts):
        use_cpu_kernels(model, config, dtype, alone=True)
    for block in parts.blocks:
        block.__class__ = Block
    return whole, parts


def gradients(model: GPTModel, dtype: torch.dtype, length: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the hidden states of random ids, and the gradient of every parameter."""
    ids = torch.randint(SMALL.vocab_size, (3, length), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = model.forward_hidden(ids)
        (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return hidden.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets a number for each block that computes itself at once."""
    calls: list[int] = []
    apply = block_module._BlockFunction.apply

    def counted(*arguments: object) -> object:
        calls.append(1)
        return apply(*arguments)

    monkeypatch.setattr(block_module._BlockFunction, "apply", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SMALL, LONG, SMALL.replace(qkv_bias=False)], ids=["short", "long", "no qkv bias"])
def test_a_whole_block_has_the_numbers_of_its_modules(
    config: GPTConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = models(config, dtype)
    calls = count_calls(monkeypatch)
    found, of_found = gradients(whole, dtype, config.context_length)
    assert len(calls) == config.n_layers
    expected, of_expected = gradients(parts, dtype, config.context_length)
    assert len(calls) == config.n_layers
    assert torch.equal(found, expected)
    for name, gradient in of_found.items():
        wanted = of_expected[name]
        if name.startswith("head") or wanted is None:
            assert gradient is None
            continue
        assert gradient is not None and gradient.dtype == wanted.dtype
        assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item()), name


def test_frozen_parameters_get_no_gradient() -> None:
    whole, _ = models(SMALL, torch.float32)
    block = whole.blocks[0]
    assert isinstance(block, CompiledBlock)
    frozen = [block.norm_1.bias, block.attention.qkv.weight, block.feed_forward.down.bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    _, found = gradients(whole, torch.float32, 8)
    without = {name for name, gradient in found.items() if gradient is None}
    assert without >= {"blocks.0.norm_1.bias", "blocks.0.attention.qkv.weight", "blocks.0.feed_forward.down.bias"}
    assert len(without) <= 4  # and the head's own weight if it is not tied


def drop(block: CompiledBlock) -> None:
    block.dropout.p = 0.5


def hook(block: CompiledBlock) -> None:
    block.feed_forward.up.register_forward_hook(lambda *_: None)


def adapt(block: CompiledBlock) -> None:
    class Adapted(nn.Linear):
        pass

    block.attention.qkv.__class__ = Adapted


@pytest.mark.parametrize("change", [drop, hook, adapt])
def test_a_block_that_somebody_changed_computes_module_by_module(
    change: Callable[[CompiledBlock], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = models(SMALL, torch.float32)
    calls = count_calls(monkeypatch)
    block = whole.blocks[0]
    assert isinstance(block, CompiledBlock)
    change(block)
    gradients(whole, torch.float32, 8)
    assert len(calls) == SMALL.n_layers - 1
    with torch.no_grad():
        whole.forward_hidden(torch.zeros(1, 4, dtype=torch.int64))
    assert len(calls) == SMALL.n_layers - 1
