"""Where a model's tensors come from and go to. NumPy only, but for files that `torch.save` wrote.

`open` looks at a model on disk (or on the hub), whatever its form; `Source.plan` says how its tensors become
Clearhead's, `Source.load` does it, `Source.save` and `convert` write another form. `fetch_openai` brings the models
that OpenAI published, and `identify` says whether a model is one of them, bit for bit.
"""

from clearhead.weights.comparison import WeightsDifference, compare
from clearhead.weights.hub.download import fetch_openai
from clearhead.weights.hub.hub import fetch, fetch_into, fetch_tokenizer
from clearhead.weights.hub.official import Identity, identify
from clearhead.weights.plan import ConversionPlan, LazyTensors, PlanRow
from clearhead.weights.saving import SaveResult, save
from clearhead.weights.schemes.huggingface import save_huggingface
from clearhead.weights.schemes.openai import save_openai
from clearhead.weights.source import Source, convert, locate, looks_like_path, open
from clearhead.weights.tensors import TensorInfo

__all__ = [
    "ConversionPlan",
    "Identity",
    "LazyTensors",
    "PlanRow",
    "SaveResult",
    "Source",
    "TensorInfo",
    "WeightsDifference",
    "compare",
    "convert",
    "fetch",
    "fetch_into",
    "fetch_openai",
    "fetch_tokenizer",
    "identify",
    "locate",
    "looks_like_path",
    "open",
    "save",
    "save_huggingface",
    "save_openai",
]
