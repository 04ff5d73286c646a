"""Clearhead: a GPT-2 that you can read, trust and run fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from clearhead.version import __version__

if TYPE_CHECKING:
    from clearhead import weights
    from clearhead.config import GPTConfig
    from clearhead.errors import ClearheadError
    from clearhead.gpt import GPT
    from clearhead.inference.options import SamplingParams
    from clearhead.loading import load
    from clearhead.verification.model_checks import verify

__all__ = ["GPT", "ClearheadError", "GPTConfig", "SamplingParams", "__version__", "load", "verify", "weights"]

# The module that defines each name. They are imported when they are first used, so that `import clearhead` loads
# neither torch nor NumPy.
_HOME = {
    "GPT": "clearhead.gpt",
    "ClearheadError": "clearhead.errors",
    "GPTConfig": "clearhead.config",
    "SamplingParams": "clearhead.inference.options",
    "load": "clearhead.loading",
    "verify": "clearhead.verification.model_checks",
}


if not TYPE_CHECKING:  # a type checker would take every unknown name for `Any`

    def __getattr__(name: str) -> object:
        if name == "weights":
            return import_module("clearhead.weights")
        if name not in _HOME:
            raise AttributeError(f"module 'clearhead' has no attribute {name!r}")
        try:
            value = getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            from clearhead.utils.packages import missing_package

            raise missing_package(error, f"clearhead.{name}") from None
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
