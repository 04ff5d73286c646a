"""Save Hugging Face folders; load weights into PyTorch."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors, load_into
from huggingface.huggingface_models import as_bin, assert_same, canonical, random_model

IDS = torch.arange(30).reshape(2, 15) % 61


def opened_by_transformers(folder: Path) -> GPT2LMHeadModel:
    """The model as the peer opens it, with nothing missing and nothing left over."""
    model, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def small_config(**changes: Any) -> GPTConfig:
    return GPTConfig(61, 16, 24, 3, 2, qkv_bias=True, tie_weights=True).replace(**changes)


def small_model(config: GPTConfig, seed: int = 3) -> GPTModel:
    """Our model with every parameter random."""
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


class TestSave:
    @pytest.mark.parametrize(
        "config",
        [
            small_config(),
            small_config(tie_weights=False),
            small_config(qkv_bias=False),
            small_config(qkv_bias=False, tie_weights=False, ff_dim=40, norm_eps=1e-3, activation="gelu_erf"),
        ],
    )
    @pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
    @torch.no_grad()
    def test_transformers_opens_it_with_equal_logits(self, tmp_path: Path, config: GPTConfig, shard_bytes: int) -> None:
        model = small_model(config)
        weights.save_huggingface(tmp_path, config, ModelTensors(model), shard_bytes=shard_bytes)
        files = {path.name for path in tmp_path.iterdir()}
        assert ("model.safetensors" in files) == (shard_bytes == 10**9)
        torch.testing.assert_close(opened_by_transformers(tmp_path)(IDS).logits, model(IDS), atol=1e-4, rtol=0)
        source = weights.open(tmp_path)
        assert source.config == config
        back = GPTModel(source.config).eval()
        load_into(back, source)
        assert torch.equal(back(IDS), model(IDS))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_formats_round_as_torch_does(self, tmp_path: Path, dtype: str) -> None:
        config = small_config()
        model = small_model(config)
        weights.save_huggingface(tmp_path, config, ModelTensors(model), dtype=dtype, extra_config={"eos_token_id": 7})
        settings = json.loads((tmp_path / "config.json").read_text())
        assert (settings["dtype"], settings["eos_token_id"]) == (dtype, 7)
        loaded = weights.open(tmp_path).load()
        for name, parameter in model.state_dict().items():
            expected = parameter.to(getattr(torch, dtype)).float().numpy()
            np.testing.assert_array_equal(loaded[name], expected, err_msg=name)
        assert next(opened_by_transformers(tmp_path).parameters()).dtype == torch.float32

    def test_the_tied_head_is_written_once(self, tmp_path: Path) -> None:
        config = small_config()
        tensors = {name: t.numpy() for name, t in small_model(config).state_dict().items()}
        assert "head.weight" in tensors
        weights.save_huggingface(tmp_path, config, tensors)
        assert "lm_head.weight" not in weights.open(tmp_path).tensors
        assert_same(weights.open(tmp_path).load(), tensors)

    def test_a_folder_is_saved_over_the_model_it_was_loaded_from(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        (folder / "vocab.json").write_text("{}")
        for shard_bytes in (20_000, 10**9, 20_000, 30_000, 10**9):
            source = weights.open(folder)
            loaded = source.load()
            weights.save_huggingface(folder, source.config, source.lazy(), shard_bytes=shard_bytes)
            assert_same(loaded, canonical(peer))  # the old file lives on under what was loaded from it
            assert_same(weights.open(folder).load(), canonical(peer))
            names = sorted(path.name for path in folder.iterdir() if path.name.startswith(("model", ".")))
            if shard_bytes == 10**9:
                assert names == ["model.safetensors"]
            else:
                index = json.loads((folder / "model.safetensors.index.json").read_text())
                assert sorted({*index["weight_map"].values(), "model.safetensors.index.json"}) == names
            opened_by_transformers(folder)
        assert (folder / "vocab.json").exists()

    @pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
    def test_an_interrupted_save_leaves_the_old_model(
        self, peer: GPT2LMHeadModel, folder: Path, shard_bytes: int
    ) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        class Failing(dict[str, np.ndarray]):
            def shape_of(self, name: str) -> tuple[int, ...]:
                return super().__getitem__(name).shape

            def __getitem__(self, name: str) -> np.ndarray:
                if name == "blocks.1.norm_2.bias":
                    raise KeyboardInterrupt
                return super().__getitem__(name)

        source = weights.open(folder)
        changed = Failing({name: array + 1 for name, array in source.load().items()})
        with pytest.raises(KeyboardInterrupt):
            weights.save_huggingface(folder, source.config, changed, shard_bytes=shard_bytes)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_one_tensor_is_held_at_a_time(self, folder: Path, tmp_path: Path) -> None:
        alive: list[int] = []

        class Counting(Mapping[str, np.ndarray]):
            def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
                self.tensors = tensors

            def __getitem__(self, name: str) -> np.ndarray:
                import weakref

                copy = self.tensors[name].copy()
                alive.append(1)
                weakref.finalize(copy, alive.pop)
                assert len(alive) <= 2
                return copy

            def shape_of(self, name: str) -> tuple[int, ...]:
                return self.tensors[name].shape

            def __iter__(self) -> Iterator[str]:
                return iter(self.tensors)

            def __len__(self) -> int:
                return len(self.tensors)

        source = weights.open(folder)
        weights.save_huggingface(tmp_path / "out", source.config, Counting(source.load()))
        assert_same(weights.open(tmp_path / "out").load(), source.load())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.pop("final_norm.bias"), "final_norm.bias"),
            (lambda t: t.update(extra=np.zeros(3, np.float32)), "'extra'"),
            (lambda t: t.update({"final_norm.bias": np.zeros(3, np.float32)}), r"\[3\].*\[24\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, folder: Path, tmp_path: Path, change: Any, words: str) -> None:
        source = weights.open(folder)
        tensors = source.load()
        change(tensors)
        with pytest.raises(WeightsError, match=words):
            weights.save_huggingface(tmp_path / "out", source.config, tensors)
        assert not (tmp_path / "out").exists()

    def test_a_number_too_large_for_float16(self, folder: Path, tmp_path: Path) -> None:
        source = weights.open(folder)
        tensors = source.load()
        tensors["final_norm.bias"][3] = 1e5
        with pytest.raises(WeightsError, match=r"ln_f\.bias holds 100000.*bfloat16"):
            weights.save_huggingface(tmp_path / "out", source.config, tensors, dtype="float16")
        with pytest.raises(WeightsError, match="'int8'"):
            weights.save_huggingface(tmp_path / "out", source.config, tensors, dtype="int8")

    def test_a_place_that_cannot_be_written(self, folder: Path) -> None:
        source = weights.open(folder)
        with pytest.raises(WeightsError, match="could not be written"):
            weights.save_huggingface(folder / "config.json" / "inside", source.config, source.lazy())


class TestIntoTorch:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("meta", [False, True])
    @pytest.mark.parametrize("layout", ["safetensors", "pytorch"])
    @torch.no_grad()
    def test_the_logits_are_the_peers(self, tmp_path: Path, tied: bool, meta: bool, layout: str) -> None:
        peer = random_model(tie_word_embeddings=tied)
        peer.save_pretrained(tmp_path)
        if layout == "pytorch":
            as_bin(peer, tmp_path)
        source = weights.open(tmp_path)
        with torch.device("meta" if meta else "cpu"):
            model = GPTModel(source.config).eval()
        load_into(model, source)
        assert (model.head.weight is model.token_embedding.weight) == tied
        assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in model.parameters())
        torch.testing.assert_close(model(IDS), peer(IDS).logits, atol=1e-4, rtol=0)

    @torch.no_grad()
    def test_a_model_in_bfloat16_and_a_tied_source_in_an_untied_model(self, folder: Path) -> None:
        source = weights.open(folder)
        model = GPTModel(source.config.replace(tie_weights=False)).bfloat16().eval()
        load_into(model, source)
        assert model.head.weight.dtype == torch.bfloat16
        assert torch.equal(model.head.weight, model.token_embedding.weight)

    def test_training_a_mapped_model_changes_no_file(self, folder: Path) -> None:
        before = (folder / "model.safetensors").read_bytes()
        source = weights.open(folder)
        with torch.device("meta"):
            model = GPTModel(source.config)
        load_into(model, source)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model(IDS).square().sum().backward()
        optimizer.step()
        assert (folder / "model.safetensors").read_bytes() == before

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"context_length": 8}, r"position_embedding\.weight has the shape \[8, 24\].*\[16, 24\]"),
            ({"n_layers": 3}, "parameter 'blocks.2.norm_1.weight'"),
            ({"n_layers": 1}, "no parameter"),
            ({"qkv_bias": False}, "'blocks.0.attention.qkv.bias'"),
        ],
    )
    def test_another_models_weights_are_refused(self, folder: Path, changes: Any, words: str) -> None:
        source = weights.open(folder)
        model = GPTModel(source.config.replace(**changes))
        before = model.token_embedding.weight.detach().clone()
        with pytest.raises(WeightsError, match=words):
            load_into(model, source)
        assert torch.equal(model.token_embedding.weight, before)


def test_a_slow_load_shows_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:

    clock = iter(range(0, 10_000, 30))  # every look at the clock finds 30 seconds gone
    monkeypatch.setattr("clearhead.utils.progress.time.monotonic", lambda: next(clock))
    weights.open(folder).load()
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Loading .*model: \d+% of 0 MB", lines[0])
    assert lines[-1].endswith("100% of 0 MB")
    shutil.rmtree(folder)
