"""The precision of the matrix products, and the loss scale that protects float16's small gradients."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import torch

from clearhead.errors import TrainingError
from clearhead.training.recipe import Precision
from clearhead.training.throughput import synchronize
from clearhead.utils.json_files import Condition, Count

_MEASURED = 0.05  # seconds
_MATRIX = {"cpu": 192, "cuda": 4096, "mps": 1024}  # rows of the measured matrices
_WORTHWHILE = 1.3  # times as fast, from which on bfloat16 is chosen: casting the weights costs time too
_MUCH_SLOWER = 0.5  # the share of the fastest rate below which a run does not resume without being asked


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The precision of a run's matrix products.

    Attributes:
        dtype: float32, or the type that autocast replaces it with.
        reason: how it was chosen, for the first line of a run; "" if the recipe names it.
    """

    dtype: torch.dtype
    reason: str = ""


def choose_precision(precision: Precision, device: torch.device, checkpoint: str | None = None) -> PrecisionChoice:
    """Choose the precision of the matrix products.

    `auto` measures products in float32 and in bfloat16 for a twentieth of a second and takes the faster: instructions
    alone are no proof, as a library may not use them. A run that resumes keeps the precision of its checkpoint.

    Args:
        precision: the recipe's setting.
        device: the device of the run.
        checkpoint: the precision of the checkpoint that the run resumes from; None if there is none.

    Raises:
        TrainingError: if the setting is `auto` and the checkpoint's precision is much slower here than another.
    """
    if precision != "auto":
        return PrecisionChoice(getattr(torch, precision))
    measured = _product_rates(device)
    words = ", ".join(f"{dtype_name(dtype)} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in measured.items())
    fastest = torch.float32
    if measured[torch.bfloat16] > _WORTHWHILE * measured[torch.float32]:
        fastest = torch.bfloat16
    if checkpoint is None:
        return PrecisionChoice(fastest, words)
    dtype: torch.dtype = getattr(torch, checkpoint, torch.float32)
    if dtype in measured and measured[dtype] < _MUCH_SLOWER * measured[fastest]:
        raise TrainingError(
            f"the checkpoint was computed in {checkpoint}, which is slow on this machine ({words}); set precision = "
            f'"{dtype_name(fastest)}" in the recipe to resume in that, or "{checkpoint}" to resume all the same.'
        )
    return PrecisionChoice(dtype, "as in the checkpoint")


def float32_products() -> str:
    """Return how a GPU computes float32 products, in words: whole, unless torch's setting allows TF32."""
    setting = torch.get_float32_matmul_precision()
    if setting == "highest":
        return "whole float32; TF32 is off"
    return f'TF32, 10 of 23 bits of the mantissa (torch.set_float32_matmul_precision("{setting}"))'


def _product_rates(device: torch.device) -> dict[torch.dtype, float]:
    """Measure matrix products in float32 and bfloat16 by turns; return the FLOP/s of the best of each.

    On a CPU one thread is measured: the ratio is the same, and other processes disturb it less.
    """
    size = _MATRIX.get(device.type, 256)
    pairs = {
        dtype: (torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    best = dict.fromkeys(pairs, math.inf)
    try:
        for a, b in pairs.values():
            a @ b  # prepares the library
        synchronize(device)
        end = time.perf_counter() + _MEASURED
        while time.perf_counter() < end or math.inf in best.values():
            for dtype, (a, b) in pairs.items():
                start = time.perf_counter()
                a @ b
                synchronize(device)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {dtype: 2 * size**3 / seconds for dtype, seconds in best.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` and so on, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products are in `dtype`; weights, softmax, norms and sums stay in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


class LossScaleState(TypedDict):
    """The loss scale in a checkpoint: the factor, and the steps without an overflow since it changed."""

    scale: Annotated[float, Condition(lambda number: 1 <= number < math.inf, "a number from 1 on")]
    good: Count


class LossScale:
    """The factor of the loss with which float16 can represent its gradients (Micikevicius et al. 2018, section 3.2).

    It starts at 65,536, is halved when a gradient overflows (that step is skipped) and doubled after 2,000 steps
    without an overflow: the rule of torch's GradScaler, applied to the norm of all gradients, which is the same number
    on every process however the parameters are spread. It does not fall below 1: gradients that overflow without a
    factor are the model's fault. So a series of overflows ends, from 65,536 after 16.

    Attributes:
        scale: the current factor; always 1 if it is not needed.
    """

    def __init__(self, needed: bool, growth_interval: int = 2000) -> None:
        self.needed, self.growth_interval = needed, growth_interval
        self.scale = 65536.0 if needed else 1.0
        self._good = 0

    def update(self, loss: float, scaled_norm: float) -> bool:
        """Adapt the factor to a step; return whether the factor has made the step's gradients useless.

        A smaller factor helps only against what the factor caused: not if the loss is NaN or infinite, nor if the
        factor is 1.

        Args:
            loss: the loss without the factor.
            scaled_norm: the norm of the gradients with the factor.
        """
        if not self.needed:
            return False
        if math.isfinite(scaled_norm):
            self._good += 1
            if self._good == self.growth_interval:
                self.scale, self._good = self.scale * 2, 0
            return False
        if not math.isfinite(loss) or self.scale <= 1.0:
            return False
        self.scale, self._good = max(self.scale / 2, 1.0), 0
        return True

    def state(self) -> LossScaleState:
        """Return the state for a checkpoint."""
        return {"scale": self.scale, "good": self._good}

    def restore(self, state: LossScaleState) -> None:
        """Restore what `state` returned."""
        self.scale, self._good = state["scale"], state["good"]
