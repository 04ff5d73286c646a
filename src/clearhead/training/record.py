"""What a run tells: lines of metrics, TensorBoard's files where it is installed, a display on the terminal, curves."""

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
from clearhead.training.display import Display, Standing
from clearhead.training.run_folder import Metrics, read_metrics, room_for
from clearhead.utils import atomic

_CURVES, _BOARD = "curves.svg", "tensorboard"


class Record:
    """The record of one process: the first one writes and shows, the others are silent.

    Args:
        out: the run's folder.
        speaks: whether this is the first process.
        steps: how many the run has.
    """

    def __init__(self, out: Path, speaks: bool, steps: int) -> None:
        self.out, self.speaks = out, speaks
        self.metrics = Metrics(out)
        self.display = Display(steps) if speaks else None
        self._board: Any = None
        self._purge: int | None = None  # TensorBoard forgets from this step on

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
            if error is None:  # else that is what is to be told
                raise

    def close(self) -> None:
        """Brings what TensorBoard's writer still holds to the disk.

        Raises:
            TrainingError: where there is no space left.
        """
        board, self._board = self._board, None
        if board is not None:
            with self._room_for_board():
                board.close()

    def begin(self) -> None:
        """Forgets what a run left here that stopped before its first checkpoint."""
        if self.speaks:
            self.metrics.forget()
            shutil.rmtree(self.out / _BOARD, ignore_errors=True)

    def go_on_from(self, step: int) -> None:
        """Forgets the metrics of later steps, and those of the end."""
        if self.speaks:
            self.metrics.forget_after(step)
            self._purge = step + 1

    def add(self, step: int, **values: Any) -> None:
        """A line of metrics.

        Raises:
            TrainingError: where there is no space left.
        """
        if not self.speaks:
            return
        self.metrics.add(step=step, **values)
        board = self._writer()
        if board is not None:
            with self._room_for_board():
                for name, value in flat(values).items():
                    if isinstance(value, str):
                        board.add_text(name, value, step)
                    elif math.isfinite(value):
                        board.add_scalar(name, value, step)

    def holds(self, step: int, key: str) -> bool:
        """Whether there is a line of this step with that key; false where another process writes them."""
        return self.speaks and any(line["step"] == step and key in line for line in read_metrics(self.out))

    def update(self, standing: Standing) -> None:
        """Where the run stands after a step."""
        if self.display is not None:
            self.display.update(standing)

    def say(self, line: str) -> None:
        """A line on the terminal that stays."""
        if self.display is not None:
            self.display.say(line)

    def draw(self) -> None:
        """Writes `curves.svg`, and `curves.png` where the library for it is installed."""
        if not self.speaks:
            return
        try:
            svg = curves_svg({self.out.name: read_metrics(self.out)})
        except TrainingError:
            return  # a run of a few steps has nothing to draw
        with room_for(_CURVES, self.out):
            atomic.write_text(self.out / _CURVES, svg)
        if importlib.util.find_spec("resvg_py") is not None:
            # No font for a run's Chinese name: the SVG has it all.
            with room_for("curves.png", self.out), contextlib.suppress(InputError):
                atomic.write_bytes(self.out / "curves.png", png(svg))

    def _writer(self) -> Any:
        """TensorBoard's writer, made when there is something to write."""
        if self._board is None and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.out / _BOARD), purge_step=self._purge)
            self._purge = None
        return self._board

    def _room_for_board(self) -> contextlib.AbstractContextManager[None]:
        return room_for("TensorBoard's files", self.out)


def flat(values: dict[str, Any], before: str = "") -> dict[str, float | str]:
    """The numbers and texts of nested tables, by names with slashes: `valid/birds/loss`."""
    found: dict[str, float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}/")
        elif isinstance(value, (int, float, str)):
            found[before + key] = value
    return found
