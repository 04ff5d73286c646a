"""A recipe and texts so small that a whole run takes a second, and what tests compare of two runs."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from clearhead.data.corpus import Corpus
from clearhead.training.distributed import Processes
from clearhead.training.loop import Run
from clearhead.training.recipe import Recipe
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.run_folder import read_metrics
from clearhead.training.step import Step
from clearhead.training.task import PretrainingTask

ALONE = Processes(0, 1, torch.device("cpu"))

RECIPE = """
[model]
vocab_size = 300
context_length = 16
emb_dim = 32
n_heads = 2
n_layers = 2
qkv_bias = true
tie_weights = true

[corpus]

[[corpus.source]]
name = "birds"
train = "birds.txt"
valid = "birds_valid.txt"
weight = 3

[[corpus.source]]
name = "fish"
train = "fish.txt"

[training]
steps = 12
batch_size = 8
precision = "float32"
optimizer = "muon"
learning_rate = 3e-3
warmup_steps = 2
decay_steps = 4
evaluate_every = 5
evaluate_windows = 2
checkpoint_every = 4
"""


def sentences(subject: str, number: int, seed: int) -> str:
    draw = random.Random(seed)
    return "\n<|endoftext|>\n".join(
        "\n\n".join(
            f"The {draw.choice(['red', 'old', 'small', 'quiet'])} {subject} {draw.choice(['sings', 'sleeps', 'runs'])} "
            f"in the {draw.choice(['garden', 'river', 'morning', 'house'])}."
            for _ in range(draw.randint(1, 5))
        )
        for _ in range(number)
    )


def recipe(*changes: tuple[str, str]) -> Recipe:
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_recipe(text)


def write_texts(folder: Path) -> Path:
    """The texts of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "birds.txt").write_text(sentences("bird", 120, 1), encoding="utf-8")
    (folder / "birds_valid.txt").write_text(sentences("bird", 12, 2), encoding="utf-8")
    (folder / "fish.txt").write_text(sentences("fish", 60, 3), encoding="utf-8")
    return folder


def small_run(recipe: Recipe, corpus: Corpus, out: Path) -> Run:
    """A run that has not begun, on one process."""
    return Run(recipe, PretrainingTask(recipe, corpus), out, ALONE)


def one_step(run: Run) -> Step:
    """Its next step, and nothing of what stands around a step."""
    found = run.stepper.take(run.step, run.task.draw(run.step))
    run.step += 1
    return found


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's tensors: weights and optimizer state."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted((out / "checkpoints").glob("step-*"))[-1].glob("training/*.safetensors"):
        found |= load_file(file)
    return found


def assert_equal_runs(one: Path, other: Path) -> None:
    expected = weights_of(other)
    for name, value in weights_of(one).items():
        assert torch.equal(value, expected[name]), name
    losses = [{line["step"]: line["loss"] for line in read_metrics(out) if "loss" in line} for out in (one, other)]
    assert losses[0] == losses[1]
