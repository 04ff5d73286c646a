"""Clearhead: a GPT-2 that you can read, trust and run fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clearhead.version import __version__

if TYPE_CHECKING:
    from clearhead import weights
    from clearhead.config import GPTConfig
    from clearhead.errors import ClearheadError
    from clearhead.gpt import GPT, load
    from clearhead.inference.sampling import SamplingParams
    from clearhead.verification.model_checks import verify

__all__ = ["GPT", "ClearheadError", "GPTConfig", "SamplingParams", "__version__", "load", "verify", "weights"]

# Where each name lives. They are imported when they are first used, so that `import clearhead` loads
# neither torch nor NumPy.
_HOME = {
    "GPT": "clearhead.gpt",
    "ClearheadError": "clearhead.errors",
    "GPTConfig": "clearhead.config",
    "SamplingParams": "clearhead.inference.sampling",
    "load": "clearhead.gpt",
    "verify": "clearhead.verification.model_checks",
}


def __getattr__(name: str) -> Any:
    if name == "weights":
        return import_module("clearhead.weights")
    if name not in _HOME:
        raise AttributeError(f"module 'clearhead' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
