"""Examples of texts with class labels."""

from __future__ import annotations

import json
import textwrap
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

BARE_COLUMNS = ("label", "text")
"""The columns of a labelled TSV file without a row of names, such as the SMS Spam Collection."""

_NAMES_WIDTH = 80  # characters of the names of columns in a message: a table may begin with a text in place of names


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
    for record in read_records(path, BARE_COLUMNS):
        text, label = record.values.get("text"), record.values.get("label")
        if not isinstance(text, str) or not text or not isinstance(label, (str, int)):
            raise TrainingError(
                f"{record.where} needs a text that is not empty and a label, a text or a whole number; "
                f"{describe_fields(record.values, 'text', 'label')}."
            )
        if labels is not None and str(label) not in labels:
            raise TrainingError(
                f"{record.where} has the label {label!r}, which no training example has (they have "
                f"{', '.join(labels)}); remove it, or train on examples of this class too."
            )
        ids = np.array(encode_field(tokenizer, text, record)[:length], np.int64)
        if not len(ids):
            raise TrainingError(f"the text in {record.where} has no tokens; remove it.")
        rows.append((ids, text, str(label)))
    refuse_none(path, len(rows), 0, length)
    known = sorted({label for _, _, label in rows}) if labels is None else list(labels)
    if len(known) < 2:
        raise TrainingError(
            f"{path} has the label {known[0]!r} only, and a classifier needs at least two classes; give examples of "
            "another."
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


def refuse_none(path: Path, found: int, left_out: int, length: int) -> None:
    """Raise if a file has no example, or none that fits.

    Raises:
        TrainingError: if `found` is 0.
    """
    if found:
        return
    if left_out:
        raise TrainingError(
            f"none of the {left_out:,} examples of {path} fits into {length:,} tokens; raise context_length or give "
            "shorter ones."
        )
    raise TrainingError(
        f"{path} contains no example; give one in each row of a table, or in each JSON object of an array or of lines."
    )


def describe_fields(values: dict[str, Any], *keys: str) -> str:
    """Return the state of fields in words: `'text' is missing, 'label' is null`; and all names if one is missing."""

    def state(key: str) -> str:
        if key not in values:
            return "missing"
        value = values[key]
        if isinstance(value, str):
            return "a text" if value else "empty"
        return json.dumps(value) if isinstance(value, int | float | None) else type_of(value)

    words = ", ".join(f"{key!r} is {state(key)}" for key in keys)
    if all(key in values for key in keys):
        return words
    names = textwrap.shorten(", ".join(map(repr, values)), _NAMES_WIDTH, placeholder=" …")
    return f"{words}, and there is only {names}" if names else words
