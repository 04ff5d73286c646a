"""Files that look like weights and cannot be used: each is refused with a sentence that helps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call
from safetensors.torch import save_file

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.model import GPTModel
from clearhead.weights.formats.pytorch import PyTorchFile

CONFIG = GPTConfig(vocab_size=50, context_length=8, emb_dim=4, n_heads=1, n_layers=1, qkv_bias=True, tie_weights=True)


def meta() -> torch.Tensor:
    return torch.empty(4, 4, device="meta")


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, that these kinds of tensors are in beta
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: torch.zeros(1).expand(10**6, 3200), "repeats fewer stored ones"),
        (lambda: torch.zeros(3, 4).to_sparse(), "sparse tensor"),
        (lambda: torch.zeros(4, 4).to_sparse_csr(), "sparse tensor"),
        (meta, "without values"),
        (nested, "nested tensor|would run code|could run code"),
        (lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8), "qint8|could run code"),
        (lambda: torch.zeros(4, dtype=torch.complex64), "complex64"),
    ],
)
def test_tensors_whose_values_are_not_in_the_file(tmp_path: Path, tensor: Any, words: str) -> None:
    torch.save({"wte.weight": tensor(), "wpe.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=words):
        PyTorchFile(tmp_path / "pytorch_model.bin")


def test_views_that_are_in_the_file_are_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    torch.save({"a": base.T, "b": base[1:, ::2], "c": base}, tmp_path / "x.bin")
    file = PyTorchFile(tmp_path / "x.bin")
    assert (file.read("a") == base.T.numpy()).all() and (file.read("b") == base[1:, ::2].numpy()).all()


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), r"HDF5.*from_tf=True\)\.save_pretrained"),
        ("flax_model.msgpack", b"\x81\xa6params" + bytes(100), r"Flax.*from_flax=True\)\.save_pretrained"),
        ("model.ckpt.meta", b"\x0a\x05graph" + bytes(100), r"without its weights; put model\.ckpt\.index"),
        ("checkpoint", b'model_checkpoint_path: "model.ckpt"\n', r"only names a TensorFlow checkpoint"),
    ],
)
def test_formats_of_others(tmp_path: Path, name: str, contents: bytes, words: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(contents)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(WeightsError, match=words):
            weights.open(source)


def test_any_file_of_a_tensorflow_checkpoint_opens_it(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().numpy() for name, tensor in GPTModel(CONFIG).state_dict().items()}
    weights.save_openai(tmp_path, CONFIG, tensors)
    (tmp_path / "model.ckpt.meta").write_bytes(b"graph")
    for name in ("checkpoint", "model.ckpt.meta", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt"):
        assert weights.open(tmp_path / name).config.emb_dim == 4


def test_the_parent_of_a_models_folder(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().numpy() for name, tensor in GPTModel(CONFIG).state_dict().items()}
    weights.save_huggingface(tmp_path / "checkpoint-500", CONFIG, tensors)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(WeightsError, match=re.escape("has no weights itself, but checkpoint-500 in it has")):
        weights.open(tmp_path)


@pytest.mark.parametrize("verb", ["inspect", "map", "verify"])
def test_names_in_a_file_give_no_orders_to_a_terminal(tmp_path: Path, verb: str) -> None:
    state = {name: tensor.detach().clone() for name, tensor in GPTModel(CONFIG).state_dict().items()}
    weights.save_huggingface(tmp_path, CONFIG, {name: tensor.numpy() for name, tensor in state.items()})
    tensors = {
        name: torch.from_numpy(weights.open(tmp_path).read(name).copy()) for name in weights.open(tmp_path).tensors
    }
    save_file({**tensors, "h.\x1b[2J\x1b]0;title\x07": torch.zeros(2)}, tmp_path / "model.safetensors")
    result = call("weights", verb, tmp_path)
    output = result.stdout + result.stderr
    assert b"\x1b" not in output and b"\x07" not in output and rb"\x1b[2J" in output


@pytest.mark.parametrize("name", ["x" * 300, "../x", "a/b", "a\\b", "", "..", "\x1b[2J", "a\0b", "\ud800"])
def test_shard_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(WeightsError, match=r"names the shard .*; a file name in the same folder was expected"):
        weights.open(tmp_path)
