"""Read the files of evaluation tasks, in the forms in which they are distributed."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clearhead.data.records import Record, json_records, read_records
from clearhead.errors import InputError
from clearhead.utils.text import read_bytes, read_text, type_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with several endings.

    Attributes:
        context: the text before the endings.
        endings: the candidates.
        answer: the index of the right one.
    """

    context: str
    endings: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences that differ in one point.

    Attributes:
        good: the acceptable one.
        bad: the other.
        paradigm: what they test.
        field: the field of grammar.
    """

    good: str
    bad: str
    paradigm: str
    field: str


def read_lambada(file: Path) -> list[str]:
    """Read LAMBADA's passages: JSON lines with the key `text`, or one passage a line.

    Raises:
        InputError: if the file has another form.
    """
    if file.suffix.lower() in (".jsonl", ".json"):
        passages = [_text(record, "text") for record in read_records(file)]
    else:
        passages = [line.removesuffix("\n") for line in io.StringIO(read_text(file), newline=None) if line.strip()]
    for number, passage in enumerate(passages, start=1):
        if " " not in passage.strip():
            raise InputError(f"passage {number} of {file} has no last word to predict; give LAMBADA's test file.")
    return _some(passages, file, "passages")


def read_hellaswag(file: Path, *, with_label: bool) -> list[Choice]:
    """Read HellaSwag's questions: JSON lines with `ctx` (or `ctx_a`, `ctx_b`), `endings`, `label`, `activity_label`.

    Args:
        file: the validation file.
        with_label: put the activity before the context, as lm-evaluation-harness does.

    Raises:
        InputError: if the file has another form.
    """
    found = []
    for record in read_records(file):
        row, where = record.values, record.where
        if "ctx_a" in row and "ctx_b" in row:
            context = f"{_text(record, 'ctx_a')} {_text(record, 'ctx_b').capitalize()}"
        else:
            context = _text(record, "ctx")
        if with_label:
            context = f"{_text(record, 'activity_label')}: {context}"
        endings, label = row.get("endings"), row.get("label")
        if not isinstance(endings, list) or not all(isinstance(one, str) for one in endings):
            raise InputError(f"{where} has no list of endings; give HellaSwag's validation file.")
        if not str(label).isdigit() or int(str(label)) >= len(endings):
            raise InputError(f"{where} has the label {label!r}; give the index of one of the {len(endings)} endings.")
        found.append(Choice(_clean(context), tuple(map(_clean, endings)), int(str(label))))
    return _some(found, file, "questions")


def read_blimp(source: Path) -> list[MinimalPair]:
    """Read minimal pairs: JSON lines with `sentence_good` and `sentence_bad`; a file, a folder of them, or a zip.

    Raises:
        InputError: if there are none, or they have another form.
    """
    found = []
    for name, data in _members(source):
        for record in json_records(data, name):
            paradigm = str(record.values.get("UID") or Path(name).stem)
            field = str(record.values.get("field", ""))
            found.append(MinimalPair(_text(record, "sentence_good"), _text(record, "sentence_bad"), paradigm, field))
    return _some(found, source, "minimal pairs")


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for file in sorted(source.glob("**/*.jsonl")):
            yield str(file), read_bytes(file)
    elif source.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(source) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".jsonl") and not Path(name).name.startswith("._"):  # macOS adds these
                        yield f"{source}/{name}", archive.read(name)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{source} is not a zip that can be read ({error}); download it again.") from None
        except RuntimeError as error:  # the library's words for a password or a method of compression that it lacks
            raise InputError(
                f"{source} cannot be unpacked here ({error}); unpack it with another program and give the folder."
            ) from None
    else:
        yield str(source), read_bytes(source)


def _text(record: Record, key: str) -> str:
    value = record.values.get(key)
    if isinstance(value, str) and value:
        return value
    if key in record.values:
        found = "an empty text" if value == "" else type_of(value)
        raise InputError(f"{record.where} has {found} under {key!r}, not a text; give the task's own file.")
    fields = ", ".join(record.values) or "nothing"
    raise InputError(f"{record.where} has no text under {key!r}; it has {fields}.")


def _some(found: Sequence[T], source: Path, what: str) -> list[T]:
    if not found:
        raise InputError(f"{source} contains no {what}; give the file of the task.")
    return list(found)


def _clean(text: str) -> str:
    """Remove what WikiHow leaves in HellaSwag's texts: titles in brackets, and double spaces."""
    text = re.sub(r"\[[^\]]*\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def detokenize_wikitext(text: str) -> str:
    """Undo the tokenization of WikiText, as far as it can be undone.

    WikiText separates punctuation by spaces and writes `@-@`, `@,@` and `@.@` for the marks inside words and numbers.
    The paper on GPT-2 evaluates it after such a step ("invertible de-tokenizers") but does not publish its rules; these
    rejoin what WikiText separates.
    """
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    text = re.sub(r" ([,.;:!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$£€#]) ", r"\1", text)
    text = re.sub(r' " ([^"\n]*?) "', r' "\1"', text)
    text = re.sub(r"^\" ([^\"\n]*?) \"", r'"\1"', text, flags=re.MULTILINE)
    text = re.sub(r" ('(?:s|t|re|ve|m|ll|d)\b)", r"\1", text)
    text = re.sub(r" n't\b", "n't", text)
    text = re.sub(r" ' ", "' ", text)
    text = re.sub(r"^ ", "", text, flags=re.MULTILINE)
    return re.sub(r" $", "", text, flags=re.MULTILINE)
