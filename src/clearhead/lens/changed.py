"""Run a network in the place of an engine that has the weights it was made from."""

from __future__ import annotations

from clearhead.inference.torch_runner import TorchRunner
from clearhead.lens.hooks import is_hooked
from clearhead.model import GPTModel
from clearhead.model_weights import share_weights, weights_version


def runner_of_changed(model: GPTModel, weights_made: tuple[object, ...]) -> TorchRunner | None:
    """Return a Runner of a network with which an engine of the same weights no longer agrees; None if it does.

    Args:
        model: the network.
        weights_made: `weights_version` when it was made.
    """
    if is_hooked(model):
        return TorchRunner(model.eval())
    # A network in training stays in training.
    return TorchRunner(share_weights(model).eval()) if weights_version(model) != weights_made else None
