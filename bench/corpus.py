"""How fast texts become a corpus: the whole of `clearhead corpus build` beside tiktoken's encoder, in turn in one run.

    python bench/corpus.py --tokenizer FOLDER TEXT_FILE...

The folder has GPT-2's encoder.json and vocab.bpe. tiktoken gets the documents in memory and gives lists of ids, with
`encode_ordinary_batch` and a thread for each core. The build starts its processes, reads the files, finds the
documents, encodes, hashes, and writes shards and manifest. That the ids are equal is checked first; what is compiled
is compiled then too. Prints the median and the range of the runs in MB/s.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import build_corpus
from clearhead.data.corpus_plan import CorpusPlan, TextPlan
from clearhead.data.documents import documents
from clearhead.data.sources.find import find_sources
from clearhead.data.vocabulary import Vocabulary
from clearhead.utils.system import usable_cores

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def peer_of(folder: Path) -> tiktoken.Encoding:
    """tiktoken's GPT-2, from OpenAI's files."""
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})


def build(plan: CorpusPlan, folder: Path, processes: int) -> tuple[Corpus, float]:
    """Builds anew; returns the corpus and the seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    corpus = build_corpus(plan, folder, processes=processes)
    return corpus, time.perf_counter() - start


def encode(peer: tiktoken.Encoding, texts: list[str], threads: int) -> tuple[list[list[int]], float]:
    """Encodes all documents; returns their ids and the seconds."""
    start = time.perf_counter()
    found = peer.encode_ordinary_batch(texts, num_threads=threads)
    return found, time.perf_counter() - start


def check(corpus: Corpus, expected: list[list[int]]) -> None:
    """Raises where the corpus has other ids than the peer."""
    ids = corpus.tokens(corpus.train["text"])
    at = 0
    for document in expected:
        found = ids[at : at + len(document) + 1]
        assert found[0] == 50256
        assert np.array_equal(found[1:], document), "other ids"
        at += len(found)
    assert at == len(ids), "other documents"


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=usable_cores())
    arguments = parser.parse_args()
    threads = arguments.processes
    peer = peer_of(arguments.tokenizer)
    texts = [text for path in arguments.texts for text in documents(path)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    sources = tuple(find_sources([str(path) for path in arguments.texts]))
    plan = CorpusPlan((TextPlan("text", sources),), Vocabulary.from_name(str(arguments.tokenizer)))
    seconds: dict[str, list[float]] = {"clearhead corpus build": [], "tiktoken encode_ordinary_batch": []}
    with tempfile.TemporaryDirectory() as folder:
        check(build(plan, Path(folder, "corpus"), threads)[0], encode(peer, texts, threads)[0])
        for _ in range(arguments.runs):
            seconds["clearhead corpus build"].append(build(plan, Path(folder, "corpus"), threads)[1])
            seconds["tiktoken encode_ordinary_batch"].append(encode(peer, texts, threads)[1])
    print(f"{size:.1f} MB, {len(texts):,} documents, {threads} processes or threads, {arguments.runs} runs in turn")
    medians = {name: size / statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:<32} {medians[name]:7.2f} MB/s   ({size / max(times):.2f} to {size / min(times):.2f})")
    ours, theirs = medians.values()
    print(f"the build is {ours / theirs:.2f} times as fast as tiktoken's encoding alone")


if __name__ == "__main__":
    main()
