"""Write the activations of a whole corpus to disk, in shards, with bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError
from clearhead.lens.activations import names
from clearhead.lens.cache import run_with_cache
from clearhead.model import GPTModel
from clearhead.utils.atomic import atomic_path, write_text
from clearhead.utils.json_files import Count, read_json_file
from clearhead.utils.progress import Progress
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors
from clearhead.weights.tensors import TensorInfo

INDEX = "activations.json"


class ActivationIndex(TypedDict):
    """The contents of `activations.json`: the activation, and the numbers of tokens, of texts and of shards."""

    activation: str
    tokens: Count
    texts: Count
    shards: Count


def stream_activations(
    model: GPTModel,
    texts: Iterable[Sequence[int]],
    name: str,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    tokens_per_shard: int = 65_536,
) -> int:
    """Write one activation of every token of many texts as safetensors shards, and return how many tokens there were.

    Each shard has `activations` float32 [N, ...] and `text` and `position` int64 [N]: where each row comes from. Only
    one shard is in memory at a time.

    Args:
        model: the model.
        texts: token ids of each text; they are read one batch at a time.
        name: the activation, one that has a value for each token, such as "blocks.3.residual_out".
        folder: is created; it must not hold activations already.
        batch_size: texts that run together.
        tokens_per_shard: rows of each shard but the last.

    Raises:
        InputError: if the name means several activations or one without a value for each token, or the folder is taken.
    """
    found = names(model.config).find(name)
    if len(found) != 1 or found[0].letters.count("T") != 1:
        raise InputError(f"{name!r} means {len(found)} activations; name one that has a value for each token.")
    activation, path = found[0], Path(folder)
    if (path / INDEX).exists():
        raise InputError(f"{path} holds activations already; name another folder.")
    path.mkdir(parents=True, exist_ok=True)
    writer = _ShardWriter(path, tokens_per_shard)
    remaining = iter(texts)
    with Progress(f"Recording {activation.name}", None) as progress:
        first = 0
        while batch := list(islice(remaining, batch_size)):
            cache = run_with_cache(model, batch, activation.name)
            for row, length in enumerate(cache.lengths):
                value = cache[activation.name][row].narrow(activation.token_axis, 0, length)
                rows = value.movedim(activation.token_axis, 0).float().cpu().numpy()
                writer.add(rows, first + row)
            first += len(batch)
            progress.advance(sum(cache.lengths), f"{writer.n_tokens:,} tokens")
    writer.finish()
    index: ActivationIndex = {
        "activation": activation.name,
        "tokens": writer.n_tokens,
        "texts": first,
        "shards": writer.n_shards,
    }
    write_text(path / INDEX, json.dumps(index, indent=1) + "\n")
    return writer.n_tokens


class _ShardWriter:
    """Collects rows and writes a shard whenever enough of them are there."""

    def __init__(self, folder: Path, size: int) -> None:
        self.n_tokens = self.n_shards = 0
        self._folder, self._size = folder, size
        self._rows: list[npt.NDArray[np.float32]] = []
        self._texts: list[npt.NDArray[np.int64]] = []
        self._positions: list[npt.NDArray[np.int64]] = []
        self._held = 0

    def add(self, rows: npt.NDArray[np.float32], text: int) -> None:
        """Take the rows of one text."""
        self._rows.append(rows)
        self._texts.append(np.full(len(rows), text, np.int64))
        self._positions.append(np.arange(len(rows), dtype=np.int64))
        self._held += len(rows)
        self.n_tokens += len(rows)
        while self._held >= self._size:
            self._write(self._size)

    def finish(self) -> None:
        """Write the rest."""
        if self._held:
            self._write(self._held)

    def _write(self, n: int) -> None:
        rows, texts, positions = (
            np.concatenate(self._rows),
            np.concatenate(self._texts),
            np.concatenate(self._positions),
        )
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "activations": rows[:n],
            "text": texts[:n],
            "position": positions[:n],
        }
        infos = {key: TensorInfo(tuple(array.shape), str(array.dtype)) for key, array in arrays.items()}
        with atomic_path(self._folder / f"shard-{self.n_shards:05d}.safetensors") as temporary:
            write_safetensors(temporary, infos, arrays.items(), {})
        self.n_shards += 1
        self._rows, self._texts, self._positions = [rows[n:]], [texts[n:]], [positions[n:]]
        self._held -= n


def read_activations(
    folder: str | os.PathLike[str],
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield activations, text numbers and positions of one shard after another, as `stream_activations` wrote them.

    Raises:
        InputError: if the folder holds no activations.
        WeightsError: if a shard is damaged.
    """
    path = Path(folder)
    index = read_json_file(path / INDEX, ActivationIndex, InputError, "name a folder that stream_activations wrote")
    for number in range(index["shards"]):
        shard = SafetensorsFile(path / f"shard-{number:05d}.safetensors")
        yield shard.read("activations"), shard.read("text"), shard.read("position")
