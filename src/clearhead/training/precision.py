"""The precision of the matrix products, and the loss scale that protects float16's small gradients."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from clearhead.training.recipe import Precision


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type of the matrix products: float32, or the type that autocast replaces it with."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` and so on, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are faster than in float32 (without instructions, 100 times slower)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products are in `dtype`; weights, softmax, norms and sums stay in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


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

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"scale": self.scale, "good": self._good}

    def restore(self, state: dict[str, float]) -> None:
        """Restore what `state` returned."""
        self.scale, self._good = state["scale"], int(state["good"])
