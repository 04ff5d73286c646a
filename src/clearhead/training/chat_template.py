"""Store a prompt template with a tokenizer, so that transformers and servers apply it to chat messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clearhead.data.templates import PromptTemplate
from clearhead.errors import TrainingError
from clearhead.utils.atomic import write_text
from clearhead.utils.json_files import json_text, read_json_file

_FILE = "tokenizer_config.json"


def save_chat_template(template: PromptTemplate, folder: Path) -> None:
    """Add a template to the tokenizer's settings in a model folder, as `chat_template`.

    Raises:
        TrainingError: if the settings cannot be read.
        OSError: if they cannot be written.
    """
    add_tokenizer_setting(folder, "chat_template", template.to_jinja())


def add_tokenizer_setting(folder: Path, key: str, value: str) -> None:
    """Add a setting to the tokenizer's in a model folder.

    Raises:
        TrainingError: if the settings cannot be read.
        OSError: if they cannot be written.
    """
    path = folder / _FILE
    settings = read_json_file(path, dict[str, Any], TrainingError, "save the tokenizer into the folder again")
    write_text(path, json_text({**settings, key: value}, indent=2) + "\n")
