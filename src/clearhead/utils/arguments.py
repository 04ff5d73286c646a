"""Types of common arguments, and errors for unknown keyword arguments."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec, TypeVar

from clearhead.errors import InputError

Dtype = Literal["float32", "bfloat16", "float16", "int8", "int4"]
"""How weights are stored in memory; the engine supports four of these, PyTorch three."""

Backend = Literal["auto", "engine", "torch"]
"""What runs a model."""

Device = Literal["cpu", "cuda", "mps"] | str
"""Where PyTorch runs a model; also with a number, such as "cuda:1"."""

Language = Literal["en", "zh"]
"""The language of what a program says."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def suggest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the end of a sentence about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}."


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check the names of keyword arguments.

    Raises:
        InputError: if one is unknown; the message suggests the nearest.
    """
    names = list(known)
    for name in given:
        if name not in names:
            raise InputError(f"{name!r} is not an option of {what}; {suggest(name, names)}")


def checks_names(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function, or a class, answer an unknown keyword argument with an `InputError` that names the nearest."""
    parameters = inspect.signature(function).parameters
    known = [name for name, one in parameters.items() if name != "self" and one.kind is not one.POSITIONAL_ONLY]

    @functools.wraps(function)
    def wrapper(*args: P.args, **given: P.kwargs) -> R:
        refuse_unknown(function.__name__, given, known)
        return function(*args, **given)

    return wrapper


def checks_fields(check: Callable[[dict[str, Any]], object]) -> Callable[[type[T]], type[T]]:
    """Make a dataclass check the names of its keyword arguments, so that an unknown one is no `TypeError` of Python.

    Args:
        check: gets the keyword arguments, and raises if one is unknown.
    """

    def decorate(cls: type[T]) -> type[T]:
        init = cls.__init__

        @functools.wraps(init)
        def wrapper(self: T, /, *args: Any, **given: Any) -> None:
            check(given)
            init(self, *args, **given)

        setattr(cls, "__init__", wrapper)  # noqa: B010
        return cls

    return decorate
