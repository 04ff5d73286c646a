"""Compare the speed of activation patching with TransformerLens, on the same weights and texts, in one run.

    python bench/lens.py --threads 2                         a random model of the shape of the 124M
    python bench/lens.py --model FOLDER --tokens 15

The sweep patches the residual stream before each block at each position of a text, as TransformerLens'
`get_act_patch_resid_pre` does: layers times tokens runs of the model. Each round runs both, one after the other, so
that whatever else slows the machine affects both alike; the ratio is the median of the rounds' ratios. Both must agree
on every value. TransformerLens opens the folder with its bridge, which leaves the weights as they are.

It needs TransformerLens (`pip install transformer-lens`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clearhead
from clearhead import lens
from clearhead.config import GPTConfig
from clearhead.gpt import GPT
from clearhead.model import GPTModel

AGREE = 1e-3
"""The largest difference of two results, relative to the range of the metric."""


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a transformers folder; random weights of the 124M by default")
    parser.add_argument("--tokens", type=int, default=15, help="in each of the two texts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or make_random(Path(folder))
        ours, theirs = clearhead.load(model, backend="torch").model, open_theirs(model)
    compare(ours, theirs, arguments.tokens, arguments.rounds)


def make_random(folder: Path) -> Path:
    """Save a model of the 124M's shape with random weights, and return the folder."""
    torch.manual_seed(1)
    GPT(GPTModel(GPTConfig.named("124M"))).save(folder)
    return folder


def open_theirs(folder: Path) -> Any:
    """Open a folder with TransformerLens."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device="cpu")


def compare(ours: GPTModel, theirs: Any, tokens: int, rounds: int) -> None:
    """Run both sweeps in turn and print their times and the median of their ratios."""
    from transformer_lens.patching import get_act_patch_resid_pre

    config = ours.config
    drawn = np.random.default_rng(1)
    clean = drawn.integers(config.vocab_size, size=tokens).tolist()
    corrupted = list(clean)
    corrupted[2] = int(drawn.integers(config.vocab_size))
    right, wrong = drawn.integers(config.vocab_size, size=2).tolist()

    def our_sweep() -> np.ndarray:
        metric = lens.logit_difference(right, wrong)
        return lens.patch(ours, clean, corrupted, "blocks.*.residual_in", metric).values.values

    def their_sweep() -> np.ndarray:
        with torch.no_grad():
            _, cache = theirs.run_with_cache(torch.tensor([clean]))
            found = get_act_patch_resid_pre(
                theirs, torch.tensor([corrupted]), cache, lambda logits: logits[0, -1, right] - logits[0, -1, wrong]
            )
        return np.asarray(found)

    seconds: dict[str, list[float]] = {"clearhead": [], "transformer_lens": []}
    for number in range(rounds + 1):
        results = []
        for name, sweep in (("clearhead", our_sweep), ("transformer_lens", their_sweep)):
            start = time.perf_counter()
            results.append(sweep())
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
        far = float(np.abs(results[0] - results[1]).max() / np.ptp(results[1]))
        if far > AGREE:
            raise SystemExit(f"the two sweeps differ by {far:.2%} of their range; they should agree.")
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{config.n_layers} layers × {tokens} positions = {config.n_layers * tokens} patches; {rounds} rounds")
    for name, times in seconds.items():
        print(f"{name:<17} {statistics.median(times):6.2f} s")
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
