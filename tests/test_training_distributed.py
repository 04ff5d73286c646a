"""One, two and three processes: the same losses, the same model, and checkpoints that go from one number to another."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import in_processes, run_together
from safetensors.torch import load_file
from small_runs import RECIPE

from clearhead.data.corpus import Corpus
from clearhead.errors import TrainingError
from clearhead.training.distributed import connect_processes
from clearhead.training.one_message import print_once
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.run_folder import read_metrics, run_lock
from clearhead.training.train import train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the processes are forked")

# Dropout, Muon, gradients in pieces: all that could depend on who computes what.
TEXT = (
    RECIPE.replace("batch_size = 8", "batch_size = 12\nmicro_batch_size = 2\nlog_every = 1")
    .replace("qkv_bias = true", "qkv_bias = true\ndrop_rate = 0.1")
    .replace("evaluate_windows = 2", 'evaluate_windows = 5\nsamples = ["The old"]\nsample_tokens = 4')
)
SHORT = TEXT.replace("steps = 12", "steps = 5").replace("decay_steps = 4", "decay_steps = 0")


def as_(parallel: str, text: str = TEXT) -> str:
    return text.replace("[training]", f'[training]\nparallel = "{parallel}"')


@pytest.fixture(scope="module")
def alone(data: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process in float32."""
    out = tmp_path_factory.mktemp("alone")
    train(parse_recipe(TEXT), data, out, corpus_folder=corpus.folder)
    return out


@dataclass(frozen=True)
class Tolerance:
    """How far runs on different numbers of processes may be apart: they add up the same numbers in another order."""

    loss: float  # relative, as are the scores on held-out texts
    norm: float  # relative
    weights: float  # absolute


FLOAT32 = Tolerance(loss=2e-5, norm=2e-5, weights=1e-4)
BFLOAT16 = Tolerance(loss=2e-3, norm=1e-2, weights=5e-2)


def assert_same_to_rounding(one: Path, other: Path, tolerance: Tolerance = FLOAT32) -> None:
    lines = [read_metrics(out) for out in (one, other)]
    losses, norms = ([[line[key] for line in of_run if key in line] for of_run in lines] for key in ("loss", "norm"))
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=tolerance.loss)
    assert norms[0] == pytest.approx(norms[1], rel=tolerance.norm)
    for key, number in (("valid", 2), ("final", 1)):
        found, expected = ([line[key]["birds"] for line in of_run if key in line] for of_run in lines)
        assert len(found) == len(expected) == number
        for scores, others in zip(found, expected, strict=True):
            assert scores == pytest.approx(others, rel=tolerance.loss)
    models = [load_file(out / "model/model.safetensors") for out in (one, other)]
    for name, tensor in models[0].items():
        assert (tensor - models[1][name]).abs().max() < tolerance.weights, name


@pytest.mark.parametrize(("world", "parallel"), [(2, "replicate"), (3, "replicate"), (2, "shard"), (3, "shard")])
def test_any_number_of_processes_makes_the_same_run(
    data: Path, corpus: Corpus, alone: Path, tmp_path: Path, world: int, parallel: str
) -> None:
    assert run_together(world, as_(parallel), data, tmp_path, corpus.folder) == [""] * world
    assert_same_to_rounding(tmp_path, alone)
    samples, expected = (
        [line["sample"] for line in read_metrics(out) if "sample" in line] for out in (tmp_path, alone)
    )
    assert samples == expected
    assert len(samples) == 2


def _pairs(text: str = TEXT) -> str:
    """Four processes: two replicas, each of them shared by two processes."""
    return as_("hybrid", text).replace("[training]", "[training]\nshard_processes = 2")


def test_replicas_that_are_sharded_make_the_same_run(data: Path, corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    text = _pairs().replace("micro_batch_size = 2", "micro_batch_size = 1")
    assert run_together(4, text, data, tmp_path, corpus.folder) == [""] * 4
    one = tmp_path / "one"  # dropout's random numbers belong to the micro-batch
    train(parse_recipe(text), data, one, corpus_folder=corpus.folder)
    assert_same_to_rounding(tmp_path, one)


def test_sharded_replicas_resume_what_others_began_and_others_resume_theirs(
    data: Path, corpus: Corpus, tmp_path: Path
) -> None:
    def text(parallel: str, of: str) -> str:
        return (_pairs(of) if parallel == "hybrid" else as_(parallel, of)).replace("micro_batch_size = 2\n", "")

    four = TEXT.replace("drop_rate = 0.1\n", "")
    short = [four.replace("steps = 12", f"steps = {steps}").replace("decay_steps = 4", "decay_steps = 0")
             for steps in (4, 8)]  # fmt: skip
    assert run_together(4, text("replicate", short[0]), data, tmp_path / "four", corpus.folder) == [""] * 4
    eight = text("hybrid", short[1])
    assert run_together(4, eight, data, tmp_path / "four", corpus.folder, resume=True) == [""] * 4
    assert run_together(4, text("replicate", four), data, tmp_path / "four", corpus.folder, resume=True) == [""] * 4
    train(parse_recipe(text("replicate", four)), data, tmp_path / "one", corpus_folder=corpus.folder)
    assert_same_to_rounding(tmp_path / "four", tmp_path / "one")


def test_shards_of_unequal_replicas_are_refused(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    ends = run_together(3, _pairs(), data, tmp_path, corpus.folder)
    assert all("3 processes cannot be divided into replicas of 2" in end for end in ends)


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_processes_agree_in_bfloat16_to_its_own_rounding(
    data: Path, corpus: Corpus, tmp_path: Path, parallel: str
) -> None:
    text = TEXT.replace("float32", "bfloat16")
    train(parse_recipe(text), data, tmp_path / "alone", corpus_folder=corpus.folder)
    assert run_together(2, as_(parallel, text), data, tmp_path / "two", corpus.folder) == ["", ""]
    assert_same_to_rounding(tmp_path / "two", tmp_path / "alone", BFLOAT16)


def test_a_checkpoint_of_two_goes_on_alone_and_with_three(
    data: Path, corpus: Corpus, alone: Path, tmp_path: Path
) -> None:
    """Two processes with a part of the model each; then three with all of it; then one."""
    assert run_together(2, as_("shard", SHORT), data, tmp_path, corpus.folder) == ["", ""]
    nine = as_("replicate", SHORT.replace("steps = 5", "steps = 9"))
    assert run_together(3, nine, data, tmp_path, corpus.folder, resume=True) == ["", "", ""]
    train(parse_recipe(TEXT), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert_same_to_rounding(tmp_path, alone)


def test_checkpoints_in_the_background_of_two_go_on_alone(
    data: Path, corpus: Corpus, alone: Path, tmp_path: Path
) -> None:
    short = as_("shard", SHORT).replace("[training]", "[training]\nasync_checkpoints = true")
    assert run_together(2, short, data, tmp_path, corpus.folder) == ["", ""]
    train(parse_recipe(TEXT), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert_same_to_rounding(tmp_path, alone)


def test_a_checkpoint_of_one_goes_on_with_two_that_share_it(
    data: Path, corpus: Corpus, alone: Path, tmp_path: Path
) -> None:
    train(parse_recipe(SHORT), data, tmp_path, corpus_folder=corpus.folder)
    assert run_together(2, as_("shard"), data, tmp_path, corpus.folder, resume=True) == ["", ""]
    expected = load_file(alone / "model/model.safetensors")
    for name, tensor in load_file(tmp_path / "model/model.safetensors").items():
        assert (tensor - expected[name]).abs().max() < 1e-4, name


def test_all_processes_hear_of_what_stops_one(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    with run_lock(tmp_path):
        ends = run_together(2, TEXT, data, tmp_path, corpus.folder)
    assert all("belongs to a run that is in progress" in end for end in ends)
    ends = run_together(2, TEXT.replace("batch_size = 12", "batch_size = 10"), data, tmp_path, corpus.folder)
    assert all("batch_size 10 cannot be divided among 2 processes in micro-batches of 2" in end for end in ends)
    assert not list((tmp_path / "checkpoints").glob("*"))


def _replica_outlives_its_group() -> str:
    sys.setswitchinterval(1000)  # seconds: other threads get Python's lock only where it is given up
    with connect_processes("cpu") as group:
        replica = group.spread(torch.nn.Linear(2, 2), [], "replicate")
        told = group.from_first("the last word")
    del replica
    return told


def test_a_replica_may_outlive_its_group() -> None:
    """Its reducer must not wait, with Python's lock in its hand, for a thread of gloo's that needs this lock."""
    for _ in range(5):
        assert in_processes(2, _replica_outlives_its_group) == ["the last word"] * 2


def _longer_than_the_patience() -> str:
    with connect_processes("cpu") as group:
        if not group.is_first:
            dist.distributed_c10d._set_pg_timeout(timedelta(milliseconds=20))
        with group.first_alone() as first:
            if first:
                time.sleep(0.2)
    return "waited"


def test_the_others_wait_for_the_first_beyond_their_patience() -> None:
    assert in_processes(2, _longer_than_the_patience) == ["waited"] * 2


def _one_fails() -> str:
    try:
        with connect_processes("cpu") as group:
            group.wait()
            if group.rank == 1:
                raise TrainingError("the second had enough.")
            group.wait()
    except TrainingError as error:
        return str(error)
    return "not stopped"


def test_what_stops_one_between_two_meetings_is_told_by_all() -> None:
    assert in_processes(3, _one_fails) == ["the second had enough."] * 3


def _the_first_is_gone() -> str:
    printed: list[str] = []
    if os.environ["RANK"] != "0":
        print_once(lambda: printed.append("it stopped."), patience=0.3)
    return "".join(printed)


def test_an_error_is_printed_by_one_process_even_if_the_first_is_gone() -> None:
    assert "".join(in_processes(4, _the_first_is_gone)) == "it stopped."


def _all_are_there() -> str:
    printed: list[str] = []
    print_once(lambda: printed.append("it stopped."), patience=100.0)
    return "".join(printed)


def test_an_error_is_printed_by_the_first_process() -> None:
    assert in_processes(3, _all_are_there) == ["it stopped.", "", ""]


def test_a_process_that_fails_is_heard_of_at_once() -> None:
    with pytest.raises(AssertionError, match=r"(?s)a process died.*ZeroDivisionError"):
        in_processes(2, divmod, 1, 0)


def test_random_numbers_of_dropout_belong_to_the_piece(data: Path, corpus: Corpus, tmp_path: Path, alone: Path) -> None:
    """Without it, the comparison above could not see dropout: the losses of another seed are others."""
    other = parse_recipe(TEXT.replace("drop_rate = 0.1", "drop_rate = 0.0"))
    train(other, data, tmp_path, corpus_folder=corpus.folder)
    losses = [[line["loss"] for line in read_metrics(out) if "loss" in line] for out in (tmp_path, alone)]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) > 1e-3
    assert torch.tensor(losses).isfinite().all()


_WORKER = """
import os, signal, sys
from pathlib import Path
from clearhead.training.recipe_reader import read_recipe
from clearhead.training.step import Stepper
from clearhead.training.train import train

take = Stepper.take

def killed(self, number, *rest):
    if number == 6 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, number, *rest)

Stepper.take = killed
data, out, corpus = map(Path, sys.argv[2:])
train(read_recipe(sys.argv[1]), data, out, corpus_folder=corpus, resume="auto", device="cpu")
"""


@pytest.mark.slow
def test_one_torchrun_command_survives_a_killed_worker(data: Path, corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    """The second attempt resumes from the checkpoint of step 4, and finds no key of the first in torchrun's store."""
    (tmp_path / "worker.py").write_text(_WORKER)
    (tmp_path / "recipe.toml").write_text(TEXT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"),
            *(tmp_path / "worker.py", tmp_path / "recipe.toml", data, tmp_path / "run", corpus.folder),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_to_rounding(tmp_path / "run", alone)


_FAILING = """
import os, sys
from clearhead.cli import main
from clearhead.errors import TrainingError
from clearhead.training.step import Stepper

take = Stepper.take

def failing(self, number, *rest):
    if number == 3 and os.environ["RANK"] == "1":
        raise TrainingError("the second had enough.")
    return take(self, number, *rest)

Stepper.take = failing
main()
"""


@pytest.mark.slow
def test_torchrun_shows_an_error_once(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(_FAILING)
    (tmp_path / "recipe.toml").write_text(TEXT)
    command: list[str | Path] = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(tmp_path / "worker.py", "train", tmp_path / "recipe.toml", "--data", data, "--out", tmp_path / "run"),
        *("--corpus", corpus.folder, "--device", "cpu"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("clearhead: ") == 1
    assert "clearhead: the second had enough." in done.stderr
    assert "TrainingError" not in done.stderr


@pytest.mark.slow
def test_two_machines_make_the_same_run(data: Path, corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    """Two agents of one process each, as two machines start them, that find each other at one address."""
    (tmp_path / "recipe.toml").write_text(TEXT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=two"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"),
        *("-m", "clearhead", "train", str(tmp_path / "recipe.toml"), "--data", str(data)),
        *("--out", str(tmp_path / "run"), "--corpus", str(corpus.folder), "--device", "cpu", "--auto-resume"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(2)
    ]
    try:
        texts = [agent.communicate(timeout=400)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(texts)[-3000:]
    assert_same_to_rounding(tmp_path / "run", alone)
    assert sum(text.count("The model is in") for text in texts) == 1, "the first process alone reports"
