"""Where a run's metrics go besides its folder: TensorBoard, Weights & Biases, MLflow (`log_to` in a recipe)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, get_args

from clearhead.errors import TrainingError
from clearhead.training.recipe import Recipe, TrackerName
from clearhead.training.run_folder import disk_full_explained, write_text
from clearhead.utils.json_files import MalformedJSONError, parse_json
from clearhead.utils.packages import missing_package

_TENSORBOARD, _IDS = "tensorboard", "trackers.json"
_PROJECT = "clearhead"

Values = Mapping[str, float | str]
"""Metrics by names with slashes: `valid/birds/loss`."""


class Tracker(Protocol):
    """Receives the metrics of one run."""

    def begin(self) -> None:
        """Forget a run that stopped in this folder before its first checkpoint."""

    def resume_from(self, step: int) -> None:
        """Expect the steps after this one again."""

    def open(self) -> None:
        """Connect, so that what is wrong is known before the first step."""

    def add(self, step: int, values: Values) -> None:
        """Record metrics of a step."""

    def flush(self) -> None:
        """Write what is buffered."""

    def close(self, *, stopped: bool) -> None:
        """End; `stopped` says whether the run may resume."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        MissingPackageError: if one is not.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise missing_package(error, f'log_to = ["{name}"]') from None


def make_trackers(recipe: Recipe, out: Path) -> list[Tracker]:
    """Return the trackers that a recipe names; TensorBoard, if it is installed, where it names none."""
    names: Sequence[str] = recipe.training.log_to
    if not names:
        names = [_TENSORBOARD] if importlib.util.find_spec(_TENSORBOARD) is not None else []
    kinds: dict[str, type[TensorBoardTracker | WandbTracker | MlflowTracker]] = {
        _TENSORBOARD: TensorBoardTracker,
        "wandb": WandbTracker,
        "mlflow": MlflowTracker,
    }
    assert kinds.keys() == set(get_args(TrackerName))
    return [kinds[name](out, recipe) for name in names]


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe by names with slashes: `training/learning_rate`."""
    tables = {"model": recipe.shape, "training": recipe.training, "finetune": recipe.finetune}
    found: dict[str, Any] = {}
    for table, values in tables.items():
        if values is not None:
            found |= {f"{table}/{key}": value for key, value in asdict(values).items()}
    return found


class TensorBoardTracker:
    """Writes TensorBoard's files into the run's folder."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out = out
        self._writer: Any = None
        self._purge: int | None = None  # TensorBoard forgets the steps from this one on

    def begin(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.out / _TENSORBOARD, ignore_errors=True)

    def resume_from(self, step: int) -> None:
        """Let the writer drop later steps."""
        self._purge = step + 1

    def open(self) -> None:
        """Do nothing: the writer is made when it is first used."""

    def add(self, step: int, values: Values) -> None:
        """Write metrics, and texts.

        Raises:
            TrainingError: if there is no space left.
        """
        with self._room():
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.out / _TENSORBOARD), purge_step=self._purge)
                self._purge = None
            for name, value in values.items():
                if isinstance(value, str):
                    self._writer.add_text(name, value, step)
                elif math.isfinite(value):
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Close the writer; the next metrics begin another file.

        Raises:
            TrainingError: if there is no space left.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._room():
                writer.close()

    def close(self, *, stopped: bool) -> None:
        """Close the writer."""
        self.flush()

    def _room(self) -> contextlib.AbstractContextManager[None]:
        return disk_full_explained("TensorBoard's files", self.out)


class _ServiceTracker:
    """Sends metrics to a service. What it calls the run is in `trackers.json`, so that a resumed run goes on there.

    A service that fails later does not stop the training: it is left out, and a line says so.
    """

    title = name = ""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.settings = out, recipe_settings(recipe)
        self._run: Any = None
        self._lost = False

    def begin(self) -> None:
        """Forget the run's id."""
        (self.out / _IDS).unlink(missing_ok=True)

    def resume_from(self, step: int) -> None:
        """Do nothing: the repeated steps have the values that are there already."""

    def open(self) -> None:
        """Connect.

        Raises:
            TrainingError: if the service refuses.
        """
        ids = self._ids()
        try:
            self._run, id = self._connect(ids.get(self.name))
        except Exception as error:  # each service has errors of its own
            raise TrainingError(
                f"{self.title} did not accept the run ({_first_line(error)}); log in to it or correct its settings, "
                f'or remove "{self.name}" from log_to.'
            ) from None
        write_text(self.out / _IDS, json.dumps({**ids, self.name: id}) + "\n")

    def add(self, step: int, values: Values) -> None:
        """Send metrics, and texts."""
        if self._run is None or self._lost:
            return
        try:
            self._send(step, {k: v for k, v in values.items() if isinstance(v, str) or math.isfinite(v)})
        except Exception as error:
            self._lost = True
            raise TrackerLostError(
                f"{self.title} does not take metrics any more ({_first_line(error)}); the run goes on without it, "
                "and metrics.jsonl has all of them."
            ) from None

    def flush(self) -> None:
        """Do nothing: the services send what they have by themselves."""

    def close(self, *, stopped: bool) -> None:
        """End the run there."""
        run, self._run = self._run, None
        if run is not None and not self._lost:
            with contextlib.suppress(Exception):  # the training has ended, and its metrics are here
                self._end(run, stopped)

    def _connect(self, id: str | None) -> tuple[Any, str]:
        """Return the service's run, a new one or that of this id, and its id."""
        raise NotImplementedError

    def _send(self, step: int, values: Values) -> None:
        raise NotImplementedError

    def _end(self, run: Any, stopped: bool) -> None:
        raise NotImplementedError

    def _ids(self) -> dict[str, str]:
        try:
            return parse_json((self.out / _IDS).read_bytes(), dict[str, str])
        except (OSError, MalformedJSONError):
            return {}  # the run is a new one there


class TrackerLostError(TrainingError):
    """A service failed in the middle of a run, which goes on without it."""


class WandbTracker(_ServiceTracker):
    """Sends metrics to Weights & Biases; WANDB_PROJECT names the project, and WANDB_MODE=offline keeps them here."""

    title, name = "Weights & Biases", "wandb"

    def _connect(self, id: str | None) -> tuple[Any, str]:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self.out.resolve().name,
            id=id,
            resume="allow",
            dir=str(self.out),
            config=self.settings,
        )
        return run, run.id

    def _send(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def _end(self, run: Any, stopped: bool) -> None:
        run.finish(exit_code=1 if stopped else 0)


class MlflowTracker(_ServiceTracker):
    """Sends metrics to MLflow, to the server that MLFLOW_TRACKING_URI names."""

    title, name = "MLflow", "mlflow"

    def __init__(self, out: Path, recipe: Recipe) -> None:
        super().__init__(out, recipe)
        self._resumed = False
        self._held: dict[str, int] = {}  # the last step of each metric that an earlier session sent

    def _connect(self, id: str | None) -> tuple[Any, str]:
        from mlflow import MlflowClient

        client = MlflowClient()
        self._resumed = id is not None
        if id is not None:
            client.update_run(id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            known = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if known is None else known.experiment_id
            id = str(client.create_run(experiment, run_name=self.out.resolve().name).info.run_id)
            for key, value in self.settings.items():
                client.log_param(id, key, str(value)[:500])  # MLflow's limit in its older versions
        return (client, id), id

    def _send(self, step: int, values: Values) -> None:
        client, id = self._run
        for key, value in values.items():
            key = re.sub(r"[^\w\-. /]", "_", key)  # other characters are refused
            if isinstance(value, str):
                client.log_text(id, value, f"{key}/{step}.txt")
            elif step > self._last_held(key):  # MLflow would list a repeated step twice
                client.log_metric(id, key, float(value), step=step)

    def _last_held(self, key: str) -> int:
        if key not in self._held:
            client, id = self._run
            history = client.get_metric_history(id, key) if self._resumed else []
            self._held[key] = max((metric.step for metric in history), default=-1)
        return self._held[key]

    def _end(self, run: Any, stopped: bool) -> None:
        client, id = run
        client.set_terminated(id, status="KILLED" if stopped else "FINISHED")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
