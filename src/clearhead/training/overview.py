"""List runs: their state, progress and scores, read from their folders alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import ClearheadError, TrainingError
from clearhead.training.recipe_reader import read_recipe
from clearhead.training.run_folder import RECIPE, is_in_progress, read_environment, read_metrics


@dataclass(frozen=True, slots=True)
class RunOverview:
    """The state of one run.

    Attributes:
        folder: its folder.
        state: "going on", "finished" or "stopped".
        step, steps: the completed steps, and the recipe's (0 if the recipe cannot be read).
        loss: the last recorded training loss in nats; None before the first, or if it was NaN or infinite.
        scores: the newest scores on held-out texts: bits per byte (accuracy of a classifier) by text, without those
            that are NaN or infinite.
        tokens_per_second: as last recorded.
        seconds: the duration of its last session so far.
    """

    folder: Path
    state: str
    step: int
    steps: int
    loss: float | None
    scores: dict[str, float]
    tokens_per_second: int | None
    seconds: float | None


def list_runs(paths: list[Path]) -> list[RunOverview]:
    """Return the runs at some paths, by name: each path is a run's folder, or a folder of runs.

    Raises:
        TrainingError: if a path is neither.
    """
    found: dict[Path, RunOverview] = {}
    for path in paths:
        folders = [path] if _is_run(path) else sorted(inner for inner in _inside(path) if _is_run(inner))
        if not folders:
            raise TrainingError(
                f"{path} is not a run and contains none; give the folder that --out named, or the one above."
            )
        found |= {folder: overview(folder) for folder in folders}
    return list(found.values())


def overview(folder: Path) -> RunOverview:
    """Return the state of one run."""
    lines = read_metrics(folder)
    reports = [line for line in lines if "loss" in line]
    evaluated = [line.get("final", line.get("valid", {})) for line in lines if "valid" in line or "final" in line]
    scores = {
        text: values.get("bits_per_byte", values.get("accuracy", values.get("loss")))
        for text, values in (evaluated[-1] if evaluated else {}).items()
    }
    steps = _steps(folder)
    finished = any("final" in line and line["step"] >= steps for line in lines)  # a run may have been extended since
    return RunOverview(
        folder=folder,
        state="going on" if is_in_progress(folder) else "finished" if finished else "stopped",
        step=max((line["step"] for line in lines), default=0),
        steps=steps,
        loss=reports[-1]["loss"] if reports else None,
        scores={text: score for text, score in scores.items() if score is not None},
        tokens_per_second=reports[-1].get("tokens_per_second") if reports else None,
        seconds=reports[-1].get("seconds") if reports else None,
    )


def _is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file()


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise TrainingError(f"{folder} could not be read ({error.strerror}); give a run's folder.") from None


def _steps(folder: Path) -> int:
    try:
        steps = read_recipe(folder / RECIPE).training.steps
    except ClearheadError:
        return 0  # of another version, with other keys
    if steps:
        return steps
    try:  # the recipe gives epochs or tokens
        return read_environment(folder).get("steps", 0)
    except TrainingError:
        return 0
