"""Several files that make one model, held together by an index: `weight_map` says which tensor is in which file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.errors import WeightsError
from clearhead.weights.formats.sniff import refuse_impostor
from clearhead.weights.tensors import TensorFile, TensorInfo


class ShardedFile:
    """The shards that an index names, as one file.

    Attributes:
        path: the index.
        shards: the files that it names, opened.
        tensors: every tensor in the shards.

    Raises:
        WeightsError: where the index is damaged, a shard is missing, or a shard lacks what the index promises.
    """

    def __init__(self, path: Path, open_shard: Callable[[Path], TensorFile]) -> None:
        self.path = path
        where = _read_index(path)
        _check_present(path, sorted(set(where.values())))
        shards = {name: open_shard(path.parent / name) for name in sorted(set(where.values()))}
        self.shards: tuple[TensorFile, ...] = tuple(shards.values())
        self._home: dict[str, TensorFile] = {}
        for shard in shards.values():
            for name in shard.tensors:
                self._home.setdefault(name, shard)
        for name, file in where.items():
            if name not in shards[file].tensors:
                raise WeightsError(
                    f"{path} says that {name!r} is in {file}, and it is not there; "
                    "the index and the shards belong to different models."
                )
            self._home[name] = shards[file]
        self.tensors: dict[str, TensorInfo] = {name: shard.tensors[name] for name, shard in self._home.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored; see `TensorFile.read`."""
        return self._home[name].read(name)

    def remap(self) -> ShardedFile:
        """The same shards mapped anew; see `TensorFile.remap`."""
        fresh: dict[int, TensorFile] = {}
        for shard in self._home.values():
            if id(shard) not in fresh:
                fresh[id(shard)] = shard.remap()
        other = copy.copy(self)
        other._home = {name: fresh[id(shard)] for name, shard in self._home.items()}
        return other


def _read_index(path: Path) -> dict[str, str]:
    refuse_impostor(path)
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} could not be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); the index of a model's shards was expected.") from None
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise WeightsError(f"{path} has no weight_map from tensor names to file names; download it again.")
    for file in where.values():
        if Path(file).name != file or file in ("", ".", ".."):
            raise WeightsError(f"{path} names the shard {file!r}; a file name in the same folder was expected.")
    return where


def _check_present(path: Path, files: list[str]) -> None:
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise WeightsError(
            f"{path.parent} lacks {', '.join(missing)}, which {path.name} names "
            f"({len(files) - len(missing)} of {len(files)} shards are there); download what is missing."
        )
