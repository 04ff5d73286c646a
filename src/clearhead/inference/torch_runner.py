"""The reference Runner: PyTorch on any device, with a preallocated key/value cache and ragged batches.

One call of `extend` is at most two passes of the model: one over all the sequences that get a single token
(decoding; they share each product), and one for each sequence that gets several (prompts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.runner import Slot
from clearhead.model import GPTModel


@dataclass(eq=False)
class TorchSlot:
    """One sequence: its row in the cache, and how many tokens are there."""

    row: int
    length: int = 0
    open: bool = True


class KeyValueCache:
    """Keys and values of every layer for many sequences, in rows that are used again.

    Memory for whole contexts is reserved when a row is made: n_layers * 2 * context_length * emb_dim numbers
    (75.5 MB for the 124M in float32). An operating system hands it out only as it is written.
    """

    def __init__(self, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = (config.n_heads, config.context_length, config.head_dim)
        self._device, self._dtype = device, dtype
        self.keys = [self._empty(0) for _ in range(config.n_layers)]  # each [rows, H, context_length, D]
        self.values = [self._empty(0) for _ in range(config.n_layers)]
        self._slots: dict[int, TorchSlot] = {}

    def open(self) -> TorchSlot:
        """A row for a new sequence; the lowest that is free, so that running sequences stay close together."""
        row = next((r for r in range(self._rows) if r not in self._slots), self._rows)
        if row == self._rows:
            self._grow(max(1, 2 * self._rows))
        slot = self._slots[row] = TorchSlot(row)
        return slot

    def close(self, slot: TorchSlot) -> None:
        """Frees a row."""
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


class OneEach:
    """The memory of a pass that gives one new token to each of several sequences (B of them, T = 1)."""

    def __init__(self, cache: KeyValueCache, slots: Sequence[TorchSlot], device: torch.device) -> None:
        self.cache = cache
        rows = [slot.row for slot in slots]
        self.rows = torch.tensor(rows, device=device)  # [B]
        self.lengths = torch.tensor([slot.length for slot in slots], device=device)  # [B]
        self.longest = max(slot.length for slot in slots) + 1
        # Rows in order are one slice of the cache; any others have to be gathered, which copies them.
        first = rows[0]
        in_order = rows == list(range(first, first + len(rows)))
        self._choose: slice | Tensor = slice(first, first + len(rows)) if in_order else self.rows
        places = torch.arange(self.longest, device=device)  # [longest]
        # What lies behind a sequence's end was never written, or belonged to another: it must not be seen.
        self._mask = (places <= self.lengths[:, None])[:, None, None, :]  # [B, 1, 1, longest]
        self._equal = len({slot.length for slot in slots}) == 1

    def recall(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores new keys and values; returns all of them [B, H, longest, D], and a mask of those that exist."""
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        all_keys[self.rows, :, self.lengths] = keys[:, :, 0]  # [B, H, D]
        all_values[self.rows, :, self.lengths] = values[:, :, 0]
        seen_keys = all_keys[self._choose, :, : self.longest]  # [B, H, longest, D]
        seen_values = all_values[self._choose, :, : self.longest]
        if self._equal:
            return seen_keys, seen_values, None
        # Unwritten memory may hold NaN, and NaN times a weight of 0 is NaN: put zeros there.
        return seen_keys, seen_values.masked_fill(~self._mask.transpose(-1, -2), 0), self._mask

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries, keys and values [B, H, 1, D] of the new tokens; returns the mixed values [B, H, 1, D]."""
        keys, values, mask = self.recall(layer, keys, values)
        if mask is None:
            return F.scaled_dot_product_attention(queries, keys, values)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])  # [B, H, 1, longest]
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return weights @ values  # [B, H, 1, D]


class ManyForOne:
    """The memory of a pass that gives several new tokens to one sequence (B = 1)."""

    def __init__(self, cache: KeyValueCache, slot: TorchSlot, new: int, device: torch.device) -> None:
        self.cache, self.row, self.start, self.end = cache, slot.row, slot.length, slot.length + new
        places = torch.arange(self.end, device=device)
        # A new token sees all that was there and the new ones up to itself: [new, end]
        self._mask = places <= places[self.start :, None]

    def recall(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stores new keys and values; returns all of them [1, H, end, D], and which each new token sees [new, end]."""
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        all_keys[self.row, :, self.start : self.end] = keys[0]
        all_values[self.row, :, self.start : self.end] = values[0]
        return (
            all_keys[self.row : self.row + 1, :, : self.end],
            all_values[self.row : self.row + 1, :, : self.end],
            self._mask,
        )

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries, keys and values [1, H, new, D]; returns the mixed values [1, H, new, D]."""
        seen_keys, seen_values, mask = self.recall(layer, keys, values)
        if self.start == 0:
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return F.scaled_dot_product_attention(queries, seen_keys, seen_values, attn_mask=mask)


class TorchRunner:
    """Runs a `GPTModel` over growing sequences. Implements `clearhead.inference.runner.Runner`.

    The model is put into evaluation mode for each call and back after it, so a model in training can be sampled.

    Args:
        model: on any device, in any floating-point type; the logits come back in float32.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        weight = model.token_embedding.weight
        self._device = weight.device
        self._cache = KeyValueCache(model.config, weight.device, weight.dtype)

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        return self.model.config

    def open(self) -> TorchSlot:
        """A new, empty sequence."""
        return self._cache.open()

    def close(self, slot: Slot) -> None:
        """Forgets a sequence; its memory serves the next one. Closing twice does nothing."""
        self._cache.close(_ours(slot))

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> np.ndarray:
        """Appends tokens to each sequence; returns the logits after each one's last token.

        Args:
            work: pairs of a slot and the ids to append, at least one each; no slot twice.

        Returns:
            float32 [len(work), V]

        Raises:
            InputError: where ids are empty or outside the vocabulary, a sequence would grow past
                `config.context_length`, or a slot is closed or stands twice in `work`. Nothing has changed then.
        """
        tasks = [(_ours(slot), ids) for slot, ids in work]
        self._check(tasks)
        logits = np.empty((len(tasks), self.config.vocab_size), np.float32)
        singles = [place for place, (_, ids) in enumerate(tasks) if len(ids) == 1]
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                if singles:
                    logits[singles] = self._one_each([tasks[place] for place in singles])
                for place, (slot, ids) in enumerate(tasks):
                    if len(ids) > 1:
                        logits[place] = self._many(slot, ids)
        finally:
            self.model.train(training)
        for slot, ids in tasks:
            slot.length += len(ids)
        return logits

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits at every token of a whole sequence, without the cache: float32 [T, V].

        Raises:
            InputError: as `extend`.
        """
        self._check([(TorchSlot(-1), ids)])
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return self.model(torch.tensor([list(ids)], device=self._device))[0].float().cpu().numpy()
        finally:
            self.model.train(training)

    def _one_each(self, tasks: list[tuple[TorchSlot, Sequence[int]]]) -> np.ndarray:
        # In the cache's order, so that sequences that lie side by side are read as one slice.
        order = sorted(range(len(tasks)), key=lambda place: tasks[place][0].row)
        slots = [tasks[place][0] for place in order]
        memory = OneEach(self._cache, slots, self._device)
        ids = torch.tensor([[tasks[place][1][0]] for place in order], device=self._device)  # [B, 1]
        found = self._run(ids, memory.lengths[:, None], memory)  # [B, V]
        logits = np.empty_like(found)
        logits[order] = found
        return logits

    def _many(self, slot: TorchSlot, new: Sequence[int]) -> np.ndarray:
        ids = torch.tensor([list(new)], device=self._device)  # [1, T]
        positions = torch.arange(slot.length, slot.length + len(new), device=self._device)  # [T]
        return self._run(ids, positions, ManyForOne(self._cache, slot, len(new), self._device))[0]

    def _run(self, ids: Tensor, positions: Tensor, memory: OneEach | ManyForOne) -> np.ndarray:
        hidden = self.model.hidden(ids, positions, memory)[:, -1]  # [B, C]: the head only where logits are asked for
        return self.model.head(hidden).float().cpu().numpy()  # [B, V]

    def _check(self, tasks: list[tuple[TorchSlot, Sequence[int]]]) -> None:
        config = self.config
        if len({id(slot) for slot, _ in tasks}) < len(tasks):
            raise InputError("a sequence stands twice in one call; give all of its new tokens in one piece.")
        for slot, ids in tasks:
            if not slot.open:
                raise InputError("this sequence was closed; open a new one.")
            if not len(ids):
                raise InputError("there are no tokens to run; give at least one.")
            if slot.length + len(ids) > config.context_length:
                raise InputError(
                    f"{slot.length + len(ids):,} tokens do not fit into the model's context of "
                    f"{config.context_length:,}; shorten the sequence."
                )
            for token in ids:
                if not 0 <= token < config.vocab_size:
                    raise InputError(f"token id {token} is not in the vocabulary of {config.vocab_size:,} (from 0).")


def _ours(slot: Slot) -> TorchSlot:
    if not isinstance(slot, TorchSlot):
        raise TypeError(f"a slot of TorchRunner was expected, not a {type(slot).__name__}.")
    return slot
