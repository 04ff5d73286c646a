"""Compare models, bit for bit, with the four that OpenAI published.

`official.json` has the facts: for each size, the number of tensors and the size of the data file; for the
124M, every tensor's offset, size and CRC-32C from its own index; for the 355M, the SHA-256 of the
data file; and for the tokenizer's two files, which all sizes share, the size and SHA-256.

A model may come from anywhere in any layout. The plan converts each tensor back to the layout in which OpenAI
published it, one at a time, and its checksum is compared. Conversions only move values, so a difference
means that somebody changed them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np

from clearhead.config import RELEASED, GPTConfig
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.sstable import crc32c
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.source import Source
from clearhead.weights.tensors import TensorInfo

_SHAPE_FIELDS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "ff_dim", "tie_weights")


@dataclass(frozen=True, slots=True)
class OfficialTensor:
    """A tensor of a published checkpoint.

    Attributes:
        shape: as OpenAI stored it, in float32.
        offset: where it begins in the data file.
        nbytes: its size.
        crc: the CRC-32C of its bytes.
    """

    shape: tuple[int, ...]
    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class SmallFile:
    """The size and SHA-256 of a published file."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Official:
    """The known facts about a published model.

    Attributes:
        size: its name, a key of `clearhead.config.RELEASED`.
        config: its shape.
        n_tensors: how many tensors it has.
        data_bytes: the size of `model.ckpt.data-00000-of-00001`.
        index_bytes: the size of `model.ckpt.index`, if known.
        index_sha256: its SHA-256, if known.
        data_sha256: the SHA-256 of the data file, if known.
        tensors: its tensors by OpenAI's names; empty if unknown.
    """

    size: str
    config: GPTConfig
    n_tensors: int
    data_bytes: int
    index_bytes: int | None = None
    index_sha256: str | None = None
    data_sha256: str | None = None
    tensors: Mapping[str, OfficialTensor] = field(default_factory=dict, repr=False)


@cache
def released() -> Mapping[str, Official]:
    """Return the known facts about each published model, by size."""
    facts = _facts()
    found = {}
    for size, values in facts["sizes"].items():
        tensors = {
            name: OfficialTensor(tuple(shape), offset, nbytes, int(crc, 16))
            for name, (shape, offset, nbytes, crc) in facts["tensors"].get(size, {}).items()
        }
        found[size] = Official(size, RELEASED[size], **values, tensors=tensors)
    return found


@cache
def tokenizer_files() -> Mapping[str, SmallFile]:
    """Return the facts about `encoder.json` and `vocab.bpe`, which all published models share."""
    return {name: SmallFile(values["bytes"], values["sha256"]) for name, values in _facts()["tokenizer"].items()}


def _facts() -> dict[str, Any]:
    text = files("clearhead.weights.hub").joinpath("official.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


@dataclass(frozen=True)
class Identity:
    """Whether a model is one that OpenAI published.

    Attributes:
        size: the published size with its shape; None if there is none.
        verdict: `official`, every bit as published; `different`, the same shape with other values; `unknown`, no
            published model has this shape, or its checksums are unknown.
        differing: OpenAI's names of the tensors that differ, if each one's checksum is known.
        n_tensors: how many tensors were compared.
        stored_as: the dtypes in which the model is stored.
    """

    size: str | None
    verdict: Literal["official", "different", "unknown"]
    differing: tuple[str, ...] = ()
    n_tensors: int = 0
    stored_as: tuple[str, ...] = ()

    @property
    def is_official(self) -> bool:
        """Whether these are the published weights, bit for bit."""
        return self.verdict == "official"

    def __str__(self) -> str:
        """Return the result as a sentence."""
        if self.size is None:
            return "No model that OpenAI published has this shape."
        if self.verdict == "unknown":
            return f"This has the shape of OpenAI's {self.size}, whose checksums Clearhead does not know."
        if self.is_official:
            return f"These are, bit for bit, the weights that OpenAI published as {self.size}."
        return f"This has the shape of OpenAI's {self.size}, but {self._difference()}{self._cause()}."

    def _difference(self) -> str:
        if not self.differing:
            return "its values differ from the published ones"
        if len(self.differing) == self.n_tensors:
            return f"all of its {self.n_tensors} tensors differ from the published ones"
        first = ", ".join(self.differing[:3]) + (", …" if len(self.differing) > 3 else "")
        what = f"{len(self.differing)} of its {self.n_tensors} tensors"
        return f"{what} {'differ' if self.differing[1:] else 'differs'} from the published ones: {first}"

    def _cause(self) -> str:
        halves = [dtype for dtype in self.stored_as if dtype in ("float16", "bfloat16")]
        return f" (it is stored as {' and '.join(halves)}, and was published as float32)" if halves else ""


def identify(source: Source, known: Mapping[str, Official] | None = None) -> Identity:
    """Compare a model in any layout with the ones that OpenAI published, with one tensor in memory at a time.

    Args:
        source: the model.
        known: the models to compare with, by size; `released()` by default.

    Raises:
        WeightsError: if the model cannot be read.
    """
    known = released() if known is None else known
    official = next((one for one in known.values() if same_shape(one.config, source.config)), None)
    if official is None:
        return Identity(None, "unknown")
    if not official.tensors and official.data_sha256 is None:
        return Identity(official.size, "unknown")
    plan = source.plan("openai")
    used = {part.info.dtype for step in plan.steps for part in step.slices}
    if official.tensors:
        differing = _differing(plan, official, source.name)
        verdict: Literal["official", "different"] = "different" if differing else "official"
    else:
        differing = ()
        verdict = "official" if _sha256(plan, source.name) == official.data_sha256 else "different"
    return Identity(official.size, verdict, differing, len(plan.targets), tuple(sorted(used)))


def same_shape(one: GPTConfig, other: GPTConfig) -> bool:
    """Return whether two configs have tensors of the same names and shapes."""
    return all(getattr(one, name) == getattr(other, name) for name in _SHAPE_FIELDS)


def _differing(plan: ConversionPlan, official: Official, what: str) -> tuple[str, ...]:
    """Return the tensors whose checksum is not the published one."""
    found = []
    with ByteProgress(f"Comparing {what}", official.data_bytes) as progress:
        for name, values in plan.run():
            known = official.tensors.get(name)
            if known is None or known.shape != values.shape or crc32c(_little_endian(values)) != known.crc:
                found.append(name)
            progress.advance(values.nbytes)
    return tuple(sorted(found))


def _sha256(plan: ConversionPlan, what: str) -> str:
    """Return the SHA-256 of the data file that this plan would write: its tensors by name, without gaps."""
    digest = hashlib.sha256()
    total = sum(TensorInfo(shape, "float32").nbytes for shape in plan.targets.values())
    with ByteProgress(f"Comparing {what}", total) as progress:
        for name in sorted(plan.targets, key=str.encode):
            values = _little_endian(plan.read(name))
            digest.update(values.reshape(-1).view(np.uint8).data)
            progress.advance(values.nbytes)
    return digest.hexdigest()


def _little_endian(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, "<f4")
