"""Linear layers of a model that trains in bfloat16 on a CPU, without casts that autocast would repeat.

A weight in float32 has a copy in bfloat16, which the optimizer writes in the pass in which it updates the weight
(`updates.py`). The gradient of a matrix comes out of a product in bfloat16; it stays so until the optimizer reads it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.training.cpu.linear import LinearProducts, apply_linear

_COPY = "_clearhead_bfloat16"  # an attribute of a parameter: its version, and the copy


class Bfloat16Linear(nn.Linear):
    """`nn.Linear` that under autocast multiplies with the weight's copy in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b for x [..., in]."""
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return apply_linear(x, self.weight, self.bias, BFLOAT16_PRODUCTS)


def bfloat16_copy(weight: Tensor) -> Tensor:
    """Return a float32 weight in bfloat16: its copy, which is made anew if the weight has changed since."""
    if weight.is_inference():  # it has no version
        return weight.bfloat16()
    version, copy = getattr(weight, _COPY, (None, None))
    if copy is None or version != weight._version or copy.shape != weight.shape:
        with torch.inference_mode(False), torch.no_grad():
            copy = weight.detach().bfloat16()
        setattr(weight, _COPY, (weight._version, copy))
    return copy


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, matrix, None if bias is None else bfloat16_copy(bias))


BFLOAT16_PRODUCTS = LinearProducts(torch.bfloat16, bfloat16_copy, _product, torch.mm)


def share_copy(weight: Tensor, alias: Tensor) -> None:
    """Give another tensor of the same memory the copy of a weight, if autocast needs one."""
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        setattr(alias, _COPY, (alias._version, bfloat16_copy(weight)))


def current_copy(weight: Tensor) -> Tensor | None:
    """Return the copy of a weight if it has one."""
    copy: Tensor | None = getattr(weight, _COPY, (None, None))[1]
    return copy


def mark_updated(weight: Tensor) -> None:
    """Note that the weight and its copy, if it has one, were both written by a kernel."""
    torch.autograd.graph.increment_version(weight)
    if (copy := current_copy(weight)) is not None:
        setattr(weight, _COPY, (weight._version, copy))
