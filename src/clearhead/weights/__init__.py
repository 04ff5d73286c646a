"""Where a model's tensors come from and go to. NumPy only, but for files that `torch.save` wrote.

`open` looks at a model on disk (or on the hub), `Source.plan` says how its tensors become Clearhead's,
`Source.load` does it, `save_huggingface` writes a model that `transformers` opens.
"""

from clearhead.weights.hub import fetch
from clearhead.weights.huggingface import save_huggingface
from clearhead.weights.openai import save_openai
from clearhead.weights.plan import LazyTensors, Plan, PlanRow
from clearhead.weights.source import Source, locate, open
from clearhead.weights.tensors import TensorInfo

__all__ = [
    "LazyTensors",
    "Plan",
    "PlanRow",
    "Source",
    "TensorInfo",
    "fetch",
    "locate",
    "open",
    "save_huggingface",
    "save_openai",
]
