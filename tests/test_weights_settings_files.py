"""Settings files beside weights: any JSON ends in success or one sentence, and nothing is sized by an absurd count."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_weights_cli import call
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.errors import ClearheadError
from clearhead.weights.formats.gguf import GGUFFile, write_gguf
from clearhead.weights.formats.onnx import CONFIG_KEY

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_positions": 8, "n_embd": 64, "n_head": 1, "n_layer": 2}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=1)).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def at_most(n_bytes: int) -> Any:
    """Fail if more memory than this is allocated in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


class TestAbsurdCounts:
    @pytest.mark.parametrize("key", ["n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "n_inner"])
    def test_config_json(self, model: Path, tmp_path: Path, key: str) -> None:
        values = json.loads((model / "config.json").read_text())
        (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
        (tmp_path / "config.json").write_text(
            json.dumps({**values, key: 10**9 if key in ("vocab_size", "n_positions") else 10**7})
        )
        with at_most(20_000_000), pytest.raises(ClearheadError, match="Clearhead runs models with at most"):
            weights.open(tmp_path).plan()

    @pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
    @pytest.mark.parametrize("value", [2**31, "many", [2], True, -1.5])
    def test_gguf(self, model: Path, tmp_path: Path, key: str, value: Any) -> None:
        weights.open(model).save(tmp_path / "x.gguf", "gguf")
        file = GGUFFile(tmp_path / "x.gguf")
        keys = {**file.keys, f"gpt2.{key}": value}
        tensors = {name: (info.shape, "float32") for name, info in file.tensors.items()}
        write_gguf(tmp_path / "y.gguf", keys, tensors, ((name, file.read(name)) for name in file.tensors))
        assert GGUFReader(tmp_path / "y.gguf").fields
        with at_most(20_000_000), pytest.raises(ClearheadError):
            weights.open(tmp_path / "y.gguf").plan()

    @pytest.mark.parametrize("value", [10**7, 10**30, None, "2", [2], {}])
    def test_onnx(self, model: Path, tmp_path: Path, value: Any) -> None:
        weights.open(model).save(tmp_path / "out", "onnx")
        graph = onnx.load(tmp_path / "out" / "model.onnx")
        entry = next(entry for entry in graph.metadata_props if entry.key == CONFIG_KEY)
        entry.value = json.dumps({**json.loads(entry.value), "n_layers": value})
        onnx.save(graph, tmp_path / "changed.onnx")
        with at_most(20_000_000), pytest.raises(ClearheadError):
            weights.open(tmp_path / "changed.onnx").plan()

    def test_openai(self, model: Path, tmp_path: Path) -> None:
        weights.open(model).save(tmp_path, "openai")
        values = json.loads((tmp_path / "hparams.json").read_text())
        (tmp_path / "hparams.json").write_text(json.dumps({**values, "n_layer": 10**7}))
        with at_most(20_000_000), pytest.raises(ClearheadError, match="n_layers is 10,000,000"):
            weights.open(tmp_path).plan()

    def test_the_named_model_of_a_state_dict(self, tmp_path: Path) -> None:
        names = {f"trf_blocks.{i}.norm1.scale": torch.ones(64) for i in (0, 9_999_999)}
        shapes = {"tok_emb.weight": (9, 64), "pos_emb.weight": (8, 64), "trf_blocks.0.ff.layers.0.weight": (256, 64)}
        torch.save(names | {name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.pth")
        with at_most(20_000_000), pytest.raises(ClearheadError, match="n_layers is 10,000,000"):
            weights.open(tmp_path / "model.pth").plan()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(
        [
            *("n_layer", "n_embd", "activation_function", "model_type", "scale_attn_weights", "tie_word_embeddings"),
            *("scale_attn_by_inverse_layer_idx", "quantization_config", "eos_token_id", "id2label", "architectures"),
            "dtype",
        ]
    ),
    value=JSON,
    file=st.sampled_from(["config.json", "generation_config.json"]),
)
def test_any_value_in_a_settings_file(model: Path, tmp_path: Path, key: str, value: Any, file: str) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**values, key: value}))
    with contextlib.suppress(ClearheadError):
        source = weights.open(tmp_path)
        assert all(np.isfinite(array).all() for array in source.load().values())
        source.companions.end_ids()
        source.save(tmp_path / "out", lossy=True)


@pytest.mark.parametrize("text", ["[" * 100_000, "", "null", "[]", '{"eos_token_id": {"a": 1}}', "\ufeff{}", "{"])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json", "hparams.json", "adapter_config.json"])
def test_any_settings_file(model: Path, tmp_path: Path, file: str, text: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / file).write_text(text)
    with contextlib.suppress(ClearheadError):
        source = weights.open(tmp_path)
        source.companions.end_ids()
        source.save(tmp_path / "out")


def test_the_command_ends_with_one_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text("[" * 100_000)
    status, out, err = call("map", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1) and "not JSON" in err.replace("not valid JSON", "not JSON")
