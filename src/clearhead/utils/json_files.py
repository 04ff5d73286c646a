"""Read JSON and check its types: a file may be damaged, edited by hand, or written by another version.

The form of a file is declared once, as a `TypedDict` or a dataclass. A value of another form is refused with the place
in it, such as `texts.wiki.train.tokens is -1, and a whole number from 0 on was expected`. A file that decides what is
computed later is a record: it has a checksum of itself too, because a changed digit is a whole number as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from clearhead.errors import ClearheadError
from clearhead.utils.text import shown

T = TypeVar("T")

_CHECKSUM = "checksum"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a value must satisfy besides having its type: `Annotated[int, Condition(...)]`.

    Attributes:
        holds: whether a value of the type satisfies it.
        words: what such a value is, for the message.
    """

    holds: Callable[[Any], bool]
    words: str


Count = Annotated[int, Condition(lambda number: 0 <= number < 2**63, "a whole number from 0 on")]
FileName = Annotated[
    str, Condition(lambda name: Path(name).name == name and "\0" not in name, "the name of a file in the same folder")
]
PathText = Annotated[str, Condition(lambda path: "\0" not in path, "a path")]

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    type(None): "null",
}


_LARGEST = 2**1023  # a whole number that becomes a float without overflow


class MalformedJSONError(ValueError):
    """JSON is broken or has another form; the text says where and how, as a part of a sentence.

    Attributes:
        place: where in the JSON; empty for the whole.
        expected: what was expected there; empty if it is a key that is missing or unknown.
    """

    def __init__(self, text: str, place: str = "", expected: str = "") -> None:
        super().__init__(text)
        self.place, self.expected = place, expected


def read_json_file(path: Path, kind: type[T], error: type[ClearheadError], remedy: str) -> T:
    """Read a JSON file in UTF-8, with or without a byte-order mark, and check its types.

    Args:
        path: the file.
        kind: the type of its contents; see `checked_json`.
        error: the class of the error.
        remedy: what to do about a file that cannot be read, the end of the error's sentence.

    Raises:
        ClearheadError: of the given class, if the file cannot be read, is not JSON, or has another form.
    """
    try:
        return parse_json(path.read_bytes(), kind)
    except OSError as failed:
        raise error(f"{path} could not be read ({failed.strerror}); {remedy}.") from None
    except MalformedJSONError as malformed:
        raise error(f"{path} could not be read ({malformed}); {remedy}.") from None


def record_text(values: Mapping[str, object]) -> str:
    """Return an object as JSON for a file, with a checksum of itself; dataclasses become objects."""
    whole = {**values, _CHECKSUM: _checksum(values)}
    return json_text(whole, indent=1, default=dataclasses.asdict) + "\n"


def json_text(values: object, **options: Any) -> str:
    r"""Return a value as JSON that any file can hold: characters as they are, but half a surrogate pair as \uD800.

    Args:
        values: what `json.dumps` takes.
        options: of `json.dumps`.
    """
    return json.dumps(values, ensure_ascii=False, **options).encode("utf-8", "backslashreplace").decode("utf-8")


def read_record(path: Path, kind: type[T], error: type[ClearheadError], remedy: str) -> T:
    """Read a file that `record_text` made, as `read_json_file`, and compare its checksum if it has one.

    Raises:
        ClearheadError: of the given class, if the file cannot be read, is not JSON, has another form, or has changed.
    """
    values = read_json_file(path, dict[str, Any], error, remedy)
    try:
        return checked_record(values, kind)
    except MalformedJSONError as malformed:
        raise error(f"{path} could not be read ({malformed}); {remedy}.") from None


def checked_record(values: Mapping[str, object], kind: type[T]) -> T:
    """Return the contents of a file that `record_text` made, if they have a type and, if there is one, the checksum.

    Raises:
        MalformedJSONError: if they have not.
    """
    try:
        if _CHECKSUM in values and values[_CHECKSUM] != _checksum(values):
            raise MalformedJSONError("its checksum is not that of its contents")
    except RecursionError:
        raise MalformedJSONError("its brackets are nested too deeply") from None
    return checked_json(values, kind)


def _checksum(values: Mapping[str, object]) -> str:
    """Return the SHA-256 of an object without its checksum."""
    rest = {key: value for key, value in values.items() if key != _CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=dataclasses.asdict).encode()).hexdigest()


def parse_json(text: str | bytes, kind: type[T]) -> T:
    """Parse JSON and check its types, as `checked_json`.

    Raises:
        MalformedJSONError: if it is not UTF-8 or not JSON, or has another form.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise MalformedJSONError("it is not JSON: its brackets are nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number with thousands of digits
        raise MalformedJSONError(f"it is not JSON: {error}") from None
    return checked_json(value, kind)


def checked_json(value: object, kind: type[T]) -> T:
    """Return a value that JSON represents, if it has a type.

    Args:
        value: what `json.loads` returned.
        kind: `bool`, `int`, `float` (a whole number is one too), `str`, `None`, `Any`; `list`, `tuple` or `dict`, with
            or without the types in them; a union, a `Literal`; any of these `Annotated` with a `Condition`; a
            `TypedDict` (which may have other keys besides), or a dataclass (which may not).

    Returns:
        the value, with dataclasses and tuples made of the objects and lists.

    Raises:
        MalformedJSONError: if it has another type; the text names the first place.
    """
    return cast(T, _convert(value, kind, ""))


def _convert(value: Any, kind: Any, place: str) -> Any:
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *conditions = get_args(kind)
        converted = _convert(value, inner, place)
        for condition in conditions:
            if not condition.holds(converted):
                raise _unexpected(value, condition.words, place)
        return converted
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(kind), place)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
            return value
        raise _unexpected(value, " or ".join(map(repr, get_args(kind))), place)
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _convert_object(value, kind, place)
    container = origin or kind
    if container in (list, tuple, dict):
        return _convert_container(value, container, get_args(kind), place)
    expected = type(None) if kind is None else kind
    if type(value) is expected or (expected is float and type(value) is int and abs(value) < _LARGEST):
        return value
    raise _unexpected(value, _NAMES[expected], place)


def _convert_union(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    """Return the value in the first type of a union that it has; of the faults, name one inside the value if it can."""
    faults = []
    for kind in kinds:
        try:
            return _convert(value, kind, place)
        except MalformedJSONError as fault:
            faults.append(fault)
    inner = [fault for fault in faults if fault.place != place or not fault.expected]
    raise inner[0] if inner else _unexpected(value, " or ".join(fault.expected for fault in faults), place)


def _convert_object(value: Any, kind: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(value, "an object", place)
    hints, required = _declared(kind)
    if missing := next((name for name in required if name not in value), None):
        raise MalformedJSONError(f"{place or 'it'} lacks {missing!r}")
    is_class = dataclasses.is_dataclass(kind)
    if is_class and (other := next((name for name in value if name not in hints), None)) is not None:
        raise MalformedJSONError(f"{place or 'it'} has the unknown key {shown(other)}")
    converted = {
        name: _convert(inner, hints[name], _inside(place, name)) if name in hints else inner
        for name, inner in value.items()
    }
    return kind(**converted) if is_class else converted


@cache
def _declared(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the types of a `TypedDict` or a dataclass by name, and the names that it needs."""
    hints = get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        fields = dataclasses.fields(kind)
        return hints, [one.name for one in fields if one.default is missing and one.default_factory is missing]
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired} | kind.__optional_keys__
    bare = {name: get_args(hint)[0] if get_origin(hint) is NotRequired else hint for name, hint in hints.items()}
    return bare, [name for name in bare if name not in optional]


def _convert_container(value: Any, container: Any, inner: tuple[Any, ...], place: str) -> Any:
    if container is dict:
        if not isinstance(value, dict):
            raise _unexpected(value, "an object", place)
        keys, kind = inner or (str, Any)
        return {_convert(key, keys, place): _convert(one, kind, _inside(place, key)) for key, one in value.items()}
    if not isinstance(value, list):
        raise _unexpected(value, "a list", place)
    if container is list or inner[1:] == (...,):
        kinds = [inner[0] if inner else Any] * len(value)
    elif len(inner) != len(value):
        raise MalformedJSONError(f"{place or 'it'} has {len(value)} items, and {len(inner)} were expected")
    else:
        kinds = list(inner)
    converted = [_convert(one, kind, f"{place}[{n}]") for n, (one, kind) in enumerate(zip(value, kinds, strict=True))]
    return converted if container is list else tuple(converted)


def _inside(place: str, key: str) -> str:
    name = shown(key)[1:-1]
    return f"{place}.{name}" if place else name


def _unexpected(value: object, words: str, place: str) -> MalformedJSONError:
    return MalformedJSONError(f"{place or 'it'} is {shown(value, 40)}, and {words} was expected", place, words)
