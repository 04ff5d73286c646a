"""Read and write the files of a tokenizer.

A model's folder has either `tokenizer.json`, or a vocabulary with its merges: `vocab.json` and `merges.txt`, which
OpenAI calls `encoder.json` and `vocab.bpe`; other kinds of files are in `other_files.py`. All become a definition
(see `definition.py`). The settings files beside
them are read in `settings.py`. Importing this module loads no library.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import Definition, byte_level_bpe, is_byte_level_bpe
from clearhead.tokenizer.validation import check_all_are_made, check_definition, check_merges, check_vocabulary
from clearhead.utils import atomic
from clearhead.utils.text import shown

DEFINITION_FILE = "tokenizer.json"
"""The whole tokenizer in one file."""

WORD_PIECE_FILE = "vocab.txt"
SENTENCE_PIECE_FILE = "spiece.model"
NANOGPT_FILE = "meta.pkl"

BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""A vocabulary and its merges: under Hugging Face's names, and under OpenAI's."""

SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Settings that complete a vocabulary; they are no tokenizer without one."""

VOCABULARY_FILES = (DEFINITION_FILE, *BPE_FILES[0], *BPE_FILES[1], WORD_PIECE_FILE, SENTENCE_PIECE_FILE)
"""The files of which any one shows that a folder is meant to have a tokenizer, and which `transformers` reads too."""

TOKENIZER_FILES = (*VOCABULARY_FILES, *SETTINGS_FILES)
"""Every file that belongs to a tokenizer, for downloading a model."""


NO_TOKENIZER = "no tokenizer was opened"
"""What `unread_tokenizer_files` says begins with."""

_SENTENCE_PIECE_FILES = ("tokenizer.model", "sentencepiece.bpe.model")


def unread_tokenizer_files(folder: Path) -> str:
    """Return a note on files of a tokenizer in a folder without one that is read; empty if there are none."""
    if has_tokenizer_files(folder) or not folder.is_dir():
        return ""
    if several := sorted(path.name for path in folder.glob("*.tokenizer.json")):
        return f"{NO_TOKENIZER}: {folder} holds {' and '.join(several[:3])}; rename the right one to tokenizer.json."
    for name in _SENTENCE_PIECE_FILES:
        if (folder / name).is_file():
            return f"{NO_TOKENIZER}: {folder / name} is a SentencePiece model; GPT-2s have it as {SENTENCE_PIECE_FILE}."
    return ""


def has_tokenizer_files(folder: Path) -> bool:
    """Return whether a folder has a tokenizer, or a part of one."""
    names = (*VOCABULARY_FILES, NANOGPT_FILE)
    return any((folder / name).is_file() for name in names) or _aitextgen_file(folder) is not None


def has_huggingface_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a tokenizer in files that are copied as they are: `tokenizer.json` or BPE files."""
    return (folder / DEFINITION_FILE).is_file() or any((folder / name).is_file() for pair in BPE_FILES for name in pair)


def _aitextgen_file(folder: Path) -> Path | None:
    """Return the only file whose name ends like aitextgen's `aitextgen.tokenizer.json`."""
    found = [path for path in folder.glob("*.tokenizer.json") if path.is_file()]
    return found[0] if len(found) == 1 else None


# --- reading -------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Definition:
    """Read the definition in a folder, from the first of the files that it has.

    `tokenizer.json` comes first because it alone has every setting; then a vocabulary with its merges, which have no
    added tokens before `TokenizerSettings` completes the definition; then the files in `other_files.py`.

    Raises:
        TokenizerError: if there are no such files, or they are broken or do not match.
    """
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder; give a folder with a tokenizer's files.")
    if (folder / DEFINITION_FILE).is_file():
        return read_definition(folder / DEFINITION_FILE)
    for pair in BPE_FILES:
        if all((folder / name).is_file() for name in pair):
            return read_bpe_files(folder / pair[0], folder / pair[1]) | {"added_tokens": []}
    for pair in BPE_FILES:
        present = [name for name in pair if (folder / name).is_file()]
        if present:
            absent = pair[1 - pair.index(present[0])]
            raise TokenizerError(
                f"{folder} has {present[0]} but not {absent}, and a vocabulary needs both; add {absent}."
            )
    return _read_other_files(folder)


def _read_other_files(folder: Path) -> Definition:
    """Read a tokenizer in the files of GPT-2's wider family."""
    from clearhead.tokenizer.other_files import read_nanogpt_characters, read_word_piece
    from clearhead.tokenizer.sentence_piece import read_sentence_piece

    if (folder / WORD_PIECE_FILE).is_file():
        config = folder / SETTINGS_FILES[0]
        return read_word_piece(folder / WORD_PIECE_FILE, read_json_object(config) if config.is_file() else {})
    if (folder / SENTENCE_PIECE_FILE).is_file():
        return read_sentence_piece(folder / SENTENCE_PIECE_FILE)
    if (path := _aitextgen_file(folder)) is not None:
        return read_definition(path)
    if (folder / NANOGPT_FILE).is_file():
        return read_nanogpt_characters(folder / NANOGPT_FILE)
    raise TokenizerError(
        f"{folder} has no tokenizer; expected tokenizer.json, vocab.json with merges.txt, "
        "encoder.json with vocab.bpe, vocab.txt, spiece.model or meta.pkl."
    )


def read_definition(path: Path) -> Definition:
    """Read and check a `tokenizer.json`.

    Truncation, padding and dropout are switched off: texts are encoded whole, and the same text always in the same way.

    Raises:
        TokenizerError: if the file is missing or broken.
    """
    definition = read_json_object(path)
    check_definition(definition, str(path))
    definition["truncation"] = definition["padding"] = None
    return definition


def read_bpe_files(vocab_path: Path, merges_path: Path) -> Definition:
    """Read and check a vocabulary and its merges.

    Raises:
        TokenizerError: if a file is missing or broken, or the two do not match.
    """
    vocab, merges = read_json_object(vocab_path), _read_merges(merges_path)
    where = f"{vocab_path} and {merges_path.name}"
    check_vocabulary(vocab, str(vocab_path))
    check_merges(vocab, merges, where)
    check_all_are_made(vocab, merges, where)
    return byte_level_bpe(vocab, merges)


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        TokenizerError: if it is missing, broken or something else.
    """
    text = read_text_file(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not valid JSON ({shown(error)}); it may be cut short: download it again."
        ) from None
    if _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except (UnicodeEncodeError, RecursionError):
            raise TokenizerError(
                f"{path} has half of a surrogate pair, which is not a character; download the file again."
            ) from None
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} has a JSON {type(values).__name__} at its top level; an object was expected.")
    return values


def read_text_file(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        TokenizerError: if it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except OSError as error:
        raise TokenizerError(
            f"{path} could not be read ({error.strerror}); give the path of a tokenizer file."
        ) from None
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path} is not UTF-8 text (byte {error.start}); it is damaged or not a tokenizer file: download it again."
        ) from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Read the merges of a `merges.txt` or `vocab.bpe`, in order."""
    merges = []
    for number, line in enumerate(read_text_file(path).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise TokenizerError(
                f"line {number} of {path} is {shown(line)}; two tokens with one space between them were expected. "
                "The file may be cut short: download it again."
            )
        merges.append((parts[0], parts[1]))
    return merges


# --- writing -------------------------------------------------------------------------------------


def write_folder(
    folder: str | os.PathLike[str],
    definition: Definition,
    vocabulary: Mapping[str, int],
    end: str | None,
    settings: Mapping[str, str],
) -> None:
    """Write a tokenizer into a folder, so that `read_folder` and `transformers` open it with the same ids.

    Args:
        folder: created if it does not exist; its other files stay.
        definition: the tokenizer.
        vocabulary: every token, with those that were added.
        end: the token that ends a text; None if there is none.
        settings: what else `tokenizer_config.json` says: the special tokens with a role, the chat template.

    Raises:
        TokenizerError: if the folder cannot be written.
    """
    files = {DEFINITION_FILE: json.dumps(definition, ensure_ascii=False) + "\n"}
    if is_byte_level_bpe(definition):
        vocab = dict(sorted(definition["model"]["vocab"].items(), key=operator.itemgetter(1)))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in definition["model"]["merges"])]
        files["vocab.json"] = json.dumps(vocab, ensure_ascii=False) + "\n"
        files["merges.txt"] = "\n".join(lines) + "\n"
        if added := {t["content"]: vocabulary[t["content"]] for t in definition["added_tokens"]}.keys() - vocab.keys():
            by_id = sorted(added, key=vocabulary.__getitem__)
            files["added_tokens.json"] = json.dumps({t: vocabulary[t] for t in by_id}, ensure_ascii=False) + "\n"
    config = _tokenizer_config(definition, end, settings) | {
        "added_tokens_decoder": {
            str(vocabulary[token["content"]]): {name: value for name, value in token.items() if name != "id"}
            for token in definition["added_tokens"]
        }
    }
    files["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    try:
        with atomic.staged_files(folder) as staged:
            for name, text in files.items():
                (staged / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise TokenizerError(
            f"the tokenizer could not be saved in {folder} ({error.strerror}); choose another folder."
        ) from None


def _tokenizer_config(definition: Definition, end: str | None, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings with which `transformers` opens the saved files and finds the same ids."""
    # Its GPT-2 class adds <|endoftext|> if no end of text is given; the general class adds nothing.
    gpt2 = end is not None and is_byte_level_bpe(definition)
    config: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer" if gpt2 else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,  # true would remove spaces before punctuation
    }
    pre_tokenizer = definition.get("pre_tokenizer") or {}
    if pre_tokenizer.get("type") == "ByteLevel":
        config["add_prefix_space"] = pre_tokenizer.get("add_prefix_space", True)
    if gpt2:
        config |= {"bos_token": end, "unk_token": end}
    config |= settings
    if end is not None:
        config["eos_token"] = end
    return config
