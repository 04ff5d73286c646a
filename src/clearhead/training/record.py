"""Record a run: lines of metrics, TensorBoard's files if it is installed, the display on the terminal, the curves."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clearhead.drawing.png import png
from clearhead.errors import InputError, TrainingError
from clearhead.training.curves import curves_svg
from clearhead.training.display import Display, Status
from clearhead.training.run_folder import MetricsFile, disk_full_explained, read_metrics, write_text
from clearhead.utils.atomic import write_bytes

_CURVES, _TENSORBOARD = "curves.svg", "tensorboard"


class RunRecord:
    """The record of one process: the first one writes and shows, the others are silent.

    Args:
        out: the run's folder.
        is_first: whether this is the first process.
        steps: the number of steps of the run.
    """

    def __init__(self, out: Path, is_first: bool, steps: int) -> None:
        self.out, self.is_first = out, is_first
        self.metrics = MetricsFile(out)
        self.display = Display(steps) if is_first else None
        self._tensorboard: Any = None
        self._purge: int | None = None  # TensorBoard forgets the steps from this one on

    def __enter__(self) -> Self:
        if self.display is not None:
            self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.display is not None:
            self.display.__exit__(kind, error, trace)
        try:
            self.close()
        except (OSError, TrainingError):
            if error is None:  # otherwise that one is reported
                raise

    def close(self) -> None:
        """Flush TensorBoard's writer.

        Raises:
            TrainingError: if there is no space left.
        """
        writer, self._tensorboard = self._tensorboard, None
        if writer is not None:
            with self._room_for_tensorboard():
                writer.close()

    def begin(self) -> None:
        """Remove what a run left here that stopped before its first checkpoint."""
        if self.is_first:
            self.metrics.forget()
            shutil.rmtree(self.out / _TENSORBOARD, ignore_errors=True)

    def resume_from(self, step: int) -> None:
        """Remove the metrics of later steps and of the run's end."""
        if self.is_first:
            self.metrics.forget_after(step)
            self._purge = step + 1

    def add(self, step: int, **values: Any) -> None:
        """Append a line of metrics.

        Raises:
            TrainingError: if there is no space left.
        """
        if not self.is_first:
            return
        self.metrics.add(step=step, **values)
        writer = self._tensorboard_writer()
        if writer is not None:
            with self._room_for_tensorboard():
                for name, value in flatten(values).items():
                    if isinstance(value, str):
                        writer.add_text(name, value, step)
                    elif math.isfinite(value):
                        writer.add_scalar(name, value, step)

    def contains(self, step: int, key: str) -> bool:
        """Return whether there is a line of this step with that key; False if another process writes them."""
        return self.is_first and any(line["step"] == step and key in line for line in read_metrics(self.out))

    def update(self, status: Status) -> None:
        """Show the status after a step."""
        if self.display is not None:
            self.display.update(status)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.display is not None:
            self.display.say(line)

    def draw(self) -> None:
        """Write `curves.svg`, and `curves.png` if the library for it is installed."""
        if not self.is_first:
            return
        try:
            svg = curves_svg({self.out.name: read_metrics(self.out)})
        except TrainingError:
            return  # a run of a few steps has nothing to draw
        write_text(self.out / _CURVES, svg)
        with disk_full_explained("curves.png", self.out), contextlib.suppress(InputError):
            write_bytes(self.out / "curves.png", png(svg))

    def _tensorboard_writer(self) -> Any:
        """Return TensorBoard's writer, created when it is first used; None if TensorBoard is not installed."""
        if self._tensorboard is None and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.out / _TENSORBOARD), purge_step=self._purge)
            self._purge = None
        return self._tensorboard

    def _room_for_tensorboard(self) -> contextlib.AbstractContextManager[None]:
        return disk_full_explained("TensorBoard's files", self.out)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Return the numbers and texts of nested tables, by names with slashes: `valid/birds/loss`."""
    found: dict[str, float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float, str)):
            found[prefix + key] = value
    return found
