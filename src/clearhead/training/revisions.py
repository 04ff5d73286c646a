"""The milestones of a run as revisions of one model, in the layout of the Hugging Face cache.

    OUT/models--me--babylm/refs/chck_1M            the name of a snapshot
    OUT/models--me--babylm/snapshots/<hash>/...    the model at that milestone

`from_pretrained("me/babylm", revision="chck_1M", cache_dir=OUT)` opens such a folder without a network. `main` is the
newest checkpoint. A snapshot is named after the checksums of its files.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import TrainingError
from clearhead.training.checkpoint import MODEL_CONFIG, check_files, checkpoints, model_files, read_state
from clearhead.training.run_folder import disk_full_explained, write_text
from clearhead.utils.atomic import staged_files

MAIN = "main"


@dataclass(frozen=True, slots=True)
class Revision:
    """A checkpoint with a name.

    Attributes:
        name: such as `chck_1M`.
        words: how many words had been seen, in millions; None for the newest checkpoint.
        checkpoint: the checkpoint's folder, which is a model.
    """

    name: str
    words: float | None
    checkpoint: Path


def list_revisions(run: Path) -> list[Revision]:
    """Return the milestones in words of a run, in order, as BabyLM names them: `1M words` is `chck_1M`.

    Raises:
        TrainingError: if there are none.
    """
    found = []
    for checkpoint in checkpoints(run):
        milestone = read_state(checkpoint).get("milestone") or ""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMB]?)\s*words", milestone)
        if match is not None:
            millions = float(match[1]) * {"": 1e-6, "k": 1e-3, "M": 1.0, "B": 1e3}[match[2]]
            found.append(Revision(f"chck_{match[1]}{match[2]}", millions, checkpoint))
    if not found:
        raise TrainingError(
            f'{run} has no checkpoint of a milestone in words; give the recipe milestones such as ["1M words"].'
        )
    return found


def write_revisions(run: Path, out: Path, name: str) -> list[Revision]:
    """Write the milestones of a run as revisions of one model.

    Args:
        run: the run's folder.
        out: the folder that serves as a cache of the hub.
        name: the model's name there, such as `me/babylm`.

    Returns:
        the revisions, with `main` as the last.

    Raises:
        TrainingError: if there are none, a checkpoint is broken, or the name is not of the form owner/model.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise TrainingError(f"the model's name is {name!r}; give one such as me/babylm.")
    revisions = list_revisions(run)
    revisions.append(Revision(MAIN, None, checkpoints(run)[-1]))
    folder = out / ("models--" + name.replace("/", "--"))
    for revision in revisions:
        check_files(revision.checkpoint, read_state(revision.checkpoint))
        files = model_files(revision.checkpoint)
        snapshot = _snapshot_name(files)
        with disk_full_explained("the model", out):
            with staged_files(folder / "snapshots" / snapshot, last=[MODEL_CONFIG]) as staged:
                for file in files:
                    shutil.copyfile(file, staged / file.name)
            (folder / "refs").mkdir(parents=True, exist_ok=True)
            write_text(folder / "refs" / revision.name, snapshot)
    return revisions


def _snapshot_name(files: list[Path]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)  # the hub's names have 40 hexadecimal digits
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
