"""A model of random weights in the shape of a released one, for what measures reading and writing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clearhead.config import GPTConfig


def random_124m() -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """Return the config of the 124M and random float32 tensors under their canonical names."""
    from clearhead.config import GPTConfig
    from clearhead.weights.layouts import TABLE, axis_sizes, layout_tensors

    config = GPTConfig.named("124M")
    random = np.random.default_rng(0)
    sizes = axis_sizes(config)
    rows = [row for row in TABLE if row.needs != "head"]
    shapes = {tensor.name: tensor.shape(sizes) for row in rows for tensor in layout_tensors(row, "canonical", 12)}
    return config, {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
