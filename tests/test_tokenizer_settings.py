"""Added and special tokens: the ids of `transformers` on the same folders, whatever files describe the tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import TokenizerError
from clearhead.model import GPTModel
from clearhead.tokenizer import END_OF_TEXT, Tokenizer

CORPUS = [
    "It is a truth universally acknowledged that a single man in possession of a good fortune must want a wife. " * 3,
    "The quick brown fox doesn't jump over <the> lazy dogs. " * 4,
    "Größe 你好 🙂 naïve   tables\n\n" * 4,
]
NAMES = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "[SEP]",
    "<|user|>",
    "fox",
    "doesn't",
    "new word",
    "é",
    "你好",
    " qu",
    "<the>",
]
ROLES = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `vocab.json` and `merges.txt`, and with `tokenizer.json`."""
    folder = tmp_path_factory.mktemp("base")
    Tokenizer.train(CORPUS, 340).save(folder)
    return folder


def write(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def vocabulary_files(base: Path, folder: Path) -> None:
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((base / name).read_bytes())
    write(folder, "config.json", {"model_type": "gpt2"})


def texts(chance: random.Random) -> list[str]:
    parts = [*NAMES, END_OF_TEXT, "the quick", " ", "  ", "\n", "s", "<", ">", "dogs.", "naïve"]
    return ["".join(chance.choices(parts, k=chance.randint(0, 9))) for _ in range(25)]


def assert_same_ids(folder: Path, ours: Tokenizer, chance: random.Random) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    special = {token.content for token in theirs.added_tokens_decoder.values() if token.special}
    map_ = folder / "special_tokens_map.json"
    # transformers 5 forgets that these are special; with its version 4 they were, and so they are here.
    special |= {*(json.loads(map_.read_text()) if map_.is_file() else {}).get("additional_special_tokens", [])}
    assert ours.special_tokens.keys() == special
    for text in texts(chance):
        assert ours.encode(text, special=True) == theirs(text, add_special_tokens=False).input_ids, text
        if not map_.is_file() or "additional_special_tokens" not in map_.read_text():
            plain = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
            assert ours.encode(text) == plain, text
        assert ours.encode_batch([text], special=True) == [ours.encode(text, special=True)]


def described(chance: random.Random, name: str, special: bool) -> dict[str, Any]:
    flags = {flag: name != END_OF_TEXT and chance.random() < 0.2 for flag in ("lstrip", "rstrip", "single_word")}
    return {"content": name, **flags, "normalized": not special and chance.random() < 0.5, "special": special}


def random_folder(base: Path, folder: Path, seed: int) -> random.Random:
    """Write a vocabulary with random settings files, as the classes of the last years wrote them."""
    chance = random.Random(seed)
    vocabulary_files(base, folder)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    chosen = chance.sample([name for name in NAMES if name not in vocab], chance.randint(0, 6))
    added = {name: len(vocab) + n for n, name in enumerate(chosen)}
    named = {role: name for name in chosen if chance.random() < 0.5 for role in [chance.choice(ROLES[:5])]}
    if chance.random() < 0.5:
        named["eos_token"] = END_OF_TEXT
    special = {*named.values(), END_OF_TEXT} | {name for name in chosen if name.startswith("<") and name != "<the>"}
    config: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": chance.random() < 0.3}
    if chance.random() < 0.5:  # since 2023
        ids = {END_OF_TEXT: vocab[END_OF_TEXT], **added}
        config["added_tokens_decoder"] = {str(id): described(chance, n, n in special) for n, id in ids.items()}
        config |= named
    else:
        if added:
            write(folder, "added_tokens.json", added)
        objects = {role: described(chance, name, True) for role, name in named.items()}
        for entry in objects.values():
            entry.pop("special")
        listed = [name for name in chosen if name in special and name not in named.values()]
        key = chance.choice(["additional_special_tokens", "extra_special_tokens"])
        write(folder, "special_tokens_map.json", (objects if chance.random() < 0.5 else named) | {key: listed})
        if chance.random() < 0.3:
            config |= dict.fromkeys(named, "ignored")  # the map has precedence
    if chance.random() < 0.8:
        write(folder, "tokenizer_config.json", config)
    return chance


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_random_settings_give_the_ids_of_transformers(
    base: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("settings") / "model"
    chance = random_folder(base, folder, seed)
    ours = Tokenizer.from_folder(folder)
    assert_same_ids(folder, ours, chance)
    again = folder.parent / "again"
    ours.save(again)
    reopened = Tokenizer.from_folder(again)
    assert_same_ids(again, reopened, chance)
    assert reopened.sha256() == ours.sha256()
    (again / "tokenizer.json").unlink()  # the other files alone describe the same tokenizer
    others = Tokenizer.from_folder(again)
    assert (others.added_tokens, others.special_tokens) == (ours.added_tokens, ours.special_tokens)
    assert others.named_tokens == reopened.named_tokens
    for text in texts(chance):
        assert others.encode(text, special=True) == ours.encode(text, special=True)


def test_added_tokens_beside_the_vocabulary(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vocabulary_files(base, folder)
    write(folder, "added_tokens.json", {"<|user|>": 340, "fox": 341})
    write(folder, "special_tokens_map.json", {"pad_token": "<|user|>", "eos_token": END_OF_TEXT})
    ours = Tokenizer.from_folder(folder)
    assert ours.special_tokens == {END_OF_TEXT: 339, "<|user|>": 340}
    assert (ours.added_tokens, ours.vocab_size) == ({"fox": 341}, 342)
    assert ours.named_tokens == {"pad_token": "<|user|>", "eos_token": END_OF_TEXT}
    assert 341 in ours.encode("the fox") and 340 not in ours.encode("<|user|>")
    assert ours.encode("<|user|>", special=True) == [340]
    assert ours.decode(ours.encode("a fox<|user|>", special=True)) == "a fox<|user|>"
    ours.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "added_tokens.json").read_text()) == {"<|user|>": 340, "fox": 341}
    assert AutoTokenizer.from_pretrained(tmp_path / "again").pad_token_id == 340


@pytest.mark.parametrize("to", ["gguf", "openai", "huggingface"])
def test_conversions_keep_added_and_special_tokens(base: Path, tmp_path: Path, to: str) -> None:
    folder = tmp_path / "model"
    config = GPTConfig(vocab_size=342, context_length=16, emb_dim=4, n_heads=1, n_layers=1, qkv_bias=True)
    config = config.replace(tie_weights=True)
    tensors = {name: tensor.detach().numpy() for name, tensor in GPTModel(config).state_dict().items()}
    vocabulary_files(base, folder)
    weights.save_huggingface(folder, config, tensors)
    write(folder, "added_tokens.json", {"<|user|>": 340, "fox": 341})
    write(folder, "special_tokens_map.json", {"pad_token": "<|user|>", "eos_token": "<|user|>"})
    ours = Tokenizer.from_folder(folder)
    dest = tmp_path / ("model.gguf" if to == "gguf" else "converted")
    weights.convert(folder, dest, to)
    found = weights.open(dest).tokenizer()
    assert found is not None
    assert (found.special_tokens, found.added_tokens) == (ours.special_tokens, ours.added_tokens)
    assert found.end_of_text == ours.end_of_text == 340
    assert found.named_tokens["pad_token"] == "<|user|>"
    for text in texts(random.Random(5)):
        assert found.encode(text, special=True) == ours.encode(text, special=True)
        assert found.encode(text) == ours.encode(text)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"added_tokens.json": {"<x>": 5}}, "gives the added token '<x>' the id 5, but .* next free one, is 340"),
        ({"added_tokens.json": {"<x>": 10**9}}, "the token id 1000000000"),
        ({"added_tokens.json": {"<x>": 10**10}}, "has the token id 10000000000"),
        ({"added_tokens.json": {"<x>": "y"}}, "has the token id 'y'"),
        ({"added_tokens.json": {"<x>": None}}, "has the token id None"),
        ({"added_tokens.json": [1]}, "an object was expected"),
        ({"tokenizer_config.json": {"added_tokens_decoder": [3]}}, "added_tokens_decoder in .* cannot be read"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"1": {"content": 3}}}}, "cannot be read"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"a": {"content": "x"}}}}, "has the token id 'a'"),
        ({"tokenizer_config.json": {"eos_token": "<none>"}}, "names? '<none>' as the end of text"),
    ],
)
def test_settings_that_are_wrong(base: Path, tmp_path: Path, files: dict[str, Any], sentence: str) -> None:
    vocabulary_files(base, tmp_path / "model")
    for name, values in files.items():
        write(tmp_path / "model", name, values)
    with pytest.raises(TokenizerError, match=sentence):
        Tokenizer.from_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "values", [{"pad_token": 3}, {"pad_token": {}}, {"additional_special_tokens": 4}, {"eos_token": None}, {"x": [1]}]
)
def test_settings_without_meaning_are_ignored(base: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    vocabulary_files(base, tmp_path / "model")
    write(tmp_path / "model", "special_tokens_map.json", values)
    assert Tokenizer.from_folder(tmp_path / "model").special_tokens == {END_OF_TEXT: 339}


def test_a_plain_token_that_no_merge_makes(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vocabulary_files(base, folder)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    write(folder, "vocab.json", vocab | {"Ġcovid": len(vocab)})
    ours = Tokenizer.from_folder(folder)
    assert_same_ids(folder, ours, random.Random(2))
    assert ours.encode(" covid") == AutoTokenizer.from_pretrained(folder)(" covid").input_ids
    assert ours.decode([340]) == " covid"


def test_byte_order_marks(base: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(base)
    for files in (("vocab.json", "merges.txt", "tokenizer_config.json"), ("tokenizer.json", "tokenizer_config.json")):
        folder = tmp_path / files[0]
        folder.mkdir()
        for name in files:
            (folder / name).write_bytes(b"\xef\xbb\xbf" + (base / name).read_bytes())
        assert Tokenizer.from_folder(folder).sha256() == ours.sha256()
