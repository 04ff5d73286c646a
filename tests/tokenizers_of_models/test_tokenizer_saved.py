"""Training tokenizers, saving them, and files that are refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from clearhead.errors import TokenizerError
from clearhead.tokenizer import END_OF_TEXT, Tokenizer
from tokenizers_of_models.tokenizer_files import CORPUS, in_library, write, write_bpe_files


def test_training_lays_ids_out_as_gpt2_does(small: Tokenizer) -> None:
    assert (small.vocab_size, small.end_of_text) == (400, 399)
    assert small.special_tokens == {END_OF_TEXT: 399}
    assert [small.token_bytes(id) for id in range(94)] == [bytes([byte]) for byte in range(33, 127)]
    assert sorted(small.token_bytes(id) for id in range(256)) == [bytes([byte]) for byte in range(256)]
    assert all(len(small.token_bytes(id)) > 1 for id in range(256, 400))
    assert len(small.encode(CORPUS[0])) < len(CORPUS[0]) / 3


def test_the_end_of_text_is_not_learned() -> None:
    texts = [f"{END_OF_TEXT}ab"] * 50
    trained = Tokenizer.train(texts, 258)
    assert trained.token_bytes(256) == b"ab"
    with pytest.raises(TokenizerError, match="a vocabulary of 258 tokens at most, but 259 were asked for"):
        Tokenizer.train(texts, 259)


def test_the_smallest_vocabulary_is_the_bytes_and_the_end() -> None:
    bytes_only = Tokenizer.train([], 257)
    assert (bytes_only.vocab_size, bytes_only.end_of_text) == (257, 256)
    assert len(bytes_only.encode("é 🙂")) == len("é 🙂".encode())
    with pytest.raises(TokenizerError, match="256 was asked for; the least is 257"):
        Tokenizer.train(["text"], 256)


def test_training_is_the_same_in_another_process_with_other_threads(small: Tokenizer) -> None:
    code = (
        "import json, sys; from clearhead.tokenizer import Tokenizer; t = Tokenizer.train(json.load(sys.stdin), 400);"
        "print(json.dumps([t.token_bytes(i).hex() for i in range(400)]))"
    )
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": "1",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(CORPUS),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert json.loads(run.stdout) == [small.token_bytes(id).hex() for id in range(400)]


def test_saved_files_open_everywhere_with_the_same_ids(small: Tokenizer, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    text = "".join(CORPUS)
    expected = small.encode(text, special=True)
    from_files = Tokenizer.from_bpe_files(saved / "vocab.json", saved / "merges.txt")
    for ours in (Tokenizer.from_folder(saved), Tokenizer.from_json(saved / "tokenizer.json"), from_files):
        assert ours.encode(text, special=True) == expected
        assert (ours.vocab_size, ours.end_of_text) == (400, 399)
    for theirs in (AutoTokenizer.from_pretrained(saved), GPT2Tokenizer.from_pretrained(saved)):
        assert theirs(text).input_ids == expected
        assert theirs.decode(expected) == text
        assert (len(theirs), theirs.eos_token, theirs.eos_token_id) == (400, END_OF_TEXT, 399)


def test_what_transformers_saves_is_opened(saved: Path, tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(saved)
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    text = "the <pad> fox<|endoftext|>"
    assert ours.encode(text, special=True) == theirs(text).input_ids
    assert (ours.vocab_size, ours.end_of_text) == (401, 399)
    ours.save(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(text).input_ids == theirs(text).input_ids
    assert again.eos_token_id == 399


def test_another_end_of_text(saved: Path, tmp_path: Path) -> None:
    library = in_library(saved)
    library.add_special_tokens(["</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path).end_of_text == 399
    write(tmp_path, **{"config_json": {"eos_token_id": 400}})
    assert Tokenizer.from_folder(tmp_path).end_of_text == 399  # a name goes before a number
    write(tmp_path, **{"special_tokens_map_json": {"eos_token": {"content": "</s>"}}})
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.end_of_text == 400
    ours.save(tmp_path / "again")
    assert Tokenizer.from_folder(tmp_path / "again").end_of_text == 400
    assert AutoTokenizer.from_pretrained(tmp_path / "again").eos_token_id == 400
    write(tmp_path, **{"special_tokens_map_json": {}, "tokenizer_config_json": {"eos_token": "<none>"}})
    with pytest.raises(TokenizerError, match="'<none>' as the end of text, but the vocabulary has no such token"):
        Tokenizer.from_folder(tmp_path)


def test_no_end_of_text_stays_none(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(write_bpe_files(tmp_path, ["a b"]))
    assert ours.end_of_text is None
    ours.save(tmp_path / "again")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert len(theirs) == 257
    assert theirs.eos_token is None
    assert Tokenizer.from_folder(tmp_path / "again").end_of_text is None
    write(tmp_path, **{"config_json": {"eos_token_id": 50256}})
    assert Tokenizer.from_folder(tmp_path).end_of_text is None


def test_a_leading_space_is_taken_from_the_settings(saved: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    write(tmp_path, **{"tokenizer_config_json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}})
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("the fox") == theirs("the fox").input_ids == Tokenizer.from_folder(saved).encode(" the fox")


def test_pickling_keeps_everything(small: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert again.encode("the fox") == small.encode("the fox")
    assert again.end_of_text == small.end_of_text


def test_a_failed_save_leaves_the_old_files(small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(TokenizerError, match="No space left"):
        Tokenizer.train(["other text " * 9], 260).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer; expected tokenizer\.json, vocab\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match="is not a folder"):
        Tokenizer.from_folder(tmp_path / "absent")
    write(tmp_path, **{"vocab_json": {"a": 0}})
    with pytest.raises(TokenizerError, match=r"has vocab.json but not merges.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match="could not be read"):
        Tokenizer.from_json(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_refused(saved: Path, tmp_path: Path, name: str, share: float) -> None:
    for path in saved.iterdir():
        if path.name != "tokenizer.json" or name == "tokenizer.json":
            data = path.read_bytes()
            (tmp_path / path.name).write_bytes(data[: int(len(data) * share)] if path.name == name else data)
    with pytest.raises(TokenizerError, match=r"cut short|not UTF-8"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "merges", "sentence"),
    [
        ({"a": 0, "b": 1}, "a b\n", "merge 1 joins 'a' and 'b', but 'ab' is not in the vocabulary"),
        ({"a": 0, "ab": 1}, "a b\n", "but 'b' is not in the vocabulary"),
        ({"a": 0, "b": 1, "ab": 2, "xyz": 3, "yz": 4}, "a b\n", r"no merge makes 2 of the tokens \(such as 'xyz'\)"),
        ({"a": 0, "b": 1, "ab": 2}, "#version: 0.2\na b c\n", r"line 2 of .* is 'a b c'; two tokens"),
        ({"a": 0, "b": 0}, "", "gives the id 0 to two tokens, 'a' and 'b'"),
        ({"a": 0, "b": "1"}, "", "gives token 'b' the id '1'; a whole number"),
        ({"a": -1}, "", "gives token 'a' the id -1"),
        ({}, "", "has no tokens"),
        ("[1, 2]", "", "has a JSON list"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, vocab: Any, merges: str, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        Tokenizer.from_folder(write(tmp_path, vocab_json=vocab, merges_txt=merges))


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        ({}, "no valid 'model'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "has the merge 'a'; two tokens"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 3]]}}, "has the merge"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "has no list of merges"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}, "'aa' is not in the vocabulary"),
        ({"model": {"type": "Telepathy"}}, "cannot be opened"),
        ({"model": {"type": "WordLevel"}, "added_tokens": [3]}, "has the added token 3"),
        ({"model": {"type": "WordLevel"}, "decoder": []}, "no valid 'decoder'"),
    ],
)
def test_definitions_that_cannot_be(tmp_path: Path, definition: Any, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        Tokenizer.from_folder(write(tmp_path, tokenizer_json=definition))


def test_importing_the_module_loads_no_library() -> None:
    code = (
        "import sys, clearhead.tokenizer; heavy = {'tiktoken', 'tokenizers', 'torch', 'numpy', 'transformers'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == "[]"
