"""Record a run: lines of metrics, the trackers, the display on the terminal, the curves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clearhead.drawing.png import picture_language, png
from clearhead.errors import InputError, TrainingError
from clearhead.training.curves import curves_svg
from clearhead.training.display import Display, Status
from clearhead.training.run_folder import MetricsFile, disk_full_explained, read_metrics, write_text
from clearhead.training.trackers import Tracker, TrackerLostError
from clearhead.utils.atomic import write_bytes
from clearhead.utils.localization import users_language

_CURVES = "curves.svg"


class RunRecord:
    """The record of one process: the first one writes and shows, the others are silent.

    Args:
        out: the run's folder.
        is_first: whether this is the first process.
        steps: the number of steps of the run.
        trackers: where metrics go besides; those of the first process are used.
    """

    def __init__(self, out: Path, is_first: bool, steps: int, trackers: Sequence[Tracker] = ()) -> None:
        self.out, self.is_first = out, is_first
        self.metrics = MetricsFile(out)
        self.display = Display(steps) if is_first else None
        self.trackers = trackers

    def __enter__(self) -> Self:
        if self.is_first:
            for tracker in self.trackers:
                tracker.open()
        if self.display is not None:
            self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.display is not None:
            self.display.__exit__(kind, error, trace)
        try:
            if error is None:
                for tracker in self.trackers:
                    tracker.flush()
            else:
                self.close(stopped=True)
        except (OSError, TrainingError):
            if error is None:  # otherwise that one is reported
                raise

    def close(self, *, stopped: bool = False) -> None:
        """Close the trackers.

        Args:
            stopped: whether the run may resume.

        Raises:
            TrainingError: if there is no space left.
        """
        for tracker in self.trackers:
            tracker.close(stopped=stopped)

    def begin(self) -> None:
        """Remove what a run left here that stopped before its first checkpoint."""
        if self.is_first:
            self.metrics.forget()
            for tracker in self.trackers:
                tracker.begin()

    def resume_from(self, step: int) -> None:
        """Remove the metrics of later steps and of the run's end."""
        if self.is_first:
            self.metrics.forget_after(step)
            for tracker in self.trackers:
                tracker.resume_from(step)

    def add(self, step: int, **values: Any) -> None:
        """Append a line of metrics.

        Raises:
            TrainingError: if there is no space left.
        """
        if not self.is_first:
            return
        self.metrics.add(step=step, **values)
        for tracker in self.trackers:
            try:
                tracker.add(step, flatten(values))
            except TrackerLostError as error:
                self.say(str(error))

    def contains(self, step: int, key: str) -> bool:
        """Return whether there is a line of this step with that key; False if another process writes them."""
        return self.is_first and any(line["step"] == step and key in line for line in read_metrics(self.out))

    def update(self, status: Status) -> None:
        """Show the status after a step."""
        if self.display is not None:
            self.display.update(status)

    def say(self, line: str, verbatim: bool = False) -> None:
        """Print a line that stays, in the user's language unless it is `verbatim`."""
        if self.display is not None:
            self.display.say(line, verbatim)

    def draw(self) -> None:
        """Write `curves.svg`, and `curves.png` if the library for it is installed."""
        if not self.is_first:
            return
        try:
            metrics = {self.out.name: read_metrics(self.out)}
            svg = curves_svg(metrics, users_language())
        except TrainingError:
            return  # a run of a few steps has nothing to draw
        write_text(self.out / _CURVES, svg)
        file = self.out / "curves.png"
        with disk_full_explained(file.name, self.out), contextlib.suppress(InputError):
            write_bytes(file, png(curves_svg(metrics, picture_language(file, users_language()))))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Return the numbers and texts of nested tables, by names with slashes: `valid/birds/loss`."""
    found: dict[str, float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float, str)):
            found[prefix + key] = value
    return found
