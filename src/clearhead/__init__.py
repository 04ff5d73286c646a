"""Clearhead: a GPT-2 that you can read, trust and run fast."""

from clearhead.utils.lazy import lazy_names
from clearhead.version import __version__

# Not from `typing`, which takes 20 ms to import: Ctrl-C in that time would end the command line with a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from clearhead import weights
    from clearhead.config import GPTConfig
    from clearhead.errors import ClearheadError
    from clearhead.gpt import GPT
    from clearhead.inference.options import SamplingParams
    from clearhead.loading import load
    from clearhead.verification.model_checks import verify

__all__ = ["GPT", "ClearheadError", "GPTConfig", "SamplingParams", "__version__", "load", "verify", "weights"]

# They are imported when they are first used, so that `import clearhead` loads neither torch nor NumPy.
_HOME = {
    "GPT": "clearhead.gpt",
    "ClearheadError": "clearhead.errors",
    "GPTConfig": "clearhead.config",
    "SamplingParams": "clearhead.inference.options",
    "load": "clearhead.loading",
    "verify": "clearhead.verification.model_checks",
    "weights": "clearhead.weights",
}

if not TYPE_CHECKING:  # a type checker would take every unknown name for `Any`
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
