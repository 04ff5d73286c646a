"""What a run survives: kills, a full disk, a second run in its folder, spikes, numbers that are none."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ALONE, assert_equal_runs, one_step, recipe, small_run, weights_of

from clearhead.data.corpus import Corpus
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.training.checkpoint import CheckpointState, checkpoints, read_state, save_checkpoint
from clearhead.training.distributed import Processes
from clearhead.training.loop import Run
from clearhead.training.precision import LossScale
from clearhead.training.record import RunRecord
from clearhead.training.run_folder import read_metrics, run_lock
from clearhead.training.samples import encode_prompts
from clearhead.training.spikes import SpikeDetector
from clearhead.training.step import Stepper
from clearhead.training.task import PretrainingTask, Scores
from clearhead.training.trackers import TensorBoardTracker
from clearhead.training.train import find_lr, train

ROOT = Path(__file__).parents[1]
ASYNC = ("checkpoint_every = 4", "checkpoint_every = 4\nasync_checkpoints = true")
SHORT = (("steps = 12", "steps = 5"), ("decay_steps = 4", "decay_steps = 0"))


@pytest.fixture(scope="module")
def finished(data: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(recipe(), data, out, corpus_folder=corpus.folder)
    return out


@pytest.mark.parametrize("background", [(), ("--async",)])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(background: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/kill_resume.py"), "--kills", "5", "--steps", "60", *background],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed 5 times; every bit and every recorded loss is equal" in done.stdout


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: to the writer the same as a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
@pytest.mark.parametrize(
    ("limit", "what", "changes"),
    [
        (300_000, "the checkpoint of step 8", ()),
        (300_000, "the checkpoint of step 8", (ASYNC,)),
        (1_000_000, "metrics", ()),
    ],
)
def test_a_full_disk_stops_a_run_with_a_sentence_and_loses_nothing(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path, limit: int, what: str, changes: tuple[Any, ...]
) -> None:
    train(recipe(*SHORT), data, tmp_path, corpus_folder=corpus.folder)
    before = weights_of(tmp_path)
    if what == "metrics":
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "filler": "' + "x" * 999_950 + '"}\n')
    with files_up_to(limit), pytest.raises(TrainingError, match=rf"no space left in .* for (the )?{what}.*--resume"):
        train(recipe(*changes), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    if what != "metrics":
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
        assert all(torch.equal(value, before[name]) for name, value in weights_of(tmp_path).items())
    train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    expected = weights_of(finished)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(tmp_path).items())


def test_two_runs_never_write_one_folder(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    with (
        run_lock(tmp_path),
        pytest.raises(TrainingError, match="belongs to a run that is in progress"),
    ):
        train(recipe(), data, tmp_path, corpus_folder=corpus.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock"]
    with run_lock(tmp_path):
        pass


def test_what_a_killed_process_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / ".0123456789ab.part").touch()
    (tmp_path / ".ba9876543210.part").mkdir()
    (tmp_path / ".ba9876543210.part" / "config.json").touch()
    (tmp_path / ".mine.part").touch()
    with run_lock(tmp_path):
        assert [path.name for path in tmp_path.glob("*.part")] == [".mine.part"]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from clearhead.training.run_folder import run_lock\n"
        f"with run_lock(Path({str(tmp_path)!r})): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 9
    with run_lock(tmp_path):
        pass


def test_what_a_kill_left_half_written_is_passed_over_and_cleared_away(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path
) -> None:
    # What a run left that was killed before its first checkpoint is none of this one's.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 99.0}\n{"step": 10, "loss": 99.0}\n')
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/stale").touch()
    train(recipe(*SHORT), data, tmp_path, corpus_folder=corpus.folder)
    assert [line["step"] for line in read_metrics(tmp_path)] == [5]
    assert not (tmp_path / "tensorboard/stale").exists()
    half = tmp_path / "checkpoints/.step-00000008.part"
    half.mkdir()
    (half / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"\x10")
    (tmp_path / "checkpoints/step-00000099").mkdir()  # has no state.json: nobody wrote it to its end
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert not half.exists()
    assert [line["step"] for line in read_metrics(tmp_path) if "loss" in line] == [10]
    expected = weights_of(finished)
    assert read_state(checkpoints(tmp_path)[-1])["step"] == 12
    (tmp_path / "checkpoints/step-00000099").rmdir()
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(tmp_path).items())


def touch_model(folder: Path) -> None:
    (folder / "model.safetensors").touch()


def state_of(step: int) -> CheckpointState:
    """Return the small values of a run without settings after a step."""
    return {
        "model": {},
        "training": {},
        "finetune": {},
        "data": "",
        "rates": "",
        "spikes": SpikeDetector().state(),
        "loss_scale": LossScale(needed=True).state(),
        "clock": {"loss": 1.5, "seen": step},
        "step": step,
        "tokens": 0,
        "milestone": None,
    }


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (3, 7, 20, 100):
        save_checkpoint(tmp_path, state_of(step), {"a": torch.arange(step)}, touch_model, ALONE, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020", "step-00000100"]
    state = read_state(checkpoints(tmp_path)[-1])
    assert (state["step"], state["clock"], state["milestone"]) == (100, {"loss": 1.5, "seen": 100}, None)
    for value in (math.nan, -math.inf):
        broken = {"a": torch.zeros(3), "b": torch.tensor([1.0, value])}
        with pytest.raises(TrainingError, match=r"after step 120 the weights or .* contain NaN or infinity"):
            save_checkpoint(tmp_path, state_of(120), broken, touch_model, ALONE, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020", "step-00000100"]


@pytest.mark.parametrize("key", ["clock", "spikes", "model", "data"])
def test_a_checkpoint_of_another_version_is_named(corpus: Corpus, tmp_path: Path, key: str) -> None:
    small_run(recipe(), corpus, tmp_path).save()
    file = checkpoints(tmp_path)[-1] / "state.json"
    state = json.loads(file.read_text())
    del state[key], state["checksum"]
    file.write_text(json.dumps(state))
    with pytest.raises(TrainingError, match=rf"\(it lacks '{key}'\); delete .* the version of Clearhead that wrote it"):
        small_run(recipe(), corpus, tmp_path).resume()


def test_a_validation_that_fails_loses_nothing(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = recipe(("evaluate_every = 5", "evaluate_every = 4"))

    def failing(run: Run, windows: int | None) -> Scores:
        raise TrainingError("no luck")

    monkeypatch.setattr(Run, "evaluate", failing)
    with pytest.raises(TrainingError, match="no luck"):
        train(four, data, tmp_path, corpus_folder=corpus.folder)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004"]
    train(four, data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert [line["step"] for line in read_metrics(tmp_path) if "valid" in line] == [4, 8]
    assert_equal_runs(tmp_path, finished)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_a_sentence(
    error: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*arguments: Any) -> Run:
        raise error

    monkeypatch.setattr("clearhead.training.train._new_run", too_large)
    works: list[Any] = [train, find_lr]
    for work in works:
        with pytest.raises(TrainingError, match=r"smaller micro_batch_size .*recompute = true; .*several devices"):
            work(recipe(), data, tmp_path)


@pytest.mark.parametrize(
    ("changes", "dtype", "words"),
    [
        ((), "float8", "cannot be saved as 'float8'; choose float32, float16, bfloat16"),
        ((("steps = 12", 'samples = ["The old", "Größe"]\nsteps = 12'),), "float32", "the prompt 'Größe' in samples"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    data: Path, tmp_path: Path, changes: tuple[tuple[str, str], ...], dtype: str, words: str
) -> None:
    letters = recipe(("[corpus]\n", '[corpus]\ntokenizer = "characters"\n'), *changes)
    with pytest.raises(TrainingError, match=words):
        train(letters, data, tmp_path, dtype=dtype)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not checkpoints(tmp_path)


def test_an_empty_prompt_needs_a_token_to_begin_with() -> None:
    with pytest.raises(TrainingError, match="samples has an empty prompt"):
        encode_prompts(Tokenizer.of_characters(set("ab"), end_of_text=False), ["a", ""])


@pytest.mark.parametrize(("tokens", "text_bytes"), [(1, 4), (5, 0)])
def test_too_little_to_hold_out_is_refused(corpus: Corpus, tokens: int, text_bytes: int) -> None:
    little = copy.copy(corpus)
    little.valid = {"birds": replace(corpus.valid["birds"], tokens=tokens, text_bytes=text_bytes)}
    with pytest.raises(TrainingError, match=rf"the held-out part of the text 'birds' has {tokens} tokens"):
        PretrainingTask(recipe(), little)


def test_a_batch_that_is_smaller_than_the_processes_are_many_is_refused() -> None:
    small = recipe(("batch_size = 8", "batch_size = 2")).training
    with pytest.raises(TrainingError, match="batch_size 2 cannot be divided among 3 processes"):
        Stepper(torch.nn.Identity(), [], small, Processes(0, 3, torch.device("cpu")), torch.float32, dropout=False)


class _FullBoard:
    """A writer of TensorBoard's on a disk that is full."""

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_the_end_hides_no_other_error(tmp_path: Path) -> None:
    board = TensorBoardTracker(tmp_path, recipe())
    record = RunRecord(tmp_path, False, 5, [board])
    board._writer = _FullBoard()
    with pytest.raises(TrainingError, match=r"no space left in .* for TensorBoard's files"), record:
        pass
    board._writer = _FullBoard()
    with pytest.raises(TrainingError, match="the first error"), record:
        raise TrainingError("the first error")


def test_dropout_goes_on_where_it_stopped(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    dropping = (("[corpus]\n", "drop_rate = 0.2\n[corpus]\n"), ("decay_steps = 4", "decay_steps = 0"))
    # [model] is the table before [corpus], so the new line is its last.
    train(recipe(*dropping), data, tmp_path / "whole", corpus_folder=corpus.folder)
    train(recipe(*dropping, ("steps = 12", "steps = 5")), data, tmp_path / "parts", corpus_folder=corpus.folder)
    torch.manual_seed(99)
    train(recipe(*dropping), data, tmp_path / "parts", corpus_folder=corpus.folder, resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


# ---------------------------------------------------------------------------------------------------------------
# Spikes, and float16
# ---------------------------------------------------------------------------------------------------------------


def test_spikes_are_seen_and_noise_is_not() -> None:
    noise = np.random.default_rng(1)
    spikes = SpikeDetector()
    for step in range(2000):
        loss = 3 + 2 * math.exp(-step / 300) + 0.05 * noise.standard_normal()
        assert spikes.check(loss, 0.5 * math.exp(0.2 * noise.standard_normal())) == "", step
    assert spikes.check(4.5, 0.5).startswith("the loss is 4.5, after a mean of 3")
    assert spikes.check(3.0, 30.0).startswith("the gradient norm is 30, after a mean of 0.5")
    assert spikes.check(math.nan, math.inf) == "the loss is nan and the gradient norm is inf"
    assert spikes.in_a_row == 3
    assert spikes.check(3.0, 0.5) == ""
    assert spikes.in_a_row == 0


def test_spikes_go_on_from_their_state() -> None:
    noise = np.random.default_rng(2)
    values = [(3 + float(noise.standard_normal()) * (9 if step % 41 == 40 else 0.1), 1.0) for step in range(200)]
    whole, half = SpikeDetector(), SpikeDetector()
    expected = [whole.check(*value) for value in values]
    assert any(expected)
    found = [half.check(*value) for value in values[:100]]
    other = SpikeDetector()
    other.restore(half.state())
    assert [*found, *(other.check(*value) for value in values[100:])] == expected


def test_a_spike_can_be_left_out(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipping = recipe(("steps = 12", 'on_spike = "skip"\nsteps = 12'))
    run = small_run(skipping, corpus, tmp_path)
    one_step(run)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    monkeypatch.setattr(run.stepper.spikes, "check", lambda loss, norm: "odd")
    found = one_step(run)
    assert (found.taken, found.anomaly) == (False, "odd")
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    monkeypatch.undo()
    assert one_step(run).taken
    assert not torch.equal(run.model.head.weight, before["head.weight"])


@pytest.mark.parametrize(
    ("precision", "settings", "words"),
    [
        ("float32", 'on_spike = "skip"', "10 steps in a row were skipped, up to step 9"),
        ("float16", "", "the loss is nan and the gradient norm is nan at step 0"),
        ("float16", 'on_spike = "skip"', "10 steps in a row were skipped, up to step 9"),
    ],
)
def test_a_run_of_nothing_but_broken_steps_stops(
    corpus: Corpus, tmp_path: Path, precision: str, settings: str, words: str
) -> None:
    # Its first checkpoint would be refused for what is put into the weights here.
    changes = (("steps = 12", f"{settings}\nlog_every = 1\nsteps = 12"), ("checkpoint_every = 4", ""))
    run = small_run(recipe(*changes, ("float32", precision)), corpus, tmp_path)
    with torch.no_grad():
        run.model.final_norm.weight[0] = math.nan
    with pytest.raises(TrainingError, match=words):
        run.go()
    assert not checkpoints(tmp_path)
    assert all(line["loss"] is None for line in read_metrics(tmp_path) if "loss" in line)


def test_the_loss_scale_is_torchs(tmp_path: Path) -> None:
    ours, theirs = LossScale(True, growth_interval=5), torch.amp.GradScaler("cpu", growth_interval=5)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    draw = np.random.default_rng(3)
    for _ in range(200):
        gradient = float(draw.choice([1.0, math.inf], p=[0.9, 0.1]))
        theirs.scale(torch.zeros(1))
        parameter.grad = torch.tensor([gradient])
        theirs.step(optimizer)
        theirs.update()
        assert ours.update(1.0, gradient) == math.isinf(gradient)
        assert ours.scale == theirs.get_scale()


def test_a_smaller_scale_is_no_help_against_a_loss_that_is_no_number() -> None:
    scale = LossScale(True)
    assert not scale.update(math.nan, math.nan)
    assert not scale.update(math.inf, math.inf)
    assert scale.scale == 65536.0


def test_overflows_in_a_row_end_with_a_sentence(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(recipe(("float32", "float16")), corpus, tmp_path)
    monkeypatch.setattr(run.stepper, "_gradients", lambda *arguments: 1.0)
    monkeypatch.setattr(run.stepper, "_norm", lambda: math.inf)
    assert not any(one_step(run).taken for _ in range(16))
    with pytest.raises(TrainingError, match="the gradient norm is inf at step 16"):
        one_step(run)


def test_float16_learns_as_float32_does(corpus: Corpus, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "float16"):
        run = small_run(recipe(("float32", precision)), corpus, tmp_path)
        steps = [one_step(run) for _ in range(6)]
        assert all(step.taken for step in steps)
        losses.append([step.loss for step in steps])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]


def test_float16_that_overflows_leaves_the_step_out(corpus: Corpus, tmp_path: Path) -> None:
    run = small_run(recipe(("float32", "float16")), corpus, tmp_path)
    run.stepper.loss_scale.scale = 2.0**40
    found = one_step(run)
    assert not found.taken
    assert "float16 overflowed" in found.anomaly
    assert run.stepper.loss_scale.scale == 2.0**39
