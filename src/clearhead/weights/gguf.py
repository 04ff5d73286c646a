"""A GPT-2 in a GGUF file: its config and its tokenizer as keys, its tensors under llama.cpp's names.

The keys are those of llama.cpp's architecture `gpt2`, and what its converter writes for one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import ConfigError, TokenizerError, WeightsError
from clearhead.weights.formats.gguf import GGUFFile, write_gguf
from clearhead.weights.plan import Plan

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # ggml's types of tokens
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}
_BLOCK = 32  # numbers that one scale of q8_0 serves; a row must be a whole number of them
_COUNTS = {
    "context_length": "context_length",
    "emb_dim": "embedding_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "ff_dim": "feed_forward_length",
}


def config_of(file: GGUFFile) -> tuple[GPTConfig, tuple[str, ...]]:
    """The model's shape from the keys (the head as if tied), and remarks on what was decided.

    Raises:
        WeightsError: where the file holds no GPT-2, is one of several parts, or lacks a key.
    """
    keys = file.keys
    kind = keys.get("general.architecture")
    if kind != "gpt2":
        raise WeightsError(f"{file.path} holds a model of the architecture {kind!r}; Clearhead reads 'gpt2' only.")
    if keys.get("split.count", 1) > 1:
        raise WeightsError(
            f"{file.path} is one of {keys['split.count']} parts; join them first, with llama.cpp's llama-gguf-split."
        )
    values: dict[str, Any] = {ours: keys.get(f"gpt2.{theirs}") for ours, theirs in _COUNTS.items()}
    missing = [f"gpt2.{_COUNTS[name]}" for name, value in values.items() if value is None and name != "ff_dim"]
    embedding = file.tensors.get("token_embd.weight")
    if missing or embedding is None:
        raise WeightsError(f"{file.path} lacks {', '.join(missing) or 'token_embd.weight'}; convert the model again.")
    epsilon = np.float32(keys.get("gpt2.attention.layer_norm_epsilon", 1e-5))
    try:
        config = GPTConfig(
            vocab_size=embedding.shape[0],
            **{**values, "ff_dim": values["ff_dim"] or 0},
            qkv_bias=True,
            tie_weights=True,
            norm_eps=float(str(epsilon)),  # the shortest number that is this float32: 1e-05
        )
    except ConfigError as error:
        raise WeightsError(f"the keys of {file.path} cannot be: {error}") from None
    return config, _notes(file)


def _notes(file: GGUFFile) -> tuple[str, ...]:
    if not file.quantized:
        return ()
    kinds = " and ".join(sorted(set(file.quantized.values())))
    return (f"{len(file.quantized)} of {len(file.tensors)} tensors are quantized ({kinds}); they are read as float32.",)


def save_gguf(path: Path, plan: Plan, dtype: str, tokenizer: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Writes a model that llama.cpp opens; returns remarks.

    As its converter does, vectors and the position embedding stay float32, and a matrix whose rows are no whole
    number of blocks is float16 where q8_0 was asked for.

    Args:
        path: the file, written in place: give a temporary name and rename it.
        plan: a plan to the layout `gguf`.
        dtype: `float32`, `float16`, `bfloat16` or `q8_0`.
        tokenizer: the keys `tokenizer.*`; empty for none.
        name: what to call the model in the file.

    Raises:
        WeightsError: where the `gguf` library is not installed, or a value is too large for float16.
    """
    config = plan.config
    keys: dict[str, Any] = {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.name": name,
        **{f"gpt2.{theirs}": getattr(config, ours) for ours, theirs in _COUNTS.items()},
        "gpt2.vocab_size": config.vocab_size,
        "gpt2.attention.layer_norm_epsilon": float(config.norm_eps),
        "general.file_type": _FILE_TYPES[dtype],
        **(tokenizer or {"tokenizer.ggml.model": "none"}),
    }
    if dtype == "q8_0":
        keys["general.quantization_version"] = 2
    tensors = {target: (shape, _dtype_for(target, shape, dtype)) for target, shape in plan.targets.items()}
    write_gguf(path, keys, tensors, plan.run(None))
    kept = sum(chosen == "float16" for _, chosen in tensors.values()) if dtype == "q8_0" else 0
    notes = [f"{kept} tensors are float16, as their rows are no multiple of {_BLOCK} numbers."] if kept else []
    if not tokenizer:
        notes.append("the file holds no tokenizer, as none stood beside the weights.")
    return tuple(notes)


def _dtype_for(name: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) < 2 or name == "position_embd.weight":
        return "float32"
    return "float16" if dtype == "q8_0" and shape[-1] % _BLOCK else dtype


def tokenizer_keys(file: Any, folder: Path, vocab_size: int) -> dict[str, Any]:
    """The keys `tokenizer.*` for a model: those of its own GGUF file, or made from the files in its folder.

    Args:
        file: the model's weights, as opened.
        folder: where a tokenizer is looked for.
        vocab_size: rows of the token embedding; the list of tokens is filled up to it.

    Raises:
        TokenizerError: where there are a tokenizer's files and they are broken.
        WeightsError: where the tokenizer is of a kind that GGUF's `gpt2` cannot say, or larger than the model.
    """
    if isinstance(file, GGUFFile):
        return {key: value for key, value in file.keys.items() if key.startswith("tokenizer.")}
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "encoder.json")):
        return {}
    from clearhead.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save(saved)
        if not (Path(saved) / "merges.txt").is_file():
            raise WeightsError(
                f"the tokenizer in {folder} is no byte-level BPE of GPT-2's kind, and Clearhead writes no other into a "
                "GGUF file; take the tokenizer's files away to save the model without it."
            )
        vocab: dict[str, int] = json.loads((Path(saved) / "vocab.json").read_text(encoding="utf-8"))
        merges = (Path(saved) / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    if tokenizer.vocab_size > vocab_size:
        raise WeightsError(
            f"the tokenizer in {folder} has ids up to {tokenizer.vocab_size - 1:,}, but the model has {vocab_size:,} "
            "rows for tokens; the two belong to different models."
        )
    names = {id: name for name, id in vocab.items()}
    special = set(tokenizer.special_tokens.values())
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [names.get(id, f"[PAD{id}]") for id in range(vocab_size)],
        "tokenizer.ggml.token_type": [
            _CONTROL if id in special else _NORMAL if id in names else _UNUSED for id in range(vocab_size)
        ],
    }
    if merges:
        keys["tokenizer.ggml.merges"] = merges
    if tokenizer.end_of_text is not None:
        keys |= {f"tokenizer.ggml.{which}_token_id": tokenizer.end_of_text for which in ("bos", "eos")}
    return keys


def save_tokenizer(keys: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Writes the tokenizer in a GGUF file's keys as files that `transformers` opens; returns remarks.

    Only a byte-level BPE of GPT-2's kind can be; of another, a remark is all.
    """
    tokens, merges = keys.get("tokenizer.ggml.tokens", []), keys.get("tokenizer.ggml.merges", [])
    kind, cut = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre", "gpt-2")
    if kind in (None, "none"):
        return ()
    if kind != "gpt2" or cut != "gpt-2":
        return (f"the file's tokenizer ({kind}, {cut}) is not GPT-2's kind and was left out.",)
    from clearhead.tokenizer import Tokenizer

    types = keys.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    vocab = {token: id for id, (token, type_) in enumerate(zip(tokens, types, strict=False)) if type_ != _UNUSED}
    with tempfile.TemporaryDirectory() as made:
        files = Path(made) / "vocab.json", Path(made) / "merges.txt"
        files[0].write_text(json.dumps(vocab), encoding="utf-8")
        files[1].write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        try:
            Tokenizer.from_bpe_files(*files).save(folder)
        except TokenizerError as error:
            return (f"the file's tokenizer could not be written: {error}",)
    return ()
