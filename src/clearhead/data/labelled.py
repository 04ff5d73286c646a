"""Examples of texts with class labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.data.examples import Example
from clearhead.data.records import Record, read_records
from clearhead.errors import TokenizerError, TrainingError
from clearhead.losses import NOT_COUNTED
from clearhead.tokenizer import Tokenizer
from clearhead.utils.text import type_of


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text with its class.

    Attributes:
        example: its tokens; the target of the last one is the index of the class.
        text: the text.
        label: the class.
    """

    example: Example
    text: str
    label: str


def read_labelled(
    path: Path, tokenizer: Tokenizer, length: int, labels: Sequence[str] | None
) -> tuple[list[LabelledText], list[str]]:
    """Read texts with their classes. The last token counts; its target is the index of the class.

    A longer text is cut at its end, as in the book's chapter 6.

    Args:
        path: the file, as `records.read_records` reads it, with the fields `text` and `label`.
        tokenizer: the model's.
        length: the maximum number of tokens of an example.
        labels: the classes, in order; None to take the file's, sorted.

    Returns:
        the examples and the classes.

    Raises:
        InputError: if the file cannot be read or is malformed.
        TrainingError: if a record lacks a field, has no token, or its class is not among `labels`.
    """
    rows = []
    for record in read_records(path, ("label", "text")):  # the SMS Spam Collection has no names
        text, label = record.values.get("text"), record.values.get("label")
        if not isinstance(text, str) or not text or not isinstance(label, (str, int)):
            raise TrainingError(
                f"{record.where} needs a text that is not empty and a label, a text or a whole number; "
                f"{describe_fields(record.values, 'text', 'label')}."
            )
        if labels is not None and str(label) not in labels:
            raise TrainingError(
                f"{record.where} has the label {label!r}, which no training example has; those have "
                f"{', '.join(labels)}."
            )
        ids = np.array(encode_field(tokenizer, text, record)[:length], np.int64)
        if not len(ids):
            raise TrainingError(f"the text in {record.where} has no tokens; remove it.")
        rows.append((ids, text, str(label)))
    known = sorted({label for _, _, label in rows}) if labels is None else list(labels)
    if len(known) < 2:
        raise TrainingError(
            f"{path} has {len(known)} label{'s' if not known else ''}; a classifier needs at least two classes."
        )
    examples = []
    for ids, text, label in rows:
        targets = np.full(len(ids), NOT_COUNTED, np.int64)
        targets[-1] = known.index(label)
        examples.append(LabelledText(Example(ids, targets), text, label))
    return examples, known


def encode_field(tokenizer: Tokenizer, text: str, record: Record) -> list[int]:
    """Encode a text of a record.

    Raises:
        TokenizerError: if the vocabulary cannot encode it; the message gives the record's location.
    """
    try:
        return tokenizer.encode(text)
    except TokenizerError as error:
        raise TokenizerError(f"in {record.where}: {error}") from None


def describe_fields(values: dict[str, Any], *keys: str) -> str:
    """Return the state of some fields in words: `text is missing, label is null`."""

    def state(key: str) -> str:
        if key not in values:
            return "missing"
        value = values[key]
        if isinstance(value, str):
            return "a text" if value else "empty"
        return json.dumps(value) if isinstance(value, int | float | None) else type_of(value)

    return ", ".join(f"{key} is {state(key)}" for key in keys)
