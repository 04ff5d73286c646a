"""What a conversion loses is said before anything is written; what was written is compared in every part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_weights_cli import call
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import clearhead
from clearhead import weights
from clearhead.errors import WeightsError
from clearhead.tokenizer import Tokenizer
from clearhead.weights.fidelity import differences

TEXT = "the fox and the hound and the other fox " * 4


def convert(*arguments: object) -> tuple[int, str]:
    """Return the exit status of `clearhead weights convert` and everything that it printed."""
    status, out, err = call("convert", *arguments)
    return status, out + err


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A model with a tokenizer like GPT-2's, 270 tokens and 300 rows."""
    folder = tmp_path / "model"
    tokenizer = Tokenizer.train([TEXT], 270)
    end = tokenizer.end_of_text
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "n_positions": 16, "n_embd": 64, "n_head": 1, "n_layer": 2}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def add_tokens(folder: Path, **tokens: bool) -> None:
    """Add tokens to a folder's tokenizer.json; the value says whether they are special."""
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    for number, (name, special) in enumerate(tokens.items()):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        values["added_tokens"].append({"id": 270 + number, "content": f"<{name}>", **flags})
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("to", ["huggingface", "gguf", "onnx", "openai"])
def test_added_tokens_survive(plain: Path, tmp_path: Path, to: str) -> None:
    add_tokens(plain, user=True, word=False)
    status, out = convert(plain, tmp_path / "out", "--to", to)
    assert status == 0 and "Not the same" not in out
    assert "tokenizer (272 tokens, 2 special)" in out
    before, after = clearhead.load(plain).tokenizer, clearhead.load(tmp_path / "out").tokenizer
    assert before is not None and after is not None
    for text in ("a<word>b <user> c", "<user><word><|endoftext|>"):
        for special in (False, True):
            assert before.encode(text, special=special) == after.encode(text, special=special)
    assert (after.special_tokens, after.end_of_text) == (before.special_tokens, before.end_of_text)


def test_a_tokenizer_that_is_not_like_gpt2s_is_no_part_of_a_gguf_file(plain: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (plain / name).unlink()
    Tokenizer.of_characters("abcdefgh", end_of_text=True).save(plain)
    status, out = convert(plain, tmp_path / "x.gguf", "--to", "gguf")
    assert status == 2 and "GGUF's layout cannot hold the tokenizer" in out and "--lossy" in out
    assert not (tmp_path / "x.gguf").exists()
    status, out = convert(plain, tmp_path / "x.gguf", "--to", "gguf", "--lossy")
    assert status == 0 and "not in the result: the tokenizer" in out and "Not the same: the tokenizer" in out


class TestHead:
    @pytest.fixture
    def classifier(self, plain: Path) -> Path:
        settings = GPT2Config.from_pretrained(plain)
        settings.pad_token_id, settings.id2label = 0, {0: "ham", 1: "spam", 2: "eggs"}
        torch.manual_seed(1)
        GPT2ForSequenceClassification(settings).save_pretrained(plain)
        return plain

    def test_it_is_kept_with_its_labels(self, classifier: Path, tmp_path: Path) -> None:
        status, out = convert(classifier, tmp_path / "out", "--to", "huggingface")
        assert status == 0 and "The same: settings, tokenizer (270 tokens, 1 special), head" in out
        before, after = (
            AutoModelForSequenceClassification.from_pretrained(f).eval() for f in (classifier, tmp_path / "out")
        )
        assert after.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
        ids = torch.tensor([[3, 4, 5]])
        with torch.no_grad():
            assert torch.equal(before(ids).logits, after(ids).logits)

    @pytest.mark.parametrize("to", ["gguf", "openai", "onnx", "book", "nanogpt", "llmc", "canonical"])
    def test_no_other_layout_holds_it(self, classifier: Path, tmp_path: Path, to: str) -> None:
        with pytest.raises(WeightsError, match=r"cannot hold the head score\.weight and its labels"):
            weights.open(classifier).save(tmp_path / "out", to)
        assert not (tmp_path / "out").exists()
        saved = weights.open(classifier).save(tmp_path / "out", to, lossy=True)
        assert any("the head score.weight" in note for note in saved.notes)
        assert "the head score.weight" in str(weights.read_back(weights.open(classifier), saved))


@pytest.mark.parametrize(
    ("changes", "to", "lost"),
    [
        ({"layer_norm_epsilon": 1e-6}, "book", "norm_eps 1e-06"),
        ({"layer_norm_epsilon": 1e-6}, "nanogpt", "norm_eps 1e-06"),
        ({"activation_function": "gelu"}, "book", "activation gelu_erf"),
        ({"activation_function": "relu"}, "gguf", "activation relu"),
        ({"activation_function": "relu"}, "llmc", "activation relu"),
        ({"layer_norm_epsilon": 1e-6}, "gguf", ""),
        ({"activation_function": "relu"}, "nanogpt", ""),
        ({"activation_function": "relu", "layer_norm_epsilon": 1e-6}, "onnx", ""),
    ],
)
def test_settings(plain: Path, tmp_path: Path, changes: dict[str, Any], to: str, lost: str) -> None:
    values = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**values, **changes}))
    source = weights.open(plain)
    if lost:
        with pytest.raises(WeightsError, match=f"cannot hold {lost}"):
            source.save(tmp_path / "out", to)
    saved = source.save(tmp_path / "out", to, lossy=bool(lost))
    assert (lost.split()[0] in str(weights.read_back(source, saved))) if lost else True
    if not lost:
        assert not weights.read_back(source, saved).changed


class TestGenerationConfig:
    def test_it_is_kept(self, plain: Path, tmp_path: Path) -> None:
        settings = {"eos_token_id": [269, 7, 12], "temperature": 0.6, "do_sample": True}
        (plain / "generation_config.json").write_text(json.dumps(settings))
        assert convert(plain, tmp_path / "out", "--to", "huggingface")[0] == 0
        assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == settings
        clearhead.load(plain).save(tmp_path / "saved")
        assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == settings
        with pytest.raises(WeightsError, match="the further ends of text 7, 12"):
            weights.open(plain).save(tmp_path / "x.gguf", "gguf")

    @pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
    def test_generation_ends_at_any_of_several_ends_of_text(self, plain: Path, tmp_path: Path, file: str) -> None:
        prompt = [3, 4, 5]
        first = clearhead.load(plain).generate(prompt, temperature=0, max_new_tokens=6).ids
        assert len(first) == 6
        path = plain / file
        values = json.loads(path.read_text())
        if file == "config.json":
            (plain / "generation_config.json").unlink()
        path.write_text(json.dumps({**values, "eos_token_id": [269, first[2]]}))
        expected = first[: first.index(first[2])]
        theirs = GPT2LMHeadModel.from_pretrained(plain).generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=6, pad_token_id=0
        )[0, 3:]
        assert theirs.tolist()[:-1] == list(expected)  # transformers returns the end of text too
        for backend in ("engine", "torch"):
            found = clearhead.load(plain, backend=backend).generate(prompt, temperature=0, max_new_tokens=6)
            assert found.ids == expected
            assert (
                clearhead.load(plain).generate(prompt, temperature=0, max_new_tokens=6, stop_at_end_of_text=False).ids
                == first
            )


def test_numbers_are_compared_too(plain: Path, tmp_path: Path) -> None:
    source = weights.open(plain)
    saved = source.save(tmp_path / "out", "huggingface", "bfloat16")
    found = weights.read_back(source, saved)
    assert found.weights.changed and not found.changed
    assert found.same[:2] == ("settings", "tokenizer (270 tokens, 1 special)")


def test_differences_of_tokenizers(plain: Path) -> None:
    one = Tokenizer.from_folder(plain)
    assert list(differences(one, one)) == []
    assert list(differences(one, None)) == ["the tokenizer"]
    vocab, merges = one.bpe or ({}, [])
    swapped = dict(vocab)
    swapped["!"], swapped['"'] = vocab['"'], vocab["!"]
    other = Tokenizer.from_bpe(swapped, merges, where="a test")
    assert any("2 tokens" in clause for clause in differences(one, other))
