"""Packages that import the modules of their names when a name is first used.

`import clearhead` comes first in every command, before Ctrl-C can be handled, so this module imports almost nothing.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(package: str, home: "Mapping[str, str]") -> "tuple[Callable[[str], object], Callable[[], list[str]]]":
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: its name.
        home: by public name, the module that defines it. A name that is its own module stands for the module.
    """
    short = package.rpartition(".")[2]

    def find(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            module = import_module(home[name])
        except ModuleNotFoundError as error:
            from clearhead.utils.packages import missing_package

            raise missing_package(error, f"{short}.{name}") from None
        value: object = module if home[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*home, *own})

    return find, names
