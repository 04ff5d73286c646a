"""What the declaration of an option consists of, and the check that follows from it.

`options.py` declares the options themselves.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from clearhead.errors import InputError

T = TypeVar("T")

Group = Literal["sampling", "ending", "output"]
"""What an option decides: which token comes next, when the text ends, or what is returned."""


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of one option.

    Attributes:
        name: the keyword argument.
        type: its annotation, such as `float` or `int | None`.
        default: the value if the option is not given.
        help: what it does, in English.
        help_zh: the same in Chinese.
        group: what it decides.
        flags: its flags on the command line; empty if it has none there.
        cli_type: the annotation that the command line parses; `type` if the two do not differ.
        metavar: the name of the value in `--help`; None for the type's own.
        minimum: the smallest number allowed; None if the value is not a number.
        maximum: the greatest number allowed; None for no limit.
        open_below: whether `minimum` itself is excluded.
        meanings: values with a meaning of their own, such as `None` for no limit. They are allowed even if they are
            outside the range.
    """

    help: str
    help_zh: str
    group: Group
    flags: tuple[str, ...] = ()
    cli_type: object = None
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    open_below: bool = False
    meanings: tuple[tuple[object, str], ...] = ()
    name: str = ""
    type: object = None
    default: object = None

    @property
    def whole(self) -> bool:
        """Whether the value is a whole number."""
        return self.type in (int, int | None)

    def check(self, value: object) -> None:
        """Check a value that should be a number or a truth value.

        Raises:
            InputError: if it has the wrong type or is out of range.
        """
        if self.type is bool:
            if not isinstance(value, bool):
                raise InputError(f"{self.name} is {value!r}; give True or False.")
            return
        if any(value is meant or (value == meant and is_number(value)) for meant, _ in self.meanings):
            return
        if not (is_whole(value) if self.whole else is_finite(value)) or not self._inside(value):
            raise InputError(f"{self.name} is {value!r}; give {self.accepted}.")

    @property
    def accepted(self) -> str:
        """The values that are accepted, in words: "a whole number of at least 1 (None for no limit)"."""
        noun, low, high = "a whole number" if self.whole else "a number", _decimal(self.minimum), _decimal(self.maximum)
        if self.maximum is not None:
            text = f"{noun} above {low} and up to {high}" if self.open_below else f"{noun} from {low} to {high}"
        else:
            text = noun if self.minimum is None else f"{noun} of at least {low}"
        meant = ", ".join(f"{value} for {meaning}" for value, meaning in self.meanings)
        return f"{text} ({meant})" if meant else text

    def _inside(self, value: Any) -> bool:
        if self.minimum is not None and (value < self.minimum or (self.open_below and value == self.minimum)):
            return False
        return self.maximum is None or bool(value <= self.maximum)


def option(
    default: T,
    *,
    en: str,
    zh: str,
    group: Group,
    flags: Sequence[str] = (),
    cli_type: object = None,
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    open_below: bool = False,
    meanings: Mapping[Any, str] = MappingProxyType({}),
) -> T:
    """Declare a dataclass field that is an option; the arguments are the attributes of `Option`."""
    declared = Option(
        help=en,
        help_zh=zh,
        group=group,
        flags=tuple(flags),
        cli_type=cli_type,
        metavar=metavar,
        minimum=minimum,
        maximum=maximum,
        open_below=open_below,
        meanings=tuple(meanings.items()),
    )
    return field(default=default, metadata={"option": declared})


def with_default(owner: type[Any], name: str, default: T) -> T:
    """Declare an inherited option again, with another default and nothing else changed."""
    declared = next(one for one in fields(owner) if one.name == name)
    return field(default=default, metadata=declared.metadata)


def _decimal(limit: float | None) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, Python's or NumPy's, and not a truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a real number, Python's or NumPy's, and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value is a number, and neither NaN nor infinite."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
