"""How fast text becomes ids: Clearhead beside tiktoken and transformers, in turn in one run.

    python bench/tokenizer.py --model gpt2 TEXT_FILE

The model is a folder (or a hub name) with GPT-2's tokenizer files. Prints the median of the runs in MB/s, and the
ratio to each peer; that the ids are equal is checked first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from transformers import GPT2TokenizerFast

from clearhead.tokenizer import Tokenizer
from clearhead.weights import locate

Encode = Callable[[str], list[int]]


def peers(folder: Path) -> dict[str, Encode]:
    """Each program's way from text to ids, by name."""
    ours = Tokenizer.from_folder(folder)
    encode: dict[str, Encode] = {"clearhead": ours.encode}
    merges, vocab = folder / "vocab.bpe", folder / "encoder.json"
    if merges.exists() and vocab.exists():
        pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
        ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(vocab))
        encode["tiktoken"] = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode
    fast = GPT2TokenizerFast.from_pretrained(folder)
    encode["transformers"] = lambda text: fast(text, verbose=False)["input_ids"]
    return encode


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    encoders = peers(locate(arguments.model))
    expected = encoders["clearhead"](text)
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for name, encode in encoders.items():
        assert encode(text) == expected, f"{name} gives other ids"
    for _ in range(arguments.runs):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode(text)
            seconds[name].append(time.perf_counter() - start)
    size = len(text.encode()) / 1e6
    ours = statistics.median(seconds["clearhead"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<13} {size / median:8.2f} MB/s   clearhead is {median / ours:.2f} times as fast")


if __name__ == "__main__":
    main()
