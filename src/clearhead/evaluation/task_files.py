"""Read the files of evaluation tasks, in the forms in which they are distributed."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clearhead.errors import InputError
from clearhead.utils.text import decode_text

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
        passages = [_text(row, "text", where) for where, row in _json_lines(_read(file), str(file))]
    else:
        passages = [line for line in decode_text(_read(file), str(file)).splitlines() if line.strip()]
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
    for where, row in _json_lines(_read(file), str(file)):
        if "ctx_a" in row and "ctx_b" in row:
            context = f"{_text(row, 'ctx_a', where)} {_text(row, 'ctx_b', where).capitalize()}"
        else:
            context = _text(row, "ctx", where)
        if with_label:
            context = f"{_text(row, 'activity_label', where)}: {context}"
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
        for where, row in _json_lines(data, name):
            paradigm = str(row.get("UID") or Path(name).stem)
            pair = MinimalPair(
                _text(row, "sentence_good", where),
                _text(row, "sentence_bad", where),
                paradigm,
                str(row.get("field", "")),
            )
            found.append(pair)
    return _some(found, source, "minimal pairs")


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for file in sorted(source.glob("**/*.jsonl")):
            yield str(file), _read(file)
    elif source.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(source) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".jsonl") and not Path(name).name.startswith("._"):  # macOS adds these
                        yield f"{source}/{name}", archive.read(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{source} is not a zip that can be read ({error}); download it again.") from None
    else:
        yield str(source), _read(source)


def _json_lines(data: bytes, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(decode_text(data, name).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}); give one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object; give one object a line.")
        yield where, row


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} has no text under {key!r}; it has {', '.join(map(str, row)) or 'nothing'}.")
    return value


def _some(found: Sequence[T], source: Path, what: str) -> list[T]:
    if not found:
        raise InputError(f"{source} contains no {what}; give the file of the task.")
    return list(found)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); check the path.") from None


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
