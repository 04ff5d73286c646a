"""Packages that import the modules of their names when a name is first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from clearhead.utils.packages import missing_package


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: its name.
        home: by public name, the module that defines it. A name that is its own module stands for the module.
    """
    short = package.rpartition(".")[2]

    def find(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(home[name])
        except ModuleNotFoundError as error:
            raise missing_package(error, f"{short}.{name}") from None
        value: object = module if home[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*home, *own})

    return find, names
