"""What all refusals have in common: one sentence that names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clearhead import weights
from clearhead.errors import ClearheadError


def refused(path: Path, *words: str, **options: Any) -> str:
    """Return the sentence with which opening and loading weights is refused.

    Args:
        path: the weights.
        words: what the sentence must contain.
        options: of `weights.open`.
    """
    with pytest.raises(ClearheadError) as caught:
        weights.open(path, **options).load()
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert "\n" not in text
    assert text.endswith(".")
    return text
