"""Write a model in any layout that Clearhead knows.

The plan to a layout says which tensors are written; this module chooses the writer and adds the files around the
weights. Everything is written under a temporary name and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import TokenizerError, WeightsError
from clearhead.utils.atomic import atomic_path
from clearhead.utils.progress import ByteProgress
from clearhead.weights.companions import Companions
from clearhead.weights.fidelity import losses, notes
from clearhead.weights.formats.gguf import GGUF_DTYPES
from clearhead.weights.formats.llmc import write_llmc
from clearhead.weights.formats.onnx import KINDS
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.schemes import gguf, huggingface, onnx, openai, state_dicts
from clearhead.weights.tensors import SAVED, encode
from clearhead.weights.writing import write_errors

DTYPES: dict[str, tuple[str, ...]] = {
    "huggingface": SAVED,
    "canonical": SAVED,
    "book": SAVED,
    "nanogpt": SAVED,
    "transformerlens": SAVED,
    "llmc": ("float32", "bfloat16"),
    "gguf": tuple(GGUF_DTYPES),
    "openai": ("float32",),
    "onnx": tuple(KINDS),
}
"""The layouts that can be written, each with its dtypes."""

FOLDERS = ("huggingface", "openai", "onnx")
"""The layouts that are written as a folder; the others are one file."""

_USUAL_NAMES = {"nanogpt": "ckpt.pt", "llmc": "model.bin", "gguf": "model.gguf"}


@dataclass(frozen=True)
class SaveResult:
    """What was written.

    Attributes:
        path: the file, or the folder.
        layout: a key of `layouts.LAYOUTS`.
        dtype: the dtype of the weights.
        files: every file that was written: the weights and the files around them.
        notes: sentences for the user on what the layout does not hold.
    """

    path: Path
    layout: str
    dtype: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(path.stat().st_size for path in self.files)


def check(to: str, dtype: str) -> None:
    """Raise if a layout cannot be written, or not in this dtype.

    Raises:
        WeightsError: with the layouts or the dtypes that there are.
    """
    if to not in DTYPES:
        raise WeightsError(f"there is no layout {to!r} to save a model in; the layouts are {', '.join(DTYPES)}.")
    if dtype not in DTYPES[to]:
        raise WeightsError(f"the layout {to} is not written as {dtype!r}; choose {', '.join(DTYPES[to])}.")


def save(
    dest: str | os.PathLike[str],
    config: GPTConfig,
    tensors: Mapping[str, npt.NDArray[Any]],
    to: str = "huggingface",
    dtype: str = "float32",
    *,
    tokenizer_folder: str | os.PathLike[str] | None = None,
) -> SaveResult:
    """Write a model that is in memory, in any layout.

    Args:
        dest: the folder for one of `FOLDERS`, else the file.
        config: the model's shape.
        tensors: by canonical name; a mapping may read each when it is asked for.
        to: the layout, a key of `DTYPES`.
        dtype: the dtype of the weights.
        tokenizer_folder: the folder with the tokenizer's files, for the layouts that hold one.

    Raises:
        WeightsError: if the layout or the dtype is unknown or cannot hold this model, a tensor is missing or does
            not fit, or `dest` cannot be written.
    """
    check(to, dtype)
    dest = Path(dest).expanduser()
    folder = dest if tokenizer_folder is None else Path(tokenizer_folder)
    return save_plan(dest, huggingface.plan_from_arrays(config, tensors, to), dtype, Companions(folder))


def save_plan(
    dest: Path,
    plan: ConversionPlan,
    dtype: str,
    companions: Companions,
    lossy: bool = False,
    head: Mapping[str, npt.NDArray[Any]] | None = None,
) -> SaveResult:
    """Write the tensors that a plan makes, and the files around them.

    Args:
        dest: the folder for one of `FOLDERS`, else the file.
        plan: its `to` is the layout.
        dtype: one of `DTYPES[plan.to]`.
        companions: what belongs to the model besides its tensors.
        lossy: whether to write the model even if the layout cannot hold every part of it.
        head: the tensors of a head besides the output head, which a Hugging Face folder holds too.

    Raises:
        WeightsError: if the layout cannot hold this model, or `dest` cannot be written.
    """
    check(plan.to, dtype)
    _refuse_other_widths(plan)
    lost = losses(plan, companions)
    if lost and not lossy:
        raise WeightsError(
            f"{LAYOUTS[plan.to].title}'s layout cannot hold {'; '.join(lost)}; give lossy=True (--lossy) to write the "
            "model without, or save it as a Hugging Face folder."
        )
    remarks = (*(f"not in the result: {clause}." for clause in lost), *notes(plan, companions))
    if plan.to in FOLDERS:
        return SaveResult(dest, plan.to, dtype, tuple(_save_folder(dest, plan, dtype, companions, head)), remarks)
    if dest.is_dir():
        usual = _USUAL_NAMES.get(plan.to, "model.pth")
        raise WeightsError(
            f"{dest} is a folder, and the layout {plan.to} is one file; give its name, such as {dest / usual}."
        )
    with write_errors(dest):
        written = _save_file(dest, plan, dtype, companions, lossy)
    return SaveResult(dest, plan.to, dtype, (dest,), (*written, *remarks))


def _save_folder(
    dest: Path,
    plan: ConversionPlan,
    dtype: str,
    companions: Companions,
    head: Mapping[str, npt.NDArray[Any]] | None,
) -> list[Path]:
    if plan.to == "openai":
        return openai.write_folder(dest, plan, companions.tokenizer())
    extra = companions.special_ids()
    if plan.to == "onnx":
        return onnx.write_folder(dest, plan, dtype, extra, companions.write_files)
    if head:
        extra = {**extra, **companions.head_settings()}
    return huggingface.write_folder(dest, plan, dtype, extra, companions.write_files, head=head)


def _save_file(dest: Path, plan: ConversionPlan, dtype: str, companions: Companions, lossy: bool) -> tuple[str, ...]:
    dest.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(dest) as path, ByteProgress(f"Saving {dest.name}", plan.used_bytes) as progress:
        plan = plan.with_progress(progress.advance)
        if plan.to == "llmc":
            return _save_llmc(path, plan, dtype)
        if plan.to == "gguf":
            return gguf.save_gguf(path, plan, dtype, _gguf_tokenizer(plan, companions, lossy), dest.stem)
        return state_dicts.SAVERS[plan.to](path, plan, dtype)


def _gguf_tokenizer(plan: ConversionPlan, companions: Companions, lossy: bool) -> Mapping[str, Any]:
    try:
        return companions.gguf_keys(plan.config.vocab_size)
    except (TokenizerError, WeightsError):
        if lossy:
            return {}
        raise


def _save_llmc(path: Path, plan: ConversionPlan, dtype: str) -> tuple[str, ...]:
    def data() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in plan.targets:
            for values in plan.chunks(name):
                yield name, encode(values, dtype, name)

    write_llmc(path, plan.config, dtype, data())
    return ()


def _refuse_other_widths(plan: ConversionPlan) -> None:
    if plan.to in ("book", "nanogpt", "llmc") and plan.config.ff_dim != 4 * plan.config.emb_dim:
        raise WeightsError(
            f"{LAYOUTS[plan.to].title} has feed-forward layers of 4 * emb_dim, {4 * plan.config.emb_dim}, and this "
            f"model's have {plan.config.ff_dim}; save it in another layout."
        )
