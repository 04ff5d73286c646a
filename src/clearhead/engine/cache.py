"""The memory of the key/value cache: pages that sequences share and give back.

`pages.py` has the layout of a page, and `attention.write_kv` writes it. The compiled code gets a page's address,
so that the cache grows by new blocks of pages and nothing is ever copied or moved.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.engine.arrays import aligned_zeros
from clearhead.engine.pages import PAGE, copy_tokens, page_bytes
from clearhead.errors import InputError

_BLOCK_BYTES = 4 << 20
"""Pages are allocated in blocks of about this size, or one by one if a page is larger."""


@dataclass(eq=False)
class EngineSlot:
    """One sequence.

    Attributes:
        length: the number of tokens in it.
        open: whether it may be used.
        pages: the addresses of its pages: those of its tokens, and perhaps some more for tokens to come.
    """

    length: int = 0
    open: bool = True
    pages: list[int] = field(default_factory=list)


class PageCache:
    """Give out pages to slots, and copy a page that several slots share before one of them writes to it.

    Args:
        config: the model's shape.
        stored: the type of the cache's numbers.
        limit: the most tokens that the pages may hold together; None for no limit.

    Raises:
        InputError: if the limit is below the model's context length.
    """

    def __init__(self, config: GPTConfig, stored: npt.DTypeLike, limit: int | None = None) -> None:
        if limit is not None and limit < config.context_length:
            raise InputError(
                f"cache_tokens is {limit:,}, and one sequence may have {config.context_length:,} tokens; "
                "give at least as many."
            )
        self._config, self._stored = config, np.dtype(stored)
        self.page_bytes = page_bytes(config, stored)
        self._limit = None if limit is None else -(-limit // PAGE)
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._pages: dict[int, npt.NDArray[np.uint8]] = {}
        self._free: list[int] = []
        self._users: Counter[int] = Counter()
        self._slots: weakref.WeakSet[EngineSlot] = weakref.WeakSet()

    @property
    def allocated_bytes(self) -> int:
        """The memory of all pages, in use or not."""
        return len(self._pages) * self.page_bytes

    def open(self) -> EngineSlot:
        """Return a new slot without pages."""
        slot = EngineSlot()
        self._slots.add(slot)
        return slot

    def fork(self, slot: EngineSlot, length: int) -> EngineSlot:
        """Return a new slot that shares the pages of another one's first tokens."""
        copy = self.open()
        copy.length, copy.pages = length, slot.pages[: -(-length // PAGE)]
        self._users.update(copy.pages)
        return copy

    def close(self, slot: EngineSlot) -> None:
        """Give a slot's pages back, except those that other slots share."""
        slot.open = False
        pages, slot.pages = slot.pages, []
        self._slots.discard(slot)
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)

    def reserve(self, needs: list[tuple[EngineSlot, int]]) -> None:
        """Make sure that each slot can take so many more tokens: it has the pages, and the one it writes to is its own.

        Raises:
            InputError: if the limit does not allow it; nothing has changed then.
        """
        counts = [-(-(slot.length + count) // PAGE) - len(slot.pages) for slot, count in needs]
        shared = [slot for slot, _ in needs if slot.length % PAGE and self._users[slot.pages[slot.length // PAGE]] > 1]
        self._make_room(sum(max(0, count) for count in counts) + len(shared))
        for slot in shared:
            old, new = slot.pages[slot.length // PAGE], self._take()
            copy_tokens(self._config, self._stored, self._pages[old], self._pages[new], slot.length % PAGE)
            slot.pages[slot.length // PAGE] = new
            self._users[old] -= 1
        for (slot, _), count in zip(needs, counts, strict=True):
            for _ in range(count):
                slot.pages.append(self._take())

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page] = 1
        return page

    def _make_room(self, needed: int) -> None:
        """Have so many free pages."""
        if needed <= len(self._free):
            return
        # Slots that were dropped without being closed, and calls that were interrupted, may have left pages behind.
        self._users = Counter(page for slot in self._slots for page in slot.pages)
        self._free = [page for page in self._pages if not self._users[page]]
        missing = needed - len(self._free)
        if self._limit is not None and len(self._pages) + missing > self._limit:
            free = (self._limit - len(self._pages) + len(self._free)) * PAGE
            raise InputError(
                f"the key/value cache is full: {needed * PAGE:,} tokens are needed, {free:,} of cache_tokens' "
                f"{self._limit * PAGE:,} are free; close some sequences, or raise cache_tokens."
            )
        while missing > 0:
            missing -= self._add_block(missing)

    def _add_block(self, missing: int) -> int:
        """Allocate a block of pages; return how many there are in it."""
        count = max(1, _BLOCK_BYTES // self.page_bytes)
        if self._limit is not None:
            count = min(count, self._limit - len(self._pages))
        block = aligned_zeros((count, self.page_bytes), np.uint8)
        self._blocks.append(block)
        for page in block:
            self._pages[page.ctypes.data] = page
            self._free.append(page.ctypes.data)
        return count
