"""Files of evaluation tasks from the Hugging Face hub, by the package `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clearhead.errors import InputError
from clearhead.weights.hub.hub import quiet_hub


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a task's items are on the hub.

    Attributes:
        name: the data set's name.
        config: the data set's configuration; None if there is only one, "*" for all.
        split: the split with the items.
        text: the column that holds lines of one text; None if each row is an item.
    """

    name: str
    config: str | None
    split: str
    text: str | None = None


@contextmanager
def hub_file(where: HubSource, name: str | None = None) -> Iterator[Path]:
    """Provide a temporary file with a task's items inside a `with`.

    Args:
        where: the task's own data set.
        name: another data set with the same columns, a folder or a name on the hub; None for the default.

    Raises:
        InputError: if `datasets` is missing, or the data set cannot be loaded.
    """
    with TemporaryDirectory() as folder:
        if where.text is None:
            file = Path(folder) / "hub.jsonl"
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(where, name))
        else:
            file = Path(folder) / "hub.txt"
            lines = (_line(row, where.text) for row in _rows(where, name))
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(lines)
        yield file


def _line(row: dict[str, Any], column: str) -> str:
    text = str(row.get(column, ""))
    return text if text.endswith("\n") else text + "\n"


def _rows(where: HubSource, name: str | None) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise InputError('data sets from the hub need the package datasets; `pip install "clearhead[eval]"`.') from None
    source = name or where.name
    configs = [where.config] if name is None else [None]
    try:
        with quiet_hub():
            if where.config == "*" and name is None:
                configs = datasets.get_dataset_config_names(source)
            for config in configs:
                splits = [where.split] if name is None else datasets.get_dataset_split_names(source)
                yield from datasets.load_dataset(source, config, split=_only_split(splits, where.split))
    except Exception as error:
        if isinstance(error, InputError):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the data set {source} could not be loaded ({first}); check the name and the network."
        ) from None


def _only_split(names: list[str], usual: str) -> str:
    return usual if usual in names else names[0]
