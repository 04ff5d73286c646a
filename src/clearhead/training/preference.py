"""Direct preference optimization (Rafailov et al. 2023): prefer one response to another, without a reward model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clearhead.data.batches import Batch
from clearhead.losses import CHUNK_BYTES, NOT_COUNTED
from clearhead.model import GPTModel
from clearhead.training.objective import Objective


class PreferenceObjective(Objective):
    """The loss of pairs of responses: -log sigmoid(beta (gain of the chosen one - gain of the rejected one)).

    The gain of a response is its log-probability under the model minus that under the frozen reference (equation 7).

    Args:
        model: the model that is trained.
        reference: a frozen copy of the model from before training.
        beta: the weight of the reference: the larger, the closer the model stays to it.
        settings: those of `Objective`.
    """

    def __init__(self, model: GPTModel, reference: GPTModel, beta: float, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.reference, self.beta = reference.eval().requires_grad_(False), beta

    def forward(self, ids: Tensor, targets: Tensor, counted: Tensor | None = None, guess: bool = False) -> Tensor:
        """Return the summed loss of pairs, or with `guess`, whether each chosen response has gained more.

        Args:
            ids: int64 [B, 2 T], the chosen text and the rejected one, as `pair_batch` makes them.
            targets: likewise; -100 for tokens that are not of a response.
            counted: not used: each response has a sum of its own.
            guess: return int64 [B], 1 for each pair whose chosen response has gained more than the other.

        Returns:
            a scalar, float32; or int64 [B].
        """
        ids, targets = (rows.unflatten(1, (2, -1)).flatten(0, 1) for rows in (ids, targets))  # [2 B, T], in pairs
        with torch.no_grad():
            before = response_log_probabilities(self.reference, self.reference.forward_hidden(ids), targets)
        trunk = self._trunk if self.model.training else self.model.forward_hidden
        gains = (response_log_probabilities(self.model, trunk(ids), targets) - before).unflatten(0, (-1, 2))  # [B, 2]
        margins = self.beta * (gains[:, 0] - gains[:, 1])
        valid = (targets != NOT_COUNTED).any(dim=1).unflatten(0, (-1, 2)).all(dim=1)
        if guess:
            preferred: Tensor = ((margins > 0) & valid).long()
            return preferred
        loss: Tensor = -(F.logsigmoid(margins) * valid).sum()
        return loss


def response_log_probabilities(model: GPTModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each row's counted targets.

    A few hundred tokens at a time pass through the head; their logits are computed again in the backward pass.

    Args:
        model: its head is used.
        hidden: the final norm's output, [N, T, C].
        targets: int64 [N, T]; -100 for tokens that do not count.

    Returns:
        float32 [N].
    """
    rows, columns = (targets != NOT_COUNTED).nonzero(as_tuple=True)
    chunk = max(16, CHUNK_BYTES // (4 * model.config.vocab_size))
    total = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    for some_rows, some_columns in zip(rows.split(chunk), columns.split(chunk), strict=True):
        wanted = targets[some_rows, some_columns]
        found = checkpoint(_log_probabilities, model, hidden[some_rows, some_columns], wanted, use_reentrant=False)
        total = total.index_add(0, some_rows, found)
    return total


def _log_probabilities(model: GPTModel, hidden: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = model.head(hidden)  # [n, V]
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def count_pairs(batch: Batch) -> int:
    """Return the number of pairs of a batch."""
    return len(batch[0])
