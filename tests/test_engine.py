"""The compiled Runner against the PyTorch one and against itself: the same numbers, and the same bits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.config import GPTConfig
from clearhead.engine import cache as engine_cache
from clearhead.engine.building import build, weights_of
from clearhead.engine.calibration import _sample, calibrate
from clearhead.engine.dtypes import storage
from clearhead.engine.moments import InputRecord
from clearhead.engine.packing import pack
from clearhead.engine.pages import PAGE
from clearhead.engine.panels import GROUP, PANEL, padded_columns
from clearhead.engine.runner import EngineRunner
from clearhead.engine.variants import VARIANT
from clearhead.errors import InputError
from clearhead.inference.runner import ScoreTask
from clearhead.inference.torch_runner import TorchRunner
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors
from clearhead.utils.machine_code import BoundCall
from clearhead.utils.system import usable_cores

SHAPES = {
    "small": GPTConfig(vocab_size=101, context_length=150, emb_dim=48, n_heads=3, n_layers=2, qkv_bias=True),
    "odd": GPTConfig(vocab_size=67, context_length=70, emb_dim=42, n_heads=3, n_layers=3, ff_dim=50, tie_weights=False),
    "exact gelu": GPTConfig(vocab_size=30, context_length=16, emb_dim=16, n_heads=1, n_layers=1, activation="gelu_erf"),
}


def _model(config: GPTConfig) -> GPTModel:
    torch.manual_seed(0)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that attention and biases matter
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


STORAGES = [
    ("float32", VARIANT.activations),
    pytest.param("bfloat16", VARIANT.activations, marks=pytest.mark.slow),
    ("int8", "8bit"),
    pytest.param("int8", "16bit", marks=pytest.mark.slow),
    pytest.param("int4", "8bit", marks=pytest.mark.slow),
    pytest.param("int4", "16bit", marks=pytest.mark.slow),
]
"""Every way to store weights, with the activations that it multiplies; each is compiled, which takes seconds."""


def _runner(
    model: GPTModel,
    dtype: str = "float32",
    threads: int = 2,
    activations: str = VARIANT.activations,
    cache_tokens: int | None = None,
) -> EngineRunner:
    weights = weights_of(build(model.config, ModelTensors(model), dtype, 1, activations))
    return EngineRunner(model.config, weights, threads, cache_tokens)


@functools.cache
def _shared(dtype: str = "float32", activations: str = VARIANT.activations, threads: int = 2) -> EngineRunner:
    """A runner of the small model that tests share."""
    return _runner(_model(SHAPES["small"]), dtype, threads, activations)


def _ids(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, n)]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_pytorch(shape: str) -> None:
    model = _model(SHAPES[shape])
    ids = _ids(model.config.context_length, model.config.vocab_size)
    expected = TorchRunner(model).logits(ids)
    assert np.abs(_runner(model).logits(ids) - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_heads_of_an_odd_width_fill_up_their_pairs_and_quads(dtype: str) -> None:
    model = _model(GPTConfig(vocab_size=67, context_length=70, emb_dim=45, n_heads=3, n_layers=2))
    runner, ids = _runner(model, dtype), _ids(70, 67)
    expected = TorchRunner(model).logits(ids)
    found = runner.logits(ids)
    assert np.abs(found - expected).max() < 0.15 * expected.std()
    for page in runner._cache._pages.values():
        page[:] = 255  # as a sequence that overflowed may leave it
    slot = runner.open()
    for start in range(0, 70, 7):
        assert (runner.extend([(slot, ids[start : start + 7])])[0] == found[start + 6]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "activations"), STORAGES)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_same_bits_in_any_batch_cut_and_number_of_threads(dtype: str, activations: str, data: st.DataObject) -> None:
    """Whatever runs together, and in whatever pieces, each token's logits are those of the sequence run alone."""
    vocab_size = SHAPES["small"].vocab_size
    runner, alone = _shared(dtype, activations), _shared(dtype, activations, threads=1)
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=8))
    sequences = [_ids(length, vocab_size, seed) for seed, length in enumerate(lengths)]
    expected = [alone.logits(ids) for ids in sequences]
    slots = [runner.open() for _ in sequences]
    done = [0] * len(sequences)
    while any(at < len(ids) for at, ids in zip(done, sequences, strict=True)):
        waiting = [i for i, ids in enumerate(sequences) if done[i] < len(ids)]
        chosen = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        pieces = [data.draw(st.integers(1, len(sequences[i]) - done[i])) for i in chosen]
        work = [(slots[i], sequences[i][done[i] : done[i] + n]) for i, n in zip(chosen, pieces, strict=True)]
        for i, n, logits in zip(chosen, pieces, runner.extend(work), strict=True):
            done[i] += n
            assert (logits == expected[i][done[i] - 1]).all()
    for slot in slots:
        runner.close(slot)


@pytest.mark.parametrize(("dtype", "activations"), STORAGES)
def test_scores_are_those_of_the_logits(dtype: str, activations: str) -> None:
    """Log-probabilities, entropies, ranks and the best tokens, for texts that are scored together and in pieces."""
    runner, vocab_size = _shared(dtype, activations), SHAPES["small"].vocab_size
    texts = [_ids(length, vocab_size, seed) for seed, length in enumerate((150, 2, 64, 90))]
    slots = [runner.open() for _ in texts]
    tasks = [
        ScoreTask(slot, ids, ids[4:], start=3) if len(ids) > 100 else ScoreTask(slot, ids, ids[1:])
        for slot, ids in zip(slots, texts, strict=True)
    ]
    groups = np.random.default_rng(0).random((3, vocab_size)) < 0.3
    last, scores = runner.score(tasks, top=7, n_choices=90, groups=groups)
    for ids, task, logits, found in zip(texts, tasks, last, scores, strict=True):
        expected = runner.logits(ids)
        assert (logits == expected[-1]).all()
        rows = expected[task.start : task.start + len(task.targets)].astype(np.float64)
        shifted = rows - rows.max(1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        chosen = np.arange(len(rows)), np.array(task.targets)
        assert np.abs(found.logprobs - logprobs[chosen]).max() < 1e-6
        assert np.abs(found.entropies + (np.exp(logprobs) * logprobs).sum(1)).max() < 1e-6
        assert (found.ranks == (rows[:, :90] > rows[chosen][:, None]).sum(1)).all()
        assert (found.top_ids == np.argsort(-rows[:, :90], axis=1, kind="stable")[:, :7]).all()
        assert np.abs(found.top_logprobs - np.take_along_axis(logprobs, found.top_ids, 1)).max() < 1e-6
        assert np.abs(found.groups - np.log(np.exp(logprobs) @ groups.T)).max() < 1e-6
    for slot in slots:
        runner.close(slot)
    pieces, slot = [], runner.open()
    for start in range(0, 150, 40):
        ids, targets = texts[0][start : start + 40], texts[0][start + 1 : start + 41]
        none, (piece,) = runner.score([ScoreTask(slot, ids, targets)], last_logits=False)
        assert none.shape == (0, vocab_size) and piece.groups.shape == (len(targets), 0)
        pieces.append(piece.logprobs)
    assert (np.concatenate(pieces)[3:] == scores[0].logprobs).all()
    runner.close(slot)


def test_a_fork_and_its_source_go_on_as_if_alone() -> None:
    runner, vocab_size = _shared(), SHAPES["small"].vocab_size
    for length in (1, PAGE - 1, PAGE, PAGE + 5):
        beginning, endings = _ids(length, vocab_size), [_ids(20, vocab_size, seed) for seed in (1, 2, 3)]
        source = runner.open()
        runner.extend([(source, beginning)])
        slots = [source, runner.fork(source), runner.fork(source)]
        for slot, ids in zip(slots, endings, strict=True):  # one after another: each must leave the others' pages alone
            runner.extend([(slot, ids[:10])])
        runner.close(source)
        after = runner.extend(list(zip(slots[1:], [ids[10:] for ids in endings[1:]], strict=True)))
        for ids, logits in zip(endings[1:], after, strict=True):
            assert (logits == _shared(threads=1).logits(beginning + ids)[-1]).all()
        for slot in slots[1:]:
            runner.close(slot)
    with pytest.raises(InputError, match="was closed"):
        runner.fork(source)


def test_forks_share_memory() -> None:
    runner = _runner(_model(SHAPES["small"]), cache_tokens=5 * PAGE)
    source = runner.open()
    runner.extend([(source, _ids(2 * PAGE, 101))])
    forks = [runner.fork(source) for _ in range(3)]
    runner.extend([(fork, [7]) for fork in forks])  # a page each, and the two that all share
    with pytest.raises(InputError, match="cache is full"):
        runner.extend([(source, [7])])
    runner.close(forks[0])
    expected = _shared().logits([*_ids(2 * PAGE, 101), 7])[-1]
    assert (runner.extend([(source, [7])])[0] == expected).all()


def test_a_cache_limit_is_refused_or_kept() -> None:
    with pytest.raises(InputError, match="cache_tokens is 100"):
        _runner(_model(SHAPES["small"]), cache_tokens=100)
    runner = _runner(_model(SHAPES["small"]), cache_tokens=150)
    first, second = runner.open(), runner.open()
    runner.extend([(first, _ids(120, 101))])
    with pytest.raises(InputError, match="128 tokens are needed, 64 of cache_tokens' 192 are free"):
        runner.extend([(second, _ids(100, 101))])
    assert second.length == 0
    assert (runner.extend([(first, [5])])[0] == _shared().logits([*_ids(120, 101), 5])[-1]).all()
    runner.close(first)
    assert (runner.extend([(second, _ids(100, 101))])[0] == _shared().logits(_ids(100, 101))[-1]).all()


def test_threads_that_are_late_hold_nobody_up_and_change_nothing() -> None:
    """Many more threads than cores: most of them come to a pass when it is over, or find the cache replaced."""
    runner = _runner(_model(SHAPES["small"]), threads=3 * usable_cores() + 1)
    sequences = [_ids(3 + 7 * i, 101, seed=i) for i in range(20)]
    slots = [runner.open() for _ in sequences]  # none is closed, so the cache grows on the way
    for ids, slot in zip(sequences, slots, strict=True):
        expected = _shared(threads=1).logits(ids)
        for at, token in enumerate(ids):
            assert (runner.extend([(slot, [token])])[0] == expected[at]).all()


@pytest.mark.parametrize("what", ["worker_loop", "_add_block"])
def test_an_interrupted_call_leaves_a_runner_that_works(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before a pass begins, and memory that runs out while the cache grows; no page is lost by it."""
    runner = _runner(_model(SHAPES["small"]))
    ids = _ids(140, 101)
    slot = runner.open()
    first = runner.extend([(slot, ids[:3])])
    begun = BoundCall.__call__

    def interrupted(call: BoundCall) -> Any:
        if call._table[call._places[0]] != 0:
            return begun(call)  # the threads that help are not interrupted
        raise KeyboardInterrupt

    def out_of_memory(*_: Any) -> Any:
        raise MemoryError

    for n in range(400):
        with monkeypatch.context() as patch:
            if what == "worker_loop":
                patch.setattr(BoundCall, "__call__", interrupted)
            else:
                patch.setattr(engine_cache.PageCache, what, out_of_memory)
            if what == "worker_loop" or n == 0:
                with pytest.raises((KeyboardInterrupt, MemoryError)):
                    runner.extend([(runner.open(), ids) for _ in range(1 if what == "worker_loop" else 50)])
    assert runner.cache_bytes < 20_000_000
    again = runner.open()
    alone = _shared(threads=1).logits(ids)
    assert (runner.extend([(again, ids)])[0] == alone[-1]).all()
    assert (first[0] == alone[2]).all()
    assert (runner.extend([(slot, ids[3:])])[0] == alone[-1]).all()


def test_a_slot_that_never_ran_can_be_closed() -> None:
    runner = _shared()
    slot = runner.open()
    with pytest.raises(InputError, match="vocabulary"):
        runner.extend([(slot, [10**6, 3])])
    runner.close(slot)
    runner.close(slot)
    runner.close(runner.open())


def test_a_closed_sequence_leaves_nothing_behind() -> None:
    runner = _runner(_model(SHAPES["small"]))
    ids = _ids(100, 101)
    first = runner.open()
    before = runner.extend([(first, ids)])
    runner.close(first)
    runner.close(first)
    other, again = runner.open(), runner.open()
    runner.extend([(other, _ids(90, 101, seed=1))])
    assert (runner.extend([(again, ids)]) == before).all()


@pytest.mark.parametrize(("dtype", "activations"), STORAGES)
def test_what_an_earlier_sequence_left_in_the_cache_changes_nothing(dtype: str, activations: str) -> None:
    """Pages are not cleared, and a sequence that overflowed may have left NaN in them."""
    runner, ids = _shared(dtype, activations), _ids(100, 101)
    expected = runner.logits(ids)
    for page in runner._cache._pages.values():
        page[:] = 255
    assert (runner.logits(ids) == expected).all()


def test_a_cache_of_8_bits_takes_little_more_than_half_of_one_of_16() -> None:
    narrow, wide = (_shared("int8", activations)._cache.page_bytes for activations in ("8bit", "16bit"))
    assert narrow < 0.8 * wide  # heads of 16 numbers: the scales weigh more than in a GPT-2


@pytest.mark.parametrize(("dtype", "activations"), STORAGES[1:4])
def test_dtypes_stay_close_to_float32(dtype: str, activations: str) -> None:
    ids = _ids(60, 101)
    expected = TorchRunner(_model(SHAPES["small"])).logits(ids)
    assert np.abs(_shared(dtype, activations).logits(ids) - expected).max() < 0.15 * expected.std()


def test_unreadable_numbers_are_refused() -> None:
    model = _model(SHAPES["small"])
    with torch.no_grad():
        model.get_parameter("blocks.1.feed_forward.up.weight")[3, 4] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        _runner(model, "int8")


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ([[]], "no tokens"),
        ([[101]], "not in the model's vocabulary"),
        ([[-1]], "not in the model's vocabulary"),
        ([[1] * 151], "151"),
    ],
)
def test_what_cannot_run_is_refused(work: Sequence[Sequence[int]], message: str) -> None:
    runner = _shared()
    slots = [runner.open() for _ in work]
    try:
        with pytest.raises(InputError, match=message):
            runner.extend(list(zip(slots, work, strict=True)))
    finally:
        for slot in slots:
            runner.close(slot)


def test_int4_has_the_same_weights_for_both_kinds_of_activations() -> None:
    matrix = np.random.default_rng(0).standard_normal((21, 90)).astype(np.float32)
    found = []
    for activations, side in (("8bit", 4), ("16bit", 2)):
        arrays = {name: np.zeros(n, dtype) for name, (dtype, n) in storage("int4", activations, 21, 90).items()}
        pack("int4", matrix, arrays["weights"], arrays["scales"], 1, np.eye(90, dtype=np.float32))
        found.append(_unpacked(arrays, 21, 90, side))
    assert (found[0] == found[1]).all()


def test_the_calibration_text_is_the_models_own() -> None:
    """With logits so far apart that only one token is likely, the sampled text is the greedy one."""
    model = _model(SHAPES["small"])
    with torch.no_grad():
        model.final_norm.weight.mul_(100)
    ids, _ = calibrate(_runner(model))
    assert ids.shape == (16, 150)
    logits = TorchRunner(model).logits([int(i) for i in ids[0][:-1]])
    top = np.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 30
    assert clear.sum() > 60
    assert (logits.argmax(1) == ids[0][1:])[clear].all()


def test_calibration_samples_from_the_distribution() -> None:
    """For 100,000 numbers between 0 and 1 each token is sampled as often as it is likely, the last block's too."""
    logits = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    logits[[3, 650]] = 8
    expected = np.exp(logits.astype(np.float64))
    expected /= expected.sum()
    n = 100_000
    found = np.array(_sample(np.broadcast_to(logits, (50, 700)), np.linspace(0, 1, 50, endpoint=False)))
    assert (found == np.searchsorted(np.cumsum(expected), np.linspace(0, 1, 50, endpoint=False), "right")).mean() > 0.9
    uniform = (np.arange(n) + 0.5) / n
    found = np.concatenate([_sample(np.tile(logits, (len(part), 1)), part) for part in np.array_split(uniform, 50)])
    counts = np.bincount(found, minlength=700) / n
    assert np.abs(counts - expected).max() < 1e-4
    assert _sample(np.full((1, 5), -1e30, np.float32) + np.eye(5, dtype=np.float32)[[2]] * 1e31, np.array([1.0])) == [2]


@pytest.mark.parametrize("activations", ["8bit", "16bit"])
def test_int4_errs_less_if_the_inputs_are_known(activations: str) -> None:
    """On inputs that are correlated, what int4 changes in a product is smaller with their moments than without."""
    draw = np.random.default_rng(0)
    inputs = (draw.standard_normal((400, 10)) @ draw.standard_normal((10, 90))).astype(np.float32)
    inputs += 0.1 * draw.standard_normal(inputs.shape).astype(np.float32)
    matrix = draw.standard_normal((21, 90)).astype(np.float32)
    errors = []
    for known in (None, inputs.T @ inputs):
        arrays = {name: np.zeros(n, dtype) for name, (dtype, n) in storage("int4", activations, 21, 90).items()}
        pack("int4", matrix, arrays["weights"], arrays["scales"], 2, known)
        found = _unpacked(arrays, 21, 90, 4 if activations == "8bit" else 2)
        errors.append(np.abs(inputs @ (found - matrix).T).mean())
    assert errors[1] < 0.6 * errors[0]


def _unpacked(arrays: dict[str, np.ndarray], rows: int, columns: int, side: int) -> np.ndarray:
    """Read int4 weights by the documented layout."""
    group, padded = GROUP, padded_columns(columns)
    steps = arrays["weights"].view(np.uint8).reshape(-1, padded // group, group // 2 // side, PANEL, side)
    whole = np.concatenate([steps & 15, steps >> 4], axis=2).astype(np.int32) - 8  # [panel, group, step, row, side]
    scales = (arrays["scales"].astype(np.uint32) << 16).view(np.float32).reshape(-1, padded // group, 1, PANEL, 1)
    return (whole * scales).transpose(0, 3, 1, 2, 4).reshape(-1, padded)[:rows, :columns]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(1, 70), st.integers(0, 1000))
def test_moments_are_exact_products_for_any_number_of_threads(columns: int, n: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)
    record = InputRecord(columns, n)
    for part in np.array_split(x, 3):
        record.add(part)
    rounded = torch.from_numpy(x).bfloat16().double() if VARIANT.bfloat16 else torch.from_numpy(x).double()
    found = record.moments(1)
    assert np.abs(found - (rounded.T @ rounded).numpy()).max() < 1e-4
    assert (found == found.T).all()
    assert (found == record.moments(3)).all()


def test_moments_are_those_of_what_comes_into_each_layer() -> None:
    for shape in ("small", "odd"):
        model = _model(SHAPES[shape])
        ids, found = calibrate(_runner(model))
        expected: dict[str, np.ndarray] = {}

        def note(name: str, layer: torch.nn.Module, seen: dict[str, np.ndarray] = expected) -> None:
            def hook(_: object, inputs: tuple[torch.Tensor, ...], __: object) -> None:
                x = inputs[0].flatten(0, -2)
                if VARIANT.bfloat16:
                    x = x.bfloat16().float()
                seen[f"{name}.weight"] = (x.T @ x).numpy()

            layer.register_forward_hook(hook)

        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                note(name, layer)
        with torch.inference_mode():
            model(torch.from_numpy(ids[:, :-1]))
        if model.config.tie_weights:
            expected["token_embedding.weight"] = expected.pop("head.weight")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() < 1e-3 * np.abs(value).max()
