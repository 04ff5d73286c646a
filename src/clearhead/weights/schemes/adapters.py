"""LoRA adapters: small matrices that change a base model's, added to them when they are read.

A LoRA adapter (Hu et al. 2021) holds two thin matrices for a matrix W: A [rank, in] and B [out, rank]. The adapted
model has W + scale * B A. The `peft` library saves a folder with A, B and `adapter_config.json`, which names the base
model; the book's appendix E saves the base and the two matrices in one state dict.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.errors import WeightsError
from clearhead.weights.formats.onnx import OnnxFile
from clearhead.weights.formats.sharded import ShardedFile
from clearhead.weights.formats.tensorflow import TensorFlowFile
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.schemes.huggingface import open_weights, read_json
from clearhead.weights.tensors import TensorFile, TensorInfo, shape_words

SETTINGS_FILE = "adapter_config.json"
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.default)?(?:\.weight)?")


@dataclass(frozen=True)
class LowRankUpdate:
    """What is added to one matrix: `scale` times the product of two thin matrices.

    Attributes:
        left: the stored name of the left factor.
        right: the stored name of the right factor.
        scale: the factor.
        transposed: whether the product is transposed before it is added.
    """

    left: str
    right: str
    scale: float
    transposed: bool

    def delta(self, file: TensorFile, shape: tuple[int, ...], name: str) -> npt.NDArray[np.float32]:
        """Return the matrix to add to the tensor `name` of this shape.

        Raises:
            WeightsError: if the shapes do not fit.
        """
        left, right = (file.read(which).astype(np.float32) for which in (self.left, self.right))
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise WeightsError(
                f"{file.path}: {self.left} {shape_words(left.shape)} and {self.right} {shape_words(right.shape)} "
                "cannot be multiplied; the adapter is damaged."
            )
        product = left @ right
        product = product.T if self.transposed else product
        if product.shape != shape:
            raise WeightsError(
                f"{file.path} changes {name} by a matrix {shape_words(product.shape)}, and the base model has "
                f"{shape_words(shape)} there; the adapter belongs to another base model."
            )
        return product * np.float32(self.scale)


def data_files(file: TensorFile) -> tuple[Path, ...]:
    """Return every file that belongs to an opened file: its index and its shards, or the external data of a graph."""
    if isinstance(file, AdaptedFile):
        return file.files
    if isinstance(file, ShardedFile):
        return (file.path, *(shard.path for shard in file.shards))
    if isinstance(file, TensorFlowFile):
        return (file.path, *(path for path, _ in file.data_files()))
    return tuple(file.files) if isinstance(file, OnnxFile) else (file.path,)


class AdaptedFile:
    """The tensors of a base model with an adapter added; a `TensorFile`.

    Args:
        base: the base model's file.
        adapter: the file with the thin matrices; it may be the same file.
        updates: what is added to tensors, by name.
        replaced: tensors that come from the adapter's file, by name, with their stored names there.

    Attributes:
        path: the adapter's file.
        tensors: every tensor of the adapted model.
    """

    def __init__(
        self,
        base: TensorFile,
        adapter: TensorFile,
        updates: Mapping[str, LowRankUpdate],
        replaced: Mapping[str, str],
    ) -> None:
        self.path, self._base, self._adapter = adapter.path, base, adapter
        self._updates, self._replaced = updates, replaced
        hidden = {name for update in updates.values() for name in (update.left, update.right)}
        hidden |= set(replaced.values())
        self.tensors: dict[str, TensorInfo] = {n: info for n, info in base.tensors.items() if n not in hidden}
        self.tensors |= {name: adapter.tensors[stored] for name, stored in replaced.items()}
        self.tensors |= {name: TensorInfo(self.tensors[name].shape, "float32") for name in updates}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the base's tensors and the adapter's."""
        return tuple(dict.fromkeys([*data_files(self._base), *data_files(self._adapter)]))

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor of the adapted model."""
        stored = self._replaced.get(name)
        values = self._base.read(name) if stored is None else self._adapter.read(stored)
        if name not in self._updates:
            return values
        return values.astype(np.float32) + self._updates[name].delta(self._adapter, values.shape, name)

    def remap(self) -> AdaptedFile:
        """Return the same files, memory-mapped anew; see `TensorFile.remap`."""
        other = copy.copy(self)
        other._base, other._adapter = self._base.remap(), self._adapter.remap()
        return other


# --- peft ------------------------------------------------------------------------------------------


def adapter_file(path: Path) -> Path | None:
    """Return the file with the matrices of a peft adapter, given its folder or that file; None if it is no adapter."""
    folder = path if path.is_dir() else path.parent
    if not (folder / SETTINGS_FILE).is_file():
        return None
    if path.is_file():
        return path if path.name in _WEIGHT_FILES else None
    return next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)


def base_of(weights: Path) -> tuple[str, str | None]:
    """Return the base model that an adapter names, and its revision.

    Raises:
        WeightsError: if the adapter is not LoRA, or names no base.
    """
    settings = read_json(weights.parent / SETTINGS_FILE)
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise WeightsError(f"{weights.parent} is an adapter of the kind {kind!r}; Clearhead merges LoRA adapters only.")
    for key, title in {"use_dora": "DoRA", "use_qalora": "QA-LoRA", "use_bdlora": "BD-LoRA"}.items():
        if settings.get(key):
            raise WeightsError(f"{weights.parent} is a {title} adapter; Clearhead merges plain LoRA adapters only.")
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise WeightsError(
            f"{weights.parent} is a LoRA adapter, and its {SETTINGS_FILE} names no base model "
            "(base_model_name_or_path); write the base model's folder or its name on the hub there."
        )
    beside = weights.parent / base
    found = str(beside) if not Path(base).exists() and beside.exists() else base
    return found, revision if isinstance(revision, str) else None


def merge(weights: Path, base: TensorFile) -> AdaptedFile:
    """Return the tensors of a base model in Hugging Face's layout with a peft adapter added.

    Raises:
        WeightsError: if the adapter is damaged, or does not belong to the base.
    """
    adapter = open_weights(weights)
    settings = read_json(weights.parent / SETTINGS_FILE)
    stored = {_bare(name): name for name in base.tensors}
    pairs: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    replaced: dict[str, str] = {}
    for name in adapter.tensors:
        match = _ADAPTER_NAME.fullmatch(name)
        if match is None:
            bare = _bare(name)
            if bare.startswith("lora_") or ".lora_" in bare:
                raise WeightsError(f"{weights} holds {name!r}, which a plain LoRA adapter does not have.")
            replaced[stored.get(bare, bare)] = name
            continue
        target = _bare(match["module"]) + ".weight"
        if target not in stored:
            raise WeightsError(f"{weights} changes {target}, which the base model {base.path} does not have.")
        pairs.setdefault(stored[target], {})[match["which"]] = name
        if match["embedding"]:
            embeddings.add(stored[target])
    updates = {}
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise WeightsError(f"{weights} holds {next(iter(pair.values()))!r} and not its counterpart.")
        rank = adapter.tensors[pair["A"]].shape[0] if adapter.tensors[pair["A"]].shape else 0
        scale = _scale(settings, _bare(name).removesuffix(".weight"), rank, weights)
        # GPT-2's blocks store matrices as [in, out]; an embedding's product is stored as [rows, width].
        transposed = ".h." in f".{_bare(name)}" or name in embeddings
        updates[name] = LowRankUpdate(pair["B"], pair["A"], scale, transposed)
    return AdaptedFile(base, adapter, updates, replaced)


def _bare(name: str) -> str:
    """Return a module's name without the prefixes of peft and of transformers."""
    name = re.sub(r"^(?:base_model\.model\.|base_model\.|model\.(?=transformer|h\.|wte|wpe|ln_f|lm_head))+", "", name)
    name = re.sub(r"\.(?:base_layer|modules_to_save(?:\.default)?|original_module)(?=\.|$)", "", name)
    return name.removeprefix("transformer.")


def _scale(settings: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """Return the factor of an update: alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA."""
    alpha = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        if module == pattern or module.endswith("." + str(pattern)):
            alpha = value
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha) or rank < 1:
        raise WeightsError(f"{path.parent / SETTINGS_FILE} has lora_alpha {alpha!r}; a number was expected.")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


# --- the book's appendix E -----------------------------------------------------------------------


def merge_book(file: TensorFile, folder: Path) -> TensorFile:
    """Return the tensors of a book model with its LoRA layers added; the file itself if it has none.

    The book computes `linear(x) + alpha * (x @ A @ B)` and does not store alpha, so it must be given as `lora_alpha` in
    an `adapter_config.json` in the same folder.

    Raises:
        WeightsError: if alpha is not given, or a matrix is missing.
    """
    layers = [name for name in file.tensors if name.endswith(".lora.A")]
    if not layers:
        return file
    alpha = read_json(folder / SETTINGS_FILE).get("lora_alpha")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise WeightsError(
            f"{file.path} holds the book's LoRA layers ({layers[0]}, …), whose alpha the file does not say; write "
            f'{{"lora_alpha": 16}}, with the number of the training, into {folder / SETTINGS_FILE}.'
        )
    plain = {n.replace(".linear.", "."): n for n in file.tensors if n.endswith((".linear.weight", ".linear.bias"))}
    updates = {}
    for first in layers:
        module = first.removesuffix(".lora.A")
        if f"{module}.lora.B" not in file.tensors or f"{module}.weight" not in plain:
            raise WeightsError(f"{file.path} holds {first!r} and not {module}.lora.B and {module}.linear.weight.")
        # A is [in, rank] and B [rank, out], and the matrix is stored as [out, in].
        updates[f"{module}.weight"] = LowRankUpdate(first, f"{module}.lora.B", float(alpha), True)
    return AdaptedFile(file, file, updates, plain)


# --- the book's chapter 6 -------------------------------------------------------------------------


def name_book_classifier(file: TensorFile) -> tuple[TensorFile, tuple[str, ...]]:
    """Return the tensors of a book model, and notes; a classification head is renamed as in transformers.

    Chapter 6 puts a layer with one row for each class, and a bias, in place of the output head.
    """
    layout = LAYOUTS["book"]
    stored = {layout.bare(name): name for name in file.tensors}
    head, embedding = (file.tensors.get(stored.get(name, "")) for name in ("out_head.weight", "tok_emb.weight"))
    if head is None or embedding is None or head.shape[:1] == embedding.shape[:1]:
        return file, ()
    parts = ("weight", "bias")
    renamed = {f"score.{part}": stored[f"out_head.{part}"] for part in parts if f"out_head.{part}" in stored}
    return AdaptedFile(file, file, {}, renamed), (
        f"{stored['out_head.weight']} has {head.shape[0]} rows and the vocabulary {embedding.shape[0]:,}: it is the "
        "head of a classifier, which `clearhead classify` uses; all else runs the model with its token embedding.",
    )
