"""Search for a learning rate: steps at a rate that grows from step to step, and where the loss falls fastest.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. The search uses a model of its own: no
run is changed by it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from clearhead.drawing.png import save_picture
from clearhead.errors import TrainingError
from clearhead.training.curves import find_lr_svg
from clearhead.training.run_folder import write_text
from clearhead.training.step import Stepper
from clearhead.training.task import Task
from clearhead.utils.localization import users_language

STEPS = 100
LOWEST, HIGHEST = 1e-3, 1e2
"""Where the search starts and ends, as shares of the recipe's peak rates."""
_DIVERGED = 4.0  # times the least loss, at which the search ends early
_SMOOTHING = 0.8  # what the running mean keeps of itself at each step


@dataclass(frozen=True, slots=True)
class FoundRate:
    """The result of a search.

    Attributes:
        curve: the share of the peak rates, and the smoothed loss in nats after a step at it.
        share: the suggestion: where the loss fell fastest over the logarithm of the rate, and at most a third of the
            rate at which the loss was least.
    """

    curve: tuple[tuple[float, float], ...]
    share: float


def find_rate(stepper: Stepper, task: Task, steps: int = STEPS) -> FoundRate:
    """Take steps at growing rates.

    Args:
        stepper: moves a model that is discarded afterwards.
        task: draws the batches, from the first one on.
        steps: the maximum number; fewer are taken if the loss grows to four times its least.

    Raises:
        TrainingError: if the loss does not fall at any rate.
    """
    curve: list[tuple[float, float]] = []
    mean, least = 0.0, math.inf
    for number in range(steps):
        share = LOWEST * (HIGHEST / LOWEST) ** (number / (steps - 1))
        try:
            loss = stepper.take(number, task.draw(number), rate=share).loss
        except TrainingError:
            break  # diverged
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smooth = mean / (1 - _SMOOTHING ** (number + 1))
        if not math.isfinite(smooth):
            break
        curve.append((share, smooth))
        least = min(least, smooth)
        if smooth > _DIVERGED * least:
            break
    return FoundRate(tuple(curve), _suggestion(curve))


def save_search(found: FoundRate, rates: dict[str, float], out: Path) -> tuple[Path, Path]:
    """Write `find_lr.json` and `find_lr.svg` into the run's folder.

    Args:
        found: the result of `find_rate`.
        rates: the recipe's peak rates by key; the curve is drawn over the first.
        out: the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = next(iter(rates.values()))
    suggested = {key: rate * found.share for key, rate in rates.items()}
    values = {"suggested": suggested, "curve": [[share * first, loss] for share, loss in found.curve]}
    write_text(out / "find_lr.json", json.dumps(values, indent=1) + "\n")
    curve = [(share * first, loss) for share, loss in found.curve]
    save_picture(find_lr_svg(curve, first * found.share, users_language()), out / "find_lr.svg")
    return out / "find_lr.json", out / "find_lr.svg"


def _suggestion(curve: list[tuple[float, float]]) -> float:
    """Return the rate of the steepest descent over a window of five steps; at most a third of the best rate."""
    window = 5
    if len(curve) <= 2 * window:
        raise TrainingError(
            "the loss is NaN or infinite from the first steps on; lower learning_rate and search again."
        )
    best = min(range(len(curve)), key=lambda n: curve[n][1])
    slopes = [
        (curve[n + window][1] - curve[n][1], n + window // 2) for n in range(len(curve) - window) if n + window <= best
    ]
    if not slopes or min(slopes)[0] >= 0:
        raise TrainingError(
            "the loss does not fall at any of the rates; raise the steps of the search, or check the texts."
        )
    return min(curve[min(slopes)[1]][0], curve[best][0] / 3)
