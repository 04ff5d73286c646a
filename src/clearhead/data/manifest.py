"""What is known of a corpus, as JSON: which files make it, from what, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer

MANIFEST = "manifest.json"
JOURNAL = "build.json"
"""What an unfinished build keeps beside the shards."""

VERSION = 2
"""Of the form of corpora."""


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of all of a manifest but the checksum itself."""
    values = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tells a tokenizer from others: equal where every text gets the same ids."""
    return {
        "sha256": tokenizer.sha256(),
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file beside its place and renames it, so that the old one stays until the new one is whole."""
    beside = path.with_name(f"{path.name}.part")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that `write_json` wrote.

    Raises:
        TrainingError: where it is broken.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("version", VERSION) == VERSION:
            return values
        raise ValueError("it has another form")
    except ValueError as error:
        raise TrainingError(
            f"{path} could not be read ({error}); delete the folder and build the corpus again."
        ) from None
