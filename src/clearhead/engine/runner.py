"""`EngineRunner`: the compiled Runner, and how a model's weights come into it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearhead.config import GPTConfig
from clearhead.engine.attention import MOST_QUERIES, PAGE
from clearhead.engine.dtypes import padded_columns, padded_rows
from clearhead.engine.elementwise import ACTIVATIONS
from clearhead.engine.forward import Cache, Scratch, Shape, Weights, Work, phases_of, worker_loop
from clearhead.engine.threads import JOB, STOP, new_control
from clearhead.errors import InputError
from clearhead.inference.runner import Slot
from clearhead.utils.jit import compile_notice

MOST_ROWS = 128
"""Tokens in one pass; a longer prompt is several."""
_LINE = 64  # bytes


@dataclass(eq=False)
class EngineSlot:
    """One sequence: its row in the table of pages, and how many tokens are there."""

    row: int
    length: int = 0
    open: bool = True


class ThreadPool:
    """The threads of one runner besides the one that calls it."""

    def __init__(self, threads: int, phases: int, arguments: tuple[Any, ...]) -> None:
        self._threads = threads
        self._process = os.getpid()
        self._control = new_control(phases)
        self._arguments = arguments
        self._passes = 0
        self._asleep = 0
        self._leaving = self._held = False
        self._change = threading.Condition()
        for thread in range(1, threads):
            threading.Thread(target=self._run_worker, args=(thread,), daemon=True, name=f"clearhead-{thread}").start()

    def run(self) -> None:
        """One pass, by all threads; returns when it is done."""
        try:
            with self._change:
                self._passes = int(self._control[JOB]) + 1
                if self._asleep:
                    self._change.notify_all()
            worker_loop(0, self._threads, self._control, self._passes, *self._arguments)
        finally:
            # One that was interrupted before it began, while it was compiled perhaps, leaves its number to the next.
            self._passes = int(self._control[JOB])

    @property
    def cache(self) -> Cache:
        """The keys and values that the threads work with."""
        cache: Cache = self._arguments[2]
        return cache

    def replace(self, arguments: tuple[Any, ...]) -> None:
        """Gives the threads other arrays for the next pass; not while one runs."""
        try:
            self._control[STOP] = 1
            with self._change:
                self._held = True
                self._change.wait_for(lambda: self._asleep == self._threads - 1)
                self._arguments = arguments
        finally:
            self._held = False
            self._control[STOP] = 0

    def leave(self) -> None:
        """Ends the threads; not while a pass runs. Returns at once, so that a garbage collector can call it."""
        if self._process != os.getpid():  # a fork has no threads but its own, and the lock may be held by one of them
            return
        self._leaving = True
        self._control[STOP] = 1
        with self._change:
            self._change.notify_all()

    def _run_worker(self, thread: int) -> None:
        seen = 0
        while True:
            with self._change:
                self._asleep += 1
                self._change.notify_all()
                # The number of the pass is told before it begins, so a thread cannot fall asleep and miss it. A thread
                # that is late may not have seen a pass that is over, and must wait all the same while it is held.
                while (self._held or self._passes <= seen) and not self._leaving:
                    self._change.wait()
                self._asleep -= 1
                if self._leaving:
                    return
                arguments = self._arguments
            try:
                seen = worker_loop(thread, self._threads, self._control, seen, *arguments)
            except BaseException:
                with self._change:  # it counts as asleep for good: it holds no piece, and nobody waits for it
                    self._asleep += 1
                    self._change.notify_all()
                raise


class EngineRunner:
    """Runs a GPT-2 on the CPU in compiled code. Implements `clearhead.inference.runner.Runner`.

    The results for a sequence have the same bits whatever else runs with it, however its tokens are cut into calls,
    and for any number of threads.

    Args:
        config: the model's shape.
        weights: as `store.py` makes them.
        threads: how many share the work.
    """

    def __init__(self, config: GPTConfig, weights: Weights, threads: int) -> None:
        self._config = config
        self._weights = weights
        self._lock = threading.Lock()
        self._slots: dict[int, EngineSlot] = {}
        self._n_pages = -(-config.context_length // PAGE)
        self._free: list[int] = []
        self.threads = threads
        whole = weights.qkv.weights.dtype in (np.int8, np.uint8)
        self._stored = np.float32 if weights.qkv.weights.dtype == np.float32 else np.uint16
        self._shape = Shape(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            width=config.emb_dim,
            ff_width=config.ff_dim,
            vocab_size=config.vocab_size,
            eps=config.norm_eps,
            activation=ACTIVATIONS.index(config.activation),
        )
        self._work = _work()
        self._scratch = _scratch(config, threads, whole)
        self._cache = Cache(
            np.zeros(0, self._stored), np.zeros(0, self._stored), np.zeros((0, self._n_pages), np.int64)
        )
        self._pool: ThreadPool | None = None
        self._process = os.getpid()

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        return self._config

    def open(self) -> EngineSlot:
        """A new, empty sequence."""
        with self._lock:
            row = next(r for r in range(len(self._slots) + 1) if r not in self._slots)
            slot = self._slots[row] = EngineSlot(row)
            return slot

    def close(self, slot: Slot) -> None:
        """Forgets a sequence; its memory serves the next one. Closing twice does nothing."""
        ours = _ours(slot)
        with self._lock:
            if ours.open:
                ours.open = False
                del self._slots[ours.row]
                used = -(-ours.length // PAGE)
                self._free.extend(int(page) for page in self._cache.table[ours.row, :used])

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
        tasks = [(_ours(slot), np.asarray(ids, np.int64)) for slot, ids in work]
        with self._lock:
            self._check(tasks)
            logits = np.empty((len(tasks), self._config.vocab_size), np.float32)
            self._reserve(tasks)
            rows = [(index, slot, ids) for index, (slot, ids) in enumerate(tasks)]
            self._run_all(rows, logits, all_positions=False)
        return logits

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits at every token of a whole sequence: float32 [T, V].

        Raises:
            InputError: as `extend`.
        """
        slot = self.open()
        try:
            tokens = np.asarray(ids, np.int64)
            with self._lock:
                self._check([(slot, tokens)])
                found = np.empty((len(tokens), self._config.vocab_size), np.float32)
                self._reserve([(slot, tokens)])
                self._run_all([(0, slot, tokens)], found, all_positions=True)
            return found
        finally:
            self.close(slot)

    def _run_all(self, rows: list[tuple[int, EngineSlot, np.ndarray]], logits: np.ndarray, all_positions: bool) -> None:
        """Fill passes with tokens until all have run; `all_positions` asks for each token's logits, else the last's."""
        work, n = self._work, 0
        wanted: list[tuple[int, int]] = []
        done: list[tuple[EngineSlot, int]] = []

        def run() -> None:
            work.wanted[: len(wanted)] = [row for row, _ in wanted]
            work.counts[:] = n, len(wanted)
            self._pass()
            for place, (_, target) in enumerate(wanted):
                logits[target] = self._scratch.logits[place, : self._config.vocab_size]
            for slot, count in done:
                slot.length += count

        for place, slot, ids in rows:
            start, taken = 0, slot.length
            while start < len(ids):
                count = min(len(ids) - start, MOST_ROWS - n)
                work.tokens[n : n + count] = ids[start : start + count]
                work.places[n : n + count] = np.arange(taken + start, taken + start + count)
                work.slots[n : n + count] = slot.row
                done.append((slot, count))
                if all_positions:
                    wanted.extend((n + i, start + i) for i in range(count))
                elif start + count == len(ids):
                    wanted.append((n + count - 1, place))
                n += count
                start += count
                if n == MOST_ROWS:
                    run()
                    n, wanted, done = 0, [], []
        if n:
            run()

    def _pass(self) -> None:
        if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
            self._process = os.getpid()
            self._pool = ThreadPool(self.threads, phases_of(self._config.n_layers), self._arguments())
            weakref.finalize(self, self._pool.leave).atexit = False
            with compile_notice("Compiling the engine for this machine, once; this takes some ten seconds …"):
                self._pool.run()
        else:
            if self._pool.cache is not self._cache:
                self._pool.replace(self._arguments())
            self._pool.run()

    def _arguments(self) -> tuple[Any, ...]:
        return self._weights, self._shape, self._cache, self._work, self._scratch

    def _reserve(self, tasks: Sequence[tuple[EngineSlot, np.ndarray]]) -> None:
        """Gives each sequence the pages that its new tokens need."""
        needs = [
            (slot, page)
            for slot, ids in tasks
            for page in range(-(-slot.length // PAGE), -(-(slot.length + len(ids)) // PAGE))
        ]
        rows = 1 + max(slot.row for slot, _ in tasks)
        if rows > len(self._cache.table) or len(needs) > len(self._free):
            self._grow(rows, len(needs))
        for slot, page in needs:
            self._cache.table[slot.row, page] = self._free.pop()

    def _grow(self, rows: int, needed: int) -> None:
        """Makes the cache larger, by half at least where pages run out."""
        config, old = self._config, self._cache
        key_page, value_page = page_sizes(config)
        had = pages = len(old.keys) // key_page
        if needed > len(self._free):
            pages += max(needed - len(self._free), had // 2, 1)
        table = np.zeros((max(rows, len(old.table)), self._n_pages), np.int64)
        table[: len(old.table)] = old.table
        keys, values = old.keys, old.values
        if pages * key_page > len(keys):
            keys, values = np.zeros(pages * key_page, self._stored), np.zeros(pages * value_page, self._stored)
            keys[: len(old.keys)], values[: len(old.values)] = old.keys, old.values
        self._cache = Cache(keys, values, table)
        self._free.extend(range(pages - 1, had - 1, -1))  # when they are there: memory may have run out before

    def _check(self, tasks: Sequence[tuple[EngineSlot, np.ndarray]]) -> None:
        config = self._config
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
            outside = ids[(ids < 0) | (ids >= config.vocab_size)]
            if len(outside):
                raise InputError(f"token id {outside[0]} is not in the vocabulary of {config.vocab_size:,} (from 0).")


def page_sizes(config: GPTConfig) -> tuple[int, int]:
    """How many numbers of keys, and of values, a page of the cache has."""
    value_dim = (config.head_dim + 7) // 8 * 8
    return config.n_layers * config.emb_dim * PAGE, config.n_layers * config.n_heads * value_dim * PAGE


def _work() -> Work:
    def row() -> np.ndarray:
        return np.zeros(MOST_ROWS, np.int64)

    row_index = np.arange(MOST_ROWS, dtype=np.int64)
    return Work(
        tokens=row(), places=row(), slots=row(), row_index=row_index, wanted=row(), counts=np.zeros(2, np.int64)
    )


def _scratch(config: GPTConfig, threads: int, whole: bool) -> Scratch:
    tokens = -(-config.context_length // PAGE) * PAGE
    dtype: type = np.int16 if whole else np.float32
    return Scratch(
        x=_rows(padded_columns(config.emb_dim), np.float32),
        normed=_rows(padded_columns(config.emb_dim), np.float32),
        projected=_rows(max(padded_rows(3 * config.emb_dim), padded_rows(config.ff_dim)), np.float32),
        quantized_input=_rows(max(padded_columns(config.emb_dim), padded_columns(config.ff_dim)), dtype),
        scales=np.zeros(MOST_ROWS, np.float32),
        logits=_rows(padded_rows(config.vocab_size), np.float32),
        scores=np.zeros((threads, MOST_QUERIES, tokens), np.float32),
        mixed=np.zeros((threads, MOST_QUERIES, (config.head_dim + 7) // 8 * 8), np.float32),
    )


def _rows(length: int, dtype: type) -> np.ndarray:
    """[MOST_ROWS, at least length], zeros, with an odd number of cache lines from one row to the next.

    A cache keeps a line in one of a few places that the address's lower bits name. A product writes a few columns of
    many rows; were the rows opaque by a multiple of 4096 bytes, as 768 * 4 numbers are, all would want the same places.
    """
    in_line = _LINE // np.dtype(dtype).itemsize
    lines = -(-length // in_line) | 1
    return np.zeros((MOST_ROWS, lines * in_line), dtype)


def _ours(slot: Slot) -> EngineSlot:
    if not isinstance(slot, EngineSlot):
        raise TypeError(f"a slot of EngineRunner was expected, not a {type(slot).__name__}.")
    return slot
