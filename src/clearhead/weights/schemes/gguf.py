"""A GPT-2 in a GGUF file: config and tokenizer as keys, tensors under llama.cpp's names.

The keys are those of llama.cpp's architecture `gpt2`, as its converter writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import ConfigError, TokenizerError, WeightsError
from clearhead.utils.text import printable, shown
from clearhead.weights.formats.gguf import GGUFFile, write_gguf
from clearhead.weights.plan import ConversionPlan

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # ggml's types of tokens
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}
_ROLE_KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # so it is spelled in GGUF
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_BLOCK = 32  # numbers per scale of q8_0; a row must be a multiple of it
_COUNTS = {
    "context_length": "context_length",
    "emb_dim": "embedding_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "ff_dim": "feed_forward_length",
}


def config_of(file: GGUFFile) -> tuple[GPTConfig, tuple[str, ...]]:
    """Return the model's shape from the keys (the head as if tied), and notes on what was decided.

    Raises:
        WeightsError: if the file does not hold a GPT-2, is one of several parts, or lacks a key.
    """
    keys = file.keys
    kind = keys.get("general.architecture")
    if kind != "gpt2":
        raise WeightsError(f"{file.path} holds a model of the architecture {shown(kind)}; Clearhead reads 'gpt2' only.")
    if (parts := _number(file, "split.count", 1)) > 1:
        raise WeightsError(
            f"{file.path} is one of {parts:,} parts; join them first, with llama.cpp's llama-gguf-split."
        )
    values: dict[str, Any] = {ours: keys.get(f"gpt2.{theirs}") for ours, theirs in _COUNTS.items()}
    missing = [f"gpt2.{_COUNTS[name]}" for name, value in values.items() if value is None and name != "ff_dim"]
    embedding = file.tensors.get("token_embd.weight")
    if missing or embedding is None:
        raise WeightsError(f"{file.path} lacks {', '.join(missing) or 'token_embd.weight'}; convert the model again.")
    with np.errstate(over="ignore"):  # the config refuses what is infinite
        epsilon = np.float32(_number(file, "gpt2.attention.layer_norm_epsilon", 1e-5))
    try:
        config = GPTConfig(
            vocab_size=embedding.shape[0] if embedding.shape else 0,
            **{**values, "ff_dim": values["ff_dim"] or 0},
            qkv_bias=True,
            tie_weights=True,
            norm_eps=float(str(epsilon)),  # the shortest number that is this float32: 1e-05
        )
    except ConfigError as error:
        raise WeightsError(f"the keys of {file.path} are impossible: {error}") from None
    return config, _notes(file)


def _number(file: GGUFFile, key: str, default: float) -> float:
    value = file.keys.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise WeightsError(f"the key {key} of {file.path} is {shown(value)}; a number was expected.")
    return value


def _notes(file: GGUFFile) -> tuple[str, ...]:
    if not file.quantized:
        return ()
    kinds = " and ".join(sorted(set(file.quantized.values())))
    return (f"{len(file.quantized)} of {len(file.tensors)} tensors are quantized ({kinds}); they are read as float32.",)


def save_gguf(path: Path, plan: ConversionPlan, dtype: str, tokenizer: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Write a model that llama.cpp opens; return notes.

    As with its converter, vectors and the position embedding stay float32, and with q8_0 a matrix whose rows are not a
    multiple of 32 numbers is float16.

    Args:
        path: the file; it is written in place, so give a temporary name and rename it.
        plan: a plan to the layout `gguf`.
        dtype: `float32`, `float16`, `bfloat16` or `q8_0`.
        tokenizer: the keys `tokenizer.*`; empty for none.
        name: the model's name in the file.

    Raises:
        WeightsError: if the `gguf` library is not installed, or a value is too large for float16.
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
    notes = [f"{kept} tensors are float16, because their rows are not a multiple of {_BLOCK} numbers."] if kept else []
    if not tokenizer:
        notes.append("the file holds no tokenizer, because there was none with the weights.")
    return tuple(notes)


def _dtype_for(name: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) < 2 or name == "position_embd.weight":
        return "float32"
    return "float16" if dtype == "q8_0" and shape[-1] % _BLOCK else dtype


def tokenizer_keys(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the keys `tokenizer.*` of a GGUF file for a tokenizer.

    Args:
        tokenizer: a byte-level BPE of GPT-2's kind.
        vocab_size: rows of the token embedding; the list of tokens is filled up to it.

    Raises:
        WeightsError: if GGUF's `gpt2` cannot express the tokenizer, or it is larger than the model.
    """
    if tokenizer.bpe is None:
        raise WeightsError(
            "the model's tokenizer is not a byte-level BPE like GPT-2's, and Clearhead writes no other into a "
            "GGUF file; move the tokenizer's files away to save the model without it."
        )
    if tokenizer.vocab_size > vocab_size:
        raise WeightsError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1:,}, but the model has {vocab_size:,} rows for "
            "tokens; the two belong to different models."
        )
    vocab, merges = tokenizer.bpe
    names = {id: name for name, id in vocab.items()}
    special, added = set(tokenizer.special_tokens.values()), set(tokenizer.added_tokens.values())
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [names.get(id, f"[PAD{id}]") for id in range(vocab_size)],
        "tokenizer.ggml.token_type": [
            _CONTROL if id in special else _USER_DEFINED if id in added else _NORMAL if id in names else _UNUSED
            for id in range(vocab_size)
        ],
    }
    if merges:
        keys["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    if tokenizer.end_of_text is not None:
        keys |= {f"tokenizer.ggml.{which}_token_id": tokenizer.end_of_text for which in ("bos", "eos")}
    for role, key in _ROLE_KEYS.items():
        if role != "eos_token" and (id := vocab.get(tokenizer.named_tokens.get(role, ""))) is not None:
            keys[f"tokenizer.ggml.{key}_token_id"] = id
    return keys


def has_tokenizer(keys: Mapping[str, Any]) -> bool:
    """Return whether a file's keys have a tokenizer of any kind."""
    return bool(keys.get("tokenizer.ggml.model", "none") != "none")


def why_no_tokenizer(keys: Mapping[str, Any]) -> str:
    """Return a note if the tokenizer in a file's keys cannot be used here; empty if it can, or there is none."""
    kind, cut = keys.get("tokenizer.ggml.model", "none"), keys.get("tokenizer.ggml.pre", "gpt-2")
    if kind == "none" or (kind == "gpt2" and cut == "gpt-2"):
        return ""
    return (
        f"the file's own tokenizer ({printable(str(kind))}, {printable(str(cut))}) is not like GPT-2's and is not used."
    )


def tokenizer_of(file: GGUFFile) -> Tokenizer | None:
    """Return the tokenizer in a file's keys; None if there is none, or it is not a byte-level BPE like GPT-2's.

    Raises:
        TokenizerError: if its vocabulary and its merges do not fit each other.
    """
    return tokenizer_from_keys(file.keys, str(file.path))


def tokenizer_from_keys(keys: Mapping[str, Any], where: str) -> Tokenizer | None:
    """Return the tokenizer in the keys of a file that messages call `where`; see `tokenizer_of`."""
    if not has_tokenizer(keys) or why_no_tokenizer(keys):
        return None
    from clearhead.tokenizer import Tokenizer

    tokens = _listed(keys, "tokenizer.ggml.tokens", str, [], where)
    types = _listed(keys, "tokenizer.ggml.token_type", int, [_NORMAL] * len(tokens), where)
    if len(types) != len(tokens):
        raise TokenizerError(
            f"{where} has {len(tokens):,} tokens and the types of {len(types):,}; "
            "put the model's tokenizer.json into the same folder."
        )
    vocab = {token: id for id, (token, type_) in enumerate(zip(tokens, types, strict=False)) if type_ != _UNUSED}
    merges = [tuple(merge.split(" ")) for merge in _listed(keys, "tokenizer.ggml.merges", str, [], where)]
    if any(len(pair) != 2 for pair in merges) or len(vocab) != len(tokens) - types.count(_UNUSED):
        raise TokenizerError(
            f"{where} holds a broken tokenizer: a token occurs twice, or a merge is not a pair; "
            "put the model's tokenizer.json into the same folder."
        )
    special = [token for token, id in vocab.items() if types[id] in (_UNKNOWN, _CONTROL)]
    added = [token for token, id in vocab.items() if types[id] == _USER_DEFINED]
    ids = {role: keys.get(f"tokenizer.ggml.{key}_token_id") for role, key in _ROLE_KEYS.items()}
    names = {id: token for token, id in vocab.items()}
    named = {role: names[id] for role, id in ids.items() if isinstance(id, int) and names.get(id) in special}
    end = keys.get("tokenizer.ggml.eos_token_id")
    what = f"the vocabulary and the merges in {where}"
    end = end if isinstance(end, int) and end in vocab.values() else None
    return Tokenizer.from_bpe(
        vocab, merges, where=what, special=special, added=added, end_of_text=end, named_tokens=named
    )


def _listed(keys: Mapping[str, Any], key: str, kind: type, default: list[Any], where: str) -> list[Any]:
    """Return a key that is a list of values of one type."""
    value = keys.get(key, default)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise TokenizerError(
            f"the key {key} of {where} is not a list of {'texts' if kind is str else 'whole numbers'}; "
            "put the model's tokenizer.json into the same folder."
        )
    return value
