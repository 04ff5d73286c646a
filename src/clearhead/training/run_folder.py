"""The folder of a run: its lock, its small files, and the error for a full disk.

recipe.toml         the recipe                 checkpoints/   step-00000250/, the newest few
environment.json    versions, machine, command model/         at the end: a Hugging Face GPT-2 folder
metrics.jsonl       a line for each report     curves.svg     the metrics, drawn
corpus/             the token shards, unless another folder was named for them
test.jsonl          the outputs for each test example of a fine-tuning
trackers.json       what Weights & Biases and MLflow call the run
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from clearhead.errors import TrainingError
from clearhead.utils import atomic
from clearhead.utils.json_files import Count, MalformedJSONError, PathText, json_text, parse_json, read_json_file
from clearhead.utils.locks import LockHeldError, exclusive_lock, is_locked

RECIPE, METRICS, ENVIRONMENT = "recipe.toml", "metrics.jsonl", "environment.json"
TEST_OUTPUTS = "test.jsonl"
_LOCK = "run.lock"
_PATIENCE = 0.5  # seconds; listing the runs holds the lock for a moment
# No space, no quota, or larger than this process may write.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder, created if it does not exist, for this process alone.

    Raises:
        TrainingError: if another run holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive_lock(folder / _LOCK, patience=_PATIENCE))
            atomic.remove_leftovers(folder)
        except LockHeldError:
            raise TrainingError(
                f"{folder} belongs to a run that is in progress; wait for its end, or name another folder."
            ) from None
        except OSError as error:
            raise TrainingError(
                f"the run's folder {folder} cannot be written ({error.strerror}); name another with --out."
            ) from None
        yield


def is_in_progress(folder: Path) -> bool:
    """Return whether a run is in progress in a folder."""
    return is_locked(folder / _LOCK)


@contextlib.contextmanager
def disk_full_explained(what: str, folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into `TrainingError`.

    Raises:
        TrainingError: if there is no space left for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise TrainingError(
            f"there is no space left in {folder} for {what} ({error.strerror}). What was there before is untouched: "
            f"make room, and {resume_advice(folder)}."
        ) from None


def resume_advice(folder: Path) -> str:
    """Return how a run continues after an error: from its newest checkpoint, if it has one.

    Args:
        folder: the run's folder, or one in it.
    """
    for run in (folder, folder.parent, folder.parent.parent):
        if any(run.glob("checkpoints/step-*/state.json")):
            return "resume with --resume"
    return "start the run again (it has no checkpoint yet)"


def write_text(path: Path, text: str) -> None:
    """Write a small file.

    Raises:
        TrainingError: if there is no space left.
    """
    with disk_full_explained(path.name, path.parent):
        atomic.write_text(path, text)


class _MetricsLine(TypedDict):
    """What is read of a line of `metrics.jsonl`; most lines have a few of these keys.

    Attributes:
        step: the number of completed steps.
        loss, norm, rate: of the step: its loss, the norm of its gradient, and its learning rate relative to the peak.
        tokens_per_second: of all processes together.
        seconds: since the start of the session.
        valid, final: the scores on each held-out text, on some of its windows and on the whole of it.
    """

    step: Count
    loss: NotRequired[float | None]
    norm: NotRequired[float | None]
    rate: NotRequired[float | None]
    tokens_per_second: NotRequired[int | None]
    seconds: NotRequired[float | None]
    valid: NotRequired[dict[str, dict[str, float | None]]]
    final: NotRequired[dict[str, dict[str, float | None]]]


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `step`. NaN and infinity become null."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def add(self, **values: Any) -> None:
        """Append a line.

        Raises:
            TrainingError: if there is no space left.
        """
        with disk_full_explained("the metrics", self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(values))

    def forget_after(self, step: int) -> None:
        """Remove what will be written again: the lines of later steps, the run's end, and an incomplete line."""
        kept = [line for line in read_metrics(self.path.parent) if line["step"] <= step and "final" not in line]
        write_text(self.path, "".join(map(_line, kept)))

    def forget(self) -> None:
        """Remove all lines."""
        self.path.unlink(missing_ok=True)


def _line(values: dict[str, Any]) -> str:
    return json_text(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunEnvironment(TypedDict):
    """What `environment.json` has besides versions and the machine: see `RunOrigin`, and the number of steps."""

    data: PathText
    corpus: PathText | None
    start: NotRequired[str | None]
    steps: NotRequired[Count]


def read_environment(folder: Path) -> RunEnvironment:
    """Read a run's `environment.json`.

    Raises:
        TrainingError: if the folder contains no run, or the record is malformed.
    """
    path = folder / ENVIRONMENT
    if not path.exists():
        raise TrainingError(
            f"there is no checkpoint in {folder} to resume from: it has no {ENVIRONMENT}. Check --out, "
            "or start the run without --resume."
        )
    remedy = "name the recipe and the folder of its texts again (--data)"
    return read_json_file(path, RunEnvironment, TrainingError, remedy)


@dataclass(frozen=True, slots=True)
class RunOrigin:
    """Where the data of a run were: the folder of its texts, the folder of its shards if one was named, and the model
    that a fine-tuning starts from."""

    data: Path
    corpus: Path | None
    start: str | None


def read_origin(folder: Path) -> RunOrigin:
    """Read where the data of a run were when it was started.

    Raises:
        TrainingError: if the folder contains no run, or the record is malformed.
    """
    values = read_environment(folder)
    corpus = None if values["corpus"] is None else Path(values["corpus"])
    return RunOrigin(Path(values["data"]), corpus, values.get("start"))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; none if it has no file. An incomplete or damaged line is skipped.

    A value that was NaN or infinite is None.
    """
    lines = []
    try:
        text = (folder / METRICS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    for line in text.split("\n"):  # and at no other line separator: a text in a line may contain one
        with contextlib.suppress(MalformedJSONError):
            lines.append(_finite(parse_json(line, _MetricsLine)))
    return lines
