"""`EngineRunner`: the compiled Runner."""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.engine.arrays import (
    ACTIVATIONS,
    TOKENS,
    AttentionScratch,
    BlockScores,
    Scratch,
    Shape,
    Vectors,
    Weights,
    Work,
    aligned_zeros,
    float_rows,
)
from clearhead.engine.cache import EngineSlot, PageCache
from clearhead.engine.control import phases_of
from clearhead.engine.dtypes import activation_type
from clearhead.engine.pages import MOST_QUERIES, PAGE, cache_type, padded_head
from clearhead.engine.panels import BLOCK, GROUP, PANEL, padded_columns, padded_rows
from clearhead.engine.pool import ThreadPool
from clearhead.inference.logprobs import empty_scores, slice_scores
from clearhead.inference.runner import ScoreTask, Slot, TokenScores, check_fork, check_score_work, check_work
from clearhead.utils.machine_code import compile_notice
from clearhead.utils.text import type_of

MOST_ROWS = 512
"""Tokens in one pass; a longer prompt takes several."""
_LOGIT_ROWS = 32
"""Tokens whose logits a pass computes; more take passes that run the head only."""
_SCORE_ROWS = 128
"""Targets that a pass scores, likewise."""
_NONE = np.zeros(0, np.int64)


@dataclass
class _Pass:
    """What one pass runs: rows of tokens, and what is asked of some of them.

    Attributes:
        rows: how many tokens there are.
        wanted: rows whose logits are wanted, and the row of the result each goes to.
        scored: rows that predict a target, some at a time.
        targets: what they predict.
        places: the index of each target among all of the call.
        done: slots, and how many tokens each has more after the pass.
    """

    rows: int = 0
    wanted: list[tuple[int, int]] = field(default_factory=list)
    scored: list[npt.NDArray[np.int64]] = field(default_factory=list)
    targets: list[npt.NDArray[np.int64]] = field(default_factory=list)
    places: list[npt.NDArray[np.int64]] = field(default_factory=list)
    done: list[tuple[EngineSlot, int]] = field(default_factory=list)


@dataclass
class _Task:
    """Tokens for a slot, and what is asked of them.

    Attributes:
        slot, ids: the sequence and its new tokens.
        wanted: the row of the result for the last token's logits, or None; with `all_logits`, for the first token's.
        all_logits: whether each token's logits are wanted.
        scored, targets: indices in `ids` that predict a target, in ascending order, and what they predict.
        places: the index of each target among all of the call.
    """

    slot: EngineSlot
    ids: npt.NDArray[np.int64]
    wanted: int | None
    all_logits: bool = False
    scored: npt.NDArray[np.int64] = field(default_factory=lambda: _NONE)
    targets: npt.NDArray[np.int64] = field(default_factory=lambda: _NONE)
    places: npt.NDArray[np.int64] = field(default_factory=lambda: _NONE)


class EngineRunner:
    """Run a GPT-2 on the CPU in compiled code. Implements `clearhead.inference.runner.ScoringRunner`.

    The results for a sequence have the same bits whatever else runs with it, however its tokens are divided among
    calls, and for any number of threads.

    Args:
        config: the model's shape.
        weights: as `building.weights_of` makes them.
        threads: how many share the work.
        cache_tokens: the most tokens in the key/value cache, of all sequences together; None for no limit.

    Raises:
        InputError: if `cache_tokens` is less than the context length.
    """

    def __init__(self, config: GPTConfig, weights: Weights, threads: int, cache_tokens: int | None = None) -> None:
        self._config = config
        self._weights = weights
        self._lock = threading.Lock()
        self.threads = threads
        stored = cache_type(weights.qkv.weights.dtype)
        self._cache = PageCache(config, stored, cache_tokens)
        self._shape = Shape(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            width=config.emb_dim,
            ff_width=config.ff_dim,
            vocab_size=config.vocab_size,
            eps=config.norm_eps,
            head_panels=math.lcm(PANEL, config.head_dim) // PANEL,
            activation=ACTIVATIONS.index(config.activation),
        )
        self._work = _new_work(-(-config.context_length // PAGE))
        self._scratch = _new_scratch(config, threads, weights.qkv.weights.dtype, stored)
        self._pool: ThreadPool | None = None
        self._process = os.getpid()
        self._cache_tokens = cache_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineRunner:
        """Return a Runner with a key/value cache of its own; the weights, which nothing changes, are shared."""
        return EngineRunner(self._config, self._weights, self.threads, self._cache_tokens)

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        return self._config

    @property
    def cache_bytes(self) -> int:
        """The memory of the key/value cache, used or free."""
        return self._cache.allocated_bytes

    def open(self) -> EngineSlot:
        """Open a new, empty sequence."""
        with self._lock:
            return self._cache.open()

    def fork(self, slot: Slot, length: int | None = None) -> EngineSlot:
        """Open a new sequence with the tokens of an open one, or its first ones.

        The two share pages of the cache until one of them writes to a page.

        Raises:
            InputError: if the slot is closed, or has fewer tokens.
        """
        ours = _own_slot(slot)
        with self._lock:
            return self._cache.fork(ours, check_fork(ours, length))

    def close(self, slot: Slot) -> None:
        """Forget a sequence; its memory serves the next one. Closing twice does nothing."""
        ours = _own_slot(slot)
        with self._lock:
            if ours.open:
                self._cache.close(ours)

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> npt.NDArray[np.float32]:
        """Append tokens to each sequence and return the logits after each one's last token.

        Args:
            work: pairs of a slot and the ids to append, at least one each; no slot twice.

        Returns:
            float32 [len(work), V]

        Raises:
            InputError: if ids are missing or outside the vocabulary, a sequence would grow past
                `config.context_length`, the cache is full, or a slot is closed or appears twice. Nothing has changed
                then.
        """
        tasks = [_Task(_own_slot(slot), np.asarray(ids, np.int64), index) for index, (slot, ids) in enumerate(work)]
        with self._lock:
            check_work(self._config, [(task.slot, task.ids) for task in tasks])
            return self._run(tasks, len(tasks))

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits at every token of a whole sequence, which is not kept: float32 [T, V].

        Raises:
            InputError: as `extend`.
        """
        slot = self.open()
        try:
            task = _Task(slot, np.asarray(ids, np.int64), 0, all_logits=True)
            with self._lock:
                check_work(self._config, [(slot, task.ids)])
                return self._run([task], len(ids))
        finally:
            self.close(slot)

    def score(
        self,
        work: Sequence[ScoreTask],
        *,
        top: int = 0,
        n_choices: int | None = None,
        groups: npt.NDArray[np.bool_] | None = None,
        last_logits: bool = True,
    ) -> tuple[npt.NDArray[np.float32], list[TokenScores]]:
        """Append tokens to each sequence and score the targets, without holding the logits of all tokens.

        The scores are computed from the same bits that `extend` and `logits` return.

        Args:
            work: at least one task; no slot twice.
            top: how many of the most likely tokens to return at each position.
            n_choices: count only ids below this in ranks and top; None for all.
            groups: sets of tokens, bool [G, V], whose probabilities are wanted at each target's position.
            last_logits: whether the logits after each task's last token are wanted.

        Returns:
            the logits after each task's last token, float32 [len(work), V] or [0, V], and the scores of each task's
            targets and alternatives.

        Raises:
            InputError: as `extend`; or if a target is outside the vocabulary, or there are more targets than tokens.
        """
        ends = np.cumsum([0, *(len(task.targets) + len(task.alternatives) for task in work)]).tolist()
        tasks = [
            _score_task(task, index if last_logits else None, first)
            for index, (task, first) in enumerate(zip(work, ends[:-1], strict=True))
        ]
        choices = self._config.vocab_size if n_choices is None else min(n_choices, self._config.vocab_size)
        top = min(top, choices)
        with self._lock:
            check_score_work(self._config, [(own.slot, task) for own, task in zip(tasks, work, strict=True)])
            self._work.counts[3:] = top, choices
            self._make_score_room(top, groups)
            found = empty_scores(ends[-1], top, len(self._scratch.scores.groups))
            logits = self._run(tasks, len(tasks) if last_logits else 0, found)
        return logits, [slice_scores(found, first, last) for first, last in itertools.pairwise(ends)]

    def _run(self, tasks: Sequence[_Task], results: int, scores: TokenScores | None = None) -> npt.NDArray[np.float32]:
        """Fill passes with tokens until all have run; `scores` takes those of all targets, task after task."""
        logits = np.empty((results, self._config.vocab_size), np.float32)
        self._cache.reserve([(task.slot, len(task.ids)) for task in tasks])
        work, one = self._work, _Pass()
        for task in tasks:
            position, taken = task.slot.length, 0
            while taken < len(task.ids):
                count = min(len(task.ids) - taken, MOST_ROWS - one.rows)
                rows = slice(one.rows, one.rows + count)
                work.tokens[rows] = task.ids[taken : taken + count]
                work.positions[rows] = np.arange(position + taken, position + taken + count)
                work.sequences[rows] = one.rows
                work.pages[one.rows, : len(task.slot.pages)] = task.slot.pages
                one.done.append((task.slot, count))
                if task.all_logits:
                    one.wanted.extend((one.rows + i, taken + i) for i in range(count))
                elif task.wanted is not None and taken + count == len(task.ids):
                    one.wanted.append((one.rows + count - 1, task.wanted))
                if len(task.scored):
                    some = slice(*np.searchsorted(task.scored, (taken, taken + count)).tolist())
                    one.scored.append(task.scored[some] + (one.rows - taken))
                    one.targets.append(task.targets[some])
                    one.places.append(task.places[some])
                one.rows += count
                taken += count
                if one.rows == MOST_ROWS:
                    self._run_pass(one, logits, scores)
                    one = _Pass()
        if one.rows:
            self._run_pass(one, logits, scores)
        return logits

    def _run_pass(self, one: _Pass, logits: npt.NDArray[np.float32], scores: TokenScores | None) -> None:
        """Run a pass, and further ones for what is asked of more rows than one pass can answer."""
        work, n = self._work, one.rows
        all_scored, all_targets, places = (
            np.concatenate([_NONE, *parts]) for parts in (one.scored, one.targets, one.places)
        )
        first = 0
        while first == 0 or first * _LOGIT_ROWS < len(one.wanted) or first * _SCORE_ROWS < len(all_scored):
            wanted = one.wanted[first * _LOGIT_ROWS : (first + 1) * _LOGIT_ROWS]
            some = slice(first * _SCORE_ROWS, (first + 1) * _SCORE_ROWS)
            scored, starts, of_target = np.unique(all_scored[some], return_index=True, return_inverse=True)
            work.wanted[: len(wanted)] = [row for row, _ in wanted]
            work.scored[: len(scored)] = scored
            work.first_target[: len(scored) + 1] = [*starts, len(of_target)]
            work.targets[: len(of_target)] = all_targets[some]
            work.counts[:3] = n, len(wanted), len(scored)
            self._start_pass()
            for index, (_, result) in enumerate(wanted):
                logits[result] = self._scratch.logits[index, : self._config.vocab_size]
            if scores is not None:
                self._keep_scores(scores, places[some], of_target)
            first, n = first + 1, 0
        for slot, count in one.done:
            slot.length += count

    def _keep_scores(self, kept: TokenScores, places: npt.NDArray[np.int64], of_target: npt.NDArray[np.int64]) -> None:
        """Copy what the last pass found to the places of its targets, each of which has a row of those scored."""
        found, top, n = self._scratch.scores, int(self._work.counts[3]), len(places)
        kept.logprobs[places] = found.logprobs[:n]
        kept.ranks[places] = found.ranks[:n]
        kept.entropies[places] = found.entropies[of_target]
        kept.top_ids[places] = found.best_ids[of_target, :top]
        kept.top_logprobs[places] = found.best_logprobs[of_target, :top]
        kept.groups[places] = found.group_logprobs[of_target]

    def _start_pass(self) -> None:
        if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
            self._process = os.getpid()
            with compile_notice("Compiling the engine for this machine, once; this takes ten seconds to a minute …"):
                self._pool = ThreadPool(self.threads, phases_of(self._config.n_layers), self._arguments())
            weakref.finalize(self, self._pool.close).atexit = False
        self._pool.run()

    def _arguments(self) -> tuple[Any, ...]:
        return self._weights, self._shape, self._work, self._scratch

    def _make_score_room(self, top: int, groups: npt.NDArray[np.bool_] | None) -> None:
        """Have memory for scores with `top` tokens and some groups each; there is none before the first call."""
        had = self._scratch.scores
        n_groups = 0 if groups is None else len(groups)
        if len(had.ranks) == 0 or had.best_ids.shape[1] < top or len(had.groups) != n_groups:
            scores = _score_scratch(self._config, self.threads, _SCORE_ROWS, top, n_groups)
            self._use_scratch(self._scratch._replace(scores=scores))
        if groups is not None:
            self._scratch.scores.groups[:, : self._config.vocab_size] = groups

    def record_inputs(self, rows: int) -> npt.NDArray[np.float32]:
        """Record from now on what every matrix is multiplied by, for `calibration.py`.

        Args:
            rows: the most tokens of a pass that are recorded.

        Returns:
            float32 [4 * n_layers + 1, rows, the longest input]; each pass overwrites it. The matrices are in the
            order in which a token meets them, see `building.matrices`.
        """
        longest = max(self._config.emb_dim, self._config.ff_dim)
        recorded = np.zeros((4 * self._config.n_layers + 1, rows, longest), np.float32)
        with self._lock:
            self._use_scratch(self._scratch._replace(recorded=recorded))
        return recorded

    def _use_scratch(self, scratch: Scratch) -> None:
        self._scratch = scratch
        if self._pool is not None and self._process == os.getpid():
            self._pool.replace(self._arguments())


def _new_work(n_pages: int) -> Work:
    def row() -> npt.NDArray[np.int64]:
        return np.zeros(MOST_ROWS, np.int64)

    return Work(
        tokens=row(),
        positions=row(),
        sequences=row(),
        pages=np.zeros((MOST_ROWS, n_pages), np.int64),
        row_index=np.arange(MOST_ROWS, dtype=np.int64),
        wanted=row(),
        scored=row(),
        first_target=np.zeros(MOST_ROWS + 1, np.int64),
        targets=row(),
        counts=np.zeros(5, np.int64),
    )


def _new_scratch(config: GPTConfig, threads: int, weights: np.dtype[Any], stored: npt.DTypeLike) -> Scratch:
    columns = max(padded_columns(config.emb_dim), padded_columns(config.ff_dim))
    rows = max(padded_rows(3 * config.emb_dim), padded_rows(config.ff_dim), columns)
    kind, groups = activation_type(weights), columns // GROUP
    return Scratch(
        x=float_rows(MOST_ROWS, padded_rows(padded_columns(config.emb_dim)), np.float32),
        normed=float_rows(MOST_ROWS, padded_columns(config.emb_dim), np.float32),
        projected=float_rows(MOST_ROWS, rows, np.float32),
        inputs=Vectors(
            numbers=float_rows(MOST_ROWS, columns, kind),
            scales=np.zeros((MOST_ROWS, groups if kind == np.int8 else 1), np.float32),
            offsets=np.zeros((MOST_ROWS, groups), np.int32),
        ),
        logits=float_rows(_LOGIT_ROWS, padded_rows(config.vocab_size), np.float32),
        attention=_attention_scratch(config, threads, np.dtype(stored)),
        stored=np.zeros(0, stored),
        scores=_score_scratch(config, threads, 0, 0, 0),
        recorded=np.zeros((0, 0, 0), np.float32),
    )


def _attention_scratch(config: GPTConfig, threads: int, stored: np.dtype[Any]) -> AttentionScratch:
    pages = -(-config.context_length // PAGE)
    wide, rows = padded_head(config.head_dim), (threads, MOST_QUERIES)
    in_bytes = stored == np.int8
    return AttentionScratch(
        scores=aligned_zeros((*rows, pages * PAGE), np.float32),
        mixed=aligned_zeros((*rows, wide), np.float32),
        queries=aligned_zeros((*rows, wide), np.int8 if in_bytes else np.uint16),
        starts=np.zeros(rows, np.int32),
        query_scales=np.zeros((*rows, 1), np.float32),
        weights=aligned_zeros((*rows, pages * PAGE), np.uint8 if in_bytes else np.uint16),
        weight_scales=np.zeros((*rows, pages), np.float32),
    )


def _score_scratch(config: GPTConfig, threads: int, rows: int, top: int, n_groups: int) -> BlockScores:
    blocks = -(-config.vocab_size // BLOCK)
    in_block = min(top, BLOCK)
    return BlockScores(
        target_logits=np.zeros(rows, np.float32),
        greatest=np.zeros((rows, blocks), np.float32),
        sums=np.zeros((rows, blocks), np.float32),
        products=np.zeros((rows, blocks), np.float32),
        above=np.zeros((rows, blocks), np.int64),
        top_logits=np.zeros((rows, blocks, in_block), np.float32),
        top_ids=np.zeros((rows, blocks, in_block), np.int64),
        logits=np.zeros((threads, TOKENS, 2 * BLOCK), np.float32),
        panel=np.zeros((rows, PANEL), np.float32),
        logprobs=np.zeros(rows),
        ranks=np.zeros(rows, np.int64),
        entropies=np.zeros(rows),
        best_logprobs=np.zeros((rows, top)),
        best_ids=np.zeros((rows, top), np.int64),
        groups=np.zeros((n_groups, blocks * BLOCK), np.float32),
        group_sums=np.zeros((rows, blocks, n_groups), np.float32),
        group_logprobs=np.zeros((rows, n_groups)),
    )


def _score_task(task: ScoreTask, wanted: int | None, first: int) -> _Task:
    """Return a task whose targets, and after them the alternatives, have their places from `first` on."""
    scored = np.arange(task.start, task.start + len(task.targets))
    targets, places = np.asarray(task.targets, np.int64), np.arange(first, first + len(scored))
    if task.alternatives:
        more = np.array(task.alternatives, np.int64)  # [N, 2]
        scored, targets = np.concatenate([scored, more[:, 0]]), np.concatenate([targets, more[:, 1]])
        order = np.argsort(scored, kind="stable")
        scored, targets, places = scored[order], targets[order], first + order
    return _Task(
        _own_slot(task.slot), np.asarray(task.ids, np.int64), wanted, scored=scored, targets=targets, places=places
    )


def _own_slot(slot: Slot) -> EngineSlot:
    if not isinstance(slot, EngineSlot):
        raise TypeError(f"a slot of EngineRunner was expected, not {type_of(slot)}.")
    return slot
