"""`clearhead weights convert`: there and back through the command line, what was rounded, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_weights_cli import call
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import TokenizerError, WeightsError
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.weights import streaming
from clearhead.weights.formats.gguf import GGUFFile, write_gguf
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.schemes.huggingface import plan_from_arrays

LAYOUT_NAMES = ["huggingface", "openai", "onnx", "book", "nanogpt", "llmc", "transformerlens", "gguf", "canonical"]
SHAPE = {"vocab_size": 301, "n_positions": 16, "n_embd": 36, "n_head": 3, "n_layer": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("the cat sat on the mat, and the rat sat on the cat; then that was that. " * 3, 280)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of transformers' with random weights and a tokenizer; the width of its heads is not 64."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "model"
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def convert(*args: object) -> str:
    """What the command prints; it must succeed."""
    status, out, err = call("convert", *args)
    assert status == 0, err
    return out


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_there_and_back_is_bit_equal(folder: Path, tmp_path: Path, layout: str) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    out = convert(folder, there, "--to", layout)
    total = sum(path.stat().st_size for path in ([there] if there.is_file() else there.iterdir()))
    assert out.splitlines()[0] == f"{there}: {LAYOUTS[layout].title}, float32, {total:,} bytes"
    assert re.search(r"^Read back and compared: all [\d,]+ numbers are the same, bit for bit\.", out, re.MULTILINE)
    convert(there, back, "--to", "huggingface", "--config", folder / "config.json")
    theirs, ours = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_what_rounding_cost_is_said(folder: Path, tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    out = convert(folder, tmp_path / "out", "--to", "huggingface", "--dtype", dtype)
    before = load_file(folder / "model.safetensors")
    by = {name: (tensor.to(kind).float() - tensor).abs() for name, tensor in before.items()}
    changed = sum(int(b.gt(0).sum()) for b in by.values())
    n_numbers = sum(b.numel() for b in by.values())
    greatest = max(float(b.max()) for b in by.values())
    assert f"{changed:,} of {n_numbers:,} numbers changed" in out
    assert f"by {greatest:.3g} at most" in out
    assert not re.search(r"bit for bit", out)


def test_the_number_format_is_the_sources_where_that_can_be(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "half", "--to", "huggingface", "--dtype", "float16")
    assert ": GGUF, float16, " in convert(tmp_path / "half", tmp_path / "half.gguf", "--to", "gguf")
    assert ", float32, " in convert(tmp_path / "half", tmp_path / "half.bin", "--to", "llmc")
    out = convert(tmp_path / "half.gguf", tmp_path / "mixed", "--to", "huggingface")  # vectors are float32 there
    assert ", float32, " in out and "bit for bit" in out


def test_zeros_that_a_form_leaves_out_are_no_loss(tmp_path: Path) -> None:
    config = GPTConfig(64, 16, 36, 3, 2, tie_weights=True)
    torch.manual_seed(0)
    tensors = {name: t.numpy() for name, t in GPTModel(config).state_dict().items()}
    weights.save(tmp_path / "x.pt", config, tensors, "nanogpt")
    out = convert(tmp_path / "x.pt", tmp_path / "x.gguf", "--to", "gguf")
    assert "bit for bit" in out


@pytest.mark.parametrize("layout", ["gguf", "huggingface"])
def test_nothing_is_written_over_without_force(folder: Path, tmp_path: Path, layout: str) -> None:
    dest = tmp_path / "there"
    convert(folder, dest, "--to", layout)
    files = [dest] if dest.is_file() else sorted(dest.iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    status, out, err = call("convert", folder, dest, "--to", layout)
    assert (status, out) == (2, "") and "--force" in err
    assert before == [path.stat().st_mtime_ns for path in files]
    convert(folder, dest, "--to", layout, "--force")
    assert before != [path.stat().st_mtime_ns for path in files]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("FOLDER", "x", "--to", "ggml"), "there is no layout 'ggml'.*gguf"),
        (("FOLDER", "x", "--to", "gguf", "--dtype", "q4_0"), "not written as 'q4_0'.*q8_0"),
        (("FOLDER", "FOLDER", "--to", "huggingface", "--force"), "is the source itself"),
        (("FOLDER", "FOLDER/config.json", "--to", "openai"), "is a file, and the layout openai is a folder"),
        (("./none", "x", "--to", "gguf"), "does not exist"),
        (("FOLDER", "x", "--to", "gguf", "--config", "none.json"), "none.json does not exist"),
        (("FOLDER", "x/y/z", "--to", "book"), "could not be written"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if args[1] == "x/y/z":
        Path("x").write_text("a file")
    status, out, err = call("convert", *(arg.replace("FOLDER", str(folder)) for arg in args))
    assert (status, out) == (2, "")
    assert re.search(words, err) and len(err.splitlines()) == 1, err


def test_a_source_that_does_not_say_its_heads(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "x.pth", "--to", "book")
    status, _, err = call("convert", tmp_path / "x.pth", tmp_path / "out", "--to", "huggingface")
    assert status == 2 and "put a config.json" in err
    convert(tmp_path / "x.pth", tmp_path / "out", "--to", "huggingface", "--config", folder / "config.json")
    assert weights.open(tmp_path / "out").config == weights.open(folder).config


class TestStreaming:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        """A file of 13 MB, its largest tensor 1 MB."""
        config = GPTConfig(256, 16, 256, 4, 4, qkv_bias=True, tie_weights=True)
        tensors = {name: t.numpy() for name, t in GPTModel(config).state_dict().items()}
        weights.save_huggingface(tmp_path / "large", config, tensors)
        return tmp_path / "large"

    @staticmethod
    def resident(path: Path) -> int:
        """How many bytes of a mapped file count as memory of this process."""
        found = 0
        for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
            if mapping.split("\n")[0].endswith(str(path)):
                found += 1024 * int(re.search(r"^Rss:\s+(\d+)", mapping, re.MULTILINE)[1])  # type: ignore[index]
        return found

    @pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a map is in memory")
    def test_what_was_read_is_given_back(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "_BYTES_PER_MAP", 2_000_000)
        most = {}
        for way in ("plan", "stream"):
            source = weights.open(large)
            most[way] = 0
            for name, values in getattr(source, way)().run():
                values.sum()
                if name.endswith("up.weight"):
                    most[way] = max(most[way], self.resident(source.path))
            del source, values
        assert most["plan"] > 9_000_000
        assert most["stream"] < 4_500_000  # two maps at most: the one in use, and that of the last array

    def test_a_file_that_changes_meanwhile(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "_BYTES_PER_MAP", 2_000_000)
        source = weights.open(large)
        running = source.stream().run()
        next(running)
        (large / "other").write_bytes(source.path.read_bytes())
        (large / "other").replace(source.path)
        with pytest.raises(WeightsError, match="was changed while it was read"):
            list(running)

    @pytest.mark.parametrize("layout", LAYOUT_NAMES)
    def test_every_layout_streams(
        self, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
    ) -> None:
        monkeypatch.setattr(streaming, "_BYTES_PER_MAP", 2_000_000)
        source = weights.open(large)
        saved = source.save(tmp_path / "out", layout)
        written = weights.open(saved.path, layout=layout, config=source.config)
        assert weights.compare(source.plan(), written.stream()).changed == 0

    def test_shards_and_old_pickles(self, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "_BYTES_PER_MAP", 2_000_000)
        source = weights.open(large)
        weights.save_huggingface(tmp_path / "shards", source.config, source.lazy(), shard_bytes=3_000_000)
        tensors = load_file(large / "model.safetensors")
        torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
        for path in (tmp_path / "shards", tmp_path / "old.bin"):
            opened = weights.open(path, config=source.config)
            assert weights.compare(source.plan(), opened.stream()).changed == 0


def test_differences_are_found() -> None:
    folder = Path(clearhead.__file__).parent / "bundled"
    source = weights.open(folder)
    tensors = source.load()
    tensors["blocks.1.norm_2.bias"] = tensors["blocks.1.norm_2.bias"] + np.float32(0)
    tensors["blocks.1.norm_2.bias"][3] += 0.5
    tensors["final_norm.weight"] = tensors["final_norm.weight"] + np.float32(0.25)
    plan = plan_from_arrays(source.config, tensors, "canonical")
    found = weights.compare(source.plan(), plan)
    assert found.changed == 1 + source.config.emb_dim
    assert (found.tensor, found.largest) == ("blocks.1.norm_2.bias", pytest.approx(0.5))


TEXTS = ["that cat sat", "then: the rat!", " and\n\n the mat<|endoftext|>the", "ünïcode ☃ 123"]


class TestTokenizerInGGUF:
    def test_it_is_used_where_no_files_are_beside(self, folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        convert(folder, tmp_path / "x.gguf", "--to", "gguf")
        gpt = clearhead.load(tmp_path / "x.gguf")
        own = gpt.tokenizer
        assert own is not None
        for text in TEXTS:
            for special in (False, True):
                assert own.encode(text, special=special) == tokenizer.encode(text, special=special), text
        assert (own.end_of_text, own.vocab_size) == (tokenizer.end_of_text, tokenizer.vocab_size)
        assert own.special_tokens == tokenizer.special_tokens
        assert gpt.generate("that cat", max_new_tokens=5, seed=1).text
        other = Tokenizer.train("quite another text, of which other tokens come " * 3, 270)
        other.save(tmp_path)
        beside = clearhead.load(tmp_path / "x.gguf").tokenizer
        assert beside is not None and beside.encode("another") == other.encode("another")

    @staticmethod
    def rewrite(path: Path, out: Path, changes: dict[str, Any]) -> Path:
        """The same model with other keys; a key that becomes None is left out."""
        file = GGUFFile(path)
        keys = {name: value for name, value in {**file.keys, **changes}.items() if value is not None}
        tensors = {name: (info.shape, "float32") for name, info in file.tensors.items()}
        write_gguf(out, keys, tensors, ((name, file.read(name)) for name in file.tensors))
        return out

    def test_tokens_beside_the_merges(self, folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        convert(folder, tmp_path / "x.gguf", "--to", "gguf")
        keys = GGUFFile(tmp_path / "x.gguf").keys
        tokens, types = list(keys["tokenizer.ggml.tokens"]), list(keys["tokenizer.ggml.token_type"])
        tokens[285], types[285] = "one two", gguf.TokenType.USER_DEFINED
        tokens[286], types[286] = "<|chat|>", gguf.TokenType.CONTROL
        changes = {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [int(kind) for kind in types],
            "tokenizer.ggml.eos_token_id": 286,
        }
        own = weights.open(self.rewrite(tmp_path / "x.gguf", tmp_path / "y.gguf", changes)).tokenizer()
        assert own is not None and own.end_of_text == 286
        assert own.encode("the<|chat|>", special=True)[-1] == 286
        assert own.encode("<|chat|>one two") == [*tokenizer.encode("<|chat|>"), 285]  # a token in every text
        assert own.added_tokens == {"one two": 285} and 285 not in own.special_tokens.values()

    def test_what_cannot_be_used(self, folder: Path, tmp_path: Path) -> None:
        convert(folder, tmp_path / "x.gguf", "--to", "gguf")
        other = weights.open(self.rewrite(tmp_path / "x.gguf", tmp_path / "y.gguf", {"tokenizer.ggml.pre": "qwen2"}))
        assert other.tokenizer() is None and "(gpt2, qwen2) is not like GPT-2's" in other.notes[0]
        none = weights.open(self.rewrite(tmp_path / "x.gguf", tmp_path / "y.gguf", {"tokenizer.ggml.model": "none"}))
        assert none.tokenizer() is None and not none.notes
        for broken, words in (
            ({"tokenizer.ggml.merges": None}, "no merge makes"),
            ({"tokenizer.ggml.merges": ["t h e"]}, "a merge is not a pair"),
            ({"tokenizer.ggml.tokens": ["a"] * 301}, "a token occurs twice"),
        ):
            source = weights.open(self.rewrite(tmp_path / "x.gguf", tmp_path / "y.gguf", broken))
            with pytest.raises(TokenizerError, match=words):
                source.tokenizer()

    def test_the_tokenize_verb_reads_it(self, folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        from clearhead.cli.model_argument import open_tokenizer

        convert(folder, tmp_path / "x.gguf", "--to", "gguf")
        assert open_tokenizer(str(tmp_path / "x.gguf")).encode("that") == tokenizer.encode("that")


def test_json_config_of_a_written_folder_names_the_end_of_text(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "x.gguf", "--to", "gguf")
    convert(tmp_path / "x.gguf", tmp_path / "back", "--to", "huggingface")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["eos_token_id"] == weights.open(folder).tokenizer().end_of_text  # type: ignore[union-attr]
