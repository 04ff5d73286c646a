"""What belongs to a model besides a GPT-2's tensors: tokenizer, generation settings, special ids, a head's labels."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.tokenizer.files import (
    TOKENIZER_FILES,
    has_huggingface_tokenizer,
    has_tokenizer_files,
    unread_tokenizer_files,
)
from clearhead.tokenizer.gpt2 import VOCAB_SIZES as GPT2_VOCAB_SIZES
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.schemes import gguf
from clearhead.weights.schemes.huggingface import read_json
from clearhead.weights.tensors import TensorFile

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

SETTINGS_FILES = ("config.json", "hparams.json", "adapter_config.json")
"""Files next to weights that state the model's shape, or how its tensors are used."""

GENERATION_FILE = "generation_config.json"
"""How `transformers` generates with a model by default."""

_HEAD_SETTINGS = (
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
)
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Companions:
    """What belongs to a model besides its tensors.

    Attributes:
        folder: the folder of the weights, in which the tokenizer's files are looked for.
        file: the weights, if they are a file; a GGUF file holds a tokenizer itself.
        vocab_size: the model's rows for tokens; without a tokenizer, a model of GPT-2's size has GPT-2's own.
    """

    folder: Path
    file: TensorFile | None = None
    vocab_size: int = 0

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer from the folder's files or the GGUF file, or GPT-2's own; None if there is none.

        Raises:
            TokenizerError: if the tokenizer's files are broken.
        """
        if has_tokenizer_files(self.folder):
            from clearhead.tokenizer import Tokenizer  # here, because other loads need none of it

            return Tokenizer.from_folder(self.folder)
        if isinstance(self.file, GGUFFile) and gguf.has_tokenizer(self.file.keys):
            return gguf.tokenizer_of(self.file)
        if self.has_implied_tokenizer():
            from clearhead.tokenizer import Tokenizer

            return Tokenizer.gpt2()
        return None

    def has_tokenizer(self) -> bool:
        """Return whether the model has a tokenizer; its files may still be broken."""
        return self.has_own_tokenizer() or self.has_implied_tokenizer()

    def has_own_tokenizer(self) -> bool:
        """Return whether the folder or the GGUF file has a tokenizer that is read."""
        in_file = isinstance(self.file, GGUFFile) and gguf.has_tokenizer(self.file.keys)
        return has_tokenizer_files(self.folder) or in_file

    def has_implied_tokenizer(self) -> bool:
        """Return whether there is no tokenizer, and the model has the number of tokens of GPT-2's own."""
        if self.has_own_tokenizer() or unread_tokenizer_files(self.folder):
            return False
        return self.vocab_size in GPT2_VOCAB_SIZES

    def gguf_keys(self, vocab_size: int) -> Mapping[str, Any]:
        """Return the tokenizer as a GGUF file's keys; those of a GGUF file are returned as they are.

        Raises:
            WeightsError: if a GGUF file cannot hold the tokenizer.
            TokenizerError: if the tokenizer's files are broken.
        """
        if isinstance(self.file, GGUFFile) and gguf.has_tokenizer(self.file.keys):
            return {key: value for key, value in self.file.keys.items() if key.startswith("tokenizer.")}
        tokenizer = self.tokenizer()
        return {} if tokenizer is None else gguf.tokenizer_keys(tokenizer, vocab_size)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder: copies of the files, or files made from a GGUF file's tokenizer.

        Raises:
            TokenizerError: if a GGUF file's tokenizer is broken.
            OSError: if a file cannot be written.
        """
        if has_huggingface_tokenizer(self.folder):
            for name in TOKENIZER_FILES:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, folder / name)
        elif (tokenizer := self.tokenizer()) is not None:
            tokenizer.save(folder)

    def special_ids(self) -> Mapping[str, int]:
        """Return the ids of special tokens for a `config.json`; they are not part of a GPT-2's shape."""
        if isinstance(self.file, GGUFFile):
            ids = {which: self.file.keys.get(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos")}
            return {f"{which}_token_id": id for which, id in ids.items() if id is not None}
        values = read_json(self.folder / "config.json")
        return {n: values[n] for n in _SPECIAL_IDS if _ids(values.get(n))}

    def generation_config(self) -> dict[str, Any]:
        """Return the contents of `generation_config.json`; empty if there is none."""
        return read_json(self.folder / GENERATION_FILE)

    def end_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text, if `generation_config.json`, or else `config.json`, lists several.

        `transformers` stops at any of them. A single id is left to the tokenizer, whose files say the end of text more
        reliably. Ids that the model does not have are left out.
        """
        for name in (GENERATION_FILE, "config.json"):
            if (found := _ids(read_json(self.folder / name).get("eos_token_id"))) is not None:
                return tuple(id for id in found if id < self.vocab_size) if len(found) > 1 else ()
        return ()

    def head_settings(self) -> dict[str, Any]:
        """Return the keys of `config.json` that describe a head other than the output head, such as labels."""
        values = read_json(self.folder / "config.json")
        return {key: values[key] for key in _HEAD_SETTINGS if key in values}

    def write_files(self, folder: Path) -> None:
        """Write the tokenizer and `generation_config.json` into a folder.

        Raises:
            TokenizerError: if a GGUF file's tokenizer is broken.
            OSError: if a file cannot be written.
        """
        self.write_tokenizer(folder)
        if self.generation_config():
            shutil.copyfile(self.folder / GENERATION_FILE, folder / GENERATION_FILE)


def _ids(value: object) -> tuple[int, ...] | None:
    """Return token ids from a JSON value: one id or a list of ids; None for anything else."""
    values = list(value) if isinstance(value, list) else [value]
    ids = tuple(id for id in values if type(id) is int and id >= 0)
    return ids if ids and len(ids) == len(values) else None
