"""The ONNX export: onnxruntime computes with it what transformers does, and its tensors are the model's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from reference_models import peer_of
from transformers import GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights import formats

CONFIG = GPTConfig(vocab_size=97, context_length=32, emb_dim=48, n_heads=4, n_layers=3, qkv_bias=True, tie_weights=True)
Cache = list[np.ndarray]


class Session:
    """onnxruntime with one exported model."""

    def __init__(self, folder: Path) -> None:
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]
        first = next(i for i in self.session.get_inputs() if i.name.startswith("past"))
        self.dtype = np.float16 if first.type == "tensor(float16)" else np.float32
        self.heads, self.width = first.shape[1], first.shape[3]

    def empty(self, batch: int) -> Cache:
        """A cache of no tokens."""
        n = sum(name.startswith("past") for name in self.names)
        return [np.zeros((batch, self.heads, 0, self.width), self.dtype)] * n

    def __call__(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray, cache: Cache) -> tuple[Any, Cache]:
        """The logits of the new tokens [B, T, V], and the cache with them."""
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        feeds |= dict(zip([name for name in self.names if name.startswith("past")], cache, strict=True))
        logits, *present = self.session.run(None, feeds)
        return logits, present


def export(peer: GPT2LMHeadModel, folder: Path, dtype: str = "float32", config: GPTConfig | None = None) -> Session:
    peer.save_pretrained(folder / "hf")
    weights.open(folder / "hf", config=config).save(folder / "onnx", "onnx", dtype)
    return Session(folder / "onnx")


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    return peer_of(CONFIG, std=0.2)


@pytest.fixture(scope="module")
def folder(peer: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    export(peer, folder)
    return folder


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return Session(folder / "onnx")


def whole(session: Session, ids: np.ndarray) -> np.ndarray:
    """The logits of whole sequences, without padding and without a cache."""
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    return np.asarray(session(ids, np.ones_like(ids), places, session.empty(len(ids)))[0])


def logits_of(peer: GPT2LMHeadModel, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(peer(torch.from_numpy(ids)).logits)


IDS = np.arange(2 * 32).reshape(2, 32) * 7 % 97


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu_erf"},
        {"tie_weights": False},
        {"ff_dim": 50, "norm_eps": 1e-3},
        {"n_layers": 1, "n_heads": 1},
    ],
)
def test_the_logits_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    other = peer_of(CONFIG.replace(**changes), std=0.2)
    session = export(other, tmp_path)
    np.testing.assert_allclose(whole(session, IDS), logits_of(other, IDS), atol=1e-4, rtol=0)


def test_without_biases_on_queries_keys_and_values(tmp_path: Path) -> None:
    other = peer_of(CONFIG, std=0.2)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("c_attn.bias"):
                parameter.zero_()
    session = export(other, tmp_path, config=CONFIG.replace(qkv_bias=False))
    np.testing.assert_allclose(whole(session, IDS), logits_of(other, IDS), atol=1e-4, rtol=0)
    names = [tensor.name for tensor in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer]
    assert "blocks.0.attention.out.bias" in names and "blocks.0.attention.qkv.bias" not in names


def test_float16(peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    session = export(peer, tmp_path, "float16")
    expected = logits_of(peer, IDS)
    found = whole(session, IDS)
    assert found.dtype == np.float16
    assert 1e-4 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_one_token_at_a_time(session: Session, peer: GPT2LMHeadModel) -> None:
    cache, found = session.empty(2), []
    for place in range(IDS.shape[1]):
        ids = IDS[:, place : place + 1]
        mask = np.ones((2, place + 1), np.int64)
        logits, cache = session(ids, mask, np.full((2, 1), place), cache)
        found.append(logits)
    assert cache[0].shape == (2, 4, 32, 12)
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits_of(peer, IDS), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_padded_batches_in_any_pieces(session: Session, peer: GPT2LMHeadModel, data: st.DataObject) -> None:
    """Sequences of different lengths side by side, padded on the left, run in any pieces: each as if it were alone."""
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4), label="lengths")
    most = max(lengths)
    draw = st.lists(st.integers(0, 96), min_size=most, max_size=most)
    rows = [data.draw(draw, label="ids") for _ in lengths]
    cuts = sorted(data.draw(st.sets(st.integers(1, most - 1), max_size=3), label="cuts")) if most > 1 else []
    ids = np.array(rows, np.int64)
    mask = np.array([[0] * (most - n) + [1] * n for n in lengths], np.int64)
    places = np.maximum(mask.cumsum(1) - 1, 0)
    cache, found = session.empty(len(lengths)), []
    for begin, end in zip([0, *cuts], [*cuts, most], strict=True):
        logits, cache = session(ids[:, begin:end], mask[:, :end], places[:, begin:end], cache)
        found.append(logits)
    together = np.concatenate(found, axis=1)
    assert np.isfinite(together).all()
    for row, length in enumerate(lengths):
        alone = logits_of(peer, ids[row : row + 1, most - length :])
        np.testing.assert_allclose(together[row, most - length :], alone[0], atol=1e-4, rtol=0)


def test_the_tensors_by_the_library(folder: Path, peer: GPT2LMHeadModel) -> None:
    path = folder / "onnx" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    assert len(tensors) == 3 * 12 + 4 and not [name for name in tensors if "head" in name]  # the head is tied
    assert sum(tensor.size for tensor in tensors.values()) == peer.num_parameters()
    np.testing.assert_array_equal(tensors["token_embedding.weight"], state["transformer.wte.weight"])
    np.testing.assert_array_equal(tensors["blocks.2.attention.qkv.weight"], state["transformer.h.2.attn.c_attn.weight"])
    np.testing.assert_array_equal(tensors["blocks.1.feed_forward.down.bias"], state["transformer.h.1.mlp.c_proj.bias"])
    assert (model.opset_import[0].version, model.producer_name) == (20, "clearhead")
    config = json.loads((folder / "onnx" / "config.json").read_text())
    assert (config["model_type"], config["n_layer"], config["eos_token_id"]) == ("gpt2", 3, 0)


def test_numbers_in_a_file_beside(folder: Path, session: Session, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(formats.onnx, "_MOST_INSIDE", 1000)
    source, out = weights.open(folder / "hf"), tmp_path / "out"
    saved = source.save(out, "onnx")
    assert [path.name for path in saved.files] == [
        "generation_config.json",
        "model.onnx_data",
        "config.json",
        "model.onnx",
    ]
    onnx.checker.check_model(out / "model.onnx", full_check=True)
    assert (out / "model.onnx").stat().st_size < 50_000
    np.testing.assert_array_equal(whole(Session(out), IDS), whole(session, IDS))
    begins = [
        int(t.external_data[1].value) for t in onnx.load(out / "model.onnx", load_external_data=False).graph.initializer
    ]
    assert begins == sorted(begins) and not any(begin % 4096 for begin in begins)
    # A second save leaves the first one whole until it is whole itself, so its numbers have another name.
    source.save(out, "onnx")
    assert {path.name for path in out.iterdir()} == {
        "model.onnx",
        "model.onnx_data_1",
        "config.json",
        "generation_config.json",
    }
    assert weights.compare(source.plan(), weights.open(out).plan()).changed == 0
    (out / "model.onnx_data_1").write_bytes((out / "model.onnx_data_1").read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"model\.onnx_data_1 is cut short: 'final_norm\.bias' ends at"):
        weights.open(out)
    (out / "model.onnx_data_1").unlink()
    with pytest.raises(WeightsError, match=r"lacks model\.onnx_data_1"):
        weights.open(out)
    monkeypatch.undo()
    source.save(out, "onnx")
    assert {path.name for path in out.iterdir()} == {"model.onnx", "config.json", "generation_config.json"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_read_back(folder: Path, tmp_path: Path, dtype: str) -> None:
    source = weights.open(folder / "hf")
    source.save(tmp_path / "x", "onnx", dtype)
    back = weights.open(tmp_path / "x")
    assert (back.layout, back.config, back.dtype) == ("onnx", source.config, dtype)
    changed = weights.compare(source.plan(), back.plan()).changed
    assert bool(changed) == (dtype == "float16")
    # As the library writes the same model, its fields in another order.
    onnx.save(onnx.load(tmp_path / "x" / "model.onnx"), tmp_path / "again.onnx")
    again = weights.open(tmp_path / "again.onnx")
    assert weights.compare(back.plan(), again.plan()).changed == 0


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "onnx", tmp_path / "x")
    path = tmp_path / "x" / "model.onnx"
    whole_file = path.read_bytes()
    for size in (len(whole_file) - 100, len(whole_file) // 2, 1000, 5):
        path.write_bytes(whole_file[:size])
        with pytest.raises(WeightsError, match="cut short or damaged"):
            weights.open(tmp_path / "x")
    model = onnx.load_from_string(whole_file)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(WeightsError, match="was not written by Clearhead"):
        weights.open(tmp_path / "x")
    with pytest.raises(WeightsError, match="not written as 'bfloat16'; choose float32, float16"):
        weights.open(folder / "hf").save(tmp_path / "y", "onnx", "bfloat16")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(WeightsError, match=r"pip install 'clearhead\[onnx\]'"):
        weights.open(folder / "hf").save(tmp_path / "y", "onnx")
