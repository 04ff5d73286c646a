"""What a run survives: kills, a full disk, a second run in its folder, spikes, numbers that are none."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import ALONE, assert_equal_runs, one_step, recipe, small_run, weights_of, write_texts

from clearhead.errors import TrainingError
from clearhead.training.checkpoint import checkpoints, read_state, save_checkpoint
from clearhead.training.corpus import Corpus, build
from clearhead.training.loop import train
from clearhead.training.precision import LossScale
from clearhead.training.run_folder import locked, read_metrics
from clearhead.training.spikes import Spikes

ROOT = Path(__file__).parents[1]
SHORT = (("steps = 12", "steps = 5"), ("decay_steps = 4", "decay_steps = 0"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def corpus(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(recipe().corpus, 300, data, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(data: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(recipe(), data, out, corpus_folder=corpus.folder)
    return out


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/kill_resume.py"), "--kills", "5", "--steps", "60"],
        capture_output=True,
        text=True,
        timeout=300,
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
@pytest.mark.parametrize(("limit", "what"), [(300_000, "the checkpoint of step 8"), (1_000_000, "metrics")])
def test_a_full_disk_stops_a_run_with_a_sentence_and_loses_nothing(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path, limit: int, what: str
) -> None:
    train(recipe(*SHORT), data, tmp_path, corpus_folder=corpus.folder)
    before = weights_of(tmp_path)
    if what == "metrics":
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "filler": "' + "x" * 999_950 + '"}\n')
    with files_up_to(limit), pytest.raises(TrainingError, match=rf"no space left in .* for (the )?{what}.*--resume"):
        train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    if what != "metrics":
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
        assert all(torch.equal(value, before[name]) for name, value in weights_of(tmp_path).items())
    train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    expected = weights_of(finished)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(tmp_path).items())


def test_two_runs_never_write_one_folder(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(TrainingError, match=rf"belongs to a run that is going on \(process {os.getpid()}\)"),
    ):
        train(recipe(), data, tmp_path, corpus_folder=corpus.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock"]
    with locked(tmp_path):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from clearhead.training.run_folder import locked\n"
        f"with locked(Path({str(tmp_path)!r})): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 9
    with locked(tmp_path):
        pass


def test_what_a_kill_left_half_written_is_passed_over_and_cleared_away(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path
) -> None:
    train(
        recipe(*SHORT),
        data,
        tmp_path,
        corpus_folder=corpus.folder,
    )
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


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (3, 7, 20, 100):
        save_checkpoint(tmp_path, step, {"a": torch.arange(step)}, {"more": 1.5}, ALONE, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020", "step-00000100"]
    assert read_state(checkpoints(tmp_path)[-1]) == {"step": 100, "more": 1.5}


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
    spikes = Spikes()
    for step in range(2000):
        loss = 3 + 2 * math.exp(-step / 300) + 0.05 * noise.standard_normal()
        assert spikes.look(loss, 0.5 * math.exp(0.2 * noise.standard_normal())) == "", step
    assert spikes.look(4.5, 0.5).startswith("the loss is 4.5, after a mean of 3")
    assert spikes.look(3.0, 30.0).startswith("the gradient norm is 30, after a mean of 0.5")
    assert spikes.look(math.nan, math.inf) == "the loss is nan and the gradient norm is inf"
    assert spikes.in_a_row == 3
    assert spikes.look(3.0, 0.5) == ""
    assert spikes.in_a_row == 0


def test_spikes_go_on_from_their_state() -> None:
    noise = np.random.default_rng(2)
    values = [(3 + float(noise.standard_normal()) * (9 if step % 41 == 40 else 0.1), 1.0) for step in range(200)]
    whole, half = Spikes(), Spikes()
    expected = [whole.look(*value) for value in values]
    assert any(expected)
    found = [half.look(*value) for value in values[:100]]
    other = Spikes()
    other.restore(half.state())
    assert [*found, *(other.look(*value) for value in values[100:])] == expected


def test_a_spike_can_be_left_out(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipping = recipe(("steps = 12", 'on_spike = "skip"\nsteps = 12'))
    run = small_run(skipping, corpus, tmp_path)
    one_step(run)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    monkeypatch.setattr(run.stepper.spikes, "look", lambda loss, norm: "odd")
    found = one_step(run)
    assert (found.taken, found.odd) == (False, "odd")
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    monkeypatch.undo()
    assert one_step(run).taken
    assert not torch.equal(run.model.head.weight, before["head.weight"])


def test_a_run_of_nothing_but_broken_steps_stops(corpus: Corpus, tmp_path: Path) -> None:
    run = small_run(recipe(("steps = 12", 'on_spike = "skip"\nsteps = 12')), corpus, tmp_path)
    with torch.no_grad():
        run.model.final_norm.weight[0] = math.nan
    with pytest.raises(TrainingError, match="10 steps in a row had to be left out, up to step 9"):
        run.go()


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
        assert ours.update(gradient) == math.isfinite(gradient)
        assert ours.scale == theirs.get_scale()


def test_float16_learns_as_float32_does(corpus: Corpus, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "float16"):
        run = small_run(recipe(("steps = 12", f'precision = "{precision}"\nsteps = 12')), corpus, tmp_path)
        steps = [one_step(run) for _ in range(6)]
        assert all(step.taken for step in steps)
        losses.append([step.loss for step in steps])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]


def test_float16_that_overflows_leaves_the_step_out(corpus: Corpus, tmp_path: Path) -> None:
    run = small_run(recipe(("steps = 12", 'precision = "float16"\nsteps = 12')), corpus, tmp_path)
    run.stepper.loss_scale.scale = 2.0**40
    found = one_step(run)
    assert not found.taken
    assert "float16 overflowed" in found.odd
    assert run.stepper.loss_scale.scale == 2.0**39
