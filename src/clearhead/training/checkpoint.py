"""Everything that a run needs to go on as if it had never stopped: a folder that is there whole, or not at all.

    checkpoints/step-00000250/shard-00001-model-00001-of-00001.safetensors    weights and optimizer state, by name
    checkpoints/step-00000250/state.json                                      the rest, small

torch.distributed.checkpoint writes the tensors, each process its own, as safetensors; a run with another number of
processes reads them back. The folder is written under another name and renamed when it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from clearhead.errors import TrainingError
from clearhead.training.distributed import Processes
from clearhead.training.run_folder import room_for, write_text

FOLDER = "checkpoints"
_STATE = "state.json"


def tensors_of(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What a checkpoint holds, by name: each trained parameter, and what its optimizer remembers of it.

    An optimizer's memory is made where there is none yet, so that a checkpoint can be read into it.
    """
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {f"model.{name}": parameter.detach() for parameter, name in names.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if not state:
                    state.update(_new_memory(optimizer, parameter))
                for key, value in state.items():
                    # AdamW's count of steps has no dimension; safetensors are read by slices of one.
                    tensors[f"optimizer.{names[parameter]}.{key}"] = value.view(1) if value.ndim == 0 else value
    return tensors


def _new_memory(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """An optimizer's memory of a parameter before its first step, as the optimizer itself would make it."""
    if isinstance(optimizer, torch.optim.AdamW):
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step, "exp_avg": _zeros(parameter), "exp_avg_sq": _zeros(parameter)}
    return {"momentum": _zeros(parameter)}


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], processes: Processes, keep: int = 2
) -> Path:
    """Writes the checkpoint of a step and deletes old ones.

    Args:
        run: the run's folder.
        step: how many steps are done.
        tensors: as `tensors_of` names them.
        state: what else is kept, as JSON has it.
        processes: all of them come here together.
        keep: how many checkpoints stay.

    Raises:
        TrainingError: where the disk is full, or a tensor holds what is no number; the earlier checkpoints are
            untouched.
    """
    folder = run / FOLDER / f"step-{step:08d}"
    beside = folder.with_name(f".{folder.name}.part")
    _refuse_broken(step, tensors, processes)
    if processes.from_first((folder / _STATE).is_file()):
        return folder  # stopped again where it went on from
    try:
        with processes.first_alone() as first, room_for(f"the checkpoint of step {step:,}", run):
            if first:
                _remove_unfinished(run)
                beside.mkdir(parents=True)
        _write_tensors(beside, dict(tensors), processes, f"the checkpoint of step {step:,}")
        with processes.first_alone() as first, room_for(f"the checkpoint of step {step:,}", run):
            if first:
                write_text(beside / _STATE, json.dumps({**state, "step": step}, indent=1))
                _sync(beside)
                beside.replace(folder)
                _sync(folder.parent)
                for old in checkpoints(run)[:-keep]:
                    old.replace(old.with_name(f".{old.name}.part"))
                _remove_unfinished(run)
    except BaseException:
        if processes.is_first:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder


def _refuse_broken(step: int, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Raises, on all processes, where a tensor holds an infinity or NaN on one: nothing can go on from that."""
    parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values())
    if processes.sums([float(not all(part.isfinite().all() for part in parts))])[0]:
        raise TrainingError(
            f"after step {step:,} the weights or the optimizer's memory hold what is no number, so no checkpoint was "
            "written; the one before is untouched. Start again with a lower learning rate or a longer warm-up."
        )


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    try:
        there = sorted((run / FOLDER).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in there if re.fullmatch(r"step-\d{8,}", path.name) and (path / _STATE).is_file()]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The small part of a checkpoint.

    Raises:
        TrainingError: where it is broken.
    """
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        if not isinstance(state.get("step"), int):
            raise ValueError("it gives no step")
    except (OSError, ValueError, AttributeError) as error:
        raise _broken(checkpoint, error) from None
    return state


@contextlib.contextmanager
def understood(checkpoint: Path) -> Iterator[None]:
    """Makes a sentence of a small part that lacks what the block asks of it.

    Raises:
        TrainingError: where it does.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(
            f"the checkpoint {checkpoint} is broken, or another version of Clearhead wrote it ({error!r} in {_STATE}); "
            "delete it to go on from the one before, go on with that version, or start anew."
        ) from None


def check_past(state: Mapping[str, Any], past: Mapping[str, Any], checkpoint: Path, steps: int) -> None:
    """Raises where a run cannot go on from a checkpoint, and says what differs.

    Args:
        state: the checkpoint's, which holds the past that it was made with.
        past: what the same number of steps depends on now: `model`, `training` and `finetune`, tables of settings;
            `data`, a digest; `rates`, a digest of the learning rates so far.
        checkpoint: its folder, for the sentence.
        steps: how many the recipe asks for.

    Raises:
        TrainingError: naming each setting with both of its values.
    """
    past = json.loads(json.dumps(past))  # what JSON makes of tuples and whole floats
    different = [
        f"{key} was {state[table].get(key)} and is {value}"
        for table in ("model", "training", "finetune")
        for key, value in past[table].items()
        if state[table].get(key) != value
    ]
    if state["data"] != past["data"]:
        others = "the model that it began with" if past["finetune"] else "their shares"
        different.append(f"its texts or {others} were others")
    if not different and state["rates"] != past["rates"]:
        different.append("its learning rate went another way up to there")
    if different:
        raise TrainingError(
            f"the checkpoint {checkpoint} belongs to another recipe or corpus: {'; '.join(different)}. Give "
            "the one that it was made with, or another folder for the new run."
        )
    if state["step"] > steps:
        raise TrainingError(
            f"the checkpoint has done {state['step']:,} steps and the recipe asks for {steps:,}; raise steps."
        )


def load_tensors(checkpoint: Path, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Fills tensors of a model and its optimizers with those of a checkpoint, whatever number of processes wrote it.

    Raises:
        TrainingError: where it is broken, or lacks one of them.
    """
    try:
        for file in checkpoint.glob("*.safetensors"):
            safetensors.safe_open(file, "pt")  # reads the header, which says how long the file is
        with _quiet():
            dcp.load(
                dict(tensors),
                storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint)),
                no_dist=processes.world == 1,
            )
    except (Exception, CheckpointException) as error:
        raise _broken(checkpoint, _cause(error)) from None


def _write_tensors(folder: Path, tensors: dict[str, Tensor], processes: Processes, what: str) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _quiet():
            dcp.save(tensors, storage_writer=writer, no_dist=processes.world == 1)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        cause = _cause(error)
        if isinstance(cause, OSError):
            with room_for(what, folder.parent.parent):
                raise cause from None
        raise


def _cause(error: BaseException) -> BaseException:
    """What went wrong inside torch.distributed.checkpoint, which wraps it."""
    failures = getattr(error, "failures", None)
    if failures:
        return _cause(next(iter(failures.values()))[0])
    # torch's writer closes its file in an error's wake, and the file then fails to write what is left.
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return chain
        chain = chain.__cause__ or chain.__context__
    return error


def _broken(checkpoint: Path, error: BaseException) -> TrainingError:
    words = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return TrainingError(
        f"the checkpoint {checkpoint} is broken ({words}); delete it to go on from the one before, or start anew."
    )


def _remove_unfinished(run: Path) -> None:
    for path in (run / FOLDER).glob(".*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Brings a folder's list of names to the disk; Windows has no way to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks that there is one process only, and that its reader's interface is young."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
