"""The manifest of a corpus: a JSON file with its tokenizer, sources, shards and checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.atomic import write_text

MANIFEST = "manifest.json"
JOURNAL = "build.json"
"""The state of an unfinished build, in the corpus's folder."""

VERSION = 2
"""The version of the corpus format."""


def checksum(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its checksum."""
    values = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def tokenizer_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what identifies a tokenizer: equal for two that give every text the same ids."""
    return {
        "sha256": tokenizer.sha256(),
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file.

    Raises:
        OSError: if it cannot be written; an older file is untouched then.
    """
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_journal(path: Path) -> dict[str, Any]:
    """Read the state of an unfinished build.

    Raises:
        TrainingError: if the file is malformed or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("version", VERSION) == VERSION:
            return values
        raise ValueError("it has another form")
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"{path} could not be read ({error}); delete the folder and build the corpus again."
        ) from None
