"""`clearhead.load`: where a model comes from, what runs it, and in which dtype."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, get_args

from clearhead.config import ConfigLike
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference.declaration import is_whole
from clearhead.tokenizer.model_vocabulary import check_model_vocabulary
from clearhead.utils.arguments import Backend, Device, Dtype, checks_names
from clearhead.utils.packages import need_torch
from clearhead.utils.text import type_of
from clearhead.weights.location import bundled as bundled

if TYPE_CHECKING:
    import torch

    from clearhead.model import GPTModel
    from clearhead.weights import Source

BACKENDS = get_args(Backend)
DTYPES = {"engine": ("float32", "bfloat16", "int8", "int4"), "torch": ("float32", "bfloat16", "float16")}
"""The dtypes of weights in memory that each backend supports."""
MAX_THREADS = 1024


@checks_names
def load(
    source: str | os.PathLike[str] | None = None,
    *,
    backend: Backend = "auto",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: int | None = None,
    activations: Literal["8bit", "16bit"] | None = None,
    cache_tokens: int | None = None,
    revision: str | None = None,
    config: ConfigLike | None = None,
) -> GPT:
    """Open a model: its weights, its config and its tokenizer.

    Args:
        source: a folder, a file of weights, or a name on the hub; None, or "bundled", for the model that comes with
            Clearhead.
        backend: "engine", compiled code for the CPU; "torch"; or "auto": the engine if the device is the CPU and it
            supports the dtype, PyTorch otherwise.
        device: as PyTorch names it: "cpu", "cuda", "cuda:1", "mps".
        dtype: of the weights in memory: float32 or bfloat16; for the engine also int8 and int4, for torch also float16.
        threads: the engine's threads; by default as many as the cores that the process may use, or OMP_NUM_THREADS.
            PyTorch has its own setting, `torch.set_num_threads`.
        activations: how finely the engine rounds activations for int8 and int4 weights, "8bit" (keys and values too) or
            "16bit"; by default what suits the CPU (see docs/engine.md).
        cache_tokens: the most tokens in the engine's key/value cache, of all sequences together; no limit by default.
        revision: of a model on the hub, its branch, tag or commit.
        config: the model's shape, if the files do not say all of it: a `GPTConfig`, a released size, a JSON file, or
            some of its settings, such as {"n_heads": 3}.

    Raises:
        InputError: if the backend, device or dtype is not available here, or there is not enough memory.
        WeightsError: if the weights are missing, broken or do not fit; HubError if they cannot be fetched.
        ConfigError, TokenizerError: if the files next to them are broken.
    """
    chosen = _backend(backend, device, dtype)
    _check_arguments(source, device, threads, cache_tokens)
    if chosen == "torch" and (activations, cache_tokens) != (None, None):
        raise InputError("activations and cache_tokens are settings of the engine; leave them out for backend torch.")
    torch_device = find_device(device) if chosen == "torch" else None
    from clearhead import weights

    opened = weights.open(bundled() if source is None else source, config=config, revision=revision)
    tokenizer = opened.tokenizer()
    check_model_vocabulary(opened.config, tokenizer)
    companions = opened.companions
    around: dict[str, Any] = {
        "notes": opened.notes,
        "generation_config": companions.generation_config(),
        "end_ids": companions.end_ids(),
        "tensors": opened.lazy,
    }
    if torch_device is not None:
        return GPT(torch_model(opened, torch_device, dtype), tokenizer, **around)
    from clearhead.engine.store import open_runner

    runner: Any = open_runner(opened, dtype, threads, activations, cache_tokens)
    return GPT(lambda: torch_model(opened, find_device("cpu"), "float32"), tokenizer, runner=runner, **around)


def _check_arguments(source: object, device: object, threads: object, cache_tokens: object) -> None:
    """Check the arguments of `load` that no other function checks."""
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
        raise InputError(f"threads is {threads!r}; give a whole number from 1 to {MAX_THREADS}.")
    if cache_tokens is not None and not is_whole(cache_tokens):
        raise InputError(f"cache_tokens is {cache_tokens!r}; give a whole number, or None for no limit.")
    if not isinstance(device, str):
        raise InputError(f"device is {device!r}; give a name such as 'cpu', 'cuda' or 'mps'.")
    if source is not None and not isinstance(source, (str, os.PathLike)):
        raise InputError(f"the source is {type_of(source)}; give a path, or a name on the hub.")


def _backend(backend: str, device: str, dtype: str) -> str:
    """Return the backend that is meant.

    Raises:
        InputError: if there is no such backend, or it does not support the device or the dtype.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; the backends are {', '.join(BACKENDS)}.")
    known = list(dict.fromkeys(name for names in DTYPES.values() for name in names))
    if dtype not in known:
        raise InputError(f"dtype is {dtype!r}; the dtypes of weights in memory are {', '.join(known)}.")
    if backend == "auto":
        backend = "engine" if device == "cpu" and dtype in DTYPES["engine"] else "torch"
    if backend == "engine" and device != "cpu":
        raise InputError(f"device is {device!r}, but the engine runs on the CPU; give backend 'torch' or device 'cpu'.")
    if dtype not in DTYPES[backend]:
        on_device = "" if device == "cpu" else f" on {device}"
        raise InputError(
            f"dtype is {dtype!r}, which the backend {backend}{on_device} does not support; it supports "
            f"{', '.join(DTYPES[backend])}."
        )
    return backend


def find_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        InputError: if it is not available here.
        MissingPackageError: if PyTorch is not installed.
    """
    need_torch("the backend torch")
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"device is {name!r}, which cannot be used here ({reason}); give 'cpu'.") from None
    return device


def torch_model(opened: Source, device: torch.device, dtype: str) -> GPTModel:
    """Return the PyTorch network with a source's weights, on a device and in a dtype."""
    import torch

    from clearhead.model import GPTModel
    from clearhead.model_weights import load_into, without_memory

    with without_memory():
        model = GPTModel(opened.config)
    load_into(model, opened)
    return model.to(device=device, dtype=getattr(torch, dtype))
