"""Runs side by side: what each is, where it stands, what it reached; read from their folders alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import ClearheadError, TrainingError
from clearhead.training.recipe import Recipe
from clearhead.training.run_folder import RECIPE, is_held, read_metrics


@dataclass(frozen=True, slots=True)
class RunOverview:
    """One run.

    Attributes:
        folder: where it is.
        state: "going on", "finished" or "stopped".
        step, steps: how many are done, and how many its recipe asks for (0 where the recipe cannot be read).
        loss: the last recorded training loss in nats; None before the first, or where it was no number.
        scores: the newest scores on held-out texts: bits per byte (accuracy of a classifier) by text, without those
            that are no numbers.
        tokens_per_second: as last recorded.
        seconds: that its last session took so far.
    """

    folder: Path
    state: str
    step: int
    steps: int
    loss: float | None
    scores: dict[str, float]
    tokens_per_second: int | None
    seconds: float | None


def overviews(places: list[Path]) -> list[RunOverview]:
    """The runs at these places, by name: each a run's folder, or a folder of them.

    Raises:
        TrainingError: where a place is none.
    """
    found: dict[Path, RunOverview] = {}
    for place in places:
        here = [place] if _is_run(place) else sorted(path for path in _inside(place) if _is_run(path))
        if not here:
            raise TrainingError(
                f"{place} is no run and holds none; give the folder that --out named, or the one above."
            )
        found |= {folder: overview(folder) for folder in here}
    return list(found.values())


def overview(folder: Path) -> RunOverview:
    """One run's."""
    lines = read_metrics(folder)
    reports = [line for line in lines if "loss" in line]
    examined = [line.get("final", line.get("valid", {})) for line in lines if "valid" in line or "final" in line]
    scores = {
        text: values.get("bits_per_byte", values.get("accuracy", values.get("loss")))
        for text, values in (examined[-1] if examined else {}).items()
    }
    steps = _steps(folder)
    finished = any("final" in line and line["step"] >= steps for line in lines)  # a run may have been made longer since
    return RunOverview(
        folder=folder,
        state="going on" if is_held(folder) else "finished" if finished else "stopped",
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
        return Recipe.from_file(folder / RECIPE).training.steps
    except ClearheadError:
        return 0  # made by another version, with other keys
