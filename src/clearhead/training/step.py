"""One optimizer step: a batch in, a changed model out; the same on one process and on many."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clearhead.data.batches import Batch
from clearhead.errors import TrainingError
from clearhead.losses import NOT_COUNTED
from clearhead.training.distributed import Processes
from clearhead.training.objective import counted_places
from clearhead.training.precision import LossScale, autocast
from clearhead.training.recipe import TrainingRecipe
from clearhead.training.schedule import rate_at
from clearhead.training.spikes import PATIENCE, Spikes


@dataclass(frozen=True, slots=True)
class Step:
    """What a step was.

    Attributes:
        loss: the mean surprisal of the batch's targets, in nats.
        norm: the length of the gradient before clipping.
        rate: the learning rate as a share of its peak.
        tokens: how many the batch has, counted or not, without what rows are filled up with.
        odd: what was out of the ordinary, in words; empty as a rule.
        taken: whether the weights were moved.
        stop: whether a process was asked to stop.
    """

    loss: float
    norm: float
    rate: float
    tokens: int
    odd: str
    taken: bool
    stop: bool


class Stepper:
    """Takes steps.

    The loss is the sum over the batch's counted targets, divided by their number in the whole batch: how the batch is
    cut into pieces, and among how many processes, changes nothing but the order of sums.

    Args:
        objective: `Objective`, spread over the processes or not.
        optimizers: each parameter in one group of one of them; their learning rates now are the peaks.
        recipe: the `[training]` table.
        processes: who shares the batch.
        dtype: of the matrix products.
        draws: whether the model has dropout, whose random numbers then depend on the step and the piece alone.

    Raises:
        TrainingError: where the batch cannot be shared out equally.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        recipe: TrainingRecipe,
        processes: Processes,
        dtype: torch.dtype,
        draws: bool,
    ) -> None:
        self.objective, self.optimizers, self.recipe, self.processes = objective, optimizers, recipe, processes
        self.dtype, self.draws = dtype, draws
        self.peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
        self.parameters: list[Tensor] = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        self.spikes = Spikes()
        self.loss_scale = LossScale(dtype == torch.float16)
        size = recipe.micro_batch_size or recipe.batch_size // processes.world
        if recipe.batch_size < processes.world or recipe.batch_size % (size * processes.world):
            pieces = f" in pieces of {recipe.micro_batch_size}" if recipe.micro_batch_size else ""
            raise TrainingError(
                f"batch_size {recipe.batch_size} cannot be shared out among {processes.world} processes{pieces}; "
                "choose a multiple."
            )
        self._piece = size

    def take(
        self, number: int, batch: Batch, asked: Callable[[], bool] = lambda: False, rate: float | None = None
    ) -> Step:
        """One step.

        Args:
            number: which one, from 0; decides the learning rate and dropout.
            batch: of all processes together.
            asked: whether this process was asked to stop. It is called when the gradients are there, so that a step
                in which that happens is the last; one process is enough for all to hear of it.
            rate: the share of the peak learning rate, where the schedule is not to decide.

        Raises:
            TrainingError: where the loss or the gradient is no number and the recipe does not say to leave such
                steps out, or too many in a row had to be left out.
        """
        rate = rate_at(number, self.recipe) if rate is None else rate
        count = max(int((batch[1] != NOT_COUNTED).sum()), 1)
        scale = self.loss_scale.scale
        nats = self._gradients(number, batch, scale / count)
        total, stops = self.processes.sums([nats, float(asked())])
        loss, scaled_norm = total / count, self._norm()
        norm = scaled_norm / scale
        if self.loss_scale.overflows(loss, scaled_norm):
            odd, taken = "float16 overflowed, and the loss is scaled by less from here on", False
        else:
            odd = self.spikes.look(loss, norm)
            taken = self._may_be_taken(number, loss, norm, odd)
        if taken:
            self._move(norm, scale, rate)
        for parameter in self.parameters:
            parameter.grad = None
        return Step(loss, norm, rate, _tokens(batch), odd, taken, stops > 0)

    def _gradients(self, number: int, batch: Batch, factor: float) -> float:
        """Adds up the gradients of this process's share, times `factor`; returns its summed nats."""
        device = self.processes.device
        share = self.recipe.batch_size // self.processes.world
        first = self.processes.rank * share
        nats = torch.zeros((), dtype=torch.float32, device=device)
        for start in range(first, first + share, self._piece):
            inputs, targets = (torch.from_numpy(rows[start : start + self._piece]) for rows in batch)
            counted = counted_places(targets)
            if self.draws:
                torch.manual_seed(_seed(self.recipe.seed, number, start))
            last = start + self._piece == first + share
            with self._together(last), autocast(device, self.dtype):
                found = self.objective(
                    inputs.to(device, non_blocking=True),
                    targets.to(device, non_blocking=True),
                    None if counted is None else counted.to(device),
                )
                # Processes take the mean of their gradients; the sum is wanted.
                (found * (factor * self.processes.world)).backward()
            nats += found.detach()
        return nats.item()

    def _together(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Replicas exchange gradients with the last piece only; what is sharded has no room to wait."""
        if isinstance(self.objective, nn.parallel.DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def _norm(self) -> float:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _may_be_taken(self, number: int, loss: float, norm: float, odd: str) -> bool:
        finite = math.isfinite(loss) and math.isfinite(norm)
        if self.recipe.on_spike == "skip":
            if odd and self.spikes.in_a_row >= PATIENCE:
                raise TrainingError(
                    f"{PATIENCE} steps in a row had to be left out, up to step {number:,} ({odd}); lower the learning "
                    "rate or warm up for longer. The newest checkpoint is from before or among them."
                )
            return not odd
        if not finite:
            raise TrainingError(
                f"{odd} at step {number:,}; start again with a lower learning rate, a longer warm-up, or on_spike = "
                '"skip". The newest checkpoint is from before that step.'
            )
        return True

    def _move(self, norm: float, scale: float, rate: float) -> None:
        """Undoes the scale, clips, and lets the optimizers step."""
        factor = min(1.0, self.recipe.clip_norm / (norm + 1e-6)) / scale
        if factor != 1.0:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors."""
        return {"spikes": self.spikes.state(), "loss_scale": self.loss_scale.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.spikes.restore(state["spikes"])
        self.loss_scale.restore(state["loss_scale"])


def _tokens(batch: Batch) -> int:
    """How many tokens a batch has: of each row those up to its last target. Behind it, rows are filled up."""
    counted = batch[1] != NOT_COUNTED  # [B, T]
    behind = counted[:, ::-1].argmax(axis=1)  # [B]
    return int((counted.any(axis=1) * (counted.shape[1] - behind)).sum())


def _seed(*numbers: int) -> int:
    """One seed for torch from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
