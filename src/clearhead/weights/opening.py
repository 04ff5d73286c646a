"""Open a model on disk: recognize its file format and layout, and settle its config."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.config import ConfigLike, GPTConfig, parse_config
from clearhead.errors import ConfigError, WeightsError
from clearhead.model_types import OTHER_MODEL_TYPES, why_not_gpt2
from clearhead.tokenizer.files import has_tokenizer_files, unread_tokenizer_files
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.formats.llmc import LlmcFile
from clearhead.weights.formats.onnx import OnnxFile
from clearhead.weights.formats.sniff import detect_format
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.location import SINGLE_FILE_SUFFIXES, locate
from clearhead.weights.recognize import NAMED, recognize, refuse_unknown, stored_name
from clearhead.weights.saving import SaveResult, check
from clearhead.weights.schemes import adapters, gguf, huggingface, onnx, openai, state_dicts
from clearhead.weights.source import Source
from clearhead.weights.tensors import TensorFile

GPT2_NOTE = (
    "there are no tokenizer files with the weights; the model has as many tokens as GPT-2's own vocabulary, so that is "
    "used. If it was trained with another, put its tokenizer.json in the folder."
)
"""Said when a model without a tokenizer has as many tokens as GPT-2."""


def open(
    source: str | os.PathLike[str],
    layout: str | None = None,
    *,
    config: ConfigLike | None = None,
    revision: str | None = None,
) -> Source:
    """Open a model: look at its config and at the names of its tensors, without reading data.

    Args:
        source: a folder, a file, or the name of a model on the hub; what exists on disk takes precedence.
        layout: the naming scheme, if it cannot be recognized from the files' contents.
        config: the model's shape, if the files do not say it or say it wrongly: a config, a released size, a JSON
            file, or some settings only, such as `{"n_heads": 3}`; the files say the rest then.
        revision: of a model on the hub, its branch, tag or commit.

    Raises:
        HubError: if the model cannot be fetched.
        WeightsError: if a file is missing, broken or of an unknown kind.
        ConfigError: if the config does not describe a GPT-2.
    """
    if layout is not None and layout not in _OPENERS:
        raise WeightsError(f"there is no layout {layout!r}; the layouts are {', '.join(_OPENERS)}.")
    given: _Given = None if config is None else parse_config(config)
    path = locate(source, revision)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise WeightsError(f"{path} is neither a file nor a folder; give the path of a weights file or of a folder.")
    if (adapter := adapters.adapter_file(path)) is not None:
        opened = _open_adapter(adapter, given)
    else:
        opener = _OPENERS[layout] if layout else next(opener for matches, opener in _DETECTORS if matches(path))
        opened = opener(path, given)
    found = Source(
        str(source),
        layout or opened.layout,
        opened.config,
        opened.folder,
        opened.notes,
        opened.file,
        opened.query_scales,
    )
    if (unread := unread_tokenizer_files(found.folder)) and not found.companions.has_own_tokenizer():
        return replace(found, notes=(*found.notes, unread))
    return replace(found, notes=(*found.notes, GPT2_NOTE)) if found.companions.has_implied_tokenizer() else found


def convert(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    to: str,
    dtype: str = "float32",
    *,
    layout: str | None = None,
    config: ConfigLike | None = None,
    revision: str | None = None,
    lossy: bool = False,
) -> SaveResult:
    """Open a model and write it in another layout; see `open` and `Source.save`.

    The notes on opening come first in the result's notes.

    Raises:
        HubError, WeightsError, ConfigError: as `open` and `Source.save`.
    """
    check(to, dtype)
    opened = open(source, layout, config=config, revision=revision)
    saved = opened.save(dest, to, dtype, lossy=lossy)
    return replace(saved, notes=(*opened.notes, *saved.notes))


@dataclass(frozen=True)
class OpenedWeights:
    """What an opener found at a path: what `Source` holds besides its name.

    `layout` is set if the opener recognized it.
    """

    file: TensorFile
    config: GPTConfig
    folder: Path
    notes: tuple[str, ...] = ()
    layout: str = ""
    query_scales: tuple[float, ...] = ()


_Given = GPTConfig | Mapping[str, Any] | None
"""What the user says about the shape: all of it, some settings, or nothing."""


def _settle(
    given: _Given, derive: Callable[[], tuple[GPTConfig, tuple[str, ...]]]
) -> tuple[GPTConfig, tuple[str, ...]]:
    """Return the user's config, or the files' config with the user's settings applied; and notes."""
    if isinstance(given, GPTConfig):
        return given, ()
    config, notes = derive()
    return (config.replace(**given) if given else config), notes


def _says_head(given: _Given) -> bool:
    """Return whether the user states if the output head is tied."""
    return isinstance(given, GPTConfig) or (given is not None and "tie_weights" in given)


def _open_gguf(path: Path, given: _Given) -> OpenedWeights:
    weights = _weights_file(path)
    file = GGUFFile(weights)
    settled, notes = _settle(given, lambda: gguf.config_of(file))
    settled, notes = _settle_head(file, "gguf", settled, notes, not _says_head(given))
    if not has_tokenizer_files(weights.parent) and (why := gguf.why_no_tokenizer(file.keys)):
        notes = (*notes, why)
    return OpenedWeights(file, settled, weights.parent, notes, "gguf")


def _open_llmc(path: Path, given: _Given) -> OpenedWeights:
    weights = _weights_file(path)
    file = LlmcFile(weights)
    settled, _ = _settle(given, lambda: (file.config, ()))
    return OpenedWeights(file, settled, weights.parent, layout="llmc")


def _open_onnx(path: Path, given: _Given) -> OpenedWeights:
    weights = path / onnx.MODEL_FILE if (path / onnx.MODEL_FILE).is_file() else _weights_file(path)
    file = OnnxFile(weights)
    settled, _ = _settle(given, lambda: (file.config, ()))
    return OpenedWeights(file, settled, weights.parent, layout="onnx")


def _open_openai(path: Path, given: _Given) -> OpenedWeights:
    file, settled, notes = openai.open_checkpoint(path, given if isinstance(given, GPTConfig) else None)
    settled, notes = _settle(given, lambda: (settled, notes))
    return OpenedWeights(file, settled, file.path.parent, notes, "openai")


def _open_named(path: Path, given: _Given, layout: str | None = None) -> OpenedWeights:
    """Open a file (or shards) of named tensors; names and shapes decide the layout if it is not given."""
    weights = _weights_file(path)
    folder = weights.parent
    file = adapters.merge_book(huggingface.open_weights(weights), folder)
    layout = layout or recognize(file.tensors)
    if layout is None:  # in a folder with a config.json the plan says what is wrong with the names
        if given is None and not (folder / "config.json").is_file():
            raise refuse_unknown(weights, file.tensors)
        layout = "huggingface"
    notes: tuple[str, ...] = ()
    if layout != "huggingface" and given is None:
        _refuse_other_models(folder)
    state_dicts.refuse_changed(file, layout)
    file, head_notes = adapters.name_book_classifier(file) if layout == "book" else (file, ())
    if layout == "huggingface" and (given is None or (folder / "config.json").is_file()):
        settled, _ = _settle(given, lambda: (huggingface.config_of(file, folder), ()))
        says_head = True
    else:
        heads = None if given is None or isinstance(given, GPTConfig) else given.get("n_heads")
        settled, notes = _settle(given, lambda: state_dicts.config_of(file, folder, layout, heads))
        says_head = _says_head(given)
    if layout != "huggingface" and given is not None:
        settled, more = state_dicts.settle_qkv_bias(file, layout, settled)
        notes = (*notes, *more)
    settled, notes = _settle_head(file, layout, settled, (*head_notes, *notes), not says_head)
    if layout != "huggingface":
        return OpenedWeights(file, settled, folder, notes, layout)
    huggingface.refuse_hidden_biases(file, settled)
    return OpenedWeights(file, settled, folder, notes, layout, huggingface.query_scales(folder, settled))


def _refuse_other_models(folder: Path) -> None:
    """Refuse weights beside a config.json of a model that is not a GPT-2, though some names may look like one's.

    Raises:
        ConfigError: if it names such a model.
    """
    values = huggingface.read_json(folder / "config.json")
    if isinstance(kind := values.get("model_type"), str) and kind in OTHER_MODEL_TYPES:
        raise ConfigError(f"{folder / 'config.json'} {why_not_gpt2(values)}.")


def _open_adapter(weights: Path, given: _Given) -> OpenedWeights:
    """Open a LoRA adapter with the base model that it names; a tokenizer in the adapter's folder takes precedence."""
    name, revision = adapters.base_of(weights)
    try:
        base = open(name, config=given, revision=revision)
    except WeightsError as error:
        raise WeightsError(f"{weights.parent} is a LoRA adapter of the base model {name!r}: {error}") from None
    if base.layout != "huggingface":
        raise WeightsError(
            f"{weights.parent} is a LoRA adapter of {name!r}, which has {LAYOUTS[base.layout].title} names; "
            "a base model with Hugging Face's GPT-2 names was expected."
        )
    file = adapters.merge(weights, base.file)
    settled, notes = _settle_head(file, "huggingface", base.config, base.notes, True)
    folder = weights.parent if has_tokenizer_files(weights.parent) else base.folder
    notes = (*notes, f"{weights.parent} is a LoRA adapter; it is added to the weights of {name}.")
    return OpenedWeights(file, settled, folder, notes, "huggingface", base.query_scales)


def _settle_head(
    file: TensorFile, layout: str, config: GPTConfig, notes: tuple[str, ...], inferred: bool
) -> tuple[GPTConfig, tuple[str, ...]]:
    """Return the config with the head tied only if the stored head, if any, equals the token embedding.

    Args:
        file: the tensors.
        layout: their layout.
        config: says whether the head is tied; if it says no, the head stays untied even if the two are equal.
        notes: notes so far.
        inferred: whether `tie_weights` is a default that no file states.
    """
    head = stored_name("head.weight", layout, file.tensors)
    embedding = stored_name("token_embedding.weight", layout, file.tensors)
    if not config.tie_weights or head is None or embedding is None or _same(file, layout, head, embedding):
        return config, notes
    config = config.replace(tie_weights=False)
    if not inferred:
        notes = (
            *notes,
            f"the config says that the output head is tied, but {head} differs from {embedding}; "
            "the head is loaded as a tensor of its own.",
        )
    return config, notes


def _same(file: TensorFile, layout: str, head: str, embedding: str) -> bool:
    """Return whether a stored head and the token embedding are equal; NaN equals NaN."""
    aliases: Mapping[str, str] = getattr(file, "aliases", {})
    if aliases.get(head, head) == aliases.get(embedding, embedding):
        return True
    one, other = file.read(head), file.read(embedding)
    one = one.T if layout == "transformerlens" else one  # TransformerLens stores the head as [C, V]
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=True)


def _weights_file(path: Path) -> Path:
    """Return the file with the weights: the path itself; in a folder the file with a usual name, or the only one.

    Raises:
        WeightsError: if a folder has none, or several without a usual name.
    """
    if not path.is_dir():
        return path
    usual = huggingface.weights_in(path)
    if usual is not None:
        return usual
    others = sorted(file for file in path.iterdir() if file.suffix in SINGLE_FILE_SUFFIXES and file.is_file())
    others = [file for file in others if not re.search(r"-\d{5}-of-\d{5}\.", file.name)]
    if not others:
        raise WeightsError(huggingface.no_weights(path))
    if len(others) > 1:
        listed = ", ".join(file.name for file in others)
        raise WeightsError(f"{path} holds several files of weights ({listed}); give the path of one of them.")
    return others[0]


def _is(kind: str) -> Callable[[Path], bool]:
    return lambda path: detect_format(_weights_file(path)) == kind


_Opener = Callable[[Path, _Given], OpenedWeights]

_OPENERS: dict[str, _Opener] = {
    "gguf": _open_gguf,
    "llmc": _open_llmc,
    "openai": _open_openai,
    "onnx": _open_onnx,
    **{layout: partial(_open_named, layout=layout) for layout in NAMED},
}
"""What opens each layout."""

_DETECTORS: tuple[tuple[Callable[[Path], bool], _Opener], ...] = (
    (lambda path: openai.is_checkpoint(path) and not huggingface.weights_in(path), _open_openai),
    (lambda path: _weights_file(path).suffix == ".onnx", _open_onnx),
    (_is("gguf"), _open_gguf),
    (_is("llm.c"), _open_llmc),
    (lambda path: True, _open_named),
)
"""How a path is recognized: the first test that holds chooses the opener."""
