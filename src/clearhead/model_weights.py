"""Canonical tensors into a PyTorch model's parameters, and back, one tensor at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.source import Source
from clearhead.weights.tensors import shape_words

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clearhead.model import GPTModel


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules that have shapes but no memory, for `load_into` to fill.

    Initialization is skipped: there is nothing to fill, and PyTorch would first load its compiler for it, which takes
    seconds.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class NoNumbers(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(function, "__name__", "") in _FILLS:
                return args[0] if args else kwargs["tensor"]  # torch.nn.init hands it on by name
            return function(*args, **kwargs)

    with torch.device("meta"), NoNumbers():
        yield


_FILLS = ("normal_", "uniform_", "kaiming_uniform_", "fill_", "zero_")  # fill a tensor and return it


def load_into(model: nn.Module, source: Source) -> None:
    """Fill a model whose parameters have the canonical names.

    Values are copied into the existing parameters, cast to their dtype and moved to their device. A parameter on the
    `meta` device has no memory yet and takes the array itself, which for the embeddings of a float32 file is the
    mapped file. So a model built under `without_memory` is never in memory twice.

    Raises:
        WeightsError: if the model has a parameter that the source does not fill, the source has a tensor that the
            model has no parameter for, or a shape differs; and as `Source.plan`.
    """
    import torch

    plan = source.plan()
    state = dict(model.named_parameters(remove_duplicate=False))
    _check(plan, state)
    with (
        ByteProgress(f"Loading {source.name}", sum(4 * p.numel() for p in model.parameters())) as progress,
        torch.no_grad(),
    ):
        for name, values in plan.run_parallel():
            names = [name, *(tied for tied, other in plan.tied.items() if other == name and tied in state)]
            tensor = torch.from_numpy(values)
            if state[name].is_meta:
                _put(model, names, tensor, state[name])
            else:
                for one in names:  # a tied name may still be a tensor of its own in this model
                    if one == name or state[one] is not state[name]:
                        state[one].copy_(tensor)
            progress.advance(values.nbytes)


def _check(plan: ConversionPlan, state: Mapping[str, torch.Tensor]) -> None:
    shapes = {**plan.targets, **{name: plan.targets[other] for name, other in plan.tied.items()}}
    for name, tensor in state.items():
        if name not in shapes:
            raise WeightsError(f"the model has a parameter {name!r}, which the weights do not contain.")
        if tuple(tensor.shape) != shapes[name]:
            raise WeightsError(
                f"the model's {name} has the shape {shape_words(tuple(tensor.shape))} and the weights have "
                f"{shape_words(shapes[name])}; build the model from the weights' own config."
            )
    for name in plan.targets:
        if name not in state:
            raise WeightsError(f"the weights contain {name!r}, for which the model has no parameter.")


def _put(model: nn.Module, names: list[str], tensor: torch.Tensor, old: torch.Tensor) -> None:
    """Make one new parameter from an array and set it under all of its names."""
    from torch import nn

    parameter = nn.Parameter(tensor.to(old.dtype), requires_grad=old.requires_grad)
    for name in names:
        owner, _, field = name.rpartition(".")
        setattr(model.get_submodule(owner), field, parameter)


class ModelTensors(Mapping[str, np.ndarray]):
    """A PyTorch model's parameters as NumPy arrays, for `save_huggingface`; each is converted when it is accessed."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = dict(model.named_parameters(remove_duplicate=False))

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the parameter as float32: its own memory on a CPU, a copy from another device or dtype."""
        array: np.ndarray = self._tensors[name].detach().cpu().float().numpy()
        return array

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the parameter's shape, without converting it."""
        return tuple(self._tensors[name].shape)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._tensors)


def weights_version(model: GPTModel) -> tuple[object, ...]:
    """Return a value that differs after any parameter was changed in place or replaced.

    A change in place of a tensor that was made in `torch.inference_mode` is not seen: PyTorch does not count it.
    """
    return tuple((one.data_ptr(), None if one.is_inference() else one._version) for one in model.parameters())


def share_weights(model: GPTModel) -> GPTModel:
    """Return a model with new modules and the same tensors, so that its hooks do not affect the original."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
