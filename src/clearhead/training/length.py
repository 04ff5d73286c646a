"""How long a run is, and its milestones: in steps, epochs, tokens or words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from clearhead.errors import TrainingError
from clearhead.training.recipe import Recipe
from clearhead.training.recipe_reader import check_training, parse_milestone
from clearhead.training.task import Task


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
    """Return the recipe with its number of steps, which it may give as epochs, tokens or words.

    Raises:
        TrainingError: if the settings of `[training]` do not fit that number.
    """
    t = recipe.training
    if t.steps:
        return recipe
    unit = next(unit for unit in ("epochs", "tokens", "words") if getattr(t, unit))
    steps = StepCounter(task).steps(getattr(t, unit), unit)
    training = replace(t, steps=steps)
    check_training(training, resolved=True)
    return replace(recipe, training=training)


def find_milestones(names: Sequence[str], task: Task) -> list[Milestone]:
    """Return the steps of milestones such as `1000 steps`, `2 epochs`, `10M tokens` or `1M words`.

    Returns:
        those in words last, so that of two at one step the one in words, which revisions are made of, gives its name.

    Raises:
        TrainingError: if one has another form, or the run cannot count its unit.
    """
    found, counter = [], StepCounter(task)
    for name in names:
        found.append(Milestone(name.strip(), counter.steps(*parse_milestone(name))))
    return sorted(found, key=lambda milestone: milestone.name.endswith("words"))


class StepCounter:
    """Turn epochs, tokens and words into steps of a run.

    Args:
        task: the data of the run; its words are counted once, if they are asked for.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def steps(self, amount: float, unit: str) -> int:
        """Return the first step after which this much has been seen.

        Raises:
            TrainingError: if the run cannot count the unit.
        """
        if unit == "steps":
            return math.ceil(amount)
        if unit == "epochs":
            return max(1, math.ceil(amount * self._task.steps_per_epoch()))
        per_step = self._task.tokens_per_step() if unit == "tokens" else self._words_per_step
        if not per_step:
            raise TrainingError(
                "words are counted in runs on texts; count steps or epochs in this one."
                if unit == "words"
                else "tokens are counted in runs on texts; count steps or epochs in this one."
            )
        return max(1, math.ceil(amount / per_step))

    @cached_property
    def _words_per_step(self) -> float | None:
        return self._task.words_per_step()
