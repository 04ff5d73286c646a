"""A model on disk, opened: its layout, its config, its tensors; and how to get them into Clearhead's names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clearhead.config import HUB_NAMES, GPTConfig
from clearhead.errors import WeightsError
from clearhead.tokenizer.files import has_tokenizer_files
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.formats.llmc import LlmcFile
from clearhead.weights.formats.onnx import OnnxFile
from clearhead.weights.formats.sniff import detect_format
from clearhead.weights.formats.tensorflow import index_in
from clearhead.weights.hub import hub
from clearhead.weights.plan import ConversionPlan, LazyTensors
from clearhead.weights.planning import make_plan
from clearhead.weights.recognize import NAMED, recognize, refuse_unknown, stored_name
from clearhead.weights.saving import SaveResult, check, save_plan, tokenizer_of
from clearhead.weights.schemes import gguf, huggingface, onnx, openai, state_dicts
from clearhead.weights.steps import TensorReader
from clearhead.weights.streaming import StreamingReader
from clearhead.weights.tensors import SAVED, TensorFile, TensorInfo

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

_SINGLE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx")
_WEIGHT_SUFFIXES = (*_SINGLE_SUFFIXES, ".npz", ".index", ".json", ".h5", ".zip")


@dataclass(frozen=True)
class Source:
    """A model on disk, opened but not read.

    Attributes:
        name: what the user called it.
        layout: the naming scheme of its tensors, a key of `layouts.LAYOUTS`.
        config: the model's shape, as its config and its tensors bear it out.
        folder: where it is; a tokenizer is looked for there.
        notes: sentences for the user on what had to be decided.
    """

    name: str
    layout: str
    config: GPTConfig
    folder: Path
    notes: tuple[str, ...]
    _file: TensorFile = field(repr=False)

    @property
    def path(self) -> Path:
        """The file with the weights; for shards, their index."""
        return self._file.path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor's shape and number format, by its stored name."""
        return self._file.tensors

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored (bfloat16 widened to float32); it may be a view of the file.

        Raises:
            WeightsError: where there is no tensor of that name, or its data cannot be read.
        """
        if name not in self.tensors:
            raise WeightsError(f"{self.path} holds no tensor {name!r}; it holds {', '.join(list(self.tensors)[:3])}, …")
        return self._file.read(name)

    def plan(self, to: str = "canonical") -> ConversionPlan:
        """How every tensor of another naming scheme (Clearhead's own, by default) is made from these.

        Raises:
            WeightsError: where a tensor is missing, unknown, or does not fit the config; it is named.
        """
        return self._plan(to, self._file.read)

    def stream(self, to: str = "canonical") -> ConversionPlan:
        """The same plan, to be run once: what has been read counts as memory no longer than somebody holds it.

        For a model that is larger than the memory. The file must stay as it is until the plan has run.

        Raises:
            WeightsError: as `plan`; and when it runs, where the file was changed.
        """
        return self._plan(to, StreamingReader(self._file))

    def _plan(self, to: str, read: TensorReader) -> ConversionPlan:
        return make_plan(self.tensors, read, self.config, self.layout, to, where=str(self.path))

    @property
    def dtype(self) -> str:
        """The number format of the weights; where there are several, or others than are saved, float32."""
        found = {part.info.dtype for step in self.plan().steps for part in step.slices}
        quantized = isinstance(self._file, GGUFFile) and self._file.quantized
        return found.pop() if len(found) == 1 and found <= set(SAVED) and not quantized else "float32"

    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer: of the files in its folder, else what its GGUF file itself holds; None without one.

        Raises:
            TokenizerError: where there is one, and it is broken.
        """
        return tokenizer_of(self._file, self.folder)

    def load(self) -> dict[str, np.ndarray]:
        """Every tensor by its canonical name, as float32; a tied head is the token embedding's own array.

        Embeddings of a float32 file stay views of it; the system reads them when they are used.

        Raises:
            WeightsError: as `plan` and `read`.
        """
        plan = self.plan()
        arrays: dict[str, np.ndarray] = {}
        with ByteProgress(f"Loading {self.name}", _stored_bytes(plan)) as progress:
            for name, values in plan.run_parallel():
                arrays[name] = values
                progress.advance(values.nbytes)
        return arrays | {name: arrays[other] for name, other in plan.tied.items()}

    def save(self, dest: str | os.PathLike[str], to: str = "huggingface", dtype: str = "float32") -> SaveResult:
        """Write the model in a layout, with one tensor, or one layer of it, in memory at a time.

        Args:
            dest: the folder for `huggingface`, `openai` and `onnx`, else the file.
            to: the layout: huggingface, openai, onnx, book, nanogpt, llmc, transformerlens, gguf or canonical.
            dtype: the number format: float32, float16, bfloat16, for some layouts fewer; for gguf also q8_0.

        Raises:
            WeightsError: as `plan`; and where the layout or the dtype is unknown or cannot hold this model, or the
                place cannot be written.
        """
        check(to, dtype)
        return save_plan(Path(dest).expanduser(), self.stream(to), dtype, file=self._file, folder=self.folder)

    def lazy(self, row_major: bool = True) -> LazyTensors:
        """The same as `load`, but each tensor is read when it is asked for.

        Args:
            row_major: False gives a matrix that is stored turned as it lies, column by column, and copies nothing.
        """
        return LazyTensors(self.plan(), row_major)


def _stored_bytes(plan: ConversionPlan) -> int:
    return sum(TensorInfo(shape, "float32").nbytes for shape in plan.targets.values())


@dataclass(frozen=True)
class OpenedWeights:
    """What a layout's opener made of a path: what `Source` holds beside its name.

    `layout` is given where the opener found out itself which it is.
    """

    file: TensorFile
    config: GPTConfig
    folder: Path
    notes: tuple[str, ...] = ()
    layout: str = ""


def _open_gguf(path: Path, config: GPTConfig | None) -> OpenedWeights:
    weights = _weights_file(path)
    file = GGUFFile(weights)
    told, notes = (config, ()) if config else gguf.config_of(file)
    told, notes = _settle_head(file, "gguf", told, notes, config is None)
    if not has_tokenizer_files(weights.parent) and (why := gguf.why_no_tokenizer(file.keys)):
        notes = (*notes, why)
    return OpenedWeights(file, told, weights.parent, notes, "gguf")


def _open_llmc(path: Path, config: GPTConfig | None) -> OpenedWeights:
    weights = _weights_file(path)
    file = LlmcFile(weights)
    return OpenedWeights(file, config or file.config, weights.parent, layout="llmc")


def _open_onnx(path: Path, config: GPTConfig | None) -> OpenedWeights:
    weights = path / onnx.MODEL_FILE if (path / onnx.MODEL_FILE).is_file() else _weights_file(path)
    file = OnnxFile(weights)
    return OpenedWeights(file, config or file.config, weights.parent, layout="onnx")


def _open_openai(path: Path, config: GPTConfig | None) -> OpenedWeights:
    file, told, notes = openai.open_checkpoint(path, config)
    return OpenedWeights(file, told, file.path.parent, notes, "openai")


def _open_named(path: Path, config: GPTConfig | None, layout: str | None = None) -> OpenedWeights:
    """Opens a file (or shards) of named tensors, whose names and shapes tell the layout where it is not given."""
    weights = _weights_file(path)
    file, folder = huggingface.open_weights(weights), weights.parent
    layout = layout or recognize(file.tensors)
    if layout is None:  # in a folder with a config.json the plan says what is wrong with the names
        if config is None and not (folder / "config.json").is_file():
            raise refuse_unknown(weights, file.tensors)
        layout = "huggingface"
    notes: tuple[str, ...] = ()
    state_dicts.refuse_changed(file, layout)
    if layout == "huggingface":
        told = config or huggingface.config_of(file, folder)
    elif config is not None:
        told, notes = state_dicts.settle_qkv_bias(file, layout, config)
    else:
        told, notes = state_dicts.config_of(file, folder, layout)
    told, notes = _settle_head(file, layout, told, notes, layout != "huggingface" and config is None)
    if layout == "huggingface":
        huggingface.refuse_hidden_biases(file, told)
    return OpenedWeights(file, told, folder, notes, layout)


def _settle_head(
    file: TensorFile, layout: str, config: GPTConfig, notes: tuple[str, ...], inferred: bool
) -> tuple[GPTConfig, tuple[str, ...]]:
    """The config as the weights bear it out: tied only where the stored head, if any, is the token embedding.

    Args:
        file: the tensors.
        layout: their layout.
        config: says whether the head is tied; where it says not, that holds, even for two equal tensors.
        notes: remarks so far.
        inferred: whether `tie_weights` is there only because it had to have some value.
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
    """Whether a stored head and the token embedding are equal; as bits where they are one piece of memory."""
    aliases: Mapping[str, str] = getattr(file, "aliases", {})
    if aliases.get(head, head) == aliases.get(embedding, embedding):
        return True
    one, other = file.read(head), file.read(embedding)
    one = one.T if layout == "transformerlens" else one  # there the head is stored as [C, V]
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=True)


def _weights_file(path: Path) -> Path:
    """The file with the weights: the path itself; in a folder the usual one, or the only one of a kind that is read.

    Raises:
        WeightsError: where a folder has none, or several without one of the usual names.
    """
    if not path.is_dir():
        return path
    usual = huggingface.weights_in(path)
    if usual is not None:
        return usual
    others = sorted(file for file in path.iterdir() if file.suffix in _SINGLE_SUFFIXES and file.is_file())
    others = [file for file in others if not re.search(r"-\d{5}-of-\d{5}\.", file.name)]
    if not others:
        raise WeightsError(huggingface.no_weights(path))
    if len(others) > 1:
        listed = ", ".join(file.name for file in others)
        raise WeightsError(f"{path} holds several files of weights ({listed}); give the path of one of them.")
    return others[0]


def _is(kind: str) -> Callable[[Path], bool]:
    return lambda path: detect_format(_weights_file(path)) == kind


# What opens each layout. A layout is told from a path by the first of `_KINDS` that holds; `_open_named` tells the
# layouts that are collections of named tensors from one another.
_OPENERS: dict[str, Callable[[Path, GPTConfig | None], OpenedWeights]] = {
    "gguf": _open_gguf,
    "llmc": _open_llmc,
    "openai": _open_openai,
    "onnx": _open_onnx,
    **{layout: partial(_open_named, layout=layout) for layout in NAMED},
}
_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path, GPTConfig | None], OpenedWeights]], ...] = (
    (lambda path: openai.is_checkpoint(path) and not huggingface.weights_in(path), _open_openai),
    (lambda path: _weights_file(path).suffix == ".onnx", _open_onnx),
    (_is("gguf"), _open_gguf),
    (_is("llm.c"), _open_llmc),
    (lambda path: True, _open_named),
)


def open(
    source: str | os.PathLike[str],
    layout: str | None = None,
    *,
    config: GPTConfig | None = None,
    revision: str | None = None,
) -> Source:
    """Opens a model: looks at its config and at the names of its tensors, reads no data.

    Args:
        source: a folder, a file, or the name of a model on the hub; what exists on disk wins.
        layout: the naming scheme, where it is not to be told from the files' contents.
        config: the model's shape, where the files do not say it or say it wrongly.
        revision: of a model on the hub, its branch, tag or commit.

    Raises:
        HubError: where the model could not be fetched.
        WeightsError: where a file is missing, broken or of an unknown kind.
        ConfigError: where the config describes no GPT-2.
    """
    if layout is not None and layout not in _OPENERS:
        raise WeightsError(f"there is no layout {layout!r}; the layouts are {', '.join(_OPENERS)}.")
    path = locate(source, revision)
    opener = _OPENERS[layout] if layout else next(opener for holds, opener in _KINDS if holds(path))
    found = opener(path, config)
    return Source(str(source), layout or found.layout, found.config, found.folder, found.notes, found.file)


def convert(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    to: str,
    dtype: str = "float32",
    *,
    layout: str | None = None,
    config: GPTConfig | None = None,
    revision: str | None = None,
) -> SaveResult:
    """Opens a model and writes it in another layout; see `open` and `Source.save`.

    The remarks on opening come first in the result's notes.

    Raises:
        HubError, WeightsError, ConfigError: as `open` and `Source.save`.
    """
    check(to, dtype)
    opened = open(source, layout, config=config, revision=revision)
    saved = opened.save(dest, to, dtype)
    return replace(saved, notes=(*opened.notes, *saved.notes))


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder or file that a user means; a model on the hub is fetched, a released size (`124M`) by its name there.

    Raises:
        WeightsError: where it is the path of nothing.
        HubError: where the model could not be fetched.
    """
    text = os.fspath(source)
    path = Path(source).expanduser()
    if text and path.exists():
        return path
    if text and (index := index_in(path)):  # TensorFlow calls a checkpoint by what its files' names have in common
        return index
    if not isinstance(source, str) or looks_like_path(text):
        if not text:
            raise WeightsError("no model was named; give a folder, a file, or a model on the hub such as gpt2.")
        near = next((parent for parent in path.parents if parent.exists()), Path())
        what = "the folder" if near.is_dir() else "the file"
        raise WeightsError(f"{text} does not exist ({what} {near.absolute()} does); give a model's folder or file.")
    of_size = {size: name for name, size in HUB_NAMES.items()}
    return hub.fetch(of_size.get(text, text), revision)


def looks_like_path(text: str) -> bool:
    """Whether a name can only be a path: it starts as one, has two slashes, or ends as a weights file does."""
    return (
        text.startswith((".", "/", "~", os.sep))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith(("/", *_WEIGHT_SUFFIXES))
        or re.match(r"[A-Za-z]:", text) is not None
        or not text
    )
