"""The folder of a run: who may write to it, its small files, and what a full disk becomes.

recipe.toml         as it was given            checkpoints/   step-00000250/, the newest few
environment.json    what it ran on and with    model/         at the end: a Hugging Face GPT-2 folder
metrics.jsonl       a line for each report     curves.svg     the metrics, drawn
corpus/             the texts as tokens, where no other place for them was named
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clearhead.errors import TrainingError

RECIPE, METRICS, ENVIRONMENT = "recipe.toml", "metrics.jsonl", "environment.json"
_LOCK = "run.lock"
_TRIES = 5  # to hold it
# No space, no quota, or larger than this process may write.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's folder, made where it is not there, for this process alone.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
        TrainingError: where another run holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a+")
    except OSError as error:
        raise TrainingError(
            f"the run's folder {folder} cannot be written ({error.strerror}); name another with --out."
        ) from None
    with file:
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise TrainingError(
                f"{folder} belongs to a run that is going on ({holder}); wait for its end, or name another folder."
            )
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a run is going on in a folder."""
    try:
        with (folder / _LOCK).open("r+") as file:
            return not _try_lock(file, alone=False)
    except OSError:
        return False


def _lock(file: IO[str]) -> bool:
    """Tries for a moment: whoever looks whether a run is going on holds the lock for as long as that takes."""
    for _ in range(_TRIES):
        if _try_lock(file):
            return True
        time.sleep(0.05)
    return False


def _try_lock(file: IO[str], *, alone: bool = True) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Makes a sentence of a disk that is full.

    Raises:
        TrainingError: where there is no space left for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise TrainingError(
            f"there is no space left in {folder} for {what} ({error.strerror}). What was there before is untouched: "
            "make room, and go on with --resume."
        ) from None


def write_text(path: Path, text: str) -> None:
    """Writes a small file beside its place and renames it.

    Raises:
        TrainingError: where there is no space left.
    """
    beside = path.with_name(f".{path.name}.part")
    with room_for(path.name, path.parent):
        try:
            with beside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


class Metrics:
    """`metrics.jsonl`: one JSON object a line, each with its `step`. What is no finite number is null."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def add(self, **values: Any) -> None:
        """Appends a line.

        Raises:
            TrainingError: where there is no space left.
        """
        with room_for("the metrics", self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(values))

    def forget_after(self, step: int) -> None:
        """Drops what comes again: the lines of later steps, the run's end, and a line that was cut short."""
        kept = [line for line in read_metrics(self.path.parent) if line["step"] <= step and "final" not in line]
        write_text(self.path, "".join(map(_line, kept)))

    def forget(self) -> None:
        """Drops all lines."""
        self.path.unlink(missing_ok=True)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(_plain(values), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """A value of which JSON can be made: it has no NaN and no infinities."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Remembered:
    """Where the data of a run were: the folder of its texts, that of its shards if it was named, and the model that a
    fine-tuning starts from."""

    data: Path
    corpus: Path | None
    start: str | None


def remembered(folder: Path) -> Remembered:
    """Where the data of a run were when it was started.

    Raises:
        TrainingError: where the folder holds no run that could say so.
    """
    try:
        values = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        corpus = None if values["corpus"] is None else Path(values["corpus"])
        return Remembered(Path(values["data"]), corpus, values.get("start"))
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(
            f"there is no checkpoint in {folder} to go on from: it holds no run with a {ENVIRONMENT}. Check --out, or "
            "start the run without --resume."
        ) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; none where it has no file. A line that was cut short is passed over.

    What was no finite number is None.
    """
    lines = []
    try:
        text = (folder / METRICS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    for line in text.split("\n"):  # and at no other line separator: a text within a line may hold one
        try:
            values = json.loads(line, parse_constant=lambda name: None)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append(values)
    return lines
