"""The network in NumPy beside the one in PyTorch and transformers' of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL, ours_of, peer_of
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead import lens
from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.lens.array_recording import record_arrays
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors
from clearhead.numpy_model import NumpyModel, last, load_numpy_model, norm

TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9]]


def numpy_of(model: GPTModel) -> NumpyModel:
    return load_numpy_model(model.config, ModelTensors(model))


def perturbed(config: GPTConfig, seed: int) -> GPTModel:
    """A model whose norms and biases have values too."""
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_every_activation_is_pytorchs(tmp_path: Path) -> None:
    """And PyTorch's are transformers': test_lens.py compares them."""
    model = ours_of(peer_of(SMALL, std=0.2), tmp_path)
    ids = TEXTS[0]
    expected = lens.watch(model, ids)
    found = dict(numpy_of(model).activations(ids))
    assert list(found) == list(lens.names(model.config)) == list(expected)
    for name, value in found.items():
        assert value.dtype == np.float32, name
        np.testing.assert_allclose(value, expected[name], atol=1e-4, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_logits_are_transformers(activation: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    shape = GPT2Config(
        vocab_size=97, n_positions=16, n_embd=24, n_head=3, n_layer=2, activation_function=activation,
        layer_norm_epsilon=1e-3, initializer_range=0.3,
    )  # fmt: skip
    peer = GPT2LMHeadModel(shape).eval()
    peer.save_pretrained(tmp_path)
    opened = clearhead.weights.open(tmp_path)
    *_, (name, logits) = load_numpy_model(opened.config, opened.lazy()).activations(TEXTS[0])
    assert name == "logits"
    with torch.inference_mode():
        np.testing.assert_allclose(logits, peer(torch.tensor([TEXTS[0]])).logits[0].numpy(), atol=1e-4)


shapes = st.builds(
    lambda heads, width, layers, bias, tie, activation, ff: GPTConfig(
        vocab_size=31, context_length=8, emb_dim=heads * width, n_heads=heads, n_layers=layers, qkv_bias=bias,
        tie_weights=tie, activation=activation, ff_dim=ff,
    ),
    st.integers(1, 4), st.sampled_from([2, 5, 8]), st.integers(1, 3), st.booleans(), st.booleans(),
    st.sampled_from(["gelu_tanh", "gelu_erf", "relu"]), st.sampled_from([0, 7, 40]),
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_any_shape_computes_what_pytorch_does(config: GPTConfig, seed: int, ids: list[int]) -> None:
    model = perturbed(config, seed)
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0].numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(last(numpy_of(model).activations(ids)), expected, atol=1e-4 * scale)


def test_a_batch_is_its_texts() -> None:
    model = numpy_of(perturbed(SMALL, 2))
    batch = dict(model.activations([[3, 1, 4], [1, 5, 9]]))
    for row, ids in enumerate([[3, 1, 4], [1, 5, 9]]):
        for name, value in model.activations(ids):
            part = value if name == "embedding.position" else batch[name][row]
            np.testing.assert_allclose(part, value, atol=1e-5, err_msg=name)


def test_a_pass_can_stop_early_and_reads_no_later_weights() -> None:
    whole = numpy_of(perturbed(SMALL, 3))
    first = {name: value for name, value in whole.weights.items() if not name.startswith(("blocks.1", "blocks.2"))}
    for name, _ in NumpyModel(SMALL, first).activations(TEXTS[0]):
        if name == "blocks.1.norm_1.variance":
            return
    raise AssertionError("there is no such activation")


def test_a_residual_is_read_as_the_end_of_the_model() -> None:
    model = perturbed(SMALL, 4)
    found = lens.watch(numpy_of(model), TEXTS[0], ["blocks.1.residual_out", "final_norm.output"])
    residual = found["blocks.1.residual_out"]
    np.testing.assert_allclose(lens.logit_lens(numpy_of(model), residual), lens.logit_lens(model, residual), atol=1e-4)
    normed = last(norm(residual, "final_norm", numpy_of(model).weights, SMALL))
    assert np.abs(normed.mean(-1)).max() < 1 and normed.shape == residual.shape


@pytest.mark.parametrize("positions", [None, 1, [-1, 0]])
def test_texts_are_recorded_as_with_pytorch(positions: Any) -> None:
    model = perturbed(SMALL, 5)
    wanted = ["*"] if positions is None else ["blocks.*.attention.pattern", "logits", "*.mean"]
    theirs = lens.numpy_cache(lens.run_with_cache(model, TEXTS, wanted, positions=positions))
    ours = record_arrays(numpy_of(model), TEXTS, wanted, positions)
    assert list(ours) == list(theirs) and ours.lengths == theirs.lengths
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-4, err_msg=name)
    for row in range(len(TEXTS)):
        assert {k: v.shape for k, v in ours.text(row).items()} == {k: v.shape for k, v in theirs.text(row).items()}


def test_transformer_lens_names_give_its_axes() -> None:
    model = perturbed(SMALL, 6)
    theirs = lens.watch(model, TEXTS[0], "*hook_*")
    ours = lens.watch(numpy_of(model), TEXTS[0], "*hook_*")
    assert list(ours) == list(theirs) and len(ours) > 20
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("ids", "names", "positions", "message"),
    [
        ([], "logits", None, "there are no tokens to watch"),
        ([0] * 99, "logits", None, "99 tokens, but the model reads"),
        ([1, 99999], "logits", None, "99999"),
        ([1], "logit", None, "did you mean logits"),
        ([1], "logits", 1, "there is no position 1"),
        ([1], "blocks.0.attn.hook_attn_scores", [0], "they come whole"),
    ],
)
def test_mistakes_are_named_as_with_pytorch(ids: list[int], names: str, positions: Any, message: str) -> None:
    model = perturbed(SMALL, 7)
    for network in (model, numpy_of(model)):
        with pytest.raises(InputError, match=message):
            lens.watch(network, ids, names, positions=positions)


def test_recorded_values_are_copies() -> None:
    model = numpy_of(perturbed(SMALL, 8))
    before = {name: value.copy() for name, value in model.weights.items()}
    trace = lens.watch(model, TEXTS[0])
    for value in trace.values():
        value[...] = 7
    assert all(np.array_equal(value, before[name]) for name, value in model.weights.items())
    again = lens.watch(model, TEXTS[0])
    again["blocks.0.residual_out"][...] = 7
    assert not np.array_equal(again["blocks.1.residual_in"], again["blocks.0.residual_out"])


def test_a_gpt_is_watched_without_pytorch_until_there_is_a_network() -> None:
    gpt = clearhead.load()
    ids, name = [5, 6, 7], "blocks.2.feed_forward.output"
    plain = gpt.watch(ids, name)
    assert isinstance(gpt._readable, NumpyModel)
    with torch.no_grad():
        gpt.model.blocks[2].feed_forward.down.bias.add_(1.0)  # type: ignore[union-attr, operator]
    changed = gpt.watch(ids, name)
    np.testing.assert_allclose(changed[name], plain[name] + 1, atol=1e-4)
