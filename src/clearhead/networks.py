"""The network behind a `GPT`, in the forms in which it exists: not made yet, in NumPy, or in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.numpy_model import NumpyModel, load_numpy_model
from clearhead.utils.packages import need_torch

if TYPE_CHECKING:
    from clearhead.model import GPTModel

Tensors = Mapping[str, npt.NDArray[Any]]


class Networks:
    """One network; a form of it is made when it is first needed.

    Once there is a PyTorch network it counts, since it may be changed: it is watched and saved.

    Args:
        config: the network's shape.
        model: the PyTorch network, or a function that makes it.
        tensors: returns the weights by canonical name; None if only the PyTorch network has them.

    Attributes:
        weights_made: of a PyTorch network that was made here, the `weights_version` that it had then.
    """

    def __init__(
        self,
        config: GPTConfig,
        model: GPTModel | Callable[[], GPTModel],
        tensors: Callable[[], Tensors] | None,
    ) -> None:
        self.config = config
        self._model = model
        self._tensors = tensors
        self._numpy: NumpyModel | None = None
        self.weights_made: tuple[object, ...] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Networks:
        """Return a copy with its own PyTorch network, if there is one."""
        copied = Networks(self.config, copy.deepcopy(self._model, memo), self._tensors)  # a function is not copied
        copied.weights_made = self.weights_made
        if self.weights_made is not None:
            from clearhead.model_weights import weights_version

            if weights_version(self.torch) == self.weights_made:
                copied.weights_made = weights_version(copied.torch)
        return copied

    @property
    def torch(self) -> GPTModel:
        """The PyTorch network.

        Raises:
            MissingPackageError: if PyTorch is not installed.
        """
        need_torch("the network as a PyTorch module")
        from clearhead.model import GPTModel

        if not isinstance(self._model, GPTModel):
            from torch import inference_mode

            from clearhead.model_weights import weights_version

            with inference_mode(False):  # tensors made in it could not be trained, and do not count their changes
                self._model = self._model().eval()
            self.weights_made = weights_version(self._model)
            self._numpy = None
        return self._model

    @property
    def numpy(self) -> NumpyModel:
        """The network in NumPy; its weights are in memory from now on."""
        if self._numpy is None:
            self._numpy = load_numpy_model(self.config, self.tensors())
        return self._numpy

    @property
    def readable(self) -> GPTModel | NumpyModel:
        """The network to watch: PyTorch's if it exists, else in NumPy."""
        return self.numpy if self._only_tensors else self.torch

    def tensors(self) -> Tensors:
        """Return the weights by canonical name."""
        if self._only_tensors:
            assert self._tensors is not None
            return self._tensors()
        from clearhead.model_weights import ModelTensors

        return ModelTensors(self.torch)

    @property
    def _only_tensors(self) -> bool:
        return self._tensors is not None and not hasattr(self._model, "parameters")
