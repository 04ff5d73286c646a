"""The Chinese tables of the command line: English sentences and what they are in Chinese, by subject.

`help.json` has what `--help` says, `output.json` what the verbs print, `messages*.json` errors, notes and progress: of
the command line and of the package's smaller parts in `messages.json`, of a part such as training in a file of its own,
of Python, the operating system, typer and uvicorn in `messages_libraries.json`.
In the first two, a key is the text itself, with the fields of `str.format`; in messages, {0}, {1}, ... stand for what
the code fills in, in its order.
"""

from __future__ import annotations

import json
from pathlib import Path

FILES = tuple(sorted(file.name for file in Path(__file__).parent.glob("*.json")))


def _table() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in FILES:
        found |= json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return found


TABLE = _table()
