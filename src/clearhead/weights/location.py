"""Find the folder or file that a user means by a model's name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clearhead.config import HUB_NAMES
from clearhead.errors import HubError, WeightsError
from clearhead.weights.formats.tensorflow import index_in
from clearhead.weights.hub import hub

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")
"""The pattern of a model's name on the hub."""

SINGLE_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx")
"""What names of files that hold a whole model end with."""

_SUFFIXES = (*SINGLE_FILE_SUFFIXES, ".npz", ".index", ".json", ".h5", ".zip")


def bundled() -> Path:
    """Return the folder of the model that comes with Clearhead.

    Raises:
        WeightsError: if this installation has none.
    """
    folder = Path(__file__).parents[1] / "bundled"
    if not (folder / "config.json").is_file():
        raise WeightsError(
            "this installation of Clearhead has no bundled model; "
            "give a model's folder or its name on the hub, such as 'gpt2'."
        )
    return folder


def is_on_disk(text: str) -> bool:
    """Return whether a file or folder has this name; an empty folder named like a model on the hub does not count.

    Raises:
        OSError, RuntimeError, ValueError: if it cannot be a path.
    """
    path = Path(text).expanduser()
    if not text or not path.exists():
        return False
    return looks_like_path(text) or not path.is_dir() or any(path.iterdir())


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the folder or file of a model; fetch it if it is a name on the hub or a released size (`124M`).

    What exists on disk takes precedence over `bundled`, the model that comes with Clearhead, and names on the hub.

    Raises:
        WeightsError: if it is a path that does not exist.
        HubError: if the model cannot be fetched.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise WeightsError(f"the source has the type {type(source).__name__}; give a path, or a name on the hub.")
    text = os.fspath(source)
    try:
        path = Path(source).expanduser()
        if is_on_disk(text) or (not isinstance(source, str) and path.exists()):
            return path
        if text == "bundled":
            return bundled()
        if text and (index := index_in(path)):  # TensorFlow names a checkpoint by the common start of its files' names
            return index
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, an unknown ~user, a NUL character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise WeightsError(f"{shown!r} is not a usable path ({reason}); give a model's folder or file.") from None
    if not isinstance(source, str) or looks_like_path(text):
        if not text:
            raise WeightsError("no model was named; give a folder, a file, or a model on the hub such as gpt2.")
        near = next((parent for parent in path.parents if parent.exists()), Path())
        what = "the folder" if near.is_dir() else "the file"
        raise WeightsError(f"{text} does not exist ({what} {near.absolute()} does); give a model's folder or file.")
    if path.exists() and not _NAME.fullmatch(text):
        return path
    hub_names = {size: name for name, size in HUB_NAMES.items()}
    try:
        return hub.fetch(hub_names.get(text, text), revision)
    except HubError as error:
        if path.exists():
            raise HubError(f"the folder {text} here is empty, so it is taken for a name on the hub: {error}") from None
        raise


def looks_like_path(text: str) -> bool:
    """Return whether a name can only be a path: by its start, by two slashes, or by the suffix of a weights file."""
    return (
        text.startswith((".", "/", "~", os.sep))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith(("/", *_SUFFIXES))
        or re.match(r"[A-Za-z]:", text) is not None
        or not text
    )
