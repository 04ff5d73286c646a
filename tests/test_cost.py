"""The costs of a GPT-2, held against what torch counts and keeps in real passes of our own model."""

import math
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import clearhead.model
from clearhead.anatomy import Cost, CostModel
from clearhead.config import RELEASED, GPTConfig
from clearhead.engine import building
from clearhead.engine.pages import PAGE, cache_type, page_bytes
from clearhead.engine.panels import PANEL
from clearhead.errors import InputError
from clearhead.inference.torch_runner import CacheRows, TorchRunner
from clearhead.model import GPTModel
from clearhead.training.optimizer import make_optimizers
from clearhead.training.recipe import TrainingRecipe

FLOATS = ("float32", "bfloat16")


@st.composite
def work(draw: st.DrawFn, drop: bool = True) -> tuple[GPTConfig, int, int]:
    """A shape, a batch and a number of tokens, small enough to run."""
    n_heads = draw(st.integers(1, 4))
    config = GPTConfig(
        vocab_size=draw(st.integers(2, 90)),
        context_length=draw(st.integers(2, 9)),
        emb_dim=n_heads * draw(st.integers(2, 6)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 3)),
        drop_rate=draw(st.sampled_from([0.0, 0.1])) if drop else 0.0,
        qkv_bias=draw(st.booleans()),
        tie_weights=draw(st.booleans()),
        ff_dim=draw(st.integers(0, 40)),
    )
    return config, draw(st.integers(1, 3)), draw(st.integers(2, config.context_length))


def ids_for(config: GPTConfig, batch: int, tokens: int) -> Tensor:
    return torch.arange(batch * tokens).reshape(batch, tokens) % config.vocab_size


def rows(cost: Cost) -> Iterator[Cost]:
    yield cost
    for part in cost.parts:
        yield from rows(part)


# --- Memory ------------------------------------------------------------------------------------------------------


@contextmanager
def dropout_as_on_a_gpu() -> Iterator[None]:
    """torch's own dropout that keeps a byte a value; a CPU's keeps a float, and its fused attention cannot drop."""

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p else x

    def fused(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
        return nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)

    with (
        mock.patch("torch.nn.functional.dropout", dropout),
        mock.patch.object(clearhead.model, "fused_attention", fused),
    ):
        yield


def kept(config: GPTConfig, batch: int, tokens: int, plain: bool, bfloat16: bool) -> int:
    """The bytes that autograd keeps from a forward pass beside the parameters, each storage once."""
    with dropout_as_on_a_gpu():
        model = GPTModel(config, plain=plain).train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()  # held, so that its place in memory is not given to another
            storages[storage.data_ptr()] = storage
            return tensor

        ids = ids_for(config, batch, tokens)
        with (
            saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            model.loss(ids, ids.clone())
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


@given(work(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_activations_are_what_autograd_keeps(shape: tuple[GPTConfig, int, int], plain: bool, bfloat16: bool) -> None:
    config, batch, tokens = shape
    costs = CostModel(config, "bfloat16" if bfloat16 else "float32", batch, tokens)
    copies = [part.amount for part in costs.memory_to_train(plain).parts if part.name.startswith("16-bit copies")]
    assert len(copies) == bfloat16
    # The loss keeps one more scalar: the number of targets that count.
    assert kept(config, batch, tokens, plain, bfloat16) == costs.activations(plain).amount + sum(copies) + 4


@pytest.mark.parametrize("plain", [False, True])
def test_activations_of_16_bits_are_those_that_korthikanti_et_al_derive(plain: bool) -> None:
    """Reducing Activation Recomputation (2022), equation 2: a layer keeps sbh (34 + 5 a s / h) bytes.

    Theirs are 16-bit throughout: our norms' inputs (the shortcut under autocast is in float32) take 2 x 2 sbh more. The
    fused kernel does without the 5 a s^2 b. The causal mask and the norms' statistics are not in their formula.
    """
    config, b = RELEASED["355M"], 2
    s, h, a = config.context_length, config.emb_dim, config.n_heads
    costs = CostModel(config, "bfloat16", b)
    two, three = (CostModel(config.replace(n_layers=n), "bfloat16", b).activations(plain) for n in (2, 3))
    layer = three.amount - two.amount
    theirs = s * b * h * 34 + (5 * a * s * s * b if plain else 0)
    apart = 4 * s * b * h + 16 * b * s + (s * s if plain else 4 * b * a * s)
    assert layer == theirs + apart
    assert costs.activations(plain).amount > config.n_layers * layer


@pytest.mark.parametrize("dtype", FLOATS)
def test_memory_to_train_holds_the_real_tensors(dtype: str) -> None:
    config = GPTConfig(50, 8, 12, 2, 2, qkv_bias=True, tie_weights=True)
    model = GPTModel(config)
    model.loss(ids_for(config, 1, 8), ids_for(config, 1, 8)).backward()
    (adamw,) = make_optimizers(model, TrainingRecipe(steps=1, batch_size=1, optimizer="adamw"))
    adamw.step()
    averages = [
        value
        for state in adamw.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step"
    ]
    held = {part.name: part.amount for part in CostModel(config, dtype).memory_to_train().parts}
    assert held["parameters"] == sum(p.nbytes for p in model.parameters())
    assert held["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert held["AdamW's moments"] == sum(average.nbytes for average in averages)


class Peak(TorchDispatchMode):
    """Follows every storage that a pass makes, and how many bytes of them are alive at once at most."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live and storage.data_ptr() not in self.known:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.live.values()))
        return out


@given(work(drop=False), st.sampled_from(FLOATS))
@settings(deadline=None, max_examples=50)
def test_activations_to_run_are_the_most_that_is_alive(shape: tuple[GPTConfig, int, int], dtype: str) -> None:
    config, batch, tokens = shape
    model = GPTModel(config).eval().to(getattr(torch, dtype))
    ids = ids_for(config, batch, tokens)
    with torch.inference_mode(), Peak(model) as peak:
        hidden = model.forward_hidden(ids)[:, -1]  # as TorchRunner does it
        model.head(hidden).float()
    run = CostModel(config, dtype, batch, tokens).memory_to_run()
    assert run.parts[0].amount == sum(p.nbytes for p in model.parameters())
    sums = 4 * batch * tokens * config.n_heads if config.ff_dim < 2.5 * config.emb_dim else 0
    # Attention's kernel gives back the sums of its weights too, of which a pass without gradients has no use.
    assert run.parts[2].amount <= peak.most <= run.parts[2].amount + sums


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_cache_is_the_runners(dtype: str) -> None:
    config = GPTConfig(50, 8, 12, 2, 3)
    cache = CacheRows(config, torch.device("cpu"), getattr(torch, dtype))
    for _ in range(4):
        cache.open()
    costs = CostModel(config, dtype, batch=4)
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert costs.memory_to_run().parts[1].amount == held
    assert costs.cache_per_token().amount * 4 * 8 == held
    assert CostModel(RELEASED["124M"]).cache_per_token().amount == 73_728


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize("tied", [True, False])
def test_whole_numbers_take_what_the_engine_takes(dtype: str, size: str, tied: bool) -> None:
    config = RELEASED[size].replace(tie_weights=tied)
    costs = CostModel(config, dtype)
    arrays = building.layout(config, dtype, "16bit")
    # The engine has a bias of zeros for the token table and the head, and fills up the last rows of a matrix.
    held = {
        name: dtype.itemsize * math.prod(shape)
        for name, (dtype, shape) in arrays.items()
        if name not in ("tokens.bias", "head.bias")
    }
    filled = 2 * PANEL * (config.emb_dim + 8)
    weights, cache = costs.memory_to_run().parts
    assert sum(held.values()) - filled <= weights.amount <= sum(held.values())
    assert cache.amount == page_bytes(config, cache_type(arrays["qkv.weights"][0])) * (config.context_length // PAGE)
    read = sum(size for name, size in held.items() if name != "positions" and (tied or not name.startswith("tokens")))
    moved = {part.name: part.amount for part in costs.decoding_bytes().parts}
    assert read - filled <= sum(moved[name] for name in ("matrices", "their scales", "biases and norms")) <= read


# --- Operations --------------------------------------------------------------------------------------------------


def counted_flops(config: GPTConfig, batch: int, tokens: int, plain: bool, backward: bool, device: str) -> int:
    with torch.device(device):
        model = GPTModel(config, plain=plain).train()
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids)
        if backward:
            logits.sum().backward()
    return int(counter.get_total_flops())


@given(work(), st.booleans())
@settings(deadline=None, max_examples=25)
def test_flops_are_those_that_torch_counts(shape: tuple[GPTConfig, int, int], backward: bool) -> None:
    config, batch, tokens = shape
    costs = CostModel(config, batch=batch, context=tokens)
    cost = costs.training_flops() if backward else costs.forward_flops()
    assert counted_flops(config, batch, tokens, True, backward, "cpu") == batch * tokens * cost.amount


@pytest.mark.parametrize("size", ["124M", "355M"])
def test_flops_of_the_released_sizes(size: str) -> None:
    config = RELEASED[size].replace(drop_rate=0.0)
    costs = CostModel(config, batch=2, context=300)
    assert counted_flops(config, 2, 300, False, True, "meta") == 600 * costs.training_flops().amount


def test_flops_to_write_a_token_with_a_cache() -> None:
    config = GPTConfig(90, 16, 12, 2, 3, qkv_bias=True)
    runner = TorchRunner(GPTModel(config))
    slots = [runner.open(), runner.open()]
    runner.extend([(slots[0], [1] * 9), (slots[1], [2] * 6)])  # of two lengths: attention in plain products
    with FlopCounterMode(display=False) as counter:
        runner.extend([(slots[0], [3]), (slots[1], [4])])
    assert counter.get_total_flops() == 2 * CostModel(config, context=10).forward_flops().amount


def test_the_matrices_are_those_of_the_model() -> None:
    for config in (RELEASED["124M"], GPTConfig(90, 16, 12, 2, 3, ff_dim=17)):
        with torch.device("meta"):
            model = GPTModel(config)
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        assert CostModel(config).values["M"] == linear
        assert CostModel(config).values["K"] == sum(
            p.numel() for name, p in model.named_parameters() if name.startswith(("blocks", "final_norm"))
        )


def test_rules_of_thumb_against_the_count() -> None:
    costs = CostModel(RELEASED["1558M"])
    six, palm = costs.rules_of_thumb()
    assert six.amount == 6 * 1_557_611_200
    # What PaLM's rule counts and the products do not have: the positions, the biases and the norms.
    vectors = costs.values["N"] - costs.values["M"]
    assert palm.amount - costs.training_flops().amount == 6 * vectors


# --- Traffic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_moved_are_those_of_the_tensors_that_are_read(tied: bool) -> None:
    config = GPTConfig(50, 8, 12, 2, 3, qkv_bias=True, tie_weights=tied)
    model = GPTModel(config)
    whole = sum(p.nbytes for name, p in model.named_parameters() if "embedding" not in name)
    whole += model.head.weight.nbytes if tied else 0  # which named_parameters gives as the embedding
    found = 2 * (model.token_embedding.weight[0].nbytes + model.position_embedding.weight[0].nbytes)
    cache = CacheRows(config, torch.device("cpu"), torch.float32)
    cache.open(), cache.open()
    read = sum(tensor[:, :, :5].nelement() * 4 for tensor in cache.keys + cache.values)
    written = sum(tensor[:, :, :1].nelement() * 4 for tensor in cache.keys + cache.values)
    assert CostModel(config, batch=2, context=5).decoding_bytes().amount == whole + found + read + written


# --- The trees ---------------------------------------------------------------------------------------------------


@given(work(), st.sampled_from(["float32", "bfloat16", "float16", "int8", "int4"]))
@settings(deadline=None, max_examples=60)
def test_every_formula_gives_its_amount_and_parts_sum(shape: tuple[GPTConfig, int, int], dtype: str) -> None:
    config, batch, tokens = shape
    costs = CostModel(config, dtype, batch, tokens)
    trees = [
        costs.cache_per_token(),
        costs.memory_to_run(),
        costs.forward_flops(),
        costs.training_flops(),
        costs.decoding_bytes(),
        *costs.rules_of_thumb(),
    ]
    if not costs.quantized:
        trees += [costs.memory_to_train(), costs.memory_to_train(plain=True)]
    for tree in trees:
        for row in rows(tree):
            assert re.fullmatch(r"[\d, ×+]+", row.numbers), row.numbers
            assert eval(row.numbers.replace(",", "").replace("×", "*"), {"__builtins__": {}}) == row.amount
            assert not row.parts or sum(part.amount for part in row.parts) == row.amount
            if "×" in row.symbols:
                letters = {letter: str(number) for letter, number in costs.values.items()}
                put = re.sub(r"[A-Za-z]", lambda letter: letters[letter[0]], row.symbols)  # noqa: B023
                assert put == row.numbers.replace(",", "")
    with pytest.raises(AssertionError, match="broken: parts differ"):
        Cost("broken", "", "", 3, (Cost("part", "", "", 2),))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float23"}, r"'float23' is not a number format \(did you mean 'float32'\?\); choose one of float32"),
        ({"batch": 0}, "the batch is 0; give at least 1 sequence"),
        ({"context": 1025}, "the context is 1,025 tokens, but this model has 1,024 positions; give 1 to 1,024"),
        ({"context": -1}, "the context is -1 tokens"),
    ],
)
def test_a_workload_out_of_range_is_an_error(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CostModel(RELEASED["124M"], **options)
    with pytest.raises(InputError, match="cannot be trained in int8; choose float32"):
        CostModel(RELEASED["124M"], "int8").memory_to_train()
