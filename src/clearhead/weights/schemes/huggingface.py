"""A Hugging Face GPT-2 folder: `config.json` with `model.safetensors`, `pytorch_model.bin`, or shards of either.

This is also how Clearhead stores models: `transformers` opens what `save_huggingface` writes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.utils.json_files import json_text
from clearhead.utils.progress import ByteProgress
from clearhead.weights import writing
from clearhead.weights.formats.pytorch import PyTorchFile
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors
from clearhead.weights.formats.sharded import ShardedFile
from clearhead.weights.formats.sniff import check_is_data, detect_format, refuse_foreign
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.planning import make_plan
from clearhead.weights.tensors import SAVED, TensorFile, TensorInfo, encode, shape_words
from clearhead.weights.writing import AddFiles

WEIGHT_FILES: dict[str, Callable[[Path], TensorFile]] = {
    "model.safetensors": SafetensorsFile,
    "model.safetensors.index.json": lambda path: ShardedFile(path, SafetensorsFile),
    "pytorch_model.bin": PyTorchFile,
    "pytorch_model.bin.index.json": lambda path: ShardedFile(path, PyTorchFile),
}
"""The files in which a folder may keep its weights, in order of preference, with what opens each."""

DEFAULT_SHARD_BYTES = 50 * 10**9  # the largest file that the hub takes

_SHARD_NAME = re.compile(r"model(?:-\d+)?-\d{5}-of-\d{5}\.safetensors")


def weights_in(folder: Path) -> Path | None:
    """Return the file with a folder's weights (or the index of its shards), or None."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def open_weights(path: Path) -> TensorFile:
    """Open the weights in one file; an index opens its shards.

    Raises:
        WeightsError: if the file is broken or of a file format that is not read here.
    """
    if path.name.endswith(".index.json"):
        opener = WEIGHT_FILES[
            "model.safetensors.index.json" if "safetensors" in path.name else "pytorch_model.bin.index.json"
        ]
        return opener(path)
    check_is_data(path)
    refuse_foreign(path)
    return PyTorchFile(path) if detect_format(path) == "pytorch" else SafetensorsFile(path)


def config_of(file: TensorFile, folder: Path) -> GPTConfig:
    """Return the config in a folder.

    Raises:
        WeightsError: if it is missing.
        ConfigError: if `config.json` does not describe a GPT-2.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise WeightsError(
            f"{folder} holds {file.path.name} but no config.json, which states the shape of the model; "
            "copy config.json there from where the weights came from."
        )
    return GPTConfig.from_file(config_file)


def query_scales(folder: Path, config: GPTConfig) -> tuple[float, ...]:
    """Return for each layer what the queries must be multiplied by; empty if attention is scaled as in GPT-2.

    GPT-2 divides scores by sqrt(head_dim). A config.json can turn that off (`scale_attn_weights: false`), and can
    divide by the layer's number as well (`scale_attn_by_inverse_layer_idx: true`). Scores are linear in the queries,
    so both can be multiplied into their weights and biases.
    """
    values = read_json(folder / "config.json")
    scale = 1.0 if values.get("scale_attn_weights", True) else math.sqrt(config.head_dim)
    by_layer = bool(values.get("scale_attn_by_inverse_layer_idx", False))
    if scale == 1.0 and not by_layer:
        return ()
    return tuple(scale / (layer + 1 if by_layer else 1) for layer in range(config.n_layers))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is no such file, or nothing that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def no_weights(folder: Path) -> str:
    """Return the sentence for a folder without weights: what it holds instead."""
    there = sorted(path.name for path in folder.iterdir())
    shards = [name for name in there if re.search(r"-\d{5}-of-\d{5}\.(safetensors|bin)$", name)]
    if shards:
        return f"{folder} holds shards ({shards[0]}, …) but no index of them, *.index.json; download that too."
    for name in there:
        if name in WEIGHT_FILES:  # and not a regular file, or it would have been opened
            return f"{folder / name} is not a file that can be read, or a link to one that is missing; replace it."
        if name.endswith((".h5", ".msgpack", ".meta")) or name == "checkpoint":
            refuse_foreign(folder / name)
    inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and weights_in(path)]
    if inside:
        return f"{folder} has no weights itself, but {', '.join(inside[:4])} in it has; give that folder."
    listed = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
    return f"{folder} has no {' or '.join(list(WEIGHT_FILES)[:3])}; it holds {listed or 'nothing'}."


def refuse_hidden_biases(file: TensorFile, config: GPTConfig) -> None:
    """Raise if biases on q, k and v are not zero although the config says that there are none."""
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
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    dtype: str = "float32",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    extra_config: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers` opens.

    One tensor is in memory at a time besides what `tensors` itself holds. No file is replaced before all files are
    complete, so an interrupted save leaves the old model.

    Args:
        folder: is created if it does not exist; other files in it stay.
        config: the shape of the model.
        tensors: by canonical name; `head.weight` is not needed if the config ties it.
        dtype: `float32`, `float16` or `bfloat16`.
        shard_bytes: the largest size of one file; a larger model is written as several files and an index.
        extra_config: more keys for `config.json`, such as the ids of special tokens.

    Raises:
        WeightsError: if a tensor is missing, unknown or of the wrong shape, the dtype is unknown or too small for a
            value, or the folder cannot be written.
    """
    plan = plan_from_arrays(config, tensors, "huggingface")
    write_folder(Path(folder), plan, dtype, extra_config or {}, shard_bytes=shard_bytes)


def write_folder(
    folder: Path,
    plan: ConversionPlan,
    dtype: str,
    extra_config: Mapping[str, Any],
    add_files: AddFiles | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    head: Mapping[str, npt.NDArray[Any]] | None = None,
) -> list[Path]:
    """Write a plan's targets, which have Hugging Face's names, as `save_huggingface` does; return the files written.

    `add_files` writes what else belongs into the folder, such as a tokenizer; `head` has the tensors of a head besides
    the output head.
    """
    if dtype not in SAVED:
        raise WeightsError(f"weights cannot be saved as {dtype!r}; choose {', '.join(SAVED)}.")

    def write(temporary: Path) -> list[str]:
        if add_files is not None:
            add_files(temporary)
        main_file = _write_weights(temporary, folder, plan, dtype, shard_bytes, head or {})
        _write_json(temporary / "config.json", {**plan.config.to_huggingface(), "dtype": dtype, **extra_config})
        return ["config.json", main_file]

    def stale(name: str) -> bool:
        return name.startswith("model.safetensors") or _SHARD_NAME.fullmatch(name) is not None

    return writing.write_folder(folder, write, stale)


def plan_from_arrays(config: GPTConfig, tensors: Mapping[str, npt.NDArray[Any]], to: str) -> ConversionPlan:
    """Return the plan that makes a layout's tensors from arrays by canonical name, each read when it is needed."""
    shape_of = getattr(
        tensors, "shape_of", lambda name: tensors[name].shape
    )  # a lazy mapping knows shapes without reading
    infos = {name: TensorInfo(tuple(shape_of(name)), "float32") for name in tensors}

    def read(name: str) -> npt.NDArray[Any]:
        values = np.asarray(tensors[name])
        if values.shape != infos[name].shape:
            raise WeightsError(f"{name} changed its shape to {shape_words(values.shape)} while it was saved.")
        return values

    return make_plan(infos, read, config, "canonical", to, where="the model to save")


def _write_weights(
    temporary: Path,
    folder: Path,
    plan: ConversionPlan,
    dtype: str,
    shard_bytes: int,
    head: Mapping[str, npt.NDArray[Any]],
) -> str:
    """Write the weights into a temporary folder; return the name of the file by which readers find all others."""
    infos = {name: TensorInfo(shape, dtype) for name, shape in plan.targets.items()}
    infos |= {name: TensorInfo(values.shape, dtype) for name, values in head.items()}
    shards = _split(infos, shard_bytes)
    names = _shard_names(folder, len(shards))
    total = sum(info.nbytes for info in infos.values())
    with ByteProgress(f"Saving {folder.name}", total) as progress:
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(temporary / name, shard, _encoded(plan, shard, dtype, progress, head), {"format": "pt"})
    if len(shards) == 1:
        return names[0]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(temporary / "model.safetensors.index.json", index)
    return "model.safetensors.index.json"


def _encoded(
    plan: ConversionPlan,
    shard: Mapping[str, TensorInfo],
    dtype: str,
    progress: ByteProgress,
    head: Mapping[str, npt.NDArray[Any]],
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, info in shard.items():
        yield name, encode(head[name] if name in head else plan.read(name, None), dtype, name)
        progress.advance(info.nbytes)


def _split(infos: Mapping[str, TensorInfo], shard_bytes: int) -> list[dict[str, TensorInfo]]:
    """Split the tensors, in order, into files of at most `shard_bytes`; a larger tensor gets a file of its own."""
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
    """Return names for the shards that no file in the folder has, so that replacing the index switches to them."""
    if n_shards == 1:
        return ["model.safetensors"]
    for attempt in count():
        stem = f"model-{attempt}" if attempt else "model"
        names = [f"{stem}-{i:05d}-of-{n_shards:05d}.safetensors" for i in range(1, n_shards + 1)]
        if not any((folder / name).exists() for name in names):
            return names
    raise AssertionError


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json_text(values, indent=2) + "\n", encoding="utf-8", newline="\n")
