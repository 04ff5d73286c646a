"""Models of which only an index is there: names and shapes without data, for looking at the plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clearhead.config import ConfigLike, GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.formats.sharded import read_index
from clearhead.weights.formats.tensorflow import index_in
from clearhead.weights.layouts import LAYOUTS, TABLE, axis_sizes, layout_tensors
from clearhead.weights.opening import open
from clearhead.weights.schemes import openai
from clearhead.weights.schemes.huggingface import read_json
from clearhead.weights.source import Source
from clearhead.weights.tensors import SAVED, TensorInfo

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def open_names(source: str | os.PathLike[str], *, config: ConfigLike | None = None) -> Source:
    """Open a model for its names and shapes; its index is enough if the files with the data are missing.

    Raises:
        HubError, WeightsError, ConfigError: as `opening.open`.
    """
    try:
        return open(source, config=config)
    except WeightsError:
        path = Path(source).expanduser()
        if (index_in(path) is None and not path.exists()) or (found := open_index(path, str(source))) is None:
            raise
        return found


def open_index(path: Path, name: str) -> Source | None:
    """Open the index of a model without the files that it names; None if `path` is no index and holds none.

    The index of a TensorFlow checkpoint has every shape. The index of shards has names only, so the shapes are those
    that `config.json` implies, which a note says.

    Raises:
        WeightsError: if the index is damaged, or there is no config.
        ConfigError: if the config does not describe a GPT-2.
    """
    if index_in(path) is not None:
        file, config, notes = openai.open_checkpoint(path, data=False)
        return Source(name, "openai", config, file.path.parent, notes, file)
    index = path if path.name in _INDEXES else next((path / n for n in _INDEXES if (path / n).is_file()), None)
    if index is None or not index.is_file():
        return None
    config_file = index.parent / "config.json"
    if not config_file.is_file():
        raise WeightsError(f"{index.parent} holds no config.json, which states the shape of the model; copy it there.")
    config = GPTConfig.from_file(config_file)
    names = _IndexedNames(index, config, str(read_json(config_file).get("dtype", "")))
    note = f"the files that {index.name} names are not there; the shapes are those that config.json implies."
    return Source(name, "huggingface", config, index.parent, (note,), names)


class _IndexedNames:
    """The names in an index of shards, with the shapes that a config implies; a `TensorFile` that cannot be read."""

    def __init__(self, path: Path, config: GPTConfig, dtype: str) -> None:
        self.path = path
        layout, sizes = LAYOUTS["huggingface"], axis_sizes(config)
        shapes = {
            layout.bare(tensor.name): tensor.shape(sizes)
            for row in TABLE
            for tensor in layout_tensors(row, "huggingface", config.n_layers)
        }
        dtype = dtype if dtype in SAVED else "float32"
        self.tensors = {name: TensorInfo(shapes.get(layout.bare(name), ()), dtype) for name in read_index(path)}

    def read(self, name: str) -> npt.NDArray[Any]:
        """Raise: there is no data."""
        raise WeightsError(f"{self.path} names {name!r}, and the file with its numbers is not there; download it.")

    def remap(self) -> _IndexedNames:
        """Return this file."""
        return self
