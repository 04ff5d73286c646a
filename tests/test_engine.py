"""The compiled Runner against the PyTorch one and against itself: the same numbers, and the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.config import GPTConfig
from clearhead.engine import runner as engine_runner
from clearhead.engine.building import build, weights_of
from clearhead.engine.calibration import moments
from clearhead.engine.dtypes import DTYPES, GROUP, pack, padded_columns, storage
from clearhead.engine.runner import EngineRunner
from clearhead.engine.tiles import PANEL
from clearhead.errors import InputError
from clearhead.inference.torch_runner import TorchRunner
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors
from clearhead.utils import system as places

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


def _runner(model: GPTModel, dtype: str = "float32", threads: int = 2) -> EngineRunner:
    return EngineRunner(model.config, weights_of(build(model.config, ModelTensors(model), dtype, 1)), threads)


def _ids(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, n)]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_pytorch(shape: str) -> None:
    model = _model(SHAPES[shape])
    ids = _ids(model.config.context_length, model.config.vocab_size)
    expected = TorchRunner(model).logits(ids)
    assert np.abs(_runner(model).logits(ids) - expected).max() < 1e-4


RUNNERS = {dtype: _runner(_model(SHAPES["small"]), dtype) for dtype in DTYPES}
ALONE = {dtype: _runner(_model(SHAPES["small"]), dtype, threads=1) for dtype in DTYPES}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_same_bits_in_any_batch_cut_and_number_of_threads(dtype: str, data: st.DataObject) -> None:
    """Whatever runs together, and in whatever pieces, each token's logits are those of the sequence run alone."""
    vocab_size = SHAPES["small"].vocab_size
    runner = RUNNERS[dtype]
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    sequences = [_ids(length, vocab_size, seed) for seed, length in enumerate(lengths)]
    alone = [ALONE[dtype].logits(ids) for ids in sequences]
    slots = [runner.open() for _ in sequences]
    done = [0] * len(sequences)
    while any(at < len(ids) for at, ids in zip(done, sequences, strict=True)):
        waiting = [i for i, ids in enumerate(sequences) if done[i] < len(ids)]
        chosen = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        pieces = [data.draw(st.integers(1, len(sequences[i]) - done[i])) for i in chosen]
        work = [(slots[i], sequences[i][done[i] : done[i] + n]) for i, n in zip(chosen, pieces, strict=True)]
        for i, n, logits in zip(chosen, pieces, runner.extend(work), strict=True):
            done[i] += n
            assert (logits == alone[i][done[i] - 1]).all()
    for slot in slots:
        runner.close(slot)


def test_threads_that_are_late_hold_nobody_up_and_change_nothing() -> None:
    """Many more threads than cores: most of them come to a pass when it is over, or find the cache replaced."""
    runner = _runner(_model(SHAPES["small"]), threads=3 * places.usable_cores() + 1)
    sequences = [_ids(3 + 7 * i, 101, seed=i) for i in range(20)]
    slots = [runner.open() for _ in sequences]  # none is closed, so the cache grows on the way
    for ids, slot in zip(sequences, slots, strict=True):
        expected = ALONE["float32"].logits(ids)
        for at, token in enumerate(ids):
            assert (runner.extend([(slot, [token])])[0] == expected[at]).all()


@pytest.mark.parametrize("what", ["worker_loop", "Cache"])
def test_what_breaks_off_leaves_a_runner_that_works(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before a pass begins, and memory that runs out while the cache grows."""
    runner = _runner(_model(SHAPES["small"]))
    ids = _ids(140, 101)
    slot = runner.open()
    first = runner.extend([(slot, ids[:3])])
    begun = getattr(engine_runner, what)

    def broken(*arguments: Any) -> Any:
        if what == "worker_loop" and arguments[0] != 0:
            return begun(*arguments)  # the threads that help are not interrupted
        raise KeyboardInterrupt if what == "worker_loop" else MemoryError

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, MemoryError)):
            patch.setattr(engine_runner, what, broken)
            runner.extend([(runner.open(), ids)])
    again = runner.open()
    alone = ALONE["float32"].logits(ids)
    assert (runner.extend([(again, ids)])[0] == alone[-1]).all()
    assert (first[0] == alone[2]).all()
    assert (runner.extend([(slot, ids[3:])])[0] == alone[-1]).all()


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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_formats_stay_close_to_float32(dtype: str) -> None:
    model = _model(SHAPES["small"])
    ids = _ids(60, 101)
    expected = TorchRunner(model).logits(ids)
    assert np.abs(_runner(model, dtype).logits(ids) - expected).max() < 0.05 * expected.std() * 3


def test_unreadable_numbers_are_refused() -> None:
    model = _model(SHAPES["small"])
    with torch.no_grad():
        model.get_parameter("blocks.1.feed_forward.up.weight")[3, 4] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        _runner(model, "int8")


@pytest.mark.parametrize(
    ("work", "message"),
    [([[]], "no tokens"), ([[101]], "not in the vocabulary"), ([[-1]], "not in the vocabulary"), ([[1] * 151], "151")],
)
def test_what_cannot_run_is_refused(work: Sequence[Sequence[int]], message: str) -> None:
    runner = RUNNERS["float32"]
    slots = [runner.open() for _ in work]
    try:
        with pytest.raises(InputError, match=message):
            runner.extend(list(zip(slots, work, strict=True)))
    finally:
        for slot in slots:
            runner.close(slot)


def test_int4_errs_less_where_the_inputs_are_known() -> None:
    """On inputs that go together, what int4 changes in a product is smaller with their moments than without."""
    draw = np.random.default_rng(0)
    inputs = (draw.standard_normal((400, 10)) @ draw.standard_normal((10, 90))).astype(np.float32)
    inputs += 0.1 * draw.standard_normal(inputs.shape).astype(np.float32)
    matrix = draw.standard_normal((21, 90)).astype(np.float32)
    errors = []
    for known in (None, inputs.T @ inputs):
        arrays = {name: np.zeros(n, dtype) for name, (dtype, n) in storage("int4", 21, 90).items()}
        pack("int4", matrix, arrays["weights"], arrays["scales"], 2, known)
        errors.append(np.abs(inputs @ (_unpacked(arrays, 21, 90) - matrix).T).mean())
    assert errors[1] < 0.6 * errors[0]


def _unpacked(arrays: dict[str, np.ndarray], rows: int, columns: int) -> np.ndarray:
    """The numbers that the documented layout of int4 stands for."""
    signed = arrays["weights"].view(np.int8).astype(np.int32).reshape(-1, GROUP // 2)
    whole = np.concatenate([((signed & 15) ^ 8) - 8, signed >> 4], axis=1)  # [chunks, 32]
    scales = (arrays["scales"].astype(np.uint32) << 16).view(np.float32)
    chunks = (whole * scales[:, None]).reshape(-1, padded_columns(columns) // GROUP, PANEL, GROUP)
    return chunks.transpose(0, 2, 1, 3).reshape(-1, padded_columns(columns))[:rows, :columns]


def test_moments_are_those_of_what_comes_into_each_layer() -> None:
    for shape in ("small", "odd"):
        model = _model(SHAPES[shape])
        ids = np.array([_ids(40, model.config.vocab_size, seed) for seed in range(3)])
        expected: dict[str, np.ndarray] = {}

        def note(name: str, layer: torch.nn.Module, seen: dict[str, np.ndarray] = expected) -> None:
            def hook(_: object, inputs: tuple[torch.Tensor, ...], __: object) -> None:
                x = inputs[0].flatten(0, -2)
                seen[f"{name}.weight"] = (x.T @ x).numpy()

            layer.register_forward_hook(hook)

        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                note(name, layer)
        with torch.inference_mode():
            model(torch.from_numpy(ids))
        found = moments(model.config, ModelTensors(model), ids)
        assert found.keys() - {"token_embedding.weight"} == expected.keys()
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() < 1e-3 * np.abs(value).max()
