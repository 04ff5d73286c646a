"""One optimizer step, the same on one process and on many."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clearhead.data.batches import Batch
from clearhead.errors import TrainingError
from clearhead.losses import NOT_COUNTED
from clearhead.training.cpu.updates import gradient_norm
from clearhead.training.distributed import Processes
from clearhead.training.objective import counted_indices
from clearhead.training.optimizer import scale_gradients
from clearhead.training.precision import LossScale, LossScaleState, autocast
from clearhead.training.recipe import TrainingRecipe
from clearhead.training.schedule import rate_at
from clearhead.training.spikes import MOST_IN_A_ROW, SpikeDetector, SpikeState


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step.

    Attributes:
        loss: the mean cross-entropy of the batch's targets, in nats.
        norm: the norm of the gradient before clipping.
        rate: the learning rate as a share of its peak.
        tokens: the number of tokens of the batch, counted or not, without padding.
        anomaly: a description of what was unusual; usually empty.
        taken: whether the weights were updated.
        stop: whether a process was asked to stop.
    """

    loss: float
    norm: float
    rate: float
    tokens: int
    anomaly: str
    taken: bool
    stop: bool


class StepperState(TypedDict):
    """The stepper in a checkpoint, apart from the tensors."""

    spikes: SpikeState
    loss_scale: LossScaleState


class Stepper:
    """Take optimizer steps.

    The loss is the sum over the batch's counted targets, divided by their number in the whole batch: dividing the batch
    into micro-batches, and among processes, changes nothing but the order of sums.

    Args:
        objective: `Objective`, spread over the processes or not.
        optimizers: each parameter in one group of one of them; their current learning rates are the peaks.
        recipe: the `[training]` table.
        processes: the processes that share the batch.
        dtype: the type of the matrix products.
        dropout: whether the model has dropout, whose random numbers then depend on the step and the micro-batch alone.
        count: the number by which the summed loss of a batch is divided.

    Raises:
        TrainingError: if the batch cannot be divided equally.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        recipe: TrainingRecipe,
        processes: Processes,
        dtype: torch.dtype,
        dropout: bool,
        count: Callable[[Batch], int] | None = None,
    ) -> None:
        self.objective, self.optimizers, self.recipe, self.processes = objective, optimizers, recipe, processes
        self.dtype, self.dropout, self.count = dtype, dropout, count or _count_targets
        self.peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
        self.parameters: list[Tensor] = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        self.spikes = SpikeDetector()
        self.loss_scale = LossScale(dtype == torch.float16)
        size = recipe.micro_batch_size or recipe.batch_size // processes.world
        if recipe.batch_size < processes.world or recipe.batch_size % (size * processes.world):
            parts = f" in micro-batches of {recipe.micro_batch_size}" if recipe.micro_batch_size else ""
            raise TrainingError(
                f"batch_size {recipe.batch_size} cannot be divided among {processes.world} processes{parts}; "
                "choose a multiple."
            )
        self._micro_batch = size

    def take(
        self, number: int, batch: Batch, asked: Callable[[], bool] = lambda: False, rate: float | None = None
    ) -> Step:
        """Take one step.

        Args:
            number: the step, from 0; it determines the learning rate and dropout.
            batch: the batch of all processes together.
            asked: returns whether this process was asked to stop. It is called after the gradients are computed, so
                that a step during which that happens is the last one; one process is enough to stop all.
            rate: the share of the peak learning rate; None for the schedule's.

        Raises:
            TrainingError: if the loss or the gradient is NaN or infinite and the recipe does not skip such steps, or
                if too many steps in a row were skipped.
        """
        rate = rate_at(number, self.recipe) if rate is None else rate
        count = self.count(batch)
        scale = self.loss_scale.scale
        nats = self._gradients(number, batch, scale / count)
        total, stops = self.processes.sums([nats, float(asked())])
        loss, scaled_norm = total / count, self._norm()
        norm = scaled_norm / scale
        if self.loss_scale.update(loss, scaled_norm):
            anomaly, taken = "float16 overflowed, so the loss is scaled by less from here on", False
        else:
            anomaly = self.spikes.check(loss, norm)
            taken = self._may_be_taken(number, loss, norm, anomaly)
        if taken:
            self._update(norm, scale, rate)
        for parameter in self.parameters:
            parameter.grad = None
        return Step(loss, norm, rate, _count_tokens(batch), anomaly, taken, stops > 0)

    def _gradients(self, number: int, batch: Batch, factor: float) -> float:
        """Accumulate the gradients of this process's share, times `factor`; return its summed nats."""
        device = self.processes.device
        share = self.recipe.batch_size // self.processes.world
        first = self.processes.rank * share
        nats = torch.zeros((), dtype=torch.float32, device=device)
        for start in range(first, first + share, self._micro_batch):
            inputs, targets = (torch.from_numpy(rows[start : start + self._micro_batch]) for rows in batch)
            counted = counted_indices(targets)
            if self.dropout:
                torch.manual_seed(_seed(self.recipe.seed, number, start))
            last = start + self._micro_batch == first + share
            with self._without_exchange(last), autocast(device, self.dtype):
                found = self.objective(
                    inputs.to(device, non_blocking=True),
                    targets.to(device, non_blocking=True),
                    None if counted is None else counted.to(device),
                )
                # Processes average their gradients; the sum is wanted.
                (found * (factor * self.processes.world)).backward()
            nats += found.detach()
        return nats.item()

    def _without_exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let replicas exchange gradients after the last micro-batch only; shards cannot hold them back."""
        if isinstance(self.objective, nn.parallel.DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def _norm(self) -> float:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if (found := gradient_norm(gradients)) is not None:
            return found
        norm = torch.nn.utils.get_total_norm(gradients)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _may_be_taken(self, number: int, loss: float, norm: float, anomaly: str) -> bool:
        finite = math.isfinite(loss) and math.isfinite(norm)
        if self.recipe.on_spike == "skip":
            if anomaly and self.spikes.in_a_row >= MOST_IN_A_ROW:
                raise TrainingError(
                    f"{MOST_IN_A_ROW} steps in a row were skipped, up to step {number:,} ({anomaly}); lower the "
                    "learning rate or warm up for longer."
                )
            return not anomaly
        if not finite:
            raise TrainingError(
                f"{anomaly} at step {number:,}; start again with a lower learning rate, a longer warm-up, or "
                'on_spike = "skip".'
            )
        return True

    def _update(self, norm: float, scale: float, rate: float) -> None:
        """Undo the loss scale, clip the gradient, and let the optimizers step."""
        factor = min(1.0, self.recipe.clip_norm / (norm + 1e-6)) / scale
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            scale_gradients(optimizer, factor)
            optimizer.step()

    def state(self) -> StepperState:
        """Return the state for a checkpoint, apart from the tensors."""
        return {"spikes": self.spikes.state(), "loss_scale": self.loss_scale.state()}

    def restore(self, state: StepperState) -> None:
        """Restore what `state` returned."""
        self.spikes.restore(state["spikes"])
        self.loss_scale.restore(state["loss_scale"])


def _count_targets(batch: Batch) -> int:
    return max(int((batch[1] != NOT_COUNTED).sum()), 1)


def _count_tokens(batch: Batch) -> int:
    """Return the number of tokens of a batch: in each row those up to its last target. After it comes padding."""
    counted = batch[1] != NOT_COUNTED  # [B, T]
    behind = counted[:, ::-1].argmax(axis=1)  # [B]
    return int((counted.any(axis=1) * (counted.shape[1] - behind)).sum())


def _seed(*numbers: int) -> int:
    """Combine several numbers into one seed for torch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
