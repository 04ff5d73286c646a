"""AdamW, Muon and NorMuon with the same budget: which loss they reach, and how soon.

    python bench/optimizers.py TEXTS OUT.jsonl [--shapes char storyteller] [--steps 300]

TEXTS is a folder with tinyshakespeare.txt and tinystories_train.txt. Each optimizer runs with three learning rates and
two seeds, on the same batches, with a warm-up and a decay over the last half. A line is written for each run when it is
over; a run whose line is there is not repeated, so the command may be stopped and given again. At the end it prints,
for each shape and optimizer, the best rate, its held-out loss, and the steps and CPU seconds after which its smoothed
training loss is where AdamW's ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clearhead.config import GPTConfig
from clearhead.data.batches import WindowBatches
from clearhead.model import GPTModel
from clearhead.training.cpu.choices import head_operations, use_cpu_kernels
from clearhead.training.distributed import Processes
from clearhead.training.objective import Objective
from clearhead.training.optimizer import make_optimizers
from clearhead.training.recipe import OptimizerName, TrainingRecipe
from clearhead.training.step import Stepper

SHAPES = {
    # name: shape, text, windows in a batch
    "char": (GPTConfig(256, 64, 128, 4, 4, qkv_bias=True, tie_weights=True), "tinyshakespeare.txt", 12),
    "storyteller": (GPTConfig(256, 256, 224, 7, 6, qkv_bias=True, tie_weights=True), "tinystories_train.txt", 4),
}
RATES: dict[OptimizerName, tuple[float, ...]] = {
    "adamw": (1e-3, 3e-3, 6e-3),
    "muon": (0.01, 0.02, 0.04),
    "normuon": (0.01, 0.02, 0.04),
}
SEEDS = (1, 2)
HELD_OUT = 64  # windows


def bytes_of(path: Path) -> np.ndarray:
    """The first 4 MB of a text; each byte is a token."""
    with path.open("rb") as file:
        return np.frombuffer(file.read(4_000_000), np.uint8).astype(np.int64)


def run(name: str, optimizer: OptimizerName, rate: float, seed: int, steps: int, texts: Path) -> dict[str, Any]:
    """Train once; return the losses and the seconds of the steps."""
    config, text, windows = SHAPES[name]
    ids = bytes_of(texts / text)
    cut = len(ids) * 9 // 10
    recipe = TrainingRecipe(
        batch_size=windows,
        steps=steps,
        seed=seed,
        optimizer=optimizer,
        learning_rate=rate if optimizer == "adamw" else 3e-3,
        muon_learning_rate=rate,
        warmup_steps=steps // 20,
        decay_steps=steps // 2,
        precision="float32",
    )
    torch.manual_seed(seed)
    model = GPTModel(config)
    use_cpu_kernels(model, config, torch.float32, alone=True)
    objective = Objective(model, head=head_operations(torch.float32, alone=True))
    alone = Processes(0, 1, torch.device("cpu"))
    stepper = Stepper(objective, make_optimizers(model, recipe), recipe, alone, torch.float32, dropout=False)
    batches = WindowBatches({text: ids[:cut]}, {text: 1.0}, config.context_length, windows, seed)
    losses, seconds = [], 0.0
    for step in range(steps):
        start = time.process_time()
        losses.append(stepper.take(step, batches.draw(step)).loss)
        seconds += time.process_time() - start
    length = config.context_length
    held_out = torch.from_numpy(ids[cut : cut + HELD_OUT * length + 1].copy())
    with torch.no_grad():
        inputs, targets = held_out[:-1].view(-1, length), held_out[1:].view(-1, length)
        valid = objective(inputs, targets).item() / targets.numel()
    return {"shape": name, "optimizer": optimizer, "rate": rate, "seed": seed, "steps": steps, "valid": valid,
            "seconds": seconds, "losses": [round(loss, 4) for loss in losses]}  # fmt: skip


def smoothed(losses: list[float]) -> list[float]:
    """The mean of the last twenty losses after each step."""
    return [statistics.fmean(losses[max(0, n - 19) : n + 1]) for n in range(len(losses))]


def report(lines: list[dict[str, Any]]) -> None:
    """Print a row for each shape and optimizer."""
    print("| shape | optimizer | best rate | held-out loss, by seed | CPU s a step | steps to AdamW's loss | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for shape in dict.fromkeys(line["shape"] for line in lines):
        best: dict[str, list[dict[str, Any]]] = {}
        for optimizer, rates in RATES.items():
            runs = [[one for one in lines if (one["shape"], one["optimizer"], one["rate"]) == (shape, optimizer, rate)]
                    for rate in rates]  # fmt: skip
            if runs := [group for group in runs if group]:
                best[optimizer] = min(runs, key=lambda group: statistics.fmean(one["valid"] for one in group))
        if "adamw" not in best:
            continue
        goal = statistics.fmean(smoothed(one["losses"])[-1] for one in best["adamw"])
        for name, group in best.items():
            per_step = statistics.fmean(one["seconds"] / one["steps"] for one in group)
            reached = [next((n + 1 for n, loss in enumerate(smoothed(one["losses"])) if loss <= goal), None)
                       for one in group]  # fmt: skip
            mean = statistics.fmean(n or group[0]["steps"] for n in reached)
            valid = ", ".join(f"{one['valid']:.3f}" for one in group)
            after = f"{mean:.0f}" if all(reached) else f"not all by {group[0]['steps']}"
            print(f"| {shape} | {name} | {group[0]['rate']:g} | {valid} | {per_step:.3f} | {after} "
                  f"| {mean * per_step:.0f} |")  # fmt: skip


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {tuple(line[key] for key in ("shape", "optimizer", "rate", "seed", "steps")) for line in lines}
    for name in arguments.shapes:
        for seed in SEEDS:
            for optimizer, rates in RATES.items():
                for rate in rates:
                    if (name, optimizer, rate, seed, arguments.steps) in done:
                        continue
                    line = run(name, optimizer, rate, seed, arguments.steps, arguments.texts)
                    lines.append(line)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
    report([line for line in lines if line["steps"] == arguments.steps])


if __name__ == "__main__":
    main()
