"""The reference Runner: PyTorch on any device, with a preallocated key/value cache and ragged batches.

One call of `extend` is one pass of the model over all the sequences that get a single token (decoding; they share each
product), and one pass for each sequence that gets several (prefill).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.config import GPTConfig
from clearhead.inference.logprobs import SCORED_ROWS, join_scores, score_rows
from clearhead.inference.runner import ScoreTask, Slot, TokenScores, check_fork, check_score_work, check_work
from clearhead.model import GPTModel
from clearhead.utils.text import type_of


@dataclass(eq=False)
class TorchSlot:
    """One sequence: its row in the cache, and its number of tokens."""

    row: int
    length: int = 0
    open: bool = True


class CacheRows:
    """Keys and values of every layer for many sequences, in rows that are reused.

    A row reserves memory for a whole context when it is made: n_layers * 2 * context_length * emb_dim numbers (75.5 MB
    for the 124M in float32). The operating system provides it only as it is written.
    """

    def __init__(self, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = (config.n_heads, config.context_length, config.head_dim)
        self._device, self._dtype = device, dtype
        self.keys = [self._empty(0) for _ in range(config.n_layers)]  # each [rows, H, context_length, D]
        self.values = [self._empty(0) for _ in range(config.n_layers)]
        self._slots: dict[int, TorchSlot] = {}

    def open(self) -> TorchSlot:
        """Take a row for a new sequence; the lowest free one, so that running sequences stay close together."""
        row = next((r for r in range(self._rows) if r not in self._slots), self._rows)
        if row == self._rows:
            self._grow(max(1, 2 * self._rows))
        slot = self._slots[row] = TorchSlot(row)
        return slot

    def copy(self, slot: TorchSlot, length: int) -> TorchSlot:
        """Take another row and copy the keys and values of a sequence's first tokens into it."""
        new = self.open()
        for layers in (self.keys, self.values):
            for layer in layers:
                layer[new.row, :, :length] = layer[slot.row, :, :length]
        new.length = length
        return new

    def close(self, slot: TorchSlot) -> None:
        """Free a row."""
        if slot.open:
            slot.open = False
            del self._slots[slot.row]

    @property
    def _rows(self) -> int:
        return self.keys[0].shape[0]

    def _empty(self, rows: int) -> Tensor:
        return torch.empty(rows, *self._shape, device=self._device, dtype=self._dtype)

    def _grow(self, rows: int) -> None:
        used = max((slot.length for slot in self._slots.values()), default=0)
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                store[layer] = self._empty(rows)
                store[layer][: old.shape[0], :, :used] = old[:, :, :used]


class DecodeCache:
    """The cache of a pass with one new token for each of several sequences (B of them, T = 1)."""

    def __init__(self, rows: CacheRows, slots: Sequence[TorchSlot], device: torch.device) -> None:
        self.cache = rows
        numbers = [slot.row for slot in slots]
        self.rows = torch.tensor(numbers, device=device)  # [B]
        self.lengths = torch.tensor([slot.length for slot in slots], device=device)  # [B]
        self.longest = max(slot.length for slot in slots) + 1
        # Rows in order are one slice of the cache; any others have to be gathered, which copies them.
        first = numbers[0]
        in_order = numbers == list(range(first, first + len(numbers)))
        self._choose: slice | Tensor = slice(first, first + len(numbers)) if in_order else self.rows
        positions = torch.arange(self.longest, device=device)  # [longest]
        # Beyond a sequence's end the row was never written, or belonged to another sequence: it must not be seen.
        self._mask = (positions <= self.lengths[:, None])[:, None, None, :]  # [B, 1, 1, longest]
        self._equal = len({slot.length for slot in slots}) == 1

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store new keys and values; return all of them [B, H, longest, D], and a mask of those that exist."""
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        all_keys[self.rows, :, self.lengths] = keys[:, :, 0]  # [B, H, D]
        all_values[self.rows, :, self.lengths] = values[:, :, 0]
        seen_keys = all_keys[self._choose, :, : self.longest]  # [B, H, longest, D]
        seen_values = all_values[self._choose, :, : self.longest]
        if self._equal:
            return seen_keys, seen_values, None
        # Unwritten memory may contain NaN, and NaN times a weight of 0 is NaN: put zeros there.
        return seen_keys, seen_values.masked_fill(~self._mask.transpose(-1, -2), 0), self._mask

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from queries [B, H, 1, D] of the new tokens to all tokens of their sequences: [B, H, 1, D]."""
        keys, values, mask = self.update(layer, keys, values)
        if mask is None:
            return F.scaled_dot_product_attention(queries, keys, values)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])  # [B, H, 1, longest]
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return weights @ values  # [B, H, 1, D]


class PrefillCache:
    """The cache of a pass with several new tokens for one sequence (B = 1)."""

    def __init__(self, rows: CacheRows, slot: TorchSlot, new: int, device: torch.device) -> None:
        self.cache, self.row, self.start, self.end = rows, slot.row, slot.length, slot.length + new
        positions = torch.arange(self.end, device=device)
        # A new token sees all earlier tokens, and the new ones up to itself: [new, end]
        self._mask = positions <= positions[self.start :, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store new keys and values; return all of them [1, H, end, D], and which each new token sees [new, end]."""
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        all_keys[self.row, :, self.start : self.end] = keys[0]
        all_values[self.row, :, self.start : self.end] = values[0]
        return (
            all_keys[self.row : self.row + 1, :, : self.end],
            all_values[self.row : self.row + 1, :, : self.end],
            self._mask,
        )

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from queries [1, H, new, D] of the new tokens to all tokens up to each: [1, H, new, D]."""
        seen_keys, seen_values, mask = self.update(layer, keys, values)
        if self.start == 0:
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return F.scaled_dot_product_attention(queries, seen_keys, seen_values, attn_mask=mask)


class TorchRunner:
    """Run a `GPTModel` over growing sequences. Implements `clearhead.inference.runner.ScoringRunner`.

    The model is put into evaluation mode for each call and back after it, so a model in training can be sampled.

    Args:
        model: on any device, in any floating-point dtype; the logits are returned in float32.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        weight = model.token_embedding.weight
        self._device = weight.device
        self._cache = CacheRows(model.config, weight.device, weight.dtype)

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        return self.model.config

    def open(self) -> TorchSlot:
        """Open a new, empty sequence."""
        return self._cache.open()

    def fork(self, slot: Slot, length: int | None = None) -> TorchSlot:
        """Open a new sequence with the tokens of an open one, or its first ones; their keys and values are copied.

        Raises:
            InputError: if the slot is closed, or has fewer tokens.
        """
        own = _own_slot(slot)
        with torch.inference_mode():
            return self._cache.copy(own, check_fork(own, length))

    def close(self, slot: Slot) -> None:
        """Forget a sequence; its memory serves the next one. Closing twice does nothing."""
        self._cache.close(_own_slot(slot))

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> npt.NDArray[np.float32]:
        """Append tokens to each sequence; see `Runner.extend`."""
        tasks = [(_own_slot(slot), ids) for slot, ids in work]
        check_work(self.config, tasks)
        logits = np.empty((len(tasks), self.config.vocab_size), np.float32)
        singles = [index for index, (_, ids) in enumerate(tasks) if len(ids) == 1]
        with self._evaluating():
            if singles:
                logits[singles] = self._decode([tasks[index] for index in singles])
            for index, (slot, ids) in enumerate(tasks):
                if len(ids) > 1:
                    logits[index] = self._head(self._prefill(slot, ids)[-1:])[0]
        for slot, ids in tasks:
            slot.length += len(ids)
        return logits

    def score(
        self,
        work: Sequence[ScoreTask],
        *,
        top: int = 0,
        n_choices: int | None = None,
        groups: npt.NDArray[np.bool_] | None = None,
        last_logits: bool = True,
    ) -> tuple[npt.NDArray[np.float32], list[TokenScores]]:
        """Append tokens to each sequence and score the targets; see `ScoringRunner.score`."""
        tasks = [(_own_slot(task.slot), task) for task in work]
        check_score_work(self.config, tasks)
        logits = np.empty((len(tasks) if last_logits else 0, self.config.vocab_size), np.float32)
        scores = []

        def score_some(rows: npt.NDArray[np.float32], targets: Sequence[int]) -> TokenScores:
            return score_rows(rows, targets, top, n_choices, groups)

        with self._evaluating():
            for index, (slot, task) in enumerate(tasks):
                hidden = self._prefill(slot, task.ids)  # [T, C]
                if last_logits:
                    logits[index] = self._head(hidden[-1:])[0]
                scores.append(self._scores(hidden, task, score_some))
        for slot, task in tasks:
            slot.length += len(task.ids)
        return logits, scores

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits at every token of a whole sequence, without the cache: float32 [T, V].

        Raises:
            InputError: as `extend`.
        """
        check_work(self.config, [(TorchSlot(-1), ids)])
        with self._evaluating():
            return _array(self.model(torch.tensor([list(ids)], device=self._device))[0])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Run the model without dropout and without gradients, and put it back into its mode afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)

    def _decode(self, tasks: list[tuple[TorchSlot, Sequence[int]]]) -> npt.NDArray[np.float32]:
        """Run one token of each sequence: [B, V]."""
        # In the cache's order, so that adjacent sequences are read as one slice.
        order = sorted(range(len(tasks)), key=lambda index: tasks[index][0].row)
        cache = DecodeCache(self._cache, [tasks[index][0] for index in order], self._device)
        ids = torch.tensor([[tasks[index][1][0]] for index in order], device=self._device)  # [B, 1]
        logits = np.empty((len(tasks), self.config.vocab_size), np.float32)
        logits[order] = self._head(self.model.forward_hidden(ids, cache.lengths[:, None], cache)[:, -1])
        return logits

    def _prefill(self, slot: TorchSlot, new: Sequence[int]) -> Tensor:
        """Run several tokens of one sequence and return the final norm's output: [T, C]."""
        ids = torch.tensor([list(new)], device=self._device)  # [1, T]
        positions = torch.arange(slot.length, slot.length + len(new), device=self._device)  # [T]
        return self.model.forward_hidden(ids, positions, PrefillCache(self._cache, slot, len(new), self._device))[0]

    def _scores(
        self,
        hidden: Tensor,
        task: ScoreTask,
        score_some: Callable[[npt.NDArray[np.float32], Sequence[int]], TokenScores],
    ) -> TokenScores:
        """Score targets a few rows of logits at a time; all at once while an edit of the logits is in effect."""
        rows = [*range(task.start, task.start + len(task.targets)), *(index for index, _ in task.alternatives)]
        targets = [*task.targets, *(token for _, token in task.alternatives)]
        parts = [score_some(np.zeros((0, self.config.vocab_size), np.float32), ())]
        if rows and self.model.head._forward_hooks:
            first = min(rows)
            logits = _array(self.model.head(hidden[None, first:])[0])  # [T - first, V]
            return score_some(logits[[row - first for row in rows]], targets)
        for first in range(0, len(rows), SCORED_ROWS):
            logits = _array(self.model.head(hidden[None, rows[first : first + SCORED_ROWS]])[0])  # [rows, V]
            parts.append(score_some(logits, targets[first : first + SCORED_ROWS]))
        return join_scores(parts)

    def _head(self, hidden: Tensor) -> npt.NDArray[np.float32]:
        """Return the logits of the tokens that need them: [N, C] -> [N, V]."""
        return _array(self.model.head(hidden))


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def _own_slot(slot: Slot) -> TorchSlot:
    if not isinstance(slot, TorchSlot):
        raise TypeError(f"a slot of TorchRunner was expected, not {type_of(slot)}.")
    return slot
