"""From an opened model to a Runner: weights are packed once for a dtype, kept on disk, and mapped at the next start.

A kept file is used only if the model's files still hold the bytes that it was made from, and if its own numbers have
the checksums that it was written with. Otherwise the weights are packed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clearhead.errors import InputError, WeightsError
from clearhead.utils.atomic import atomic_path
from clearhead.utils.json_files import parse_json
from clearhead.utils.localization import announce
from clearhead.utils.system import cache_folder, free_memory, report_lost_cache, usable_cores
from clearhead.weights.fingerprint import ContentRecord
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors
from clearhead.weights.tensors import TensorInfo

if TYPE_CHECKING:
    from clearhead.engine.building import Arrays
    from clearhead.engine.runner import EngineRunner
    from clearhead.weights import Source

VERSION = 9
"""Of the arrays' layout; a file of another version is made anew."""

_DISK_SHARE = 0.1
"""All kept weights take at most this share of the disk's free space; the longest unused go first."""
_WEIGHTS = "packed weights"
"""What a lost cache loses here, for the message."""
_BLOCK_BYTES = 1 << 20
"""Bytes whose checksum is computed together."""
_OTHER_BYTES = 200_000_000
"""Memory for everything but the weights."""


def open_runner(
    source: Source,
    dtype: str,
    threads: int | None = None,
    activations: str | None = None,
    cache_tokens: int | None = None,
) -> EngineRunner:
    """Return a Runner of a model's weights in a dtype.

    Args:
        source: the model, opened.
        dtype: float32, bfloat16, int8 or int4.
        threads: how many share the work; None for as many as OMP_NUM_THREADS says, and at most, or else, as many as
            the cores that this process may use.
        activations: how finely activations are rounded for int8 and int4, "8bit" or "16bit"; None for what suits the
            CPU.
        cache_tokens: the most tokens in the key/value cache, of all sequences together; None for no limit.

    Raises:
        InputError: if an argument is out of range, or there is not enough memory.
        WeightsError: if the weights cannot be read.
    """
    n_threads = _thread_count(threads)
    from clearhead.engine.building import weights_of
    from clearhead.engine.dtypes import ACTIVATIONS
    from clearhead.engine.runner import EngineRunner
    from clearhead.engine.variants import VARIANT

    if activations is None:
        activations = VARIANT.activations
    if activations not in ACTIVATIONS:
        raise InputError(f"activations is {activations!r}; give {' or '.join(ACTIVATIONS)}.")
    arrays = _load(source, dtype, activations) or _make(source, dtype, activations, n_threads)
    return EngineRunner(source.config, weights_of(arrays), n_threads, cache_tokens)


def _thread_count(asked: int | None) -> int:
    cores = usable_cores()
    if asked is None:
        wanted = os.environ.get("OMP_NUM_THREADS", "").strip()  # NumPy and PyTorch follow it too
        return min(cores, int(wanted)) if wanted.isascii() and wanted.isdecimal() and int(wanted) > 0 else cores
    if asked < 1:
        raise InputError(f"threads is {asked}; give a whole number of at least 1.")
    if asked > cores:
        announce(
            f"{asked} threads were asked for and this process may use {cores} core{'s' if cores > 1 else ''}; "
            "more threads than cores make it slower."
        )
    return asked


def keep_rounded(source: Source, dtype: str, threads: int) -> None:
    """Keep a model's weights in a dtype on disk with every weight rounded on its own.

    So int4 takes seconds, and not the time that `calibration.py` needs: for a model whose numbers do not matter.

    Raises:
        InputError, WeightsError: as `open_runner`.
    """
    from clearhead.engine.building import build
    from clearhead.engine.variants import VARIANT

    arrays = build(source.config, source.lazy(row_major=False), dtype, threads)
    _keep(source, dtype, VARIANT.activations, arrays)


def forget(source: Source) -> None:
    """Remove what is kept on disk of a model, in every dtype."""
    from clearhead.engine.dtypes import ACTIVATIONS, DTYPES

    for dtype in DTYPES:
        for activations in ACTIVATIONS:
            with contextlib.suppress(OSError):  # nothing is kept in a cache that cannot be written
                _kept_path(source, dtype, activations).unlink()


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


def _kept_path(source: Source, dtype: str, activations: str) -> Path:
    """Return where a model's weights are kept: a file for each dtype and each layout in memory."""
    from clearhead.engine.panels import PANEL

    layout = [PANEL, activations if dtype in ("int8", "int4") else ""]
    name = json.dumps([str(source.path.resolve()), dtype, layout])
    return cache_folder() / "weights" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"


def _settings(source: Source, dtype: str) -> str:
    """Return everything besides the model's files that decides what the arrays hold."""
    return json.dumps([VERSION, dtype, source.layout, repr(source.config)])


def _checksum(array: np.ndarray) -> str:
    import google_crc32c

    flat, checksum = array.reshape(-1).view(np.uint8), 0
    for start in range(0, len(flat), _BLOCK_BYTES):
        checksum = google_crc32c.extend(checksum, flat[start : start + _BLOCK_BYTES].tobytes())
    return f"{checksum:08x}"


def _load(source: Source, dtype: str, activations: str) -> Arrays | None:
    """Return the arrays as they were kept, mapped from the file; None if there are none that may be used."""
    from clearhead.engine.building import layout

    path = _kept_path(source, dtype, activations)
    try:
        if not path.is_file():
            return None
    except OSError as error:  # the folder cannot be read
        report_lost_cache(_WEIGHTS, error)
        return None
    try:
        file = SafetensorsFile(path)
        if file.metadata.get("settings") != _settings(source, dtype):
            return None
        if not ContentRecord.from_text(file.metadata.get("made_from", "")).holds(source.files):
            return None
        arrays = {name: file.read(name) for name in file.tensors}
        checksums = parse_json(file.metadata.get("checksums", "{}"), dict[str, str])
    except (WeightsError, OSError, ValueError) as error:
        announce(f"The kept {dtype} weights are made anew: {error}")
        return None
    expected = layout(source.config, dtype, activations)
    found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if found != expected:
        announce(f"The kept {dtype} weights are made anew: {path} has another layout.")
        return None
    if damaged := next((name for name, array in arrays.items() if checksums.get(name) != _checksum(array)), None):
        announce(f"The kept {dtype} weights are made anew: {damaged} in {path} is damaged.")
        return None
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now
    return arrays


def _make(source: Source, dtype: str, activations: str, threads: int) -> Arrays:
    from clearhead.engine.building import build, size
    from clearhead.engine.calibration import needed_bytes
    from clearhead.utils.machine_code import compile_notice

    needed, free = size(source.config, dtype) + _OTHER_BYTES, free_memory()
    if dtype == "int4":
        needed += size(source.config, "int8") + needed_bytes(source.config)
    if free is not None and needed > free:
        raise InputError(
            f"the weights in {dtype} and what runs them need {needed / 1e6:,.0f} MB of memory and {free / 1e6:,.0f} MB "
            "are free; take a smaller dtype (int8, int4) or a smaller model."
        )
    with compile_notice(f"Compiling the code that packs weights as {dtype}, once for this machine …"):
        if dtype == "int4":
            arrays = _calibrated(source, activations, threads)
        else:
            tensors = source.lazy(row_major=False)
            arrays = build(source.config, _fitted(tensors, dtype, activations), dtype, threads, activations)
    _keep(source, dtype, activations, arrays)
    return arrays


def _fitted(tensors: Mapping[str, np.ndarray], dtype: str, activations: str) -> Mapping[str, np.ndarray]:
    """Return the tensors of a model that computes the same, with inputs of matrices that 8 bits can hold."""
    from clearhead.engine.equalization import EqualizedTensors

    return EqualizedTensors(tensors) if dtype in ("int8", "int4") and activations == "8bit" else tensors


def _calibrated(source: Source, activations: str, threads: int) -> Arrays:
    """Return int4 weights rounded by how the model uses them on a text that it writes itself (see `calibration.py`)."""
    from clearhead.engine.building import build, weights_of
    from clearhead.engine.calibration import calibrate
    from clearhead.engine.runner import EngineRunner
    from clearhead.utils.progress import Progress

    with Progress(f"Rounding {source.name} to int4, once", None) as progress:
        progress.note("the model writes a text that shows how its weights are used")
        fitted = _fitted(source.lazy(row_major=False), "int4", activations)
        near = build(source.config, fitted, "int8", threads, activations)
        _, used = calibrate(EngineRunner(source.config, weights_of(near), threads))
        del near
        progress.note("rounding, with each weight's error made up for by those after it")
        return build(source.config, fitted, "int4", threads, activations, used)


def _keep(source: Source, dtype: str, activations: str, arrays: Arrays) -> None:
    """Keep the arrays on disk if that is possible; without the kept file the next start is slower, no more."""
    try:
        _write(source, dtype, activations, arrays)
    except OSError as error:
        report_lost_cache(_WEIGHTS, error)


def _write(source: Source, dtype: str, activations: str, arrays: Arrays) -> None:
    from clearhead.engine.arrays import ALIGNMENT

    path = _kept_path(source, dtype, activations)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _has_room(size := sum(array.nbytes for array in arrays.values()), path):
        report_lost_cache(_WEIGHTS, f"{size / 1e6:,.0f} MB are more than a tenth of the free space")
        return
    # Arrays of whole cache lines come first, so that each of them begins at one when the file is mapped.
    arrays = dict(sorted(arrays.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0))
    infos = {name: TensorInfo(array.shape, np.dtype(array.dtype).name) for name, array in arrays.items()}
    metadata = {
        "settings": _settings(source, dtype),
        "made_from": ContentRecord.of(source.files).to_text(),
        "checksums": json.dumps({name: _checksum(array) for name, array in arrays.items()}),
        "model": str(source.name),
    }
    with atomic_path(path) as temporary:
        write_safetensors(temporary, infos, arrays.items(), metadata)


def _has_room(size: int, path: Path) -> bool:
    """Return whether a file of this size may be kept; remove the longest unused ones to make room."""
    others = {file: file.stat() for file in path.parent.glob("*.safetensors") if file != path}
    taken = sum(stat.st_size for stat in others.values())
    most = _DISK_SHARE * (shutil.disk_usage(path.parent).free + taken)
    if size > most:
        return False
    for file in sorted(others, key=lambda file: others[file].st_atime):
        if taken + size > most:
            taken -= others[file].st_size
            file.unlink()
    return True
