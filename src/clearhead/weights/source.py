"""A model on disk, opened: its form, its config, its tensors; and how to get them into Clearhead's names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights import hub, huggingface, openai
from clearhead.weights.formats.tensorflow import index_in
from clearhead.weights.plan import LazyTensors, Plan, make_plan
from clearhead.weights.progress import ByteProgress
from clearhead.weights.tensors import TensorFile, TensorInfo

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".index", ".json", ".h5", ".zip")


@dataclass(frozen=True)
class Source:
    """A model on disk, opened but not read.

    Attributes:
        name: what the user called it.
        form: the naming scheme of its tensors, a key of `layouts.LAYOUTS`.
        config: the model's shape, as its config and its tensors bear it out.
        folder: where it is; a tokenizer is looked for there.
        notes: sentences for the user on what had to be decided.
    """

    name: str
    form: str
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

    def plan(self, to: str = "canonical") -> Plan:
        """How every tensor of another naming scheme (Clearhead's own, by default) is made from these.

        Raises:
            WeightsError: where a tensor is missing, unknown, or does not fit the config; it is named.
        """
        return make_plan(self.tensors, self._file.read, self.config, self.form, to, where=str(self.path))

    def load(self) -> dict[str, np.ndarray]:
        """Every tensor by its canonical name, as float32; a tied head is the token embedding's own array.

        Embeddings of a float32 file stay views of it; the system reads them when they are used.

        Raises:
            WeightsError: as `plan` and `read`.
        """
        plan = self.plan()
        arrays: dict[str, np.ndarray] = {}
        with ByteProgress(f"Loading {self.name}", _stored_bytes(plan)) as progress:
            for name, values in plan.run():
                arrays[name] = values
                progress.advance(values.nbytes)
        return arrays | {name: arrays[other] for name, other in plan.tied.items()}

    def lazy(self) -> LazyTensors:
        """The same as `load`, but each tensor is read when it is asked for."""
        return LazyTensors(self.plan())


def _stored_bytes(plan: Plan) -> int:
    return sum(TensorInfo(shape, "float32").nbytes for shape in plan.targets.values())


@dataclass(frozen=True)
class Found:
    """What a form's opener made of a path: what `Source` holds beside its name and form."""

    file: TensorFile
    config: GPTConfig
    folder: Path
    notes: tuple[str, ...] = ()


def _open_huggingface(path: Path) -> Found:
    folder, weights = (path, None) if path.is_dir() else (path.parent, path)
    file, config, notes = huggingface.open_folder(folder, weights)
    return Found(file, config, folder, notes)


def _open_openai(path: Path) -> Found:
    file, config, notes = openai.open_checkpoint(path)
    return Found(file, config, file.path.parent, notes)


# What opens each form. A form is told from a path by the first of `_KINDS` that holds.
_OPENERS: dict[str, Callable[[Path], Found]] = {
    "huggingface": _open_huggingface,
    "openai": _open_openai,
}
_KINDS: tuple[tuple[str, Callable[[Path], bool]], ...] = (
    ("openai", lambda path: openai.is_checkpoint(path) and not huggingface.weights_in(path)),
    ("huggingface", lambda path: True),
)


def open(source: str | os.PathLike[str], form: str | None = None, *, revision: str | None = None) -> Source:
    """Opens a model: looks at its config and at the names of its tensors, reads no data.

    Args:
        source: a folder, a file, or the name of a model on the hub; what exists on disk wins.
        form: the naming scheme, where it is not to be told from the files.
        revision: of a model on the hub, its branch, tag or commit.

    Raises:
        HubError: where the model could not be fetched.
        WeightsError: where a file is missing, broken or of an unknown kind.
        ConfigError: where the config describes no GPT-2.
    """
    if form is not None and form not in _OPENERS:
        raise WeightsError(f"there is no form {form!r}; the forms are {', '.join(_OPENERS)}.")
    path = locate(source, revision)
    chosen = form or next(name for name, holds in _KINDS if holds(path))
    found = _OPENERS[chosen](path)
    return Source(str(source), chosen, found.config, found.folder, found.notes, found.file)


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder or file that a user means; a model on the hub is fetched.

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
    if not isinstance(source, str) or looks_like_a_path(text):
        if not text:
            raise WeightsError("no model was named; give a folder, a file, or a model on the hub such as gpt2.")
        near = next((parent for parent in path.parents if parent.exists()), Path())
        what = "the folder" if near.is_dir() else "the file"
        raise WeightsError(f"{text} does not exist ({what} {near.absolute()} does); give a model's folder or file.")
    return hub.fetch(text, revision)


def looks_like_a_path(text: str) -> bool:
    """Whether a name can only be a path: it starts as one, has two slashes, or ends as a weights file does."""
    return (
        text.startswith((".", "/", "~", os.sep))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith(("/", *_WEIGHT_SUFFIXES))
        or re.match(r"[A-Za-z]:", text) is not None
        or not text
    )
