"""Put a sparse autoencoder, or anything that encodes and decodes, into the model in the place of an activation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.activations import Activation, names
from clearhead.lens.hooks import installed
from clearhead.model import GPTModel


class Autoencoder(Protocol):
    """What `splice` needs: the two functions that sparse autoencoders have, SAELens' among them."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the features [..., F] of activations [..., C]."""

    def decode(self, features: Tensor) -> Tensor:
        """Return activations [..., C] from features [..., F]."""


class Spliced:
    """What passed through an autoencoder while it was spliced in.

    Attributes:
        features: of the last pass, [B, T, F]; None before the first.
        error: what the autoencoder lost in the last pass, [B, T, C].
    """

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.error: Tensor | None = None


@contextmanager
def splice(model: GPTModel, autoencoder: Autoencoder, name: str, *, error_term: bool = False) -> Iterator[Spliced]:
    """Inside a `with`, replace an activation by its reconstruction.

    Args:
        model: the model.
        autoencoder: any object with `encode` and `decode`.
        name: the activation, one for each token, such as "blocks.3.residual_out".
        error_term: add what the reconstruction loses, so that the model computes as without it; gradients then reach
            the features and nothing else changes.

    Yields:
        the features and the errors of each pass.

    Raises:
        InputError: if the name means no single activation [T, ...], or the reconstruction has another shape.
    """
    found = names(model.config).find(name)
    if len(found) != 1 or found[0].letters[0] != "T" or len(found[0].letters) != 2:
        raise InputError(
            f"{name!r} means {', '.join(one.name for one in found[:3])}; splice one activation that is a vector for "
            "each token, such as 'blocks.3.residual_out'."
        )
    if missing := [part for part in ("encode", "decode") if not callable(getattr(autoencoder, part, None))]:
        raise InputError(
            f"a {type(autoencoder).__name__} has no {missing[0]}; an object with encode and decode is needed."
        )
    spliced = Spliced()
    with installed(model, _Splice(found[0], autoencoder, error_term, spliced)):
        yield spliced


class _Splice:
    """An ActivationHook that encodes and decodes what passes."""

    def __init__(self, activation: Activation, autoencoder: Autoencoder, error_term: bool, spliced: Spliced) -> None:
        self.activations: tuple[Activation, ...] = (activation,)
        self._autoencoder, self._error_term, self._spliced = autoencoder, error_term, spliced

    def __call__(self, activation: Activation, tensor: Tensor, positions: Tensor) -> Tensor:
        features = self._autoencoder.encode(tensor)
        decoded = self._autoencoder.decode(features)
        if decoded.shape != tensor.shape:
            raise InputError(
                f"the autoencoder returned shape {list(decoded.shape)} for {activation.name} of shape "
                f"{list(tensor.shape)}; the same shape was expected."
            )
        error = (tensor - decoded).detach()
        self._spliced.features, self._spliced.error = features.detach(), error
        return decoded + error if self._error_term else decoded.to(tensor.dtype)


@torch.no_grad()
def feature_activity(spliced: Spliced) -> Tensor:
    """Return how often each feature was active (above 0) in the last pass, [F].

    Raises:
        InputError: if no pass has run.
    """
    if spliced.features is None:
        raise InputError("no text has passed through the autoencoder yet; run the model inside the `with` first.")
    return (spliced.features > 0).float().flatten(0, -2).mean(0)
