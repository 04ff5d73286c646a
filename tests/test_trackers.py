"""Where metrics go besides the run's folder: stand-ins for Weights & Biases and MLflow, and TensorBoard itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from small_runs import recipe

from clearhead.data.corpus import Corpus
from clearhead.errors import MissingPackageError, TrainingError
from clearhead.training.checkpoint import checkpoints
from clearhead.training.loop import Run
from clearhead.training.record import flatten
from clearhead.training.run_folder import read_metrics
from clearhead.training.train import train

STEPS = ("steps = 12", 'log_every = 2\nsamples = ["The old"]\nsample_tokens = 3\nlog_to = {}\nsteps = 12')


def logging_to(*names: str) -> tuple[str, str]:
    return STEPS[0], STEPS[1].format(json.dumps(names))


class FakeWandb(ModuleType):
    """What Clearhead uses of wandb: `init`, and a run with `id`, `log` and `finish`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.codes: list[int] = []
        self.fails_after = math.inf

    def init(self, **how: Any) -> Any:
        self.begun.append(how)
        return SimpleNamespace(id=how["id"] or "run-1", log=self._log, finish=self._finish)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if len(self.logged) >= self.fails_after:
            raise ConnectionError("the service is away\nand more")
        self.logged.append((step, values))

    def _finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)


class FakeMlflow(ModuleType):
    """What Clearhead uses of mlflow: `MlflowClient`."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[int, str, float]] = []
        self.texts: dict[str, str] = {}
        self.statuses: list[str] = []
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name: str) -> Any:
        return None

    def create_experiment(self, name: str) -> str:
        assert name == "clearhead"
        return "7"

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        assert experiment_id == "7"
        return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def update_run(self, run_id: str, status: str) -> None:
        self.statuses.append(status)

    def log_param(self, run_id: str, key: str, value: str) -> None:
        self.params[key] = value

    def log_metric(self, run_id: str, key: str, value: float, step: int) -> None:
        assert run_id == "run-1"
        self.metrics.append((step, key, value))

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [SimpleNamespace(step=step) for step, name, _ in self.metrics if name == key]

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self.texts[artifact_file] = text

    def set_terminated(self, run_id: str, status: str) -> None:
        self.statuses.append(status)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def lines_of(out: Path) -> list[tuple[int, dict[str, Any]]]:
    """The lines of metrics, as trackers get them."""
    return [(line.pop("step"), flatten(line)) for line in read_metrics(out)]


def test_every_tracker_gets_every_metric(
    data: Path, corpus: Corpus, tmp_path: Path, wandb: FakeWandb, mlflow: FakeMlflow
) -> None:
    out = tmp_path / "mine"
    train(recipe(logging_to("wandb", "mlflow", "tensorboard")), data, out, corpus_folder=corpus.folder)
    lines = lines_of(out)
    assert wandb.logged == lines and len(lines) > 8
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["id"], begun["resume"]) == ("clearhead", "mine", None, "allow")
    assert begun["config"]["training/learning_rate"] == 3e-3 and begun["config"]["model/n_layers"] == 2
    assert wandb.codes == [0]
    numbers = [(step, key, value) for step, values in lines for key, value in values.items() if type(value) is not str]
    assert mlflow.metrics == numbers
    assert mlflow.texts["prompt/5.txt"] == "The old" and mlflow.params["training/optimizer"] == "muon"
    assert mlflow.statuses == ["FINISHED"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in events.Scalars("final/birds/loss")] == [12]


def test_only_the_trackers_that_are_named(data: Path, corpus: Corpus, tmp_path: Path, wandb: FakeWandb) -> None:
    train(recipe(logging_to("wandb")), data, tmp_path, corpus_folder=corpus.folder)
    assert wandb.logged and not (tmp_path / "tensorboard").exists()


def test_a_run_that_resumes_goes_on_in_the_same_place(
    data: Path,
    corpus: Corpus,
    tmp_path: Path,
    wandb: FakeWandb,
    mlflow: FakeMlflow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, original = recipe(logging_to("wandb", "mlflow")), Run._report

    def stopping(run: Run, step: Any) -> None:
        original(run, step)
        if run.step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_report", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, data, tmp_path, corpus_folder=corpus.folder)
    assert wandb.codes == [1] and mlflow.statuses == ["KILLED"]
    assert checkpoints(tmp_path)[-1].name == "step-00000008"
    monkeypatch.setattr(Run, "_report", original)
    train(chosen, data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert [begun["id"] for begun in wandb.begun] == [None, "run-1"]
    assert wandb.codes == [1, 0] and mlflow.statuses == ["KILLED", "RUNNING", "FINISHED"]
    assert [line for line in wandb.logged if "loss" in line[1]] == [
        line for line in lines_of(tmp_path) if "loss" in line[1]
    ]


def test_steps_that_are_computed_again_are_not_sent_again(
    data: Path, corpus: Corpus, tmp_path: Path, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a SIGKILL: MLflow has steps that come after the newest checkpoint."""
    chosen, original = recipe(logging_to("mlflow")), Run._report

    def dying(run: Run, step: Any) -> None:
        original(run, step)
        if run.step == 10:
            raise ZeroDivisionError

    monkeypatch.setattr(Run, "_report", dying)
    with pytest.raises(ZeroDivisionError):
        train(chosen, data, tmp_path, corpus_folder=corpus.folder)
    assert checkpoints(tmp_path)[-1].name == "step-00000008" and mlflow.metrics[-1][0] == 10
    monkeypatch.setattr(Run, "_report", original)
    train(chosen, data, tmp_path, corpus_folder=corpus.folder, resume=True)
    sent = [(key, step) for step, key, _ in mlflow.metrics]
    expected = [
        (key, step) for step, line in lines_of(tmp_path) for key, value in line.items() if type(value) is not str
    ]
    assert len(set(sent)) == len(sent) and sorted(sent) == sorted(expected)


def test_a_service_that_fails_later_does_not_stop_the_run(
    data: Path, corpus: Corpus, tmp_path: Path, wandb: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fails_after = 2
    train(recipe(logging_to("wandb")), data, tmp_path, corpus_folder=corpus.folder)
    assert len(wandb.logged) == 2 and "final" in read_metrics(tmp_path)[-1]
    said = capsys.readouterr().err
    assert said.count("Weights & Biases does not take metrics any more (the service is away); the run goes on") == 1


def test_a_service_that_refuses_is_known_before_the_first_step(
    data: Path, corpus: Corpus, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(**how: Any) -> None:
        raise ValueError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refusing)
    with pytest.raises(TrainingError, match=r"Weights & Biases did not accept the run \(api_key not configured\); log"):
        train(recipe(logging_to("wandb")), data, tmp_path, corpus_folder=corpus.folder)
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize(("name", "extra"), [("wandb", "track"), ("mlflow", "track"), ("tensorboard", "train")])
def test_a_tracker_that_is_not_installed_is_named(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    class Hidden:
        def find_spec(self, found: str, path: Any = None, target: Any = None) -> None:
            if found == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    words = rf'log_to = \["{name}"\] needs the package {name}, which is not installed; .* \'clearhead\[{extra}\]\'\.'
    with pytest.raises(MissingPackageError, match=words):
        train(recipe(logging_to(name)), data, tmp_path, corpus_folder=corpus.folder)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"log_to in .* has 'tensorbord'; it must be a list of tensorboard, wandb"):
        recipe(logging_to("tensorbord"))
