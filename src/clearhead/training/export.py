"""Export a checkpoint's model to a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from clearhead.errors import TrainingError
from clearhead.training.checkpoint import MODEL_CONFIG, check_files, checkpoints, model_files, read_state
from clearhead.training.run_folder import disk_full_explained
from clearhead.utils.atomic import staged_files


def export_checkpoint(run: Path, out: Path, step: int | None = None) -> Path:
    """Copy the model of a checkpoint into a folder.

    Args:
        run: the run's folder.
        out: the destination; it is created if it does not exist.
        step: the step of the checkpoint; None for the newest.

    Returns:
        the checkpoint's folder.

    Raises:
        TrainingError: if there is no such checkpoint, it is broken, or it contains no model.
    """
    found = {int(path.name.removeprefix("step-")): path for path in checkpoints(run)}
    if not found:
        raise TrainingError(f"{run} has no checkpoint; give the folder that --out named.")
    if step is not None and step not in found:
        steps = ", ".join(f"{number:,}" for number in found)
        if len(found) == 1:
            raise TrainingError(f"{run} has no checkpoint of step {step:,}; it has that of step {steps}.")
        raise TrainingError(f"{run} has no checkpoint of step {step:,}; it has those of the steps {steps}.")
    checkpoint = found[max(found) if step is None else step]
    files = model_files(checkpoint)
    if not files:
        raise TrainingError(
            f"the checkpoint {checkpoint} contains no model, as an earlier version of Clearhead wrote it; resume the "
            "run for one step to write another."
        )
    check_files(checkpoint, read_state(checkpoint))
    with disk_full_explained("the model", out), staged_files(out, last=[MODEL_CONFIG]) as staged:
        for file in files:
            shutil.copyfile(file, staged / file.name)
    return checkpoint
