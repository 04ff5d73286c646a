"""Store a prompt template with a tokenizer, so that transformers and servers apply it to chat messages."""

from __future__ import annotations

import json
from pathlib import Path

from clearhead.data.templates import PromptTemplate
from clearhead.utils.atomic import write_text
from clearhead.utils.json_files import json_text

_FILE = "tokenizer_config.json"


def save_chat_template(template: PromptTemplate, folder: Path) -> None:
    """Add a template to the tokenizer's settings in a model folder, as `chat_template`.

    Raises:
        OSError: if the settings cannot be read or written.
    """
    add_tokenizer_setting(folder, "chat_template", template.to_jinja())


def add_tokenizer_setting(folder: Path, key: str, value: str) -> None:
    """Add a setting to the tokenizer's in a model folder.

    Raises:
        OSError: if the settings cannot be read or written.
    """
    path = folder / _FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json_text({**settings, key: value}, indent=2) + "\n")
