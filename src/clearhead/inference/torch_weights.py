"""Between NumPy and a PyTorch model, one tensor at a time.

Beside `formats/pytorch.py` the only file of this package that needs PyTorch; import it by its own name.
"""

from __future__ import annotations

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


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are built inside have shapes and no memory, for `load_into` to fill.

    They are not filled with random numbers: there is nothing to fill, and PyTorch would first load its compiler for
    that, which takes seconds.
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


_FILLS = ("normal_", "uniform_", "kaiming_uniform_", "fill_", "zero_")  # what fills a tensor and returns it


def load_into(model: nn.Module, source: Source) -> None:
    """Fills a model whose parameters have the canonical names.

    Values are copied into the parameters that are there, cast to their type and moved to their device. A
    parameter on the `meta` device has no memory yet and takes the array itself: of a float32 file's
    embeddings that is the mapped file, so a model built under `without_memory` is never in memory twice.

    Raises:
        WeightsError: where the model has a parameter that the source does not fill, the source has a tensor
            without a place in the model, or a shape differs; and as `Source.plan`.
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
            raise WeightsError(f"the model has a parameter {name!r}, which the weights do not fill.")
        if tuple(tensor.shape) != shapes[name]:
            raise WeightsError(
                f"the model's {name} has the shape {shape_words(tuple(tensor.shape))} and the weights have "
                f"{shape_words(shapes[name])}; build the model from the weights' own config."
            )
    for name in plan.targets:
        if name not in state:
            raise WeightsError(f"the weights hold {name!r}, for which the model has no parameter.")


def _put(model: nn.Module, names: list[str], tensor: torch.Tensor, old: torch.Tensor) -> None:
    """Makes one new parameter of an array and sets it under all of its names."""
    from torch import nn

    parameter = nn.Parameter(tensor.to(old.dtype), requires_grad=old.requires_grad)
    for name in names:
        owner, _, field = name.rpartition(".")
        setattr(model.get_submodule(owner), field, parameter)


class ModelTensors(Mapping[str, np.ndarray]):
    """A PyTorch model's parameters as NumPy arrays, for `save_huggingface`; each is brought over when asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = dict(model.named_parameters(remove_duplicate=False))

    def __getitem__(self, name: str) -> np.ndarray:
        """The parameter as float32: its own memory on a CPU, a copy from elsewhere or from another type."""
        return self._tensors[name].detach().cpu().float().numpy()

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The parameter's shape, without bringing it over."""
        return tuple(self._tensors[name].shape)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._tensors)
