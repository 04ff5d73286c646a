"""The optimizers: AdamW for all parameters, or Muon or NorMuon for the blocks' matrices and AdamW for the rest.

Weight decay applies to matrices only: pulling norms and biases towards zero would change what the model can express,
not how simple it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from clearhead.training.cpu.update_kernels import EPSILON
from clearhead.training.cpu.updates import CompiledAdamW, can_update
from clearhead.training.recipe import TrainingRecipe


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal before the step. For matrices only.

    The step of a matrix is U V^T, where U S V^T is the singular value decomposition of its averaged gradient: every
    direction in it moves equally far. A Newton-Schulz iteration approximates U V^T (Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks"). torch's own Muon runs that iteration in bfloat16, which takes a
    hundred times as long as float32 on a CPU without instructions for it; this one runs it in the parameter's type on
    every device but a GPU.

    Args:
        parameters: matrices [out, in].
        lr: the learning rate. The root mean square of U V^T is 1 / sqrt(max(out, in)); it is multiplied by
            lr * sqrt(max(1, out / in)), so that a step's is (about) lr / sqrt(in) for any shape.
        momentum: the averaging of gradients, with Nesterov's look-ahead.
        weight_decay: each step multiplies the weights by 1 - lr * weight_decay.
        by_rows: whether the rows of the direction are brought to one size, by an average of each row's mean square, and
            the whole to its norm from before: NorMuon (Li et al. 2025).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        by_rows: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "by_rows": by_rows}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [parameter for parameter in group["params"] if parameter.grad is not None]
            ahead = [self._look_ahead(parameter, group["momentum"]) for parameter in matrices]
            for parameter, direction in zip(matrices, orthogonal_directions(ahead), strict=True):
                if group["by_rows"]:
                    direction = _level_rows(direction, self.state[parameter]["row_squares"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _look_ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """Update the average of a parameter's gradient; return Nesterov's look-ahead of it."""
        assert parameter.grad is not None
        if not self.state[parameter]:
            self.state[parameter].update(self.initial_state(parameter))
        average = self.state[parameter]["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step."""
        state = {"momentum": torch.zeros_like(parameter)}
        if self.defaults["by_rows"]:
            state["row_squares"] = torch.zeros_like(parameter[:, :1])
        return state


def _level_rows(direction: Tensor, squares: Tensor, decay: float = 0.95) -> Tensor:
    """Divide each row [in] of a direction by the root of its averaged mean square; keep the matrix's norm.

    The average is not corrected for its start at 0, which scales all rows alike: restoring the norm cancels it.
    """
    squares.lerp_(direction.square().mean(dim=1, keepdim=True), 1 - decay)
    levelled = direction / (squares.sqrt() + 1e-8)
    found: Tensor = levelled * (direction.norm() / (levelled.norm() + 1e-8))
    return found


def orthogonal_directions(matrices: list[Tensor]) -> list[Tensor]:
    """Return the orthogonal direction of each matrix; the processes of a run share the work.

    Replicas compute every n-th matrix each and send it to the others. If a matrix is sharded, each process gathers all
    of it and keeps its shard.
    """
    if any(isinstance(matrix, DTensor) for matrix in matrices):
        return [_direction_of_part(matrix) for matrix in matrices]
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [orthogonalised(matrix) for matrix in matrices]
    world, rank = dist.get_world_size(), dist.get_rank()
    mine = [n % world == rank for n in range(len(matrices))]
    found = [
        orthogonalised(matrix).contiguous() if my else torch.empty_like(matrix, memory_format=torch.contiguous_format)
        for matrix, my in zip(matrices, mine, strict=True)
    ]
    waiting = [dist.broadcast(matrix, src=n % world, async_op=True) for n, matrix in enumerate(found)]
    for work in waiting:
        work.wait()
    return found


def _direction_of_part(matrix: Tensor) -> Tensor:
    if not isinstance(matrix, DTensor):
        return orthogonalised(matrix)
    whole = orthogonalised(matrix.full_tensor())
    return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return the nearest matrix whose singular values are (about) 1.

    Each iteration maps every singular value s to a s + b s^3 + c s^5, with coefficients that raise small ones quickly
    and leave all between 0.7 and 1.2 (Jordan et al. 2024).

    Args:
        matrix: [out, in]

    Returns:
        [out, in]
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: torch.Tensor = matrix.bfloat16() if matrix.is_cuda else matrix
    wide: torch.Tensor = (
        x if x.shape[0] <= x.shape[1] else x.T
    )  # the smaller side first: its product with itself is cheaper
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)


def scale_gradients(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the gradients of an optimizer's parameters before its step.

    AdamW does it in the step itself, without another pass over memory.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return
    if isinstance(optimizer, torch.optim.AdamW) and not isinstance(gradients[0], DTensor):
        divisor = torch.tensor(1 / factor, dtype=torch.float32, device=gradients[0].device)
        optimizer.grad_scale = None if factor == 1.0 else divisor  # type: ignore[attr-defined]
    elif factor != 1.0:
        torch._foreach_mul_(gradients, factor)


def make_optimizers(model: nn.Module, recipe: TrainingRecipe) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a run; each trained parameter belongs to exactly one group of one of them."""
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    matrices: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            others.append(parameter)
        elif recipe.optimizer != "adamw" and name.startswith("blocks."):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    kind = CompiledAdamW if can_update([*decayed, *others]) else torch.optim.AdamW
    adamw = kind(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(recipe.beta_1, recipe.beta_2),
        eps=EPSILON,
        fused=True,
    )
    if not matrices:
        return [adamw]
    by_rows = recipe.optimizer == "normuon"
    return [adamw, Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay, by_rows=by_rows)]
