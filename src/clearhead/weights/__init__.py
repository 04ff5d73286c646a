"""Where a model's tensors come from and go to. NumPy only, but for files that `torch.save` wrote.

`open` looks at a model on disk (or on the hub), whatever its form; `Source.plan` says how its tensors become
Clearhead's, `Source.load` does it, `Source.save` and `convert` write another form. `fetch_openai` brings the models
that OpenAI published, and `identify` says whether a model is one of them, bit for bit.
"""

from clearhead.weights.download import fetch_openai
from clearhead.weights.hub import fetch
from clearhead.weights.huggingface import save_huggingface
from clearhead.weights.official import Identity, identify
from clearhead.weights.openai import save_openai
from clearhead.weights.plan import LazyTensors, Plan, PlanRow
from clearhead.weights.saving import Saved, save
from clearhead.weights.source import Source, convert, locate, looks_like_a_path, open
from clearhead.weights.tensors import TensorInfo

__all__ = [
    "Identity",
    "LazyTensors",
    "Plan",
    "PlanRow",
    "Saved",
    "Source",
    "TensorInfo",
    "convert",
    "fetch",
    "fetch_openai",
    "identify",
    "locate",
    "looks_like_a_path",
    "open",
    "save",
    "save_huggingface",
    "save_openai",
]
