"""`clearhead.verify` on models that are right, and on the same with planted mistakes that no shape reveals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perturbed import SMALL, Tensors, perturbed_weights
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.loading import bundled
from clearhead.tokenizer import Tokenizer
from clearhead.verification import Verification, verify_weights
from clearhead.verification.attention_order import measure_layer
from clearhead.verification.reference_text import TEXT

SHORT = TEXT[:1200]  # a few hundred tokens are enough here


@pytest.fixture(scope="module")
def trained() -> Tensors:
    """The bundled model's weights, float32; a test that changes one puts another array in its place."""
    return weights.open(bundled()).load()


@pytest.fixture(scope="module")
def config() -> GPTConfig:
    """Its shape."""
    return weights.open(bundled()).config


def test_the_bundled_model_passes() -> None:
    found = clearhead.verify(bundled(), text=SHORT)
    verdicts = {check.name: check.verdict for check in found.checks}
    assert verdicts == {
        "files": "passed",
        "checksums": "not applicable",
        "tensors": "passed",
        "numbers": "passed",
        "statistics": "passed",
        "arrangement": "passed",
        "heads": "passed",
        "identity": "not applicable",
        "tokenizer": "passed",
        "text": "passed",
        "continuation": "not applicable",
    }
    assert found.ok and found.as_json()["ok"] is True


# --------------------------------------------------------------------------------------------------------------
# Mistakes that no check of shapes sees
# --------------------------------------------------------------------------------------------------------------


def thirds(change: Callable[..., list[np.ndarray]]) -> Callable[[Tensors, int], None]:
    """A mistake in q, k and v: what is made of the three, for the weights and for the biases."""

    def plant(tensors: Tensors, layer: int) -> None:
        for kind in ("weight", "bias"):
            name = f"blocks.{layer}.attention.qkv.{kind}"
            tensors[name] = np.concatenate(change(*np.split(tensors[name], 3)))

    return plant


def out_transposed(tensors: Tensors, layer: int) -> None:
    name = f"blocks.{layer}.attention.out.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def head_by_head(tensors: Tensors, layer: int) -> None:
    """As Megatron stores them: head 0's q, k and v, then head 1's."""
    for kind in ("weight", "bias"):
        name = f"blocks.{layer}.attention.qkv.{kind}"
        parts = [np.split(part, 7) for part in np.split(tensors[name], 3)]
        tensors[name] = np.concatenate([parts[which][head] for head in range(7) for which in range(3)])


MISTAKES: dict[str, tuple[Callable[[Tensors, int], None], str]] = {
    "out transposed": (out_transposed, "attention.out is transposed"),
    "k, v, q": (thirds(lambda q, k, v: [k, v, q]), "with v in the middle"),
    "q, v, k": (thirds(lambda q, k, v: [q, v, k]), "with v in the middle"),
    "v, q, k": (thirds(lambda q, k, v: [v, q, k]), "with v first"),
    "v, k, q": (thirds(lambda q, k, v: [v, k, q]), "with v first"),
    "each transposed": (
        thirds(lambda *parts: [np.ascontiguousarray(part.T) for part in parts]),
        "q, k and v are transposed",
    ),
    "head by head": (head_by_head, "interleaved head by head"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_any_one_layer_is_caught_and_named(trained: Tensors, config: GPTConfig, mistake: str) -> None:
    plant, words = MISTAKES[mistake]
    for layer in range(config.n_layers):
        tensors = dict(trained)
        plant(tensors, layer)
        prefix = f"blocks.{layer}.attention."
        found = measure_layer(layer, tensors[prefix + "qkv.weight"], tensors[prefix + "out.weight"], None, config)
        assert found.verdict == "wrong"
        assert [words in fault for fault in found.best_alternative.faults()] == [True]
        assert found.sigmas(found.correlations[found.best_alternative].weaker) > 20


def verify_changed(folder: Path, config: GPTConfig, tensors: Tensors, *, run: bool = False) -> Verification:
    """Saves a model beside the bundled tokenizer and verifies it."""
    weights.save_huggingface(folder, config, tensors)
    shutil.copy(bundled() / "tokenizer.json", folder)
    return clearhead.verify(folder, text=SHORT) if run else verify_weights(folder)


@pytest.mark.parametrize("layers", [(2,), (0, 1, 2, 3, 4, 5)])
def test_the_layers_with_a_mistake_are_named(
    trained: Tensors, config: GPTConfig, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    tensors = dict(trained)
    for layer in layers:
        out_transposed(tensors, layer)
    found = verify_changed(tmp_path, config, tensors)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["arrangement"]
    check = found["arrangement"]
    assert check.text == f"{'Layer 2' if layers == (2,) else 'All layers'}: attention.out is transposed."
    assert [detail.split(":")[0] for detail in check.details] == [f"layer {layer}" for layer in layers]
    assert not found.ok


def test_q_and_k_exchanged_are_known_by_their_biases_and_by_a_text(
    trained: Tensors, config: GPTConfig, tmp_path: Path
) -> None:
    tensors = dict(trained)
    for layer in range(config.n_layers):
        thirds(lambda q, k, v: [k, q, v])(tensors, layer)
    found = verify_changed(tmp_path, config, tensors, run=True)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["arrangement", "text"]
    assert found["arrangement"].text.startswith("All layers: q and k")
    assert "more likely with q and k exchanged in the whole model" in found["text"].text


def test_exchanged_norms_are_known_by_a_text(trained: Tensors, config: GPTConfig, tmp_path: Path) -> None:
    tensors = dict(trained)
    for field in ("weight", "bias"):
        one, other = f"blocks.5.norm_1.{field}", f"blocks.5.norm_2.{field}"
        tensors[one], tensors[other] = trained[other], trained[one]
    found = verify_changed(tmp_path, config, tensors, run=True)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["text"]
    assert "norm_1 and norm_2 exchanged in layer 5" in found["text"].text


def test_a_wrong_number_of_heads_is_known(trained: Tensors, config: GPTConfig, tmp_path: Path) -> None:
    for heads in (14, 28):
        found = verify_changed(tmp_path / str(heads), config.replace(n_heads=heads), trained)
        assert [check.name for check in found.checks if check.verdict == "failed"] == ["heads"], heads
        assert "7 heads of 32" in found["heads"].text
    found = verify_changed(tmp_path / "14", config.replace(n_heads=14), trained, run=True)
    assert "7 heads" in found["text"].text and found["text"].verdict == "failed"


def test_layers_in_the_order_of_a_sorted_list(config: GPTConfig) -> None:
    """A model of twelve layers, every other one of which does nothing, with its layers as 0, 1, 10, 11, 2, …"""
    from clearhead.model import GPTModel
    from clearhead.verification.blockwise import TorchBlocks
    from clearhead.verification.permutation_test import count_alternatives, permutation_test

    torch.manual_seed(0)
    deep, own = config.replace(n_layers=12), clearhead.load()
    model = GPTModel(deep).eval()
    rest = {name: values for name, values in own.model.state_dict().items() if not name.startswith("blocks.")}
    model.load_state_dict(rest, strict=False)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            if layer % 2 == 0:
                block.load_state_dict(own.model.blocks[layer // 2].state_dict())
                continue
            for name, parameter in block.named_parameters():
                if name.startswith(("attention.out", "feed_forward.down")):
                    parameter.zero_()
    ids = own.tokenizer.encode(TEXT)[:97]  # type: ignore[union-attr]
    right = permutation_test(TorchBlocks(model), ids, layer_by_layer=False)
    assert len(right.alternatives) == count_alternatives(deep, False)
    assert min(alternative.nats for alternative in right.alternatives) > 10
    wrong = list(model.blocks)
    by_name = sorted(range(12), key=str)
    model.blocks = torch.nn.ModuleList(wrong[number] for number in by_name)
    found = permutation_test(TorchBlocks(model), ids, layer_by_layer=False)
    best = min(found.alternatives, key=lambda alternative: alternative.nats)
    assert best.name == "the layers read as sorted by name (0, 1, 10, …)" and best.nats < -100
    assert right.loss == pytest.approx(found.loss + best.nats / found.tokens, rel=1e-4)


def test_numpy_and_pytorch_find_the_same(config: GPTConfig) -> None:
    from clearhead.model_weights import ModelTensors
    from clearhead.numpy_model import load_numpy_model
    from clearhead.verification.blockwise import NumpyBlocks, TorchBlocks
    from clearhead.verification.permutation_test import permutation_test

    gpt = clearhead.load(backend="torch")
    ids = gpt.tokenizer.encode(TEXT)[:130]  # type: ignore[union-attr]
    model = gpt.model
    ours = permutation_test(NumpyBlocks(load_numpy_model(config, ModelTensors(model))), ids)
    theirs = permutation_test(TorchBlocks(model), ids)
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5) and ours.tokens == theirs.tokens
    assert [str(one) for one in ours.alternatives] == [str(one) for one in theirs.alternatives]
    for one, other in zip(ours.alternatives, theirs.alternatives, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-2, rel=1e-4), one
    assert model.blocks[0].attention.n_heads == config.n_heads  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------------
# Nothing is claimed where nothing can be told
# --------------------------------------------------------------------------------------------------------------


def test_an_untrained_model_is_not_failed(tmp_path: Path) -> None:
    own = GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_head=3, n_layer=2)
    GPT2LMHeadModel(own).save_pretrained(tmp_path)
    found = clearhead.verify(tmp_path)
    assert found.ok and "Untrained" in found["numbers"].text
    assert {found[name].verdict for name in ("arrangement", "heads", "text", "statistics")} == {"not applicable"}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([(24, 3), (64, 4), (96, 2), (64, 64)]), st.floats(0, 1))
def test_random_numbers_are_never_wrong_nor_right(seed: int, shape: tuple[int, int], common: float) -> None:
    """Also where all matrices share a direction, as those of a trained model do."""
    size, heads = shape
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(1, size))
    qkv = rng.normal(size=(3 * size, size)) + common * rng.normal(size=(3 * size, 1)) * shared
    out = rng.normal(size=(size, size)) + common * shared.T * rng.normal(size=(1, size))
    found = measure_layer(0, qkv.astype("f4"), out.astype("f4"), None, GPTConfig(61, 16, size, heads, 2))
    assert found.verdict == "undecided"


def test_moved_but_untrained_weights_are_a_warning(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, perturbed_weights())
    found = verify_weights(tmp_path)
    assert found.ok and found["arrangement"].verdict == "warning" and found["heads"].verdict == "not applicable"
    assert "undecided" in found["arrangement"].text and "needed" in found["arrangement"].details[0]


def test_zeros_in_place_of_matrices_fail(tmp_path: Path) -> None:
    tensors = {
        name: np.zeros_like(values) if values.ndim == 2 else values for name, values in perturbed_weights().items()
    }
    weights.save_huggingface(tmp_path, SMALL, tensors)
    check = verify_weights(tmp_path)["statistics"]
    assert check.verdict == "failed" and "only zeros" in check.details[0]


def with_tokenizer(folder: Path, definition: str) -> Verification:
    """Verify the bundled model with another `tokenizer.json`."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bundled() / name, folder)
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    return clearhead.verify(folder, text=SHORT)


def test_chance_counts_the_tokens_that_the_tokenizer_can_produce(tmp_path: Path) -> None:
    """With the merges lost every token is a byte, and 6.3 nats are no sign that the model knows the text."""
    definition = json.loads((bundled() / "tokenizer.json").read_text(encoding="utf-8"))
    definition["model"]["merges"] = []
    found = with_tokenizer(tmp_path, json.dumps(definition))
    assert found.ok and found["text"].verdict == "warning" and "by chance 5.5" in found["text"].text


def test_a_tokenizer_that_cannot_encode_the_text_stops_that_check_only(tmp_path: Path) -> None:
    Tokenizer.of_characters("abcdefghijklmnopqrstuvwxyz ").save(tmp_path)
    found = with_tokenizer(tmp_path, (tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert found.ok and found["tokenizer"].verdict == "warning" and "'T'" in found["tokenizer"].text
    assert found["text"].verdict == "not applicable" and "--text" in found["text"].text


def test_a_text_that_the_model_does_not_know_is_no_ground(tmp_path: Path) -> None:
    found = clearhead.verify(bundled(), text="def f(x):\n    return {k: [v] for k, v in x.items() if v != 3}\n" * 9)
    assert found["text"].verdict == "warning" and found.ok
    found = clearhead.verify(bundled(), text="Too short.")
    assert found["text"].verdict == "not applicable"
