"""Measure what each dtype of the compiled engine costs in quality: perplexity, and KL divergence to float32.

    python bench/dtypes.py --model MODEL_FOLDER TEXT_FILE...

Texts are cut into windows of the context length, one after another, as `clearhead evaluate` does. A line
`<|endoftext|>` in a file separates documents.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import clearhead
from clearhead import weights
from clearhead.data.documents import encode_documents
from clearhead.engine.store import open_runner
from clearhead.loading import bundled
from clearhead.utils.progress import Progress

CHOICES = (("bfloat16", "16bit"), ("int8", "16bit"), ("int8", "8bit"), ("int4", "16bit"), ("int4", "8bit"))
"""The dtypes, and how activations are rounded for them."""
Array = npt.NDArray[np.floating]


@dataclass
class Cost:
    """Sums over tokens: of -log p of the next, of the KL divergence to float32, and of equal likeliest tokens."""

    nats: float = 0.0
    divergence: float = 0.0
    same_first: int = 0
    tokens: int = 0

    def add(self, logp: Array, reference: Array, targets: npt.NDArray[np.integer]) -> None:
        """Counts a window. Log-probabilities are [T, V], targets [T]."""
        self.nats -= float(logp[np.arange(len(targets)), targets].sum())
        self.divergence += float((np.exp(reference) * (reference - logp)).sum())
        self.same_first += int((logp.argmax(1) == reference.argmax(1)).sum())
        self.tokens += len(targets)

    @property
    def perplexity(self) -> float:
        """exp of the mean -log p."""
        return math.exp(self.nats / self.tokens)


def windows(file: Path, gpt: clearhead.GPT, most: int) -> Iterator[npt.NDArray[np.integer]]:
    """The file's tokens in windows of the context length and one more, which is only foreseen."""
    assert gpt.tokenizer is not None
    ids: list[int] = []
    for tokens, _ in encode_documents(file, gpt.tokenizer):
        ids += tokens
        if len(ids) > most:
            break
    length = gpt.config.context_length
    for start in range(0, min(len(ids), most) - 1, length):
        yield np.array(ids[start : min(start + length, most) + 1])


def log_softmax(logits: Array) -> Array:
    """Log-probabilities in float64, [T, V]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--model", help="a folder, or a name on the hub; the bundled model if left out")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "int4"])
    arguments = parser.parse_args()

    exact = clearhead.load(arguments.model, backend="engine", threads=arguments.threads)
    source = weights.open(bundled() if arguments.model is None else arguments.model)
    others = {
        choice: open_runner(source, choice[0], arguments.threads, choice[1])
        for choice in CHOICES
        if choice[0] in arguments.dtypes
    }
    print(
        f"{'file':<24}{'dtype':<10}{'activations':<12}{'perplexity':>11}{'change':>9}{'KL, nats':>11}{'same first':>12}"
    )
    for file in arguments.files:
        costs = {choice: Cost() for choice in (("float32", "float32"), *others)}
        with Progress(file.name, arguments.tokens) as progress:
            for ids in windows(file, exact, arguments.tokens):
                given, targets = [int(id) for id in ids[:-1]], ids[1:]
                reference = log_softmax(exact.runner.logits(given))
                costs["float32", "float32"].add(reference, reference, targets)
                for choice, runner in others.items():
                    costs[choice].add(log_softmax(runner.logits(given)), reference, targets)
                progress.advance(len(targets))
        base = costs["float32", "float32"].perplexity
        for (dtype, activations), cost in costs.items():
            print(
                f"{file.name[-22:]:<24}{dtype:<10}{activations:<12}{cost.perplexity:>11.4f}"
                f"{cost.perplexity / base - 1:>+9.3%}"
                f"{cost.divergence / cost.tokens:>11.6f}{cost.same_first / cost.tokens:>12.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
