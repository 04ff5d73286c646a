"""Writing a model in any layout that Clearhead knows: which layout is written by what, and what it cannot hold.

A layout is a column of the table in `layouts.py` and a file format. The plan to that column says what is written;
here stand the files around it. Everything is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.tokenizer.files import TOKENIZER_FILES, has_tokenizer_files
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.gguf import GGUF_DTYPES, GGUFFile
from clearhead.weights.formats.llmc import write_llmc
from clearhead.weights.formats.onnx import KINDS
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.schemes import gguf, huggingface, onnx, openai, state_dicts
from clearhead.weights.tensors import SAVED, TensorFile, encode

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

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
"""The layouts that are written, each with its number formats."""

FOLDERS = ("huggingface", "openai", "onnx")
"""The layouts that are a folder; the others are one file."""

_USUAL_NAMES = {"nanogpt": "ckpt.pt", "llmc": "model.bin", "gguf": "model.gguf"}
_FIXED = {"norm_eps": 1e-5, "activation": "gelu_tanh"}  # what programs take that read a layout without these settings


@dataclass(frozen=True)
class SaveResult:
    """What was written.

    Attributes:
        path: the file, or the folder.
        layout: a key of `layouts.LAYOUTS`.
        dtype: the number format.
        files: every file that was written, those with the weights and those around them.
        notes: sentences for the user on what the layout does not hold.
    """

    path: Path
    layout: str
    dtype: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """How many bytes the files have."""
        return sum(path.stat().st_size for path in self.files)


def check(to: str, dtype: str) -> None:
    """Raises where a layout is not written, or not in this number format.

    Raises:
        WeightsError: with what there is.
    """
    if to not in DTYPES:
        raise WeightsError(f"there is no layout {to!r} to save a model in; the layouts are {', '.join(DTYPES)}.")
    if dtype not in DTYPES[to]:
        raise WeightsError(f"the layout {to} is not written as {dtype!r}; choose {', '.join(DTYPES[to])}.")


def save_plan(
    dest: Path, plan: ConversionPlan, dtype: str, *, file: TensorFile | None = None, folder: Path
) -> SaveResult:
    """Writes what a plan makes.

    Args:
        dest: the folder for one of `FOLDERS`, else the file.
        plan: its `to` is the layout.
        dtype: one of `DTYPES[plan.to]`.
        file: the weights that the plan reads, where they are a file.
        folder: where the tokenizer's files are looked for.

    Raises:
        WeightsError: where the layout cannot hold this model, or the place cannot be written.
    """
    check(plan.to, dtype)
    _refuse_other_widths(plan)
    if plan.to == "huggingface":
        return SaveResult(dest, plan.to, dtype, tuple(_save_folder(dest, plan, dtype, file, folder)))
    if plan.to == "openai":
        return SaveResult(dest, plan.to, dtype, tuple(openai.write_folder(dest, plan, tokenizer_of(file, folder))))
    if plan.to == "onnx":
        written = onnx.save_folder(dest, plan, dtype, special_ids(file, folder))
        return SaveResult(dest, plan.to, dtype, (*written, *_put_tokenizer(dest, file, folder)))
    if dest.is_dir():
        usual = _USUAL_NAMES.get(plan.to, "model.pth")
        raise WeightsError(
            f"{dest} is a folder; the layout {plan.to} is one file: give its name, such as {dest / usual}."
        )
    with ByteProgress(f"Saving {dest.name}", plan.used_bytes) as progress:
        plan = plan.with_progress(progress.advance)
        if plan.to == "llmc":
            notes = _beside(dest, lambda path: _save_llmc(path, plan, dtype))
        elif plan.to == "gguf":
            keys = _tokenizer_keys(file, folder, plan.config.vocab_size)
            notes = _beside(dest, lambda path: gguf.save_gguf(path, plan, dtype, keys, dest.stem))
        else:
            notes = _beside(dest, lambda path: state_dicts.SAVERS[plan.to](path, plan, dtype))
    return SaveResult(dest, plan.to, dtype, (dest,), (*notes, *_lost_settings(plan)))


def tokenizer_of(file: TensorFile | None, folder: Path) -> Tokenizer | None:
    """A model's tokenizer: of the files in its folder, else what its GGUF file itself holds; None where there is none.

    Raises:
        TokenizerError: where there is one, and it is broken.
    """
    if has_tokenizer_files(folder):
        from clearhead.tokenizer import Tokenizer  # here alone, so that other loads need none of it

        return Tokenizer.from_folder(folder)
    return gguf.tokenizer_of(file) if isinstance(file, GGUFFile) else None


def _tokenizer_keys(file: TensorFile | None, folder: Path, vocab_size: int) -> Mapping[str, Any]:
    """The tokenizer as a GGUF file's keys: those of the file itself as they are, else made of the folder's files."""
    if isinstance(file, GGUFFile):
        return {key: value for key, value in file.keys.items() if key.startswith("tokenizer.")}
    tokenizer = tokenizer_of(file, folder)
    return {} if tokenizer is None else gguf.tokenizer_keys(tokenizer, vocab_size)


def _refuse_other_widths(plan: ConversionPlan) -> None:
    if plan.to in ("book", "nanogpt", "llmc") and plan.config.ff_dim != 4 * plan.config.emb_dim:
        raise WeightsError(
            f"{LAYOUTS[plan.to].title} has feed-forward layers of 4 * emb_dim, {4 * plan.config.emb_dim}, and this "
            f"model's have {plan.config.ff_dim}; save it in another layout."
        )


def _lost_settings(plan: ConversionPlan) -> tuple[str, ...]:
    """Remarks on settings that the file does not hold and its readers will take otherwise."""
    taken: dict[str, Any] = dict(_FIXED)
    if plan.to == "nanogpt":
        taken["activation"] = "gelu_erf"
    if plan.to == "gguf":
        del taken["norm_eps"]
    title = "a program that builds the model anew" if plan.to == "canonical" else LAYOUTS[plan.to].title
    return tuple(
        f"the model has {name} {getattr(plan.config, name)}, which the file does not say; {title} takes {value}."
        for name, value in taken.items()
        if getattr(plan.config, name) != value
    )


def _beside(dest: Path, write: Callable[[Path], tuple[str, ...]]) -> tuple[str, ...]:
    """Lets a file be written under another name in the same folder, then gives it its own."""
    made: Path | None = None
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=dest.parent, prefix=".saving-", suffix=dest.suffix)
        os.close(handle)
        made = Path(name)
        notes = write(made)
        made.chmod(0o666 & ~_umask())
        made.replace(dest)
        made = None
    except OSError as error:
        raise WeightsError(f"{dest} could not be written ({error.strerror or error}); nothing was changed.") from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)
    return notes


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _save_llmc(path: Path, plan: ConversionPlan, dtype: str) -> tuple[str, ...]:
    def data() -> Iterator[tuple[str, np.ndarray]]:
        for name in plan.targets:
            for values in plan.chunks(name):
                yield name, encode(values, dtype, name)

    write_llmc(path, plan.config, dtype, data())
    return ()


def _save_folder(dest: Path, plan: ConversionPlan, dtype: str, file: TensorFile | None, folder: Path) -> list[Path]:
    """Writes a Hugging Face folder with the tokenizer that stands beside the weights, or in them."""
    extra = special_ids(file, folder)
    written = huggingface.write_folder(dest, plan, dtype, huggingface.DEFAULT_SHARD_BYTES, extra)
    return [*written, *_put_tokenizer(dest, file, folder)]


def _put_tokenizer(dest: Path, file: TensorFile | None, folder: Path) -> list[Path]:
    """Puts a model's tokenizer into a folder: its files as they are, or made of what a GGUF file holds."""
    if not has_tokenizer_files(folder):
        tokenizer = tokenizer_of(file, folder)
        if tokenizer is None:
            return []
        tokenizer.save(dest)
        return [dest / name for name in TOKENIZER_FILES if (dest / name).is_file()]
    written = []
    for name in TOKENIZER_FILES:
        there, here = dest / name, folder / name
        if here.is_file() and not (there.exists() and there.samefile(here)):
            _beside(there, lambda path, here=here: (shutil.copyfile(here, path), ())[1])  # type: ignore[misc]
            written.append(there)
    return written


def special_ids(file: TensorFile | None, folder: Path) -> Mapping[str, int]:
    """The ids of special tokens, which a GPT-2's shape does not include, for a `config.json`."""
    if not isinstance(file, GGUFFile):
        return _special_ids(folder)
    ids = {which: file.keys.get(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos")}
    return {f"{which}_token_id": id for which, id in ids.items() if id is not None}


def _special_ids(folder: Path) -> Mapping[str, int]:
    """The ids of special tokens in a Hugging Face folder's `config.json`, which a GPT-2's shape does not include."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {n: values[n] for n in names if isinstance(values, dict) and type(values.get(n)) is int}


def save(
    dest: str | os.PathLike[str],
    config: GPTConfig,
    tensors: Mapping[str, np.ndarray],
    to: str = "huggingface",
    dtype: str = "float32",
    *,
    tokenizer_folder: str | os.PathLike[str] | None = None,
) -> SaveResult:
    """Writes a model that is in memory, in any layout.

    Args:
        dest: the folder for one of `FOLDERS`, else the file.
        config: the model's shape.
        tensors: by canonical name; a mapping may read each when it is asked for.
        to: the layout, a key of `DTYPES`.
        dtype: the number format.
        tokenizer_folder: where the tokenizer's files are, for the layouts that hold one.

    Raises:
        WeightsError: where the layout or the dtype is unknown or cannot hold this model, a tensor is missing or does
            not fit, or the place cannot be written.
    """
    check(to, dtype)
    dest = Path(dest).expanduser()
    folder = dest if tokenizer_folder is None else Path(tokenizer_folder)
    return save_plan(dest, huggingface.plan_from_arrays(config, tensors, to), dtype, folder=folder)
