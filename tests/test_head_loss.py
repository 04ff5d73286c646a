"""The loss that does not hold all logits is torch's own cross-entropy, in value and in gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.losses import head_nats


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 70),
    width=st.integers(1, 24),
    vocabulary=st.integers(2, 120),
    chunk=st.integers(0, 80),
    left_out=st.floats(0, 1),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 10_000),
)
def test_it_is_torchs_cross_entropy_with_its_gradients(
    tokens: int, width: int, vocabulary: int, chunk: int, left_out: float, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    hidden, weight = torch.randn(tokens, width) * scale, torch.randn(vocabulary, width)
    targets = torch.randint(vocabulary, (tokens,)).masked_fill(torch.rand(tokens) < left_out, -100)
    leaves = [[hidden.clone().requires_grad_(), weight.clone().requires_grad_()] for _ in range(2)]
    ours = head_nats(leaves[0][0], leaves[0][1], targets, chunk)
    theirs = F.cross_entropy(leaves[1][0] @ leaves[1][1].T, targets, reduction="sum")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    with torch.no_grad():
        assert head_nats(hidden, weight, targets, chunk).item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    (ours * 0.37).backward()
    (theirs * 0.37).backward()
    for one, other in zip(*leaves, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5 * max(1.0, scale))


def test_what_needs_no_gradient_gets_none() -> None:
    hidden = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    head_nats(hidden, weight, torch.arange(6), 4).backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_it_goes_backwards_once() -> None:
    hidden = torch.randn(6, 4, requires_grad=True)
    loss = head_nats(hidden, torch.randn(9, 4), torch.arange(6))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_the_plain_loss_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 32), torch.randn(200, 32)
    targets = torch.randint(200, (50,))
    gradients = []
    losses = []
    for plain in (False, True):
        hidden, weight = (value.clone().requires_grad_() for value in values)
        with torch.autocast("cpu", dtype):
            if plain:
                loss = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
            else:
                loss = head_nats(hidden, weight, targets, 16)
        loss.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
        gradients.append((hidden.grad, weight.grad))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.slow
def test_it_never_holds_all_logits() -> None:
    tokens, vocabulary = 512, 4096
    hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return found

    with Watch():
        head_nats(hidden, weight, torch.randint(vocabulary, (tokens,)), 32).backward()
    assert 0 < largest <= max(32 * vocabulary, vocabulary * 8)
