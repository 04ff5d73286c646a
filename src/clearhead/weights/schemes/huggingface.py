"""A Hugging Face GPT-2 folder: `config.json` beside `model.safetensors`, `pytorch_model.bin`, or shards of either.

This is also Clearhead's own layout on disk: what `save_huggingface` writes, `transformers` opens.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.pytorch import PyTorchFile
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors
from clearhead.weights.formats.sharded import ShardedFile
from clearhead.weights.formats.sniff import check_is_data, detect_format
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.planning import make_plan
from clearhead.weights.tensors import SAVED, TensorFile, TensorInfo, encode, shape_words

WEIGHT_FILES: dict[str, Callable[[Path], TensorFile]] = {
    "model.safetensors": SafetensorsFile,
    "model.safetensors.index.json": lambda path: ShardedFile(path, SafetensorsFile),
    "pytorch_model.bin": PyTorchFile,
    "pytorch_model.bin.index.json": lambda path: ShardedFile(path, PyTorchFile),
}
"""The files in which a folder may keep its weights, the preferred ones first, with what opens each."""

DEFAULT_SHARD_BYTES = 50 * 10**9  # the largest file that the hub takes

_SHARD_NAME = re.compile(r"model(?:-\d+)?-\d{5}-of-\d{5}\.safetensors")


def weights_in(folder: Path) -> Path | None:
    """The file with a folder's weights (or the index of its shards), or None."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def open_weights(path: Path) -> TensorFile:
    """The weights in one file, by its kind; an index opens its shards.

    Raises:
        WeightsError: where the file is broken or of a kind that is not read here.
    """
    if path.name.endswith(".index.json"):
        opener = WEIGHT_FILES[
            "model.safetensors.index.json" if "safetensors" in path.name else "pytorch_model.bin.index.json"
        ]
        return opener(path)
    check_is_data(path)
    return PyTorchFile(path) if detect_format(path) == "pytorch" else SafetensorsFile(path)


def config_of(file: TensorFile, folder: Path) -> GPTConfig:
    """The config in a folder.

    Raises:
        WeightsError: where it is missing.
        ConfigError: where `config.json` describes no GPT-2.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise WeightsError(
            f"{folder} holds {file.path.name} but no config.json, which gives the shape of the model; "
            "copy config.json there from where the weights came from."
        )
    return GPTConfig.from_file(config_file)


def no_weights(folder: Path) -> str:
    """The sentence for a folder without weights: what is there instead."""
    there = sorted(path.name for path in folder.iterdir())
    shards = [name for name in there if re.search(r"-\d{5}-of-\d{5}\.(safetensors|bin)$", name)]
    if shards:
        return f"{folder} holds shards ({shards[0]}, …) but no index of them, *.index.json; download that too."
    listed = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
    return f"{folder} has no {' or '.join(list(WEIGHT_FILES)[:3])}; it holds {listed or 'nothing'}."


def refuse_hidden_biases(file: TensorFile, config: GPTConfig) -> None:
    """Raises where biases on q, k and v that the config says to be absent are not zero."""
    if config.qkv_bias:
        return
    bare = {LAYOUTS["huggingface"].bare(name): name for name in file.tensors}
    for name in sorted(bare):
        if re.fullmatch(r"h\.\d+\.attn\.c_attn\.bias", name) and file.read(bare[name]).any():
            raise WeightsError(
                f"{file.path}: {bare[name]} holds numbers other than zero, but config.json says that q, k and v "
                "have no bias (qkv_bias: false); remove that line from config.json."
            )


def save_huggingface(
    folder: str | Path,
    config: GPTConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    extra_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors` as `transformers` opens them.

    One tensor is in memory at a time beside what `tensors` itself holds. All files are written in full
    before the first one takes its place, so an interrupted save leaves the old model.

    Args:
        folder: made where it is not there; other files in it stay.
        config: the shape of the model.
        tensors: by canonical name; `head.weight` is passed over where the config ties it.
        dtype: `float32`, `float16` or `bfloat16`.
        shard_bytes: the most bytes of one file; more makes several and an index.
        extra_config: more keys for `config.json`, such as the tokenizer's special ids.

    Raises:
        WeightsError: where a tensor is missing, unknown or of the wrong shape, the dtype is unknown or too
            small for a value, or the folder cannot be written.
    """
    write_folder(Path(folder), plan_from_arrays(config, tensors, "huggingface"), dtype, shard_bytes, extra_config or {})


def write_folder(
    folder: Path, plan: ConversionPlan, dtype: str, shard_bytes: int, extra_config: Mapping[str, Any]
) -> list[Path]:
    """Writes a plan's targets, which are Hugging Face's, as `save_huggingface` does; the files written."""
    if dtype not in SAVED:
        raise WeightsError(f"weights cannot be saved as {dtype!r}; choose {', '.join(SAVED)}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
            written = _write_weights(Path(beside), folder, plan, dtype, shard_bytes)
            values = {**plan.config.to_huggingface(), "dtype": dtype, **extra_config}
            _write_json(Path(beside) / "config.json", values)
            names = [*written[:-1], "config.json", written[-1]]
            _put_in_place(Path(beside), folder, names)
    except OSError as error:
        raise WeightsError(f"{folder} could not be written ({error.strerror or error}); nothing was changed.") from None
    return [folder / name for name in names]


def plan_from_arrays(config: GPTConfig, tensors: Mapping[str, np.ndarray], to: str) -> ConversionPlan:
    """The plan that makes another scheme's tensors from arrays by canonical name, each asked for when it is needed."""
    shape_of = getattr(tensors, "shape_of", lambda name: tensors[name].shape)  # a lazy mapping need not read for it
    infos = {name: TensorInfo(tuple(shape_of(name)), "float32") for name in tensors}

    def read(name: str) -> np.ndarray:
        values = np.asarray(tensors[name])
        if values.shape != infos[name].shape:
            raise WeightsError(f"{name} changed its shape to {shape_words(values.shape)} while it was saved.")
        return values

    return make_plan(infos, read, config, "canonical", to, where="the model to save")


def _write_weights(beside: Path, folder: Path, plan: ConversionPlan, dtype: str, shard_bytes: int) -> list[str]:
    """Writes the weights into `beside`; the names written, that one last by which readers find the others."""
    infos = {name: TensorInfo(shape, dtype) for name, shape in plan.targets.items()}
    shards = _cut(infos, shard_bytes)
    names = _shard_names(folder, len(shards))
    total = sum(info.nbytes for info in infos.values())
    with ByteProgress(f"Saving {folder.name}", total) as progress:
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(beside / name, shard, _encoded(plan, shard, dtype, progress), {"format": "pt"})
    if len(shards) == 1:
        return names
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(beside / "model.safetensors.index.json", index)
    return [*names, "model.safetensors.index.json"]


def _encoded(
    plan: ConversionPlan, shard: Mapping[str, TensorInfo], dtype: str, progress: ByteProgress
) -> Iterator[tuple[str, np.ndarray]]:
    for name, info in shard.items():
        yield name, encode(plan.read(name, None), dtype, name)
        progress.advance(info.nbytes)


def _cut(infos: Mapping[str, TensorInfo], shard_bytes: int) -> list[dict[str, TensorInfo]]:
    """The tensors in order, cut where a file would grow past `shard_bytes`; a larger tensor gets its own."""
    shards: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, info in infos.items():
        if shards[-1] and filled + info.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = info
        filled += info.nbytes
    return shards


def _shard_names(folder: Path, n_shards: int) -> list[str]:
    """Names for the shards that no file in the folder has, so that the index alone switches from old to new."""
    if n_shards == 1:
        return ["model.safetensors"]
    for attempt in count():
        stem = f"model-{attempt}" if attempt else "model"
        names = [f"{stem}-{i:05d}-of-{n_shards:05d}.safetensors" for i in range(1, n_shards + 1)]
        if not any((folder / name).exists() for name in names):
            return names
    raise AssertionError


def _put_in_place(beside: Path, folder: Path, names: list[str]) -> None:
    """Moves finished files into the folder, the last one last, and removes the safetensors that they replace."""
    for name in names:
        (beside / name).replace(folder / name)
    for path in folder.iterdir():
        stale = path.name.startswith("model.safetensors") or _SHARD_NAME.fullmatch(path.name)
        if stale and path.name not in names:
            path.unlink()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
