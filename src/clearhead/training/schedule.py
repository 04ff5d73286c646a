"""The learning rate over the steps: a warm-up, then a cosine, or a plateau and a decay."""

from __future__ import annotations

import math

from clearhead.training.recipe import TrainingRecipe


def rate_at(step: int, recipe: TrainingRecipe) -> float:
    """Return the learning rate of a step (the first is 0) as a share of its peak.

    It rises linearly over warmup_steps. With the schedule `wsd` (warm-up, stable, decay) it then stays constant, and
    falls linearly to final_share over the last decay_steps (the trapezoid of Zhai et al. 2022, "Scaling Vision
    Transformers", section 3.5). With `cosine` it falls along half a cosine from there to the end (Loshchilov and
    Hutter 2017, equation 5, without restarts).
    """
    rising = (step + 1) / recipe.warmup_steps if step < recipe.warmup_steps else 1.0
    if recipe.schedule == "cosine":
        done = max(step - recipe.warmup_steps, 0) / max(recipe.steps - recipe.warmup_steps, 1)
        height = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    else:
        left = (recipe.steps - step) / recipe.decay_steps if recipe.decay_steps else 1.0
        height = min(left, 1.0)
    return rising * (recipe.final_share + (1 - recipe.final_share) * height)
