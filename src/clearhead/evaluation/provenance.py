"""What a result states about the model that it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from clearhead import weights
from clearhead.version import __version__

if TYPE_CHECKING:
    from clearhead.config import ConfigLike
    from clearhead.weights.source import Source

_CLASSIFIER_HEAD = ("score.weight", "score.bias")


def describe_model(model: str | None, config: ConfigLike | None, dtype: str) -> dict[str, str]:
    """Return what identifies a model in a result: its name, the digest of its weights, their dtype, and the version.

    Args:
        model: a source, as `weights.open` takes it; None for the bundled model.
        config: the shape of the weights, if it was given.
        dtype: the dtype of the weights in memory.

    Raises:
        WeightsError: if the weights cannot be read.
    """
    name = "bundled" if model is None else model
    digest = weights_digest(weights.open(name, config=config))
    return {"model": name, "weights_sha256": digest, "dtype": dtype, "clearhead": __version__}


def weights_digest(source: Source) -> str:
    """Return a SHA-256 of a model's weights: of each canonical tensor's name, shape and float32 values, in order.

    It does not depend on the file format or on the layout, so the same weights have the same digest everywhere. A
    classifier's head follows the other tensors.

    Raises:
        WeightsError: if the weights cannot be read.
    """
    digest = hashlib.sha256()
    plan = source.plan()
    heads = [name for name in _CLASSIFIER_HEAD if name in source.tensors]
    for name in [*sorted(plan.targets), *heads]:
        values = np.ascontiguousarray(source.read(name) if name in heads else plan.read(name), np.float32)
        digest.update(json.dumps([name, values.shape]).encode())
        digest.update(values.data)
    return digest.hexdigest()
