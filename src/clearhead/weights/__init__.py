"""Read and write a model's weights in every layout that GPT-2s come in.

    source = weights.open("models/124M")      # names and shapes only; nothing is read yet
    source.plan("huggingface")                # how each tensor is made from the stored ones
    source.load()                             # every tensor by its canonical name, float32
    source.save("gpt2.gguf", to="gguf")       # one tensor in memory at a time

A layout is a naming scheme (Hugging Face's, OpenAI's, nanoGPT's, ...), a file format is a container (safetensors,
GGUF, ...). `fetch_openai` downloads the models that OpenAI published, and `identify` tells whether a model is one of
them, bit for bit. This package needs NumPy only; PyTorch is imported for files that `torch.save` wrote.
"""

from clearhead.weights.comparison import WeightsDifference, compare
from clearhead.weights.hub.download import fetch_openai
from clearhead.weights.hub.hub import fetch, fetch_into, fetch_tokenizer
from clearhead.weights.hub.official import Identity, identify
from clearhead.weights.index_only import open_names
from clearhead.weights.location import locate, looks_like_path
from clearhead.weights.opening import convert, open
from clearhead.weights.plan import ConversionPlan, LazyTensors, PlanRow
from clearhead.weights.planning import invert_plan
from clearhead.weights.read_back import ReadBack, read_back
from clearhead.weights.saving import SaveResult, save
from clearhead.weights.schemes.huggingface import save_huggingface
from clearhead.weights.schemes.openai import save_openai
from clearhead.weights.source import Source
from clearhead.weights.tensors import TensorInfo

__all__ = [
    "ConversionPlan",
    "Identity",
    "LazyTensors",
    "PlanRow",
    "ReadBack",
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
    "invert_plan",
    "locate",
    "looks_like_path",
    "open",
    "open_names",
    "read_back",
    "save",
    "save_huggingface",
    "save_openai",
]
