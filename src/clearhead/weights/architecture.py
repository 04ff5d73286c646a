"""The architecture of any decoder-only transformer, from its config.json or from the header of its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clearhead.anatomy.architecture.description import Architecture
from clearhead.anatomy.architecture.families import architecture_from_config, is_known, refuse_other_kinds
from clearhead.anatomy.architecture.headers import architecture_from_tensors
from clearhead.anatomy.architecture.roles import classify
from clearhead.errors import ConfigError, WeightsError
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.formats.safetensors import SafetensorsFile
from clearhead.weights.formats.sharded import ShardedFile
from clearhead.weights.tensors import TensorInfo

_INDEX = "model.safetensors.index.json"


def read_architecture(source: str | os.PathLike[str]) -> Architecture:
    """Return the architecture of a model, without reading a single weight.

    Args:
        source: a config.json, a safetensors or GGUF file, or a folder with one of them. A config.json in the same
            folder completes what a header does not say.

    Raises:
        ConfigError: if the config is broken, or of another kind of model.
        WeightsError: if there is no such file, or its header is broken or names no transformer.
    """
    path = Path(source)
    if not path.exists():
        raise WeightsError(
            f"there is no file or folder {path}; give a config.json, a .safetensors or .gguf file, or a model's folder."
        )
    config, weights = _find(path)
    name = path.name if path.is_dir() else (path.parent.resolve().name if path.name == "config.json" else path.stem)
    if weights is not None and weights.suffix == ".gguf":
        file = GGUFFile(weights)
        title = str(file.keys.get("general.name") or name)
        return architecture_from_tensors(_shapes(file.tensors), title, file.keys)
    if config is None:
        assert weights is not None
        return architecture_from_tensors(_shapes(_open(weights).tensors), name)
    values = _read_config(config)
    if "quantization_config" in values:
        return _quantized(values, name)
    return _with_weights(values, name, None if weights is None else _shapes(_open(weights).tensors))


def _quantized(config: dict[str, Any], name: str) -> Architecture:
    """Return the architecture from the config alone: the file's tensors are codes and scales, not matrices."""
    settings = config["quantization_config"]
    method = settings.get("quant_method", "unknown method") if isinstance(settings, dict) else "unknown method"
    architecture = architecture_from_config(config, name)
    note = f"Its weights are stored quantized ({method}); the chart shows the matrices that they stand for."
    return replace(architecture, notes=(*architecture.notes, note))


def _find(path: Path) -> tuple[Path | None, Path | None]:
    """Return the config and the weights file that a path means; at least one of them is there."""
    if path.is_file() and path.suffix == ".json" and not path.name.endswith(".index.json"):
        return path, None
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json" if (folder / "config.json").is_file() else None
    if path.is_file():
        if path.suffix not in (".safetensors", ".gguf") and not path.name.endswith(".index.json"):
            raise WeightsError(
                f"{path} is neither a config.json nor a .safetensors or .gguf file; a chart is made from one of these."
            )
        return config, path
    for name in ("model.safetensors", _INDEX):
        if (folder / name).is_file():
            return config, folder / name
    found = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return config, found[0]
    if config is None:
        raise WeightsError(
            f"{folder} has no config.json and {len(found) or 'no'} weights files (.safetensors, .gguf); "
            "name the file that is meant."
        )
    return config, None


def _open(path: Path) -> SafetensorsFile | ShardedFile:
    return ShardedFile(path, SafetensorsFile) if path.name.endswith(".index.json") else SafetensorsFile(path)


def _shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(info.shape) for name, info in tensors.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a config.json ({error}); a JSON object was expected.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; a config.json is a JSON object.")
    return values


def _with_weights(config: dict[str, Any], name: str, shapes: dict[str, tuple[int, ...]] | None) -> Architecture:
    """Return the config's architecture, with the tensors of the file if there is one."""
    if shapes is not None and not is_known(config):
        refuse_other_kinds(str(config.get("model_type", "")), name)
        return architecture_from_tensors(shapes, name, config=config)
    architecture = architecture_from_config(config, name)
    if shapes is None:
        return architecture
    return replace(
        architecture, tensors=classify(shapes), tied=not any("lm_head" in n or "embed_out" in n for n in shapes)
    )
