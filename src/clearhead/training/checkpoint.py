"""Checkpoints: everything that a run needs to resume exactly, in a folder that is complete or does not exist.

    checkpoints/step-00000250/state.json       the small values, and the SHA-256 of every other file
    checkpoints/step-00000250/training/*.safetensors    weights and optimizer state, by name
    checkpoints/step-00000250/model.safetensors, config.json, ...    the model, as a Hugging Face folder

torch.distributed.checkpoint writes the tensors, each process its own, as safetensors; a run with another number of
processes can read them. The folder is written under another name and renamed when it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import safetensors
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from clearhead.errors import TrainingError
from clearhead.training.clock import ClockState
from clearhead.training.distributed import Processes
from clearhead.training.optimizer import Muon
from clearhead.training.recipe import DEFAULTS
from clearhead.training.run_folder import disk_full_explained, write_text
from clearhead.training.step import StepperState
from clearhead.utils.atomic import TEMPORARY_SUFFIX, flush_to_disk
from clearhead.utils.json_files import Condition, Count, PathText, read_record, record_text

FOLDER = "checkpoints"
MODEL_CONFIG = "config.json"
_STATE = "state.json"
_TENSORS = "training"


_DTYPES = ("float32", "bfloat16", "float16")
_DtypeName = Annotated[str, Condition(lambda name: name in _DTYPES, f"one of {', '.join(_DTYPES)}")]


class RunFingerprint(TypedDict):
    """What the first steps of a run depend on.

    Attributes:
        model, training, finetune: tables of settings.
        data: a digest of the texts.
        rates: a digest of the learning rates so far.
        precision: of the matrix products; earlier versions did not store it.
    """

    model: dict[str, Any]
    training: dict[str, Any]
    finetune: dict[str, Any]
    data: str
    rates: str
    precision: NotRequired[_DtypeName]


class CheckpointState(RunFingerprint, StepperState):
    """The small values of a checkpoint.

    Attributes:
        clock: the state of `Clock`.
        step, tokens: how many the run has completed.
        milestone: its name, if this is one.
    """

    clock: ClockState
    step: Count
    tokens: Count
    milestone: NotRequired[str | None]


class StoredState(CheckpointState):
    """The contents of `state.json`: the small values, the SHA-256 of each other file, and a checksum of all of this.

    Earlier versions wrote no checksums.
    """

    files: NotRequired[dict[PathText, str]]
    checksum: NotRequired[str]


def tensors_by_name(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: each trained parameter, and the optimizer's state of it.

    An optimizer's state is created if it does not exist yet, so that a checkpoint can be read into it.
    """
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {f"model.{name}": parameter.detach() for parameter, name in names.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if not state:
                    state.update(_initial_state(optimizer, parameter))
                for key, value in state.items():
                    # AdamW's count of steps has no dimension; safetensors are read by slices of one.
                    tensors[f"optimizer.{names[parameter]}.{key}"] = value.view(1) if value.ndim == 0 else value
    return tensors


def _initial_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return an optimizer's state of a parameter before its first step, as the optimizer itself would create it."""
    if isinstance(optimizer, torch.optim.AdamW):
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step, "exp_avg": _zeros(parameter), "exp_avg_sq": _zeros(parameter)}
    assert isinstance(optimizer, Muon)
    return optimizer.initial_state(parameter)


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()


def save_checkpoint(
    run: Path,
    state: CheckpointState,
    tensors: Mapping[str, Tensor],
    save_model: Callable[[Path], None],
    processes: Processes,
    keep: int = 2,
) -> None:
    """Write a checkpoint and delete old ones. All processes call this together.

    Args:
        run: the run's folder.
        state: the values to store as JSON; `step` is the number of completed steps. A checkpoint with a `milestone` is
            never deleted.
        tensors: those of `tensors_by_name`.
        save_model: writes the model into a folder; it is called in the first process.
        processes: the processes of the run.
        keep: the number of checkpoints to keep.

    Raises:
        TrainingError: if the disk is full, or a tensor contains NaN or infinity; earlier checkpoints are untouched.
    """
    new = begin_checkpoint(run, state, tensors, processes, keep)
    if new is None:
        return
    try:
        _write_tensors(new, dict(tensors), processes)
        with processes.first_alone() as first:
            if first:
                new.complete(save_model)
    except BaseException:
        if processes.is_first:
            new.discard()
        raise


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint that is being written under another name.

    Attributes:
        run: the run's folder.
        state: the values to store as JSON.
        keep: the number of checkpoints to keep.
    """

    run: Path
    state: CheckpointState
    keep: int

    @property
    def what(self) -> str:
        """Its name in messages."""
        return f"the checkpoint of step {self.state['step']:,}"

    @property
    def folder(self) -> Path:
        """Where it is when it is complete."""
        return self.run / FOLDER / f"step-{self.state['step']:08d}"

    @property
    def temporary(self) -> Path:
        """Where it is until then."""
        return self.folder.with_name(f".{self.folder.name}{TEMPORARY_SUFFIX}")

    def writer(self) -> dcp.HuggingFaceStorageWriter:
        """Return what writes its tensors."""
        return dcp.HuggingFaceStorageWriter(str(self.temporary / _TENSORS), save_distributed=True)

    def complete(self, save_model: Callable[[Path], None]) -> None:
        """Add the model and the small values to the tensors, rename the folder, and delete old checkpoints.

        Raises:
            TrainingError: if the disk is full.
        """
        with disk_full_explained(self.what, self.run):
            save_model(self.temporary)
            whole = {**self.state, "files": _digests(self.temporary)}
            write_text(self.temporary / _STATE, record_text(whole))
            flush_to_disk(self.temporary)
            self.temporary.replace(self.folder)
            flush_to_disk(self.folder.parent)
            _delete_old(self.run, self.keep)

    def discard(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self.temporary, ignore_errors=True)


def begin_checkpoint(
    run: Path, state: CheckpointState, tensors: Mapping[str, Tensor], processes: Processes, keep: int
) -> NewCheckpoint | None:
    """Return a new checkpoint, with an empty folder for its tensors; None if there is one of this step already.

    All processes call this together.

    Raises:
        TrainingError: if the disk is full, or a tensor contains NaN or infinity.
    """
    new = NewCheckpoint(run, state, keep)
    _refuse_nonfinite(state["step"], tensors, processes)
    if processes.from_first((new.folder / _STATE).is_file()):
        return None  # stopped again at the step from which the run was resumed
    with processes.first_alone() as first, disk_full_explained(new.what, run):
        if first:
            _remove_unfinished(run)
            (new.temporary / _TENSORS).mkdir(parents=True)
    return new


def _refuse_nonfinite(step: int, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Raise in all processes if a tensor contains NaN or infinity in one: nothing can continue from that."""
    parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values())
    if processes.sums([float(not all(part.isfinite().all() for part in parts))])[0]:
        raise TrainingError(
            f"after step {step:,} the weights or the optimizer's state contain NaN or infinity, so no checkpoint was "
            "written; earlier ones are untouched. Start again with a lower learning rate or a longer warm-up."
        )


def _delete_old(run: Path, keep: int) -> None:
    for old in checkpoints(run)[:-keep]:
        with contextlib.suppress(TrainingError):
            if read_state(old).get("milestone"):
                continue
        old.replace(old.with_name(f".{old.name}{TEMPORARY_SUFFIX}"))
    _remove_unfinished(run)


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, the oldest first."""
    try:
        found = sorted((run / FOLDER).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in found if re.fullmatch(r"step-\d{8,}", path.name) and (path / _STATE).is_file()]


def read_state(checkpoint: Path) -> StoredState:
    """Read the small values of a checkpoint.

    Raises:
        TrainingError: if they are malformed.
    """
    remedy = (
        "delete that checkpoint to resume from the one before, resume with the version of Clearhead that wrote it, or "
        "start a new run"
    )
    return read_record(checkpoint / _STATE, StoredState, TrainingError, remedy)


def check_fingerprint(state: CheckpointState, fingerprint: RunFingerprint, checkpoint: Path, steps: int) -> None:
    """Check that a run can resume from a checkpoint.

    Args:
        state: the checkpoint's small values, which include the fingerprint of the run that wrote it.
        fingerprint: everything that the same number of steps depends on now.
        checkpoint: the checkpoint's folder, for the message.
        steps: the number of steps of the recipe.

    Raises:
        TrainingError: if they differ; the message names each setting with both values.
    """
    fingerprint = json.loads(json.dumps(fingerprint))  # as JSON represents tuples and whole floats
    different = [
        f"{key} was {before} and is {value}"
        for table in ("model", "training", "finetune")
        for key, value in fingerprint[table].items()
        if (before := state[table].get(key, DEFAULTS.get(key))) != value  # earlier versions had fewer keys
    ]
    if state["data"] != fingerprint["data"]:
        others = "the model that it started from" if fingerprint["finetune"] else "their shares"
        different.append(f"its texts or {others} were others")
    if not different and state["rates"] != fingerprint["rates"]:
        different.append("its learning rates up to that step were others")
    if different:
        raise TrainingError(
            f"the checkpoint {checkpoint} belongs to another recipe or corpus: {'; '.join(different)}. Give "
            "the one that it was made with, or another folder for the new run."
        )
    if state["step"] > steps:
        raise TrainingError(
            f"the checkpoint has completed {state['step']:,} steps and the recipe asks for {steps:,}; raise steps."
        )


def load_tensors(checkpoint: Path, state: StoredState, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Fill the tensors of a model and its optimizers from a checkpoint that any number of processes wrote.

    Raises:
        TrainingError: if a file has changed since it was written, or lacks one of the tensors.
    """
    with processes.first_alone() as first:
        if first:
            check_files(checkpoint, state)
    folder = checkpoint / _TENSORS if (checkpoint / _TENSORS).is_dir() else checkpoint  # as earlier versions wrote it
    try:
        for file in folder.glob("*.safetensors"):
            safetensors.safe_open(file, "pt")  # reads the header, which gives the file's length
        with _silenced():
            dcp.load(
                dict(tensors),
                storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
                no_dist=processes.world == 1,
            )
    except (Exception, CheckpointException) as error:
        raise _broken(checkpoint, _cause(error)) from None


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path relative to the folder."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        flush_to_disk(path)
    return found


def model_files(checkpoint: Path) -> list[Path]:
    """Return the files of the model in a checkpoint; none in one of an earlier version."""
    if not (checkpoint / MODEL_CONFIG).is_file():
        return []
    return sorted(path for path in checkpoint.iterdir() if path.is_file() and path.name != _STATE)


def check_files(checkpoint: Path, state: StoredState) -> None:
    """Compare the files of a checkpoint with their checksums; earlier versions wrote none.

    Raises:
        TrainingError: if a file differs.
    """
    for name, expected in state.get("files", {}).items():
        path = checkpoint / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _broken(checkpoint, error) from None
        if digest != expected:
            raise _broken(checkpoint, ValueError(f"{name} differs from its checksum"))


def _write_tensors(new: NewCheckpoint, tensors: dict[str, Tensor], processes: Processes) -> None:
    with write_errors_explained(new), _silenced():
        dcp.save(tensors, storage_writer=new.writer(), no_dist=processes.world == 1)


@contextlib.contextmanager
def write_errors_explained(new: NewCheckpoint) -> Iterator[None]:
    """Turn an error of the disk in torch's writer into the one for a full disk.

    Raises:
        TrainingError: if the disk is full.
    """
    try:
        yield
    except (Exception, CheckpointException) as error:  # the latter is not an Exception
        cause = _cause(error)
        if isinstance(cause, OSError):
            with disk_full_explained(new.what, new.run):
                raise cause from None
        raise


def _cause(error: BaseException) -> BaseException:
    """Return the error inside one that torch.distributed.checkpoint wraps."""
    failures = getattr(error, "failures", None)
    if failures:
        return _cause(next(iter(failures.values()))[0])
    # torch's writer closes its file after an error, and the file then fails to write what is left.
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return chain
        chain = chain.__cause__ or chain.__context__
    return error


def _broken(checkpoint: Path, error: BaseException) -> TrainingError:
    words = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return TrainingError(
        f"the checkpoint {checkpoint} is broken ({words}); delete it to resume from the one before, or start a new run."
    )


def _remove_unfinished(run: Path) -> None:
    for path in (run / FOLDER).glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress torch's remarks that there is only one process, and that its reader's interface is young."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
