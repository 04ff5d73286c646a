"""The account of a GPT-2's parameters, held against the published numbers, transformers and our own model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.anatomy import ModelPart, ParameterTree, bytes_of, check_parameters, count_parameters, count_tensors
from clearhead.config import RELEASED, GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.model import GPTModel

BOOK = GPTConfig(
    vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, drop_rate=0.1, qkv_bias=False
)
FACTS = Path(__file__).parents[2] / "shared" / "facts" / "openai_124M_tensors.json"


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    n_heads = draw(st.integers(1, 6))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 60_000)),
        context_length=draw(st.integers(1, 2048)),
        emb_dim=n_heads * draw(st.integers(1, 40)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 5)),
        qkv_bias=draw(st.booleans()),
        tie_weights=draw(st.booleans()),
        ff_dim=draw(st.integers(0, 500)),
    )


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of our own model's parameters; one tensor under two names is given once."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def huggingface_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shapes in transformers' model of this config, under canonical names; nothing is allocated."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**config.to_huggingface()))
    renamed = {}
    for name, parameter in model.named_parameters():
        for theirs, ours in (
            ("transformer.wte", "token_embedding"),
            ("transformer.wpe", "position_embedding"),
            ("transformer.ln_f", "final_norm"),
            ("lm_head", "head"),
            ("transformer.h.", "blocks."),
            ("ln_1", "norm_1"),
            ("ln_2", "norm_2"),
            ("attn.c_attn", "attention.qkv"),
            ("attn.c_proj", "attention.out"),
            ("mlp.c_fc", "feed_forward.up"),
            ("mlp.c_proj", "feed_forward.down"),
        ):
            name = name.replace(theirs, ours)
        renamed[name] = tuple(parameter.shape)
    return renamed


def named(account: ParameterTree, name: str) -> ModelPart:
    (found,) = [part for _, part in account.rows() if part.name == name]
    return found


def evaluate(formula: str) -> int:
    """The value of a formula written with ×, + and thousands separators."""
    assert re.fullmatch(r"[\d, ×+]+", formula), formula
    return int(eval(formula.replace(",", "").replace("×", "*"), {"__builtins__": {}}))


def test_book_model() -> None:
    account = count_parameters(BOOK)
    expected = {
        "token": 38_597_376,
        "position": 786_432,
        "W_query": 589_824,
        "W_key": 589_824,
        "W_value": 589_824,
        "qkv": 1_769_472,
        "out": 590_592,
        "norm_1": 1_536,
        "norm_2": 1_536,
        "up": 2_362_368,
        "down": 2_360_064,
        "feed_forward": 4_722_432,
        "block": 7_085_568,
        "blocks": 85_026_816,
        "final_norm": 1_536,
        "head": 38_597_376,
        "output": 38_598_912,
        "GPT-2": 163_009_536,
    }
    assert {name: named(account, name).count for name in expected} == expected
    assert account.total == account.untied == 163_009_536
    assert account.tied == 124_412_160
    # The book prints 474.59 MB for the tied model, and 621.83 MB for the untied one, in units of 1024 × 1024.
    assert round(bytes_of(account.tied) / 2**20, 2) == 474.59
    assert round(bytes_of(account.untied) / 2**20, 2) == 621.83


@pytest.mark.parametrize(
    ("size", "parameters", "tensors", "size_in_bytes"),
    [
        ("124M", 124_439_808, 148, 497_759_232),
        ("355M", 354_823_168, 292, 1_419_292_672),
        ("774M", 774_030_080, 436, 3_096_120_320),
        ("1558M", 1_557_611_200, 580, 6_230_444_800),
    ],
)
def test_released_sizes(size: str, parameters: int, tensors: int, size_in_bytes: int) -> None:
    account = count_parameters(RELEASED[size])
    assert account.total == account.tied == parameters
    assert account.tensor_count == tensors
    assert bytes_of(account.total, "float32") == size_in_bytes
    assert bytes_of(account.total, "bfloat16") == bytes_of(account.total, "float16") == size_in_bytes // 2
    assert bytes_of(account.total, "int8") == parameters
    theirs = huggingface_shapes(RELEASED[size])
    assert len(theirs) == tensors
    check_parameters(account, theirs)
    with torch.device("meta"):
        ours = GPTModel(RELEASED[size])
    check_parameters(account, shapes_of(ours))
    assert sum(p.numel() for p in ours.parameters()) == parameters


@pytest.mark.skipif(not FACTS.exists(), reason="OpenAI's own index of the 124M is not at hand")
def test_every_tensor_in_openais_own_index_is_counted() -> None:
    tensors = json.loads(FACTS.read_text(encoding="utf-8"))
    rows = tensors["tensors"]
    account = count_parameters(RELEASED["124M"])
    assert len(rows) == account.tensor_count
    assert sum(row["bytes"] for row in rows) == bytes_of(account.total)


@given(configs())
@settings(deadline=None, max_examples=100)
def test_parts_sum_to_the_whole(config: GPTConfig) -> None:
    account = count_parameters(config)
    for depth, part in account.rows():
        assert part.total == part.count * part.times
        if part.name == "blocks":
            assert part.count == config.n_layers * part.parts[0].count
        elif part.parts:
            assert part.count == sum(inner.count for inner in part.parts)
            assert {inner.times for inner in part.parts} == {part.times}
        if part.parts:
            assert account.share(part) == pytest.approx(sum(map(account.share, part.parts)))
        assert evaluate(part.numbers) == part.count, "the formula gives the count"
        assert part.symbols
        assert (depth == 0) == (part is account.root)
    leaves = [part for _, part in account.rows() if not part.parts]
    assert sum(part.total for part in leaves) == account.total
    assert account.share(account.root) == 1
    assert account.untied - account.tied == config.vocab_size * config.emb_dim
    assert account.total == (account.tied if config.tie_weights else account.untied)
    assert count_parameters(config.replace(tie_weights=True)).total == account.tied
    assert count_parameters(config.replace(tie_weights=False)).total == account.untied


@given(configs())
@settings(deadline=None, max_examples=40)
def test_account_agrees_with_real_tensors(config: GPTConfig) -> None:
    account = count_parameters(config)
    with torch.device("meta"):
        ours = shapes_of(GPTModel(config))
    check_parameters(account, ours)
    assert len(ours) == account.tensor_count
    assert count_tensors(ours)[""] == account.total
    if config.qkv_bias:
        theirs = huggingface_shapes(config)
        check_parameters(account, theirs)
        assert len(theirs) == account.tensor_count


def test_state_dict_names_a_tied_head_twice_and_it_is_counted_once() -> None:
    config = GPTConfig(50, 8, 12, 2, 2, qkv_bias=True, tie_weights=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in GPTModel(config).state_dict().items()}
    assert "head.weight" in shapes
    check_parameters(count_parameters(config), shapes)


def test_symbols_name_the_width_of_the_feed_forward_layer() -> None:
    assert named(count_parameters(BOOK), "up").symbols == "C × 4C + 4C"
    assert named(count_parameters(BOOK), "down").symbols == "4C × C + C"
    assert named(count_parameters(BOOK.replace(ff_dim=1000)), "up").symbols == "C × F + F"
    assert named(count_parameters(BOOK), "W_key").symbols == "C × C"
    assert named(count_parameters(RELEASED["124M"]), "W_key").symbols == "C × C + C"
    assert named(count_parameters(RELEASED["124M"]), "W_key").count == 590_592


def test_counts_by_every_prefix() -> None:
    counts = count_tensors({"a.0.w": (2, 3), "a.0.b": (3,), "a.1.w": (5,), "scalar": ()})
    assert counts == {
        "": 15,
        "a": 14,
        "a.0": 9,
        "a.0.w": 6,
        "a.0.b": 3,
        "a.1": 5,
        "a.1.w": 5,
        "scalar": 1,
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks.1.attention.qkv.bias": None}, r"^blocks\.1\.attention\.qkv has 432 elements, but .* has 468"),
        ({"token_embedding.weight": (51, 12)}, r"^token_embedding has 612 elements, but .* has 600"),
        ({"blocks.0.norm_1.weight": None, "blocks.0.norm_1.bias": None}, r"^blocks\.0\.norm_1 has 0 elements"),
        ({"head.bias": (50,)}, r"^head has 650 elements, but .* has 600"),
        ({"blocks.2.norm_1.weight": (12,)}, r"tensor blocks\.2\.norm_1\.weight belongs to no part"),
        ({"extra": (3,)}, "tensor extra belongs to no part"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes: dict[str, Any], sentence: str) -> None:
    config = GPTConfig(50, 8, 12, 2, 2, qkv_bias=True)
    shapes: dict[str, Any] = {**shapes_of(GPTModel(config)), **changes}
    present = {name: shape for name, shape in shapes.items() if shape is not None}
    with pytest.raises(WeightsError, match=sentence):
        check_parameters(count_parameters(config), present)


@given(st.integers(0, 10**12))
@settings(deadline=None, max_examples=20)
def test_bytes_are_those_of_torch(parameters: int) -> None:
    for dtype in ("float32", "bfloat16", "float16", "int8"):
        assert bytes_of(parameters, dtype) == parameters * getattr(torch, dtype).itemsize
    assert 2 * bytes_of(parameters, "int4") in (parameters, parameters + 1)


def test_unknown_number_format_is_refused() -> None:
    with pytest.raises(InputError, match="'float64' is not a number format; choose one of float32, bfloat16"):
        bytes_of(10, "float64")
