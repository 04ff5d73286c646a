"""The files that a recipe for fine-tuning names."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from clearhead.errors import TrainingError


@contextlib.contextmanager
def open_recipe_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file of the recipe.

    Raises:
        TrainingError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TrainingError(
            f"{path} could not be read ({error.strerror}); point --data at the folder that contains the recipe's files."
        ) from None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file of the recipe.

    Raises:
        TrainingError: if it cannot be read.
    """
    with open_recipe_file(path) as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
