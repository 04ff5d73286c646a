"""What a result states about the model that it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clearhead.weights.source import Source


def weights_digest(source: Source) -> str:
    """Return a SHA-256 of a model's weights: of each canonical tensor's name, shape and float32 values, in order.

    It does not depend on the file format or on the layout, so the same weights have the same digest everywhere.

    Raises:
        WeightsError: if the weights cannot be read.
    """
    digest = hashlib.sha256()
    plan = source.plan()
    for name in sorted(plan.targets):
        values = np.ascontiguousarray(plan.read(name), np.float32)
        digest.update(json.dumps([name, values.shape]).encode())
        digest.update(values.data)
    return digest.hexdigest()
