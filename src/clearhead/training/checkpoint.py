"""Everything that a run needs to go on as if it had never stopped, in one file that is never half written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clearhead.errors import TrainingError
from clearhead.model import GPTModel


def save_checkpoint(
    path: Path, model: GPTModel, optimizers: Sequence[torch.optim.Optimizer], step: int, key: str
) -> None:
    """Writes a checkpoint beside the old one and puts it in its place.

    Args:
        path: the file.
        model, optimizers: whose state is kept.
        step: how many steps are done.
        key: what has to be equal for the run to go on (recipe and corpus).
    """
    values = {
        "step": step,
        "key": key,
        "model": dict(model.named_parameters()),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load_checkpoint(
    path: Path, model: GPTModel, optimizers: Sequence[torch.optim.Optimizer], key: Callable[[int], str]
) -> int:
    """Brings a run's state back; returns how many steps it had done.

    Args:
        path: the file.
        model, optimizers: that take the state.
        key: for a number of steps, what those steps depend on; it has to be equal to the saved one.

    Raises:
        TrainingError: where the file is missing or broken, or belongs to another recipe or corpus.
    """
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"there is no checkpoint {path} to go on from; start the run without --resume.") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise TrainingError(f"the checkpoint {path} is broken ({str(error).splitlines()[0]}); start anew.") from None
    if values["key"] != key(values["step"]):
        raise TrainingError(
            f"the checkpoint {path} belongs to another recipe or corpus; give the one that it was made with, "
            "or another folder for the new run."
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values["model"][name])
    for optimizer, state in zip(optimizers, values["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    torch.set_rng_state(values["random"])
    if torch.cuda.is_available() and values["random_cuda"]:
        torch.cuda.set_rng_state_all(values["random_cuda"])
    return int(values["step"])
