"""Kills a training run with SIGKILL at random moments, resumes it, and compares its end with an undisturbed run's.

    python bench/kill_resume.py [--kills 20] [--seed 1] [--async]

A tiny model is trained in a process of its own, which saves a checkpoint at every second step, so that many of the
moments fall into saving. Exits with 1 where one bit of the weights, of the optimizer's state or of one recorded loss
differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["clearhead.training.loop", "torch.utils.tensorboard"])

RECIPE = """
[model]
vocab_size = 300
context_length = 32
emb_dim = 96
n_heads = 4
n_layers = 4
drop_rate = 0.1
qkv_bias = true
tie_weights = true

[corpus]

[[corpus.source]]
name = "words"
train = "words.txt"
valid = "valid.txt"

[training]
steps = {steps}
batch_size = 8
optimizer = "muon"
warmup_steps = 5
decay_steps = 10
log_every = 1
evaluate_every = 7
evaluate_windows = 2
samples = ["The"]
sample_tokens = 4
checkpoint_every = 2
async_checkpoints = {background}
"""


def main() -> None:
    """Trains once undisturbed and once killed, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--async", action="store_true", dest="background")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        write_inputs(where, arguments.steps, arguments.background)
        started = time.monotonic()
        to_the_end(where, "whole", resume=False)
        print(f"undisturbed: {arguments.steps} steps in {time.monotonic() - started:.1f} s", flush=True)
        kills = disturb(where, arguments.kills, random.Random(arguments.seed))
        differences = compare(where / "whole", where / "killed")
        print(f"killed {kills} times; {'; '.join(differences) or 'every bit and every recorded loss is equal'}")
        sys.exit(bool(differences) or kills < arguments.kills)


def write_inputs(where: Path, steps: int, background: bool) -> None:
    """The recipe, the texts, and the corpus that both runs read."""
    draw = random.Random(7)
    words = ["red", "old", "small", "bird", "fish", "sings", "sleeps", "river", "garden", "morning", "the", "a"]
    for name, lines in (("words.txt", 4000), ("valid.txt", 60)):
        text = "\n".join(" ".join(draw.choices(words, k=9)) + "." for _ in range(lines))
        (where / name).write_text(text, encoding="utf-8")
    (where / "recipe.toml").write_text(RECIPE.format(steps=steps, background=str(background).lower()), encoding="utf-8")


def start(where: Path, run: str, resume: bool) -> multiprocessing.process.BaseProcess:
    """A process that trains. It is forked from one that has loaded torch and done nothing yet."""
    process = CONTEXT.Process(target=work, args=(where, run, resume))
    process.start()
    return process


def work(where: Path, run: str, resume: bool) -> None:
    """What `clearhead train` does, quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    from clearhead.training.recipe_reader import read_recipe
    from clearhead.training.train import train

    recipe = read_recipe(where / "recipe.toml")
    train(recipe, where, where / run, corpus_folder=where / "corpus", resume=resume)


def to_the_end(where: Path, run: str, resume: bool) -> None:
    """Trains until it is through."""
    process = start(where, run, resume)
    process.join()
    if process.exitcode:
        sys.exit(f"the run {run} ended with {process.exitcode}")


def disturb(where: Path, kills: int, draw: random.Random) -> int:
    """Starts, kills and resumes until it was killed so often; returns how often it was killed before its end."""
    run = where / "killed"
    for killed in range(kills):
        seen = newest(run)
        process = start(where, "killed", resume=bool(seen))
        # Wait until it trains, so that the kill falls into steps and saves and not into the start.
        while process.is_alive() and newest(run) == seen:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return killed
        unfinished = [path.name for path in (run / "checkpoints").glob(".*.part")]
        print(f"kill {killed + 1}: after {newest(run)}{', while saving' if unfinished else ''}", flush=True)
    to_the_end(where, "killed", resume=bool(newest(run)))
    return kills


def newest(run: Path) -> str:
    """The name of the newest whole checkpoint."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return names[-1] if names else ""


def compare(one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs."""
    differences = []
    states = [
        {
            name: tensor
            for file in (run / "checkpoints" / newest(run)).rglob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        for run in (one, other)
    ]
    if states[0].keys() != states[1].keys():
        differences.append("the checkpoints hold other tensors")
    differences += [f"{name} differs" for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])]
    lines = [comparable(run) for run in (one, other)]
    if lines[0] != lines[1]:
        differences.append("the metrics differ")
    if (one / "model/model.safetensors").read_bytes() != (other / "model/model.safetensors").read_bytes():
        differences.append("the model folders differ")
    return differences


def comparable(run: Path) -> list[dict[str, object]]:
    """The lines of metrics without what depends on the clock."""
    of_the_clock = ("tokens_per_second", "seconds", "memory", "share_of_peak")
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in of_the_clock} for line in lines]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
