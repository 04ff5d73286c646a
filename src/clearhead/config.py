"""The shape of a GPT-2: seven settings from the book, and four more that the weights determine.

`GPTConfig(**GPT_CONFIG_124M)` takes the book's dictionary as it is printed. The four sizes that
OpenAI released are in `RELEASED`. A config is read from and written to Hugging Face's `config.json`,
and read from OpenAI's `hparams.json`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from clearhead.errors import ConfigError
from clearhead.model_types import why_not_gpt2
from clearhead.utils.arguments import checks_fields
from clearhead.utils.text import type_of

Activation = Literal["gelu_tanh", "gelu_erf", "relu"]

# Hugging Face's names of activation functions. The tanh approximation of GELU has several names for one formula.
_ACTIVATION_FROM_HF: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "relu": "relu",
}
_ACTIVATION_TO_HF: dict[str, str] = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "relu": "relu"}

_MAX_SIZES = {
    "vocab_size": 2**24,
    "context_length": 2**24,
    "emb_dim": 2**18,
    "n_heads": 2**14,
    "n_layers": 2**12,
    "ff_dim": 2**20,
}
"""Larger numbers are mistakes or attacks: GPT-3 has 96 layers of width 12,288. Nothing is sized before this check."""

# Other names that Hugging Face's GPT2Config accepts for the same keys.
_HF_ALIASES: dict[str, str] = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# Hugging Face's GPT2Config's defaults for keys that a config.json leaves out.
_HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


@checks_fields(lambda given: _check_keys(given))
@dataclass(frozen=True, slots=True)
class GPTConfig:
    """The shape of a GPT-2.

    Attributes:
        vocab_size: number of token ids (V).
        context_length: number of positions that the model has learned, the largest T.
        emb_dim: width of a token's vector (C).
        n_heads: attention heads (H); must divide `emb_dim`.
        n_layers: transformer blocks.
        drop_rate: fraction of values dropped in training, after the embeddings, on the attention
            weights and before each addition to the residual stream.
        qkv_bias: whether queries, keys and values have a bias. The book's chapter 4 has none, the
            released weights have one.
        tie_weights: whether the output head is the token embedding's own tensor. The book keeps two
            (163,009,536 parameters for the small model), the released weights share one.
        norm_eps: added to the variance in each layer norm.
        activation: the variant of GELU; GPT-2 was trained with the tanh approximation.
        ff_dim: width inside the feed-forward layer; 4 * emb_dim if it is not given.

    Raises:
        ConfigError: if a value has the wrong type, is out of range, or does not fit another, or a keyword is unknown.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float = 0.0
    qkv_bias: bool = False
    tie_weights: bool = False
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    ff_dim: int = 0

    def __post_init__(self) -> None:
        if self.ff_dim == 0 and type(self.emb_dim) is int:
            object.__setattr__(self, "ff_dim", 4 * self.emb_dim)
        for name in (
            "vocab_size",
            "context_length",
            "emb_dim",
            "n_heads",
            "n_layers",
            "ff_dim",
        ):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {_shown(value)}; it must be a whole number of at least 1.")
            if value > _MAX_SIZES[name]:
                raise ConfigError(
                    f"{name} is {_shown(value)}; Clearhead runs models with at most {_MAX_SIZES[name]:,}; give "
                    "that or less, or the config of a GPT-2."
                )
        for name in ("qkv_bias", "tie_weights"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} is {_shown(getattr(self, name))}; it must be true or false.")
        if not _is_number(self.drop_rate) or not 0 <= self.drop_rate < 1:
            raise ConfigError(
                f"drop_rate is {_shown(self.drop_rate)}; it must be a number from 0 up to, but not including, 1."
            )
        if not _is_number(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps is {_shown(self.norm_eps)}; it must be a small number above 0, as 1e-5 is.")
        if not isinstance(self.activation, str) or self.activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise ConfigError(f"activation is {_shown(self.activation)}; Clearhead has {known}.")
        if self.emb_dim % self.n_heads:
            raise ConfigError(
                f"emb_dim {self.emb_dim} does not divide into {self.n_heads} heads; "
                f"choose n_heads among the divisors of {self.emb_dim}."
            )

    @property
    def head_dim(self) -> int:
        """The width of one attention head (D = C / H)."""
        return self.emb_dim // self.n_heads

    def replace(self, **changes: Any) -> GPTConfig:
        """Return a copy with some fields changed, checked like a new one."""
        if "emb_dim" in changes and "ff_dim" not in changes and self.ff_dim == 4 * self.emb_dim:
            changes["ff_dim"] = 4 * changes["emb_dim"]
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPTConfig:
        """Make a config from a mapping with the book's keys, such as a recipe's `[model]` table.

        Raises:
            ConfigError: if a key is unknown (the message names the nearest) or missing, or a value is out of range.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        _check_keys(values)
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
        if missing:
            raise ConfigError(f"the config lacks {', '.join(missing)}; give each a whole number.")
        return cls(**values)

    @classmethod
    def named(cls, name: str) -> GPTConfig:
        """Return the config of a released size, by OpenAI's name (`124M`) or the hub's (`gpt2-medium`).

        Raises:
            ConfigError: if the name is none of them.
        """
        size = HUB_NAMES.get(name.removeprefix("openai-community/"), name)
        if size not in RELEASED:
            raise ConfigError(
                f"there is no GPT-2 size {name!r}; the sizes are {', '.join(RELEASED)} (or {', '.join(HUB_NAMES)})."
            )
        return RELEASED[size]

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any]) -> GPTConfig:
        """Make a config from the contents of Hugging Face's `config.json`.

        Of the three dropout rates there, which the released models set alike, `resid_pdrop` is taken. Settings that
        change attention's scale (`scale_attn_weights`, `scale_attn_by_inverse_layer_idx`) are not part of a shape:
        `clearhead.weights` multiplies them into the queries when it reads the weights.

        Raises:
            ConfigError: if the file describes another kind of model, or a setting that GPT-2 as
                OpenAI released it does not have; the message names the setting.
        """
        if why := why_not_gpt2(values):
            raise ConfigError(f"config.json {why}.")
        if values.get("add_cross_attention", False) is not False:
            raise ConfigError(
                "config.json sets add_cross_attention, the decoder of an encoder-decoder; Clearhead runs GPT-2s that "
                "stand alone, with false there."
            )
        known = {**_HF_DEFAULTS, **{_HF_ALIASES.get(key, key): value for key, value in values.items()}}
        name = known["activation_function"]
        if not isinstance(name, str) or name not in _ACTIVATION_FROM_HF:
            known_names = ", ".join(_ACTIVATION_FROM_HF)
            raise ConfigError(f"config.json sets activation_function to {_shown(name)}; Clearhead has {known_names}.")
        return cls(
            vocab_size=known["vocab_size"],
            context_length=known["n_positions"],
            emb_dim=known["n_embd"],
            n_heads=known["n_head"],
            n_layers=known["n_layer"],
            drop_rate=known["resid_pdrop"],
            qkv_bias=known.get("qkv_bias", True),
            tie_weights=known["tie_word_embeddings"],
            norm_eps=known["layer_norm_epsilon"],
            activation=_ACTIVATION_FROM_HF[name],
            ff_dim=known["n_inner"] or 0,
        )

    def to_huggingface(self) -> dict[str, Any]:
        """Return the contents of a `config.json` that Hugging Face's `GPT2LMHeadModel` opens.

        Their GPT-2 always has biases on q, k and v; a model without them is written with zero biases
        and with `"qkv_bias": false`, which they ignore and `from_huggingface` reads.
        """
        values: dict[str, Any] = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": _ACTIVATION_TO_HF[self.activation],
            "vocab_size": self.vocab_size,
            "n_positions": self.context_length,
            "n_ctx": self.context_length,
            "n_embd": self.emb_dim,
            "n_head": self.n_heads,
            "n_layer": self.n_layers,
            "n_inner": None if self.ff_dim == 4 * self.emb_dim else self.ff_dim,
            "attn_pdrop": self.drop_rate,
            "embd_pdrop": self.drop_rate,
            "resid_pdrop": self.drop_rate,
            "layer_norm_epsilon": self.norm_eps,
            "tie_word_embeddings": self.tie_weights,
        }
        if not self.qkv_bias:
            values["qkv_bias"] = False
        return values

    @classmethod
    def from_openai(cls, values: Mapping[str, Any]) -> GPTConfig:
        """Make a config from the contents of OpenAI's `hparams.json`.

        Raises:
            ConfigError: if one of its five numbers is missing or out of range.
        """
        keys = {
            "n_vocab": "vocab_size",
            "n_ctx": "context_length",
            "n_embd": "emb_dim",
            "n_head": "n_heads",
            "n_layer": "n_layers",
        }
        missing = [key for key in keys if key not in values]
        if missing:
            raise ConfigError(f"hparams.json lacks {', '.join(missing)}; OpenAI's file has {', '.join(keys)}.")
        return cls(**{ours: values[theirs] for theirs, ours in keys.items()}, qkv_bias=True, tie_weights=True)

    @classmethod
    def from_file(cls, path: str | Path) -> GPTConfig:
        """Read a config from a JSON file: Hugging Face's `config.json`, OpenAI's `hparams.json`, or the book's keys.

        The kind is recognized by the keys inside, not by the file's name.

        Raises:
            ConfigError: if the file cannot be read, is not JSON, or does not describe a GPT-2.
        """
        values = _read_object(path := Path(path))
        if "n_vocab" in values:
            return cls.from_openai(values)
        if "emb_dim" in values:
            return cls.from_dict(values)
        if not values.keys() & {"model_type", "n_embd", "n_layer"}:
            raise ConfigError(
                f"{path} has none of the keys of a GPT-2 config "
                "(Hugging Face's n_embd, OpenAI's n_vocab, or the book's emb_dim)."
            )
        return cls.from_huggingface(values)


ConfigLike = GPTConfig | Mapping[str, Any] | str | os.PathLike[str]
"""What users may pass as a config: a whole one, some settings by name, a released size, a JSON file, or JSON text."""


def parse_config(given: ConfigLike) -> GPTConfig | Mapping[str, Any]:
    """Return a whole config, or settings that override those in the weights' files.

    Args:
        given: a config; a mapping with some of the book's keys, such as `{"n_heads": 3}`, also as JSON text; a released
            size; or a JSON file (Hugging Face's, OpenAI's, or with some of the book's keys).

    Raises:
        ConfigError: if it is none of them, or a key is unknown (the message names the nearest).
    """
    if isinstance(given, GPTConfig):
        return given
    if isinstance(given, Mapping):
        return _check_keys(given)
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(
            f"the config is {type_of(given)}; give a GPTConfig, a mapping such as {{'n_heads': 3}}, a size, or "
            "the path of a JSON file."
        )
    text = os.fspath(given)
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the config {text[:60]!r} is not JSON ({error}); give one as in {_EXAMPLE}.") from None
        return _check_keys(values)
    path = Path(text).expanduser()
    if not path.exists():
        if not text.endswith(".json"):
            return GPTConfig.named(text)
        raise ConfigError(f"the config {text} does not exist; give a JSON file, a size, or settings as in {_EXAMPLE}.")
    path = path / "config.json" if path.is_dir() else path
    values = _read_object(path)
    return _check_keys(values) if values.keys() & _own_keys() else GPTConfig.from_file(path)


_EXAMPLE = "'{\"n_heads\": 3}'"


def _own_keys() -> list[str]:
    # Hugging Face's files have vocab_size too, and `qkv_bias` from `to_huggingface`, so these say nothing about a file.
    return [field.name for field in dataclasses.fields(GPTConfig) if field.name not in ("vocab_size", "qkv_bias")]


def _check_keys(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check the names of settings and return the settings.

    Raises:
        ConfigError: if a name is unknown; the message names the nearest.
    """
    known = [field.name for field in dataclasses.fields(GPTConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"{key!r} is not a setting of a GPT-2{hint}; the settings are {', '.join(known)}.")
    return values


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} could not be read ({error.strerror}); give the path of a JSON file.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); a model's config was expected there.") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError(f"{path} contains a JSON {kind}; an object with a model's settings was expected.")
    return values


def _shown(value: object) -> str:
    """Return a value for a message, shortened: it may come from a damaged file."""
    if type(value) is int:
        return f"{value:,}" if abs(value) < 10**18 else "a number of more than 18 digits"
    try:
        text = repr(value)
    except RecursionError:
        text = f"a nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:59] + "…"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _released(emb_dim: int, n_layers: int, n_heads: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=50257,
        context_length=1024,
        emb_dim=emb_dim,
        n_heads=n_heads,
        n_layers=n_layers,
        drop_rate=0.1,
        qkv_bias=True,
        tie_weights=True,
    )


RELEASED: dict[str, GPTConfig] = {
    "124M": _released(768, 12, 12),
    "355M": _released(1024, 24, 16),
    "774M": _released(1280, 36, 20),
    "1558M": _released(1600, 48, 25),
}
"""The four sizes that OpenAI released, by the names of their folders."""

HUB_NAMES: dict[str, str] = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
"""The hub's name of each released size."""
