"""Compare `clearhead compress` with gzip, xz and zstd, in bits per byte of files.

    python bench/compression.py held_out_1.txt held_out_2.txt --bytes 100000

Each file, or its first --bytes cut at a line, is compressed by every program; clearhead's output is decompressed again
if --check is given, which takes a pass of the model for each token.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import time
from collections.abc import Callable
from pathlib import Path

import clearhead
from clearhead import weights
from clearhead.evaluation.compression import TextCompressor
from clearhead.evaluation.provenance import weights_digest
from clearhead.loading import bundled


def main() -> None:
    """Read the arguments, compress, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--bytes", type=int, default=100_000, help="of each file")
    parser.add_argument("--model", type=Path, default=bundled())
    parser.add_argument("--check", action="store_true", help="decompress, and compare")
    arguments = parser.parse_args()
    gpt = clearhead.load(arguments.model, dtype="float32", backend="engine")
    compressor = TextCompressor(gpt, weights_digest(weights.open(arguments.model)), "float32")
    print("| file | bytes | program | bits per byte | seconds |\n|---|---:|---|---:|---:|")
    for file in arguments.files:
        data = first_lines(file.read_bytes(), arguments.bytes)
        for name, compress in {"clearhead": compressor.compress, **peers()}.items():
            start = time.perf_counter()
            found = compress(data)
            seconds = time.perf_counter() - start
            print(
                f"| {file.name} | {len(data):,} | {name} | {8 * len(found) / len(data):.3f} | {seconds:.2f} |",
                flush=True,
            )
            if name == "clearhead" and arguments.check:
                assert compressor.decompress(found) == data
                print(f"| {file.name} | {len(data):,} | clearhead, again | | |", flush=True)


def peers() -> dict[str, Callable[[bytes], bytes]]:
    """Return the other programs at their strongest settings."""
    found: dict[str, Callable[[bytes], bytes]] = {
        "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "gzip -9": lambda data: gzip.compress(data, 9),
    }
    try:
        import zstandard
    except ImportError:
        print("zstd is left out: pip install zstandard")
    else:
        found["zstd -22"] = zstandard.ZstdCompressor(level=22).compress
    return found


def first_lines(data: bytes, limit: int) -> bytes:
    """Return the beginning of a file, cut at the end of a line."""
    if len(data) <= limit:
        return data
    return data[: data.rindex(b"\n", 0, limit) + 1]


if __name__ == "__main__":
    main()
