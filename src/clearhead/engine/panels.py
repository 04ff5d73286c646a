"""How matrices lie in memory: panels of rows, and the scales of their integers.

A *panel* is `PANEL` rows of a matrix, twice the lanes of a vector. It is stored so that one vector holds neighbouring
columns of as many rows as it has lanes; *pairs* and *quads* of columns lie side by side, as many as one instruction
multiplies and adds. Scales of groups of columns lie as the groups do: those of the panel's rows side by side.
"""

from __future__ import annotations

import numpy as np

from clearhead.engine.variants import LANES

VECTORS = 2
"""Vectors of rows in a panel."""
PANEL = VECTORS * LANES
"""Rows in a panel."""
COLUMNS = 64
"""Columns are padded with zeros to a multiple of this; float32 sums restart as often, which keeps their error small."""
GROUP = 32
"""Columns that share a scale of int4 weights."""
SCALE_COLUMNS = {np.dtype(np.uint8): 64, np.dtype(np.int32): GROUP, np.dtype(np.uint32): GROUP}
"""Columns that share a bfloat16 scale of weights and a sum of whole numbers, and where activations have 8 bits, their
scale too; by the type of the weights' array. int8 pairs have one scale for a row, and one sum."""
BLOCK_PANELS = max(1, 512 // PANEL)
BLOCK = BLOCK_PANELS * PANEL
"""Rows of the head whose scores are computed together."""


def padded_rows(rows: int) -> int:
    """Return the number of rows with those that fill up the last panel."""
    return (rows + PANEL - 1) // PANEL * PANEL


def padded_columns(columns: int) -> int:
    """Return the number of columns with those that fill up the last group."""
    return (columns + COLUMNS - 1) // COLUMNS * COLUMNS
