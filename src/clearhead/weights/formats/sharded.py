"""Read a model that is split over several files. An index says which tensor is in which file (`weight_map`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.text import printable, shown
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.tensors import TensorFile, TensorInfo

_MAX_NAME = 255  # bytes; the limit of most file systems


class ShardedFile:
    """The shards that an index names, read as one file.

    Attributes:
        path: the index.
        shards: the files that it names, opened.
        tensors: every tensor in the shards.

    Raises:
        WeightsError: if the index is damaged, a shard is missing, or a shard lacks a tensor that the index lists.
    """

    def __init__(self, path: Path, open_shard: Callable[[Path], TensorFile]) -> None:
        self.path = path
        shard_of = read_index(path)
        _check_present(path, sorted(set(shard_of.values())))
        shards = {name: open_shard(path.parent / name) for name in sorted(set(shard_of.values()))}
        self.shards: tuple[TensorFile, ...] = tuple(shards.values())
        self._shard_of: dict[str, TensorFile] = {}
        for shard in shards.values():
            for name in shard.tensors:
                self._shard_of.setdefault(name, shard)
        for name, file in shard_of.items():
            if name not in shards[file].tensors:
                raise WeightsError(
                    f"{path} says that {name!r} is in {file}, which does not have it; "
                    "the index and the shards belong to different models."
                )
            self._shard_of[name] = shards[file]
        self.tensors: dict[str, TensorInfo] = {name: shard.tensors[name] for name, shard in self._shard_of.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor; see `TensorFile.read`."""
        return self._shard_of[name].read(name)

    def remap(self) -> ShardedFile:
        """Map the same shards again; see `TensorFile.remap`."""
        fresh: dict[int, TensorFile] = {}
        for shard in self._shard_of.values():
            if id(shard) not in fresh:
                fresh[id(shard)] = shard.remap()
        other = copy.copy(self)
        other._shard_of = {name: fresh[id(shard)] for name, shard in self._shard_of.items()}
        return other


def read_index(path: Path) -> dict[str, str]:
    check_is_data(path)
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WeightsError(f"{path} could not be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON ({error}); the index of a model's shards was expected.") from None
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(file, str) for file in shard_of.values()):
        raise WeightsError(f"{path} has no weight_map from tensor names to file names; download it again.")
    for file in shard_of.values():
        too_long = len(file.encode("utf-8", "surrogatepass")) > _MAX_NAME
        if Path(file).name != file or file in ("", ".", "..") or "\\" in file or not file.isprintable() or too_long:
            raise WeightsError(f"{path} names the shard {shown(file)}; a file name in the same folder was expected.")
    return shard_of


def _check_present(path: Path, files: list[str]) -> None:
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise WeightsError(
            f"{path.parent} lacks {', '.join(map(printable, missing[:4]))}, which {path.name} names "
            f"({len(files) - len(missing)} of {len(files)} shards are there); download what is missing."
        )
