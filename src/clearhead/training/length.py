"""How long a run is, and its milestones: in steps, epochs or tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clearhead.errors import TrainingError
from clearhead.training.recipe import Recipe
from clearhead.training.recipe_reader import check_training
from clearhead.training.task import Task

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True)
class Milestone:
    """A point of a run whose checkpoint is never deleted.

    Attributes:
        name: as the recipe names it, such as `10M tokens`.
        step: the first step at whose end it is reached.
    """

    name: str
    step: int


def resolve_steps(recipe: Recipe, task: Task) -> Recipe:
    """Return the recipe with its number of steps, which it may give as epochs or tokens.

    Raises:
        TrainingError: if the settings of `[training]` do not fit that number.
    """
    t = recipe.training
    if t.steps:
        return recipe
    steps = _steps(t.epochs, "epochs", task) if t.epochs else _steps(t.tokens, "tokens", task)
    training = replace(t, steps=steps)
    check_training(training, resolved=True)
    return replace(recipe, training=training)


def find_milestones(names: Sequence[str], task: Task) -> list[Milestone]:
    """Parse milestones such as `1000 steps`, `2 epochs` or `10M tokens`.

    Raises:
        TrainingError: if one has another form, or the run cannot count its unit.
    """
    found = []
    for name in names:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMB]?)\s*(steps|epochs|tokens)\s*", name)
        if match is None or float(match[1]) == 0:
            raise TrainingError(
                f"the milestone {name!r} is not of the form 1000 steps, 2 epochs or 10M tokens; correct it."
            )
        amount = float(match[1]) * _UNITS[match[2]]
        found.append(Milestone(name.strip(), _steps(amount, match[3], task)))
    return found


def _steps(amount: float, unit: str, task: Task) -> int:
    if unit == "steps":
        return math.ceil(amount)
    if unit == "epochs":
        return max(1, math.ceil(amount * task.steps_per_epoch()))
    tokens = task.tokens_per_step()
    if tokens is None:
        raise TrainingError("tokens are counted in runs on texts; give the length of this run in steps or epochs.")
    return max(1, math.ceil(amount / tokens))
