"""The number format of the matrix products, and what keeps float16 from losing small gradients."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from clearhead.training.recipe import Precision


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that matrix products are computed in: float32, or what autocast takes in its place."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` and so on, without torch's name before it."""
    return str(dtype).removeprefix("torch.")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32; without instructions they are 100 times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """A context in which products are in `dtype`; weights, softmax, norms and sums stay in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


class LossScale:
    """What a loss is multiplied by so that float16 can hold its gradients (Micikevicius et al. 2018, section 3.2).

    It starts at 65,536, is halved when a gradient overflows (that step is left out) and doubled after 2,000 steps
    without one: the rule of torch's GradScaler, decided by the norm of all gradients, which is the same number on
    every process however the parameters are spread. Below 1 it does not fall: gradients that overflow without a factor
    are broken. So a row of overflows ends, from 65,536 on after 16.

    Attributes:
        scale: the factor now; 1 for ever where it is not needed.
    """

    def __init__(self, needed: bool, growth_interval: int = 2000) -> None:
        self.needed, self.growth_interval = needed, growth_interval
        self.scale = 65536.0 if needed else 1.0
        self._good = 0

    def overflows(self, loss: float, scaled_norm: float) -> bool:
        """Takes note of a step; returns whether its gradients are of no use because of the factor.

        A smaller factor mends only what the factor broke: not a loss that is no number, and nothing where it is 1.

        Args:
            loss: without the factor.
            scaled_norm: of the gradients with the factor.
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
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good": self._good}

    def restore(self, state: dict[str, float]) -> None:
        """Takes back what `state` gave."""
        self.scale, self._good = state["scale"], int(state["good"])
