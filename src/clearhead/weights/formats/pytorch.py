"""Files that `torch.save` wrote. The only format here that needs PyTorch, which is imported when one is opened.

They are pickles. `weights_only=True` builds tensors and plain containers and refuses anything that would
run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clearhead.errors import WeightsError
from clearhead.weights.formats.sniff import refuse_impostor
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, widen_bfloat16

if TYPE_CHECKING:
    import torch


class PyTorchFile:
    """A file of named tensors that `torch.save` wrote, mapped into memory where its age allows.

    Attributes:
        path: the file.
        tensors: every tensor inside.
        contents: what the file holds beside or around the tensors, as `torch.load` gives it.
        aliases: for each tensor that shares another's memory from start to end, the name of that other (the first).

    Raises:
        WeightsError: where the file is damaged, would run code, or holds no named tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_impostor(path)
        self.contents = _load(path)
        self._values = _state_dict(path, self.contents)
        self.tensors: dict[str, TensorInfo] = {}
        self.aliases: dict[str, str] = {}
        seen: dict[tuple[int, tuple[int, ...], str], str] = {}
        for name, tensor in self._values.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in NUMPY_TYPES:
                raise WeightsError(
                    f"{path} stores {name!r} in the number format {dtype}, which Clearhead does not read; "
                    "convert it to float32, float16 or bfloat16 first."
                )
            info = self.tensors[name] = TensorInfo(tuple(tensor.shape), dtype)
            first = seen.setdefault((tensor.data_ptr(), info.shape, dtype), name)
            if first != name and info.size:
                self.aliases[name] = first

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored, a view of the file where it is mapped; bfloat16 is widened to float32."""
        import torch

        tensor = self._values[name].detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return widen_bfloat16(tensor.view(torch.uint16).numpy())
        return tensor.numpy()


def _load(path: Path) -> Any:
    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 is no zip and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} was not opened: it holds more than tensors and plain values, and opening it could run code "
            f"({_first_sentence(error)}); ask for the model as safetensors, or as a plain state dict."
        ) from None
    except OSError as error:
        raise WeightsError(f"{path} could not be read ({error.strerror or error}).") from None
    except Exception as error:  # PyTorch's reader raises many kinds for one damaged file
        raise WeightsError(
            f"{path} is not a PyTorch file, or is cut short or damaged ({_first_sentence(error)}); download it again."
        ) from None


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].strip().rstrip(".") if text else type(error).__name__


def _state_dict(path: Path, contents: Any) -> Mapping[str, torch.Tensor]:
    """The mapping of names to tensors: the file's contents, or what stands in it under `model` or `state_dict`."""
    import torch

    candidates = [contents]
    if isinstance(contents, Mapping):
        candidates += [contents[key] for key in ("model", "state_dict", "model_state_dict") if key in contents]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(v, torch.Tensor) for v in candidate.values())
        ):
            return {str(name): tensor for name, tensor in candidate.items()}
    raise WeightsError(
        f"{path} holds {_kind_words(contents)}; a mapping of names to tensors, as torch.save(model.state_dict(), …) "
        "writes it, was expected."
    )


def _kind_words(contents: Any) -> str:
    if isinstance(contents, Mapping):
        keys = ", ".join(repr(str(key)) for key in list(contents)[:5])
        return f"a mapping with {keys or 'nothing'} in it"
    return f"a {type(contents).__name__}"
