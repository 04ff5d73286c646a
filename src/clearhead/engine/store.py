"""From an opened model to a Runner: weights are made once for a format, kept on disk, and mapped at the next start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clearhead.errors import InputError, WeightsError
from clearhead.utils.system import cache_folder, free_memory, usable_cores
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors
from clearhead.weights.tensors import TensorInfo

if TYPE_CHECKING:
    from clearhead.engine.building import Arrays
    from clearhead.engine.runner import EngineRunner
    from clearhead.weights import Source

VERSION = 3
"""Of the arrays' layout; a file of another version is made anew."""

_SHARE = 0.1
"""All weights that are kept take at most this share of the disk's free space; the longest unused go first."""
_ROOM = 200_000_000  # bytes for everything but the weights


def open_runner(source: Source, dtype: str, threads: int | None = None) -> EngineRunner:
    """A Runner of a model's weights in a format.

    Args:
        source: the model, opened.
        dtype: one of float32, bfloat16, int8, int4.
        threads: how many share the work; where it is None, what OMP_NUM_THREADS says, and at most (or else) as many
            as the cores that this process may use.

    Raises:
        InputError: where the number of threads is below 1, or the memory does not suffice.
        WeightsError: where the weights cannot be read.
    """
    n_threads = _threads(threads)
    from clearhead.engine.building import weights_of
    from clearhead.engine.runner import EngineRunner

    arrays = _load(source, dtype) or _make(source, dtype, n_threads)
    return EngineRunner(source.config, weights_of(arrays), n_threads)


def _threads(asked: int | None) -> int:
    cores = usable_cores()
    if asked is None:
        told = os.environ.get("OMP_NUM_THREADS", "")  # what NumPy and PyTorch go by too
        return min(cores, int(told)) if told.isdigit() and int(told) > 0 else cores
    if asked < 1:
        raise InputError(f"threads is {asked}; give a whole number of at least 1.")
    if asked > cores:
        print(
            f"{asked} threads were asked for and this process may use {cores} core{'s' if cores > 1 else ''}; "
            "more threads than cores make it slower.",
            file=sys.stderr,
        )
    return asked


def _place(source: Source, dtype: str) -> tuple[Path, str]:
    """Where a model's weights in a format are kept, and the key that says what they were made from."""
    stat_of = [path for path in sorted(source.folder.iterdir()) if path.is_file()] if source.layout else []
    files = [source.path, *(path for path in stat_of if path.suffix not in (".md", ".txt") and path != source.path)]
    told = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    key = json.dumps([VERSION, dtype, source.layout, repr(source.config), told])
    name = hashlib.sha256(json.dumps([str(source.path.resolve()), dtype]).encode()).hexdigest()[:24]
    return cache_folder() / "weights" / f"{name}.safetensors", hashlib.sha256(key.encode()).hexdigest()


def keep_rounded(source: Source, dtype: str, threads: int) -> None:
    """Keeps a model's weights in a format on disk with every weight rounded for itself.

    So int4 takes seconds, and not the minutes of `calibration.py`: for a model whose numbers do not matter.

    Raises:
        InputError, WeightsError: as `open_runner`.
    """
    from clearhead.engine.building import build

    _keep(source, dtype, build(source.config, source.lazy(row_major=False), dtype, threads))


def forget(source: Source) -> None:
    """Removes what was kept on disk of a model, in every format."""
    from clearhead.engine.dtypes import DTYPES

    for dtype in DTYPES:
        _place(source, dtype)[0].unlink(missing_ok=True)


def _load(source: Source, dtype: str) -> Arrays | None:
    """The arrays as they were kept, mapped and not read; None where there are none that fit."""
    from clearhead.engine.building import layout

    path, key = _place(source, dtype)
    if not path.is_file():
        return None
    try:
        file = SafetensorsFile(path)
        if file.metadata.get("made_from") != key:
            return None
        arrays = {name: file.read(name) for name in file.tensors}
    except (WeightsError, OSError) as error:
        print(f"The kept {dtype} weights are made anew: {error}", file=sys.stderr)
        return None
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now
    expected = layout(source.config, dtype)
    if {name: (array.dtype, array.shape) for name, array in arrays.items()} != expected:
        print(f"The kept {dtype} weights are made anew: {path} is of another version.", file=sys.stderr)
        return None
    return arrays


def _make(source: Source, dtype: str, threads: int) -> Arrays:
    from clearhead.engine.building import build, size
    from clearhead.utils.jit import compile_notice

    need, there = size(source.config, dtype) + _ROOM, free_memory()
    if there is not None and need > there:
        raise InputError(
            f"the weights in {dtype} and what runs them need {need / 1e6:,.0f} MB of memory and {there / 1e6:,.0f} MB "
            "are free; take a smaller format (int8, int4) or a smaller model."
        )
    with compile_notice(f"Compiling what stores weights as {dtype}, once for this machine …"):
        arrays = build(source.config, source.lazy(row_major=False), dtype, threads)
        if dtype == "int4":
            arrays = _rounded_better(source, arrays, threads)
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slower
        _keep(source, dtype, arrays)
    return arrays


def _rounded_better(source: Source, arrays: Arrays, threads: int) -> Arrays:
    """int4 once more, by how the model uses its weights on a text that it writes itself (see `calibration.py`)."""
    from clearhead.engine.building import build, weights_of
    from clearhead.engine.calibration import moments, write_text
    from clearhead.engine.runner import EngineRunner
    from clearhead.utils.progress import Progress

    with Progress(f"Rounding {source.name} to int4, once", None) as progress:
        progress.note("it writes a text to see how its weights are used")
        ids = write_text(EngineRunner(source.config, weights_of(arrays), threads))
        progress.note("what comes into each matrix is measured")
        used = moments(source.config, source.lazy(), ids)
        progress.note("each weight's error is made up for by those after it")
        return build(source.config, source.lazy(row_major=False), "int4", threads, used)


def _keep(source: Source, dtype: str, arrays: Arrays) -> None:
    path, key = _place(source, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _room_for(sum(array.nbytes for array in arrays.values()), path):
        return
    infos = {name: TensorInfo(array.shape, np.dtype(array.dtype).name) for name, array in arrays.items()}
    handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        write_safetensors(Path(beside), infos, arrays.items(), {"made_from": key, "model": str(source.name)})
        Path(beside).replace(path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _room_for(size: int, path: Path) -> bool:
    """Whether a file of this size may be kept at a place; removes those that were not used for the longest time."""
    others = {file: file.stat() for file in path.parent.glob("*.safetensors") if file != path}
    taken = sum(stat.st_size for stat in others.values())
    most = _SHARE * (shutil.disk_usage(path.parent).free + taken)
    if size > most:
        return False
    for file in sorted(others, key=lambda file: others[file].st_atime):
        if taken + size > most:
            taken -= others[file].st_size
            file.unlink()
    return True
