"""The CPU kernels of training against torch's own operations, in both directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL

from clearhead.model import GPTModel, fused_attention
from clearhead.training.cpu_kernels import CompiledGELU, attention_in_float32, use_cpu_kernels


@settings(deadline=None, max_examples=50)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.01, 1.0, 5.0, 100.0]),
)
def test_gelu_is_nearer_to_float64_than_a_few_units_of_float32(shape: list[int], seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    x = (scale * torch.randn(shape)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    received = torch.randn(shape)
    ours, expected = CompiledGELU()(x), F.gelu(exact, approximate="tanh")
    assert torch.allclose(ours.double(), expected, rtol=2e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(ours, x, received)
    (exact_gradient,) = torch.autograd.grad(expected, exact, received.double())
    assert torch.allclose(gradient.double(), exact_gradient, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_layout_make_no_difference(threads: int) -> None:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    wide = torch.randn(301, 400, requires_grad=True)
    turned = wide.t()  # not contiguous
    expected = CompiledGELU()(wide)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    torch.set_num_threads(threads)
    try:
        found = CompiledGELU()(turned)
        (gradient,) = torch.autograd.grad(found.sum(), wide)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected.t())
    assert torch.equal(gradient, expected_gradient)


def test_nan_and_infinity_stay_visible() -> None:
    found = CompiledGELU()(torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]))
    assert found[0].isnan()
    assert found[1] == torch.inf
    assert found[2].isnan() or found[2] == -torch.inf or found[2] == 0
    assert found[3] == 0


def test_attention_of_narrow_heads_is_torchs_in_float32() -> None:
    torch.manual_seed(0)
    wide = [torch.randn(2, 3, 17, 8) for _ in range(3)]
    narrow = [tensor.bfloat16().requires_grad_() for tensor in wide]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_in_float32(narrow[0], narrow[1], narrow[2])
    expected = fused_attention(narrow[0].float(), narrow[1].float(), narrow[2].float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), narrow))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_the_kernels_is_the_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = GPTModel(SMALL)
    ids = torch.randint(SMALL.vocab_size, (2, SMALL.context_length))
    losses, gradients = [], []
    for replaced in (False, True):
        if replaced:
            words = use_cpu_kernels(model, SMALL, dtype)
            assert len(words) == (2 if dtype == torch.bfloat16 else 1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(ids, ids)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, model.token_embedding.weight)[0])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert (gradients[0] - gradients[1]).norm() < 10 * tolerance * gradients[0].norm()
