"""The norm of all gradients, and AdamW, each in one compiled pass over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from clearhead.training.cpu.bfloat16 import current_copy, mark_updated
from clearhead.training.cpu.threads import TYPES, float_bits, run_kernel
from clearhead.training.cpu.update_kernels import (
    AVERAGE,
    COPY,
    CORRECTION,
    COUNT,
    DECAY,
    FIELDS,
    GRADIENT,
    SQUARES,
    STEP_SIZE,
    TYPE,
    WEIGHTS,
    adamw,
    sums_of_squares,
)

_CHUNK = 1 << 16  # weights


def can_update(parameters: Sequence[Tensor]) -> bool:
    """Return whether the kernels can update these parameters: whole tensors in float32 on the CPU."""
    return all(_is_plain(parameter, torch.float32) for parameter in parameters)


def gradient_norm(gradients: Sequence[Tensor]) -> float | None:
    """Return the norm of all gradients together; None if they are not whole tensors on the CPU."""
    if not all(_is_plain(gradient, *TYPES) for gradient in gradients):
        return None
    rows = np.zeros((len(gradients), FIELDS), np.int64)
    rows[:, GRADIENT] = [gradient.data_ptr() for gradient in gradients]
    rows[:, TYPE] = [TYPES[gradient.dtype] for gradient in gradients]
    rows[:, COUNT] = [gradient.numel() for gradient in gradients]
    chunks = _chunks(rows)
    sums = torch.zeros(len(chunks))
    _run(sums_of_squares, chunks, [sums], [])
    return math.sqrt(sums.double().sum().item())


class CompiledAdamW(torch.optim.AdamW):
    """torch's AdamW with its state, whose step is one compiled pass. Its parameters satisfy `can_update`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, by the gradient divided by `grad_scale`."""
        scale = getattr(self, "grad_scale", None)
        factor = 1.0 if scale is None else 1.0 / float(scale)
        for betas in {group["betas"] for group in self.param_groups}:
            groups = [group for group in self.param_groups if group["betas"] == betas]
            updated = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
            if not updated:
                continue
            gradients = [p.grad.contiguous() for p, _ in updated]  # keeps those that are made here
            rows = np.array(
                [self._row(p, gradient, group) for (p, group), gradient in zip(updated, gradients, strict=True)],
                np.int64,
            )
            beta_1, beta_2 = betas
            _run(adamw, _chunks(rows), [], [float_bits(n) for n in (factor, 1 - beta_1, beta_2, 1 - beta_2)])
            for parameter, _ in updated:
                mark_updated(parameter)

    def _row(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> list[int]:
        """Count a step of a parameter, and return its row of the table."""
        state = self.state[parameter]
        if not state:
            zeros = {key: torch.zeros_like(parameter).detach() for key in ("exp_avg", "exp_avg_sq")}
            state.update(step=torch.zeros(()), **zeros)
        state["step"] += 1
        step, (beta_1, beta_2) = state["step"].item(), group["betas"]
        copy = current_copy(parameter)
        row = [0] * FIELDS
        row[WEIGHTS], row[GRADIENT] = parameter.data_ptr(), gradient.data_ptr()
        row[AVERAGE], row[SQUARES] = state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
        row[COPY] = 0 if copy is None else copy.data_ptr()
        row[COUNT], row[TYPE] = parameter.numel(), TYPES[gradient.dtype]
        row[DECAY] = float_bits(1 - group["lr"] * group["weight_decay"])
        row[STEP_SIZE] = float_bits(group["lr"] / (1 - beta_1**step))
        row[CORRECTION] = float_bits(1 / math.sqrt(1 - beta_2**step))
        return row


def _is_plain(tensor: Tensor, *types: torch.dtype) -> bool:
    """Return whether a tensor is whole, in one piece of the CPU's memory, and of one of the types."""
    if isinstance(tensor, DTensor) or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return False
    return tensor.dtype in types and tensor.is_contiguous()


def _chunks(rows: np.ndarray) -> np.ndarray:
    """Divide tensors, one in a row of the table, into chunks: [chunks, FIELDS]."""
    counts = rows[:, COUNT]
    parts = -(-counts // _CHUNK)  # of each tensor
    chunks = np.repeat(rows, parts, axis=0)
    first = (np.arange(len(chunks)) - np.repeat(np.cumsum(parts) - parts, parts)) * _CHUNK
    widths = np.where(chunks[:, TYPE] == TYPES[torch.bfloat16], 2, 4)
    for field, width in ((WEIGHTS, 4), (GRADIENT, widths), (AVERAGE, 4), (SQUARES, 4), (COPY, 2)):
        chunks[:, field] += np.where(chunks[:, field] == 0, 0, first * width)
    chunks[:, COUNT] = np.minimum(chunks[:, COUNT] - first, _CHUNK)
    return chunks


def _run(kernel: Any, chunks: np.ndarray, others: list[Tensor], numbers: list[int]) -> None:
    if len(chunks):
        run_kernel(kernel, (len(chunks), _CHUNK), [torch.from_numpy(chunks), *others], numbers)
