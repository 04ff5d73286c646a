"""`clearhead bench`: what it runs, what it counts, and what it prints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command_line
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead import weights
from clearhead.benchmark import run
from clearhead.benchmark.bandwidth import read_speeds
from clearhead.benchmark.run import Report, random_model
from clearhead.benchmark.speed import SHORTEST, Workload, time_alone, time_together
from clearhead.config import GPTConfig
from clearhead.engine import store
from clearhead.engine.building import build
from clearhead.engine.variants import VARIANT
from clearhead.errors import InputError
from clearhead.inference.runner import Slot
from clearhead.model import GPTModel
from clearhead.utils import system
from clearhead.weights.random_tensors import RandomTensors

TINY = GPTConfig(vocab_size=60, context_length=48, emb_dim=16, n_heads=2, n_layers=2, qkv_bias=True, tie_weights=True)


class Grown:
    """A sequence of which only the length is known."""

    length = 0


class Counting:
    """A Runner that runs nothing and remembers how many tokens each sequence has, and what was asked."""

    def __init__(self, context_length: int) -> None:
        self.config = GPTConfig(vocab_size=7, context_length=context_length, emb_dim=2, n_heads=1, n_layers=1)
        self.opened: set[int] = set()
        self.single: list[tuple[int, int]] = []

    def open(self) -> Any:
        slot = Grown()
        self.opened.add(id(slot))
        return slot

    def close(self, slot: Slot) -> None:
        self.opened.remove(id(slot))

    def extend(self, work: Sequence[tuple[Any, Sequence[int]]]) -> np.ndarray:
        assert len({id(slot) for slot, _ in work}) == len(work)
        if {len(ids) for _, ids in work} == {1}:
            self.single.append((len(work), max(slot.length for slot, _ in work)))
        for slot, ids in work:
            assert id(slot) in self.opened
            assert all(0 <= i < 7 for i in ids)
            slot.length += len(ids)
            assert slot.length <= self.config.context_length
        return np.zeros((len(work), 7), np.float32)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(SHORTEST, 1500), quick=st.booleans())
def test_work_fits_into_any_context_and_figures_say_what_ran(length: int, quick: bool) -> None:
    runner: Any = Counting(length)
    work = Workload.of(runner.config, quick)
    figures = [*time_alone(runner, work), *time_together(runner, work)]
    assert len(figures) == work.figures == len({(f.kind, f.context, f.batch) for f in figures})
    assert not runner.opened
    decoded = [f for f in figures if f.kind == "decode"]
    assert {f.context for f in decoded if f.batch == 1} == set(work.contexts)
    steps = [step for step in runner.single if step[0] > 1 or step[1] >= min(work.contexts)]
    for figure in decoded:
        near = [at for n, at in steps if n == figure.batch and figure.context <= at < figure.context + 2 * work.steps]
        assert len(near) >= work.steps


def test_a_context_too_short_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="at least 32"):
        Workload.of(TINY.replace(context_length=31), quick=True)


def test_random_tensors_are_a_models_and_do_not_depend_on_the_order() -> None:
    for config in (TINY, TINY.replace(tie_weights=False, qkv_bias=False)):
        tensors, again = RandomTensors(config), RandomTensors(config)
        expected = {name: tuple(value.shape) for name, value in GPTModel(config).named_parameters()}
        assert {name: tensors.shape_of(name) for name in tensors} == expected
        forward = {name: tensors[name] for name in tensors}
        for name in reversed(list(again)):
            assert forward[name].shape == expected[name]
            assert (again[name] == forward[name]).all()
    assert (RandomTensors(TINY, seed=1)["token_embedding.weight"] != tensors["token_embedding.weight"]).any()


def test_reading_memory_gives_a_speed_for_each_run() -> None:
    speeds = read_speeds(threads=2, runs=3, size=1 << 20)
    assert len(speeds) == 3
    assert min(speeds) > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_bytes_of_a_step_are_those_of_the_arrays(dtype: str, tied: bool) -> None:
    config = TINY.replace(tie_weights=tied, n_heads=1)  # of 16 numbers: whole vectors on every CPU
    arrays = build(config, RandomTensors(config), dtype, 1)
    unread = ("positions",) if tied else ("positions", "tokens.")
    expected = sum(array.nbytes for name, array in arrays.items() if not name.startswith(unread))
    report = Report(config, 1, None, [])
    # A key and a value of 16 numbers, and in 8 bits two scales, in 2 layers, for 3 sequences of 10 tokens.
    token = {"float32": 32 * 4, "int8": 32 * 2, "uint8": 32 + 8}[arrays["qkv.weights"].dtype.name]
    assert report.step_bytes(dtype, 10, 3) == expected + 3 * 10 * 2 * token


def _call(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit status and its two streams."""
    result = command_line.call(*arguments)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    weights.save(tmp_path / "tiny", TINY, RandomTensors(TINY))
    yield tmp_path / "tiny"
    store.forget(weights.open(tmp_path / "tiny"))


@pytest.mark.slow
def test_bench_as_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_RUNS", 1)
    status, out, _ = _call("bench", folder, "--dtype", "int8", "--quick", "--threads", 1, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["model"] == "tiny"
    assert (found["threads"], found["random_weights"]) == (1, False)
    (one,) = found["formats"]
    assert one["dtype"] == "int8"
    assert one["peak_bytes"] is None or one["peak_bytes"] > one["weight_bytes"] > 0
    assert one["first_token_seconds"]["best"] > 0
    assert one["memory_bytes_per_second"]["best"] >= one["memory_bytes_per_second"]["median"] > 0
    assert [(f["kind"], f["context"], f["batch"]) for f in one["figures"]] == [
        ("prompt", 24, 1),
        ("decode", 24, 1),
        ("decode", 24, 8),
    ]
    for figure in one["figures"]:
        assert figure["most_tokens_per_second"] >= figure["tokens_per_second"] > 0
        assert ("share_of_memory_speed" in figure) == (figure["kind"] == "decode")


@pytest.mark.slow
def test_bench_of_random_weights_is_a_table_and_fits_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_RUNS", 1)
    monkeypatch.setattr(run, "_import_torch", lambda: None)
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = _call("bench", folder / "config.json", "--random", "--dtype", "int8", "--quick")
    assert status == 0
    assert "random weights" in out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("int8") for line in lines) == 3  # one sequence, several together, memory and start


@pytest.mark.parametrize("kind", ["no folder", "full"])
def test_a_random_model_needs_no_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    if kind == "no folder":
        cache.write_text("in the way")
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10, used=9, free=1))
    monkeypatch.setenv("CLEARHEAD_CACHE", str(cache))
    monkeypatch.setattr(system._Reported, "lost_cache", False)
    with random_model(TINY, ["int8"], 1) as made:
        assert weights.open(made).config.emb_dim == TINY.emb_dim
        assert cache not in made.parents
    assert not made.exists()
    assert capsys.readouterr().err.count("cannot be kept in") == 1


def test_a_random_model_is_gone_afterwards() -> None:
    with random_model(TINY, ["int4"], 1) as made:
        opened = weights.open(made)
        kept = store._kept_path(opened, "int4", VARIANT.activations)
        assert opened.config == TINY
        assert kept.exists()
    assert not made.exists()
    assert not kept.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["124M"], "add --random"),
        (["--dtype", "int7"], "float32, bfloat16, int8, int4"),
        (["--threads", "0"], "at least 1"),
        (["nowhere/at/all"], "nowhere"),
    ],
)
def test_bench_refuses_in_a_sentence(arguments: list[str], sentence: str) -> None:
    status, out, err = _call("bench", *arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err
