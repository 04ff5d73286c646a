"""What a training step on a CPU does outside its operations: updates, copies in bfloat16, and tied weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL
from torch import Tensor, nn

from clearhead.model import GPTModel, LayerNorm
from clearhead.training.cpu.bfloat16 import Bfloat16Linear, bfloat16_copy
from clearhead.training.cpu.choices import gradients_stay_low, head_operations, use_cpu_kernels
from clearhead.training.cpu.elementwise import CompiledLayerNorm, accumulate_product
from clearhead.training.cpu.head_kernels import HEAD_KERNELS
from clearhead.training.cpu.kernels import KERNELS
from clearhead.training.cpu.update_kernels import UPDATE_KERNELS
from clearhead.training.cpu.updates import CompiledAdamW, can_update, gradient_norm
from clearhead.training.objective import Objective
from clearhead.training.recipe import TrainingRecipe
from clearhead.utils.machine_code import TABLE, read_checked


def parameters(shapes: list[tuple[int, ...]], seed: int) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def adamw(kind: type[torch.optim.AdamW], given: list[nn.Parameter]) -> torch.optim.AdamW:
    groups = [{"params": given[:1], "weight_decay": 0.1}, {"params": given[1:], "weight_decay": 0.0}]
    return kind(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)


@settings(deadline=None, max_examples=20)
@given(
    shapes=st.lists(st.sampled_from([(1,), (5,), (300, 7), (65536,), (65537,), (2, 65536)]), min_size=2, max_size=4),
    divisor=st.sampled_from([None, 0.5, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_adamw_is_torchs(shapes: list[tuple[int, ...]], divisor: float | None, seed: int) -> None:
    ours, theirs = parameters(shapes, seed), parameters(shapes, seed)
    optimizers = adamw(CompiledAdamW, ours), adamw(torch.optim.AdamW, theirs)
    for step in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = None if step == 1 and one is ours[-1] else torch.randn_like(one)
            other.grad = None if one.grad is None else one.grad.clone()
        for optimizer in optimizers:
            optimizer.grad_scale = None if divisor is None else torch.tensor(divisor)  # type: ignore[attr-defined]
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
        for key, wanted in optimizers[1].state[other].items():
            assert torch.allclose(optimizers[0].state[one][key], wanted, rtol=1e-6, atol=1e-6), key


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_make_no_difference_to_updates_and_norms(threads: int) -> None:
    found: list[tuple[float | None, list[Tensor]]] = []
    before = torch.get_num_threads()
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            given = parameters([(700, 300), (5,)], 0)
            for parameter in given:
                parameter.grad = torch.randn_like(parameter)
            adamw(CompiledAdamW, given).step()
            found.append((gradient_norm([p.grad for p in given if p.grad is not None]), [p.detach() for p in given]))
        finally:
            torch.set_num_threads(before)
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_the_norm_is_that_of_all_gradients_and_shows_nan() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(70_000), torch.randn(30, 5).bfloat16(), torch.zeros(0)]
    expected = torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()
    assert gradient_norm(gradients) == pytest.approx(expected, rel=1e-6)
    gradients[0][65_000] = torch.nan
    norm = gradient_norm(gradients)
    assert norm is not None
    assert norm != norm
    assert gradient_norm([]) == 0
    assert gradient_norm([torch.ones(3, 3).t()[:2]]) is None  # not in one piece: torch computes it


def test_parameters_that_the_kernels_cannot_update_are_refused() -> None:
    assert can_update(parameters([(3, 4), (2,)], 0))
    assert not can_update([nn.Parameter(torch.ones(3, 4).t())])
    assert not can_update([nn.Parameter(torch.ones(3, dtype=torch.float64))])


def test_the_copy_in_bfloat16_is_always_that_of_the_weight() -> None:
    layer = Bfloat16Linear(40, 24)
    optimizer = CompiledAdamW([{"params": list(layer.parameters())}], lr=0.1, fused=True)
    x = torch.randn(3, 40)
    for change in ("step", "torch", "none"):
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).sum().backward()
        first = bfloat16_copy(layer.weight)
        if change == "step":
            optimizer.step()
            assert bfloat16_copy(layer.weight) is first  # written by the optimizer, not made anew
        elif change == "torch":
            with torch.no_grad():
                layer.weight.mul_(2)
        assert torch.equal(bfloat16_copy(layer.weight), layer.weight.detach().bfloat16())
    with torch.no_grad():
        layer.weight.mul_(2)
    with torch.inference_mode():  # as samples are generated between steps: the next step can differentiate through it
        assert not bfloat16_copy(layer.weight).is_inference()
        assert torch.equal(bfloat16_copy(torch.ones(3) / 3), (torch.ones(3) / 3).bfloat16())


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has gradients of one type only")
def test_a_step_with_gradients_in_bfloat16_is_one_with_the_same_in_float32() -> None:
    weights = []
    for low in (False, True):
        torch.manual_seed(0)
        model = GPTModel(SMALL).train()
        use_cpu_kernels(model, SMALL, torch.bfloat16, alone=True, low_gradients=low)
        objective = Objective(model, head=head_operations(torch.bfloat16, alone=True))
        optimizer = CompiledAdamW([{"params": list(model.parameters())}], lr=1e-2, fused=True)
        ids = torch.randint(SMALL.vocab_size, (2, SMALL.context_length), generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                objective(ids, ids).backward()
            gradient = dict(model.named_parameters())["blocks.0.feed_forward.up.weight"].grad
            assert gradient is not None
            assert gradient.dtype == (torch.bfloat16 if low else torch.float32)
            optimizer.step()
            optimizer.zero_grad()
        weights.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)  # the same numbers, in sums that LLVM orders anew


def test_gradients_stay_in_bfloat16_only_if_nothing_is_added_to_them() -> None:
    recipe = TrainingRecipe(steps=1, batch_size=4)
    assert gradients_stay_low(recipe, 1)
    assert not gradients_stay_low(recipe, 2)
    assert not gradients_stay_low(TrainingRecipe(steps=1, batch_size=4, micro_batch_size=2), 1)
    assert not gradients_stay_low(TrainingRecipe(steps=1, batch_size=4, optimizer="muon"), 1)


@pytest.mark.parametrize("trained", ["all", "head", "embedding"])
def test_a_tied_weight_has_the_gradients_of_both_its_uses(trained: str) -> None:
    torch.manual_seed(0)
    model = GPTModel(SMALL).train()
    ids = torch.randint(SMALL.vocab_size, (2, SMALL.context_length))
    found = []
    for replaced in (False, True):
        if replaced:
            use_cpu_kernels(model, SMALL, torch.float32, alone=True)
        model.zero_grad()
        if trained == "all":
            Objective(model, head=head_operations(torch.float32, alone=True) if replaced else None)(ids, ids).backward()
        elif trained == "head":
            model.head(model.forward_hidden(ids).detach()).square().sum().backward()
        else:
            model.forward_hidden(ids).square().sum().backward()
        gradient = model.token_embedding.weight.grad
        assert gradient is not None
        found.append(gradient.clone())
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-4 * found[0].abs().max().item())


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 70), columns=st.integers(8, 800), low=st.booleans(), seed=st.integers(0, 2**31))
def test_layer_norm_is_torchs(rows: int, columns: int, low: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = LayerNorm(SMALL.replace(emb_dim=columns, n_heads=1))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = (3 * torch.randn(rows, columns) + 1).requires_grad_()
    given = [x, *layer.parameters()]
    received = torch.randn(rows, columns)
    expected = layer(x)
    expected_gradients = torch.autograd.grad(expected, given, received)
    layer.__class__ = CompiledLayerNorm
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        found = layer(x)
    assert found.dtype == (torch.bfloat16 if low else torch.float32)
    tolerance = 2e-2 if low else 2e-5
    gradients = torch.autograd.grad(found, given, received.to(found.dtype))
    for one, wanted in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert (one.float() - wanted).norm() <= tolerance * (wanted.norm() + 1e-3 * received.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_added_to_rows_that_lie_apart(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 50, 8)
    total, product = whole.clone(), torch.randn(3, 20, 8).to(dtype)
    accumulate_product(total[:, :20], product, start=True)
    assert torch.equal(total[:, :20], product.float())
    accumulate_product(total[:, :20], product, start=False)
    assert torch.equal(total[:, :20], 2 * product.float())
    assert torch.equal(total[:, 20:], whole[:, 20:])


def test_kept_code_of_the_kernels_needs_nothing_of_numba() -> None:
    """Otherwise a process without Numba's runtime, as each is at first, compiles it anew every time."""
    for kernel in (*KERNELS, *HEAD_KERNELS, *UPDATE_KERNELS):
        assert kernel.address
        name = f"{kernel._compiled._name}-*.code"
        kept = read_checked(kernel._compiled._path(TABLE))
        if kept is None:
            pytest.skip(f"the cache cannot be written: there is no {name}")
        assert not [need for need in kept.needs if need.startswith(("NRT_", "numba_"))], name
