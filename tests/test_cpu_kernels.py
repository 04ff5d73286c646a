"""The CPU kernels of training against torch's own operations, in both directions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL

from clearhead.model import GPTModel, fused_attention
from clearhead.training.cpu.attention import blocked_attention
from clearhead.training.cpu.choices import head_operations, use_cpu_kernels
from clearhead.training.cpu.elementwise import CompiledGELU, compiled_softmax_gradient
from clearhead.training.cpu.linear import OneDnnLinear
from clearhead.training.objective import Objective


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 17, 64, 129, 300, 513])),
    width=st.sampled_from([1, 8, 24]),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_attention_is_torchs(
    dtype: torch.dtype, shape: tuple[int, int, int], width: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    given = [(scale * torch.randn(*shape, width)).to(dtype).requires_grad_() for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    received = torch.randn(*shape, width).to(dtype)
    found, expected = blocked_attention(given[0], given[1], given[2]), fused_attention(exact[0], exact[1], exact[2])
    gradients = torch.autograd.grad(found, given, received)
    expected_gradients = torch.autograd.grad(expected, exact, received.double())
    tolerance = 2e-5 if dtype == torch.float32 else 5e-2  # 8 bits of mantissa, in sums that may nearly cancel
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= tolerance * expected.norm()
    size = max(gradient.norm() for gradient in expected_gradients)  # one of a single token is 0
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient.double() - wanted).norm() <= tolerance * size


@pytest.mark.parametrize(("tokens", "seen"), [(600, 500), (60, 41)])
def test_attention_does_not_look_ahead_and_shows_nan(tokens: int, seen: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens, 8) for _ in range(3))
    before = blocked_attention(q, k, v)
    for tensor in (q, k, v):
        tensor[:, :, seen:] = 7.0
    after = blocked_attention(q, k, v)
    assert torch.equal(before[:, :, :seen], after[:, :, :seen])
    q[:, :, seen] = torch.nan
    found = blocked_attention(q, k, v)
    assert found[:, :, seen].isnan().all()
    assert found[:, :, :seen].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_attention_reads_parts_of_one_tensor_on_any_threads(dtype: torch.dtype, threads: int) -> None:
    torch.manual_seed(0)
    joint = torch.randn(6, 50, 3 * 5 * 24).to(dtype).requires_grad_()  # as a layer's queries, keys and values come
    received = torch.randn(6, 5, 50, 24).to(dtype)
    before = torch.get_num_threads()
    parts = [part.view(6, 50, 5, 24).transpose(1, 2) for part in joint.split(5 * 24, dim=-1)]
    separate = [part.detach().contiguous().requires_grad_() for part in parts]
    expected = blocked_attention(separate[0], separate[1], separate[2])
    expected_gradients = torch.autograd.grad(expected, separate, received)
    torch.set_num_threads(threads)
    try:
        found = blocked_attention(parts[0], parts[1], parts[2])
        (gradient,) = torch.autograd.grad(found, joint, received)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)
    for part, wanted in zip(gradient.split(5 * 24, dim=-1), expected_gradients, strict=True):
        assert torch.equal(part.view(6, 50, 5, 24).transpose(1, 2), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 70), columns=st.integers(2, 3000), seed=st.integers(0, 2**31))
def test_cross_entropy_is_torchs(dtype: torch.dtype, rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = (3 * torch.randn(rows, columns)).to(dtype)
    targets = torch.randint(columns, (rows,))
    targets[::3] = -100
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="sum", ignore_index=-100)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    nats, gradient = compiled_softmax_gradient(logits, targets)
    assert nats.item() == pytest.approx(expected.item(), rel=2e-6, abs=1e-6)
    tolerance = 2e-6 if dtype == torch.float32 else 4e-3
    assert torch.allclose(gradient.double(), expected_gradient, rtol=tolerance, atol=1e-7)


def test_cross_entropy_shows_nan_and_infinity() -> None:
    for odd in (torch.nan, torch.inf):
        logits = torch.zeros(1, 40)
        logits[0, 7] = odd
        nats, _ = compiled_softmax_gradient(logits, torch.tensor([3]))
        assert not nats.isfinite()


def test_linear_layers_of_onednn_are_torchs() -> None:
    torch.manual_seed(0)
    for bias, shape in itertools.product((True, False), ((), (3,), (2, 5))):
        layer = torch.nn.Linear(40, 24, bias=bias)
        x = torch.randn(*shape, 40, requires_grad=True)
        received = torch.randn(*shape, 24)
        inputs = [x, *layer.parameters()]
        expected = layer(x)
        expected_gradients = torch.autograd.grad(expected, inputs, received)
        layer.__class__ = OneDnnLinear
        found = layer(x)
        assert torch.allclose(found, expected, atol=1e-5)
        for gradient, wanted in zip(torch.autograd.grad(found, inputs, received), expected_gradients, strict=True):
            assert torch.allclose(gradient, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_the_kernels_is_the_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = GPTModel(SMALL)
    ids = torch.randint(SMALL.vocab_size, (2, SMALL.context_length))
    losses, gradients = [], []
    for replaced in (False, True):
        if replaced:
            chosen = use_cpu_kernels(model, SMALL, dtype, alone=True)
            assert set(chosen) == {"linear layers", "attention", "GELU", "layer norm", "cross-entropy"}
        objective = Objective(model, head=head_operations(dtype, alone=True) if replaced else None)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = objective(ids, ids)
            gradients.append(torch.autograd.grad(loss, model.token_embedding.weight)[0])  # in the context, as a step
        losses.append(loss.item())
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert (gradients[0] - gradients[1]).norm() < 10 * tolerance * gradients[0].norm()
