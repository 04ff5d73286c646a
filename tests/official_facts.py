"""What would be known of a model if OpenAI had published it."""

from __future__ import annotations

from pathlib import Path

import google_crc32c

from clearhead import weights
from clearhead.weights.hub.official import OfficialTensor


def official_tensors(folder: Path) -> dict[str, OfficialTensor]:
    """Return shape, offset, size and checksum of each tensor of a checkpoint; the checksums are the library's own."""
    source = weights.open(folder)
    offset, tensors = 0, {}
    for name in sorted(source.tensors):
        data = source.read(name).tobytes()
        tensors[name] = OfficialTensor(source.tensors[name].shape, offset, len(data), google_crc32c.value(data))
        offset += len(data)
    return tensors
