"""The training run: a recipe and texts in, a model folder out, with checkpoints from which it goes on exactly.

The run folder holds `recipe.toml` (as given), `checkpoint.pt` (the newest), `metrics.jsonl` (a line for each
report and each validation) and, at the end, `model/` (a Hugging Face GPT-2 folder with its tokenizer).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clearhead.errors import TrainingError
from clearhead.evaluation.held_out import HeldOut, held_out
from clearhead.model import GPTModel
from clearhead.progress import Progress, duration
from clearhead.training.batches import Batches
from clearhead.training.checkpoint import load_checkpoint, save_checkpoint
from clearhead.training.corpus import Corpus, build
from clearhead.training.optimizer import optimizers, rate_at
from clearhead.training.recipe import Recipe
from clearhead.weights import save_huggingface
from clearhead.weights.into_torch import ModelTensors

REPORT_EVERY = 10  # steps between lines of metrics


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    corpus_folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    dtype: str = "float32",
) -> Path:
    """Trains a model from a recipe.

    Args:
        recipe: what to do.
        data: the folder that the recipe's texts are in.
        out: the run's folder.
        corpus_folder: where the token shards go, or are found again; `corpus` in the run's folder by default.
        resume: go on from the checkpoint in `out`.
        device: `cpu`, `cuda`, `mps`, or `auto`: `cuda` where there is one, else `cpu`.
        dtype: of the weights in the model folder: float32, float16 or bfloat16.

    Returns:
        the model's folder.

    Raises:
        TrainingError: where texts, recipe, corpus and checkpoint do not fit together, the loss is no number, or
            the device, or the compiler that the recipe asks for, is not there.
    """
    if (out / "checkpoint.pt").exists() and not resume:
        raise TrainingError(f"{out} holds a run already; go on with --resume, or name another folder.")
    if resume and not (out / "checkpoint.pt").exists():
        raise TrainingError(f"there is no checkpoint in {out} to go on from; start the run without --resume.")
    place = _device(device)
    if recipe.training.compile:
        _need_compiler(place)
    corpus = build(recipe.corpus, recipe.model.vocab_size, data, corpus_folder or out / "corpus")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, corpus, out, place)
    if resume:
        run.resume()
    (out / "recipe.toml").write_text(recipe.text, encoding="utf-8")
    run.go()
    results = run.evaluate(None)
    run.record(step=run.step, final={name: r.bits_per_byte for name, r in results.items()})
    for name, result in results.items():
        run.say(f"{name}: {result.bits_per_byte:.4f} bits per byte on the whole held-out text")
    folder = out / "model"
    save_huggingface(folder, recipe.model, ModelTensors(run.model), dtype=dtype, extra_config=_special_ids(corpus))
    corpus.tokenizer.save(folder)
    return folder


class Run:
    """One run: the model, what moves it, and what is known about it so far."""

    def __init__(self, recipe: Recipe, corpus: Corpus, out: Path, device: torch.device) -> None:
        self.recipe, self.corpus, self.out, self.device = recipe, corpus, out, device
        t = recipe.training
        torch.manual_seed(t.seed)
        self.model = GPTModel(recipe.model).to(device)
        self.optimizers = optimizers(self.model, t)
        self._peaks = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.batches = Batches(
            {name: corpus.tokens(shard) for name, shard in corpus.train.items()},
            {source.name: source.weight for source in recipe.corpus.source},
            recipe.model.context_length,
            t.batch_size,
            t.seed,
        )
        self.bfloat16 = t.precision == "bfloat16" or (t.precision == "auto" and has_fast_bfloat16(device))
        self._loss = torch.compile(self.model.loss) if t.compile else self.model.loss
        self.step = 0
        self.progress: Progress | None = None

    def key(self, step: int) -> str:
        """What the first steps of a run depend on: a run may go on under any recipe that shares it.

        So a run can be made longer or shorter while its learning rate has not begun to fall.
        """
        t = self.recipe.training
        # Not in it: settings that say what comes, how often to look and when to save.
        past = replace(
            t, steps=0, decay_steps=0, final_share=0.0, evaluate_every=0, evaluate_windows=0, checkpoint_every=0
        )
        rates = [rate_at(s, t) for s in range(step)]
        words = f"{self.recipe.model}{past}{self.corpus.key}{rates}"
        return hashlib.sha256(words.encode()).hexdigest()

    def resume(self) -> None:
        """Brings back the newest checkpoint; metrics of steps after it are forgotten, as they come again."""
        self.step = load_checkpoint(self.out / "checkpoint.pt", self.model, self.optimizers, self.key)
        if self.step > self.recipe.training.steps:
            raise TrainingError(
                f"the checkpoint has done {self.step:,} steps and the recipe asks for {self.recipe.training.steps:,}; "
                "raise steps."
            )
        metrics = self.out / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if _step_of(line) <= self.step]
            beside = metrics.with_name("metrics.jsonl.part")
            beside.write_text("".join(f"{line}\n" for line in kept))
            beside.replace(metrics)

    def go(self) -> None:
        """Runs the steps that are left, with reports, validations and checkpoints on the way.

        Interrupted from the keyboard, it writes a checkpoint before it stops.
        """
        t = self.recipe.training
        tokens_a_step = t.batch_size * self.recipe.model.context_length
        self.say(self._introduction())
        with Progress("training", t.steps) as self.progress:
            self.progress.advance(self.step)
            clock = _Clock(t.steps - self.step, tokens_a_step)
            try:
                while self.step < t.steps:
                    loss, norm = self._one_step()
                    clock.tick(loss)
                    note = f"step {self.step:,} of {t.steps:,}, loss {clock.loss:.3f}, {clock}"
                    self.progress.advance(1, note)
                    if self.step % REPORT_EVERY == 0:
                        self.record(
                            step=self.step,
                            loss=loss,
                            norm=norm,
                            tokens=self.step * tokens_a_step,
                            tokens_per_second=round(clock.tokens_per_second),
                        )
                    if self.step % t.evaluate_every == 0 and self.step < t.steps:
                        with clock.paused():
                            self._validate(t.evaluate_windows, clock.loss)
                    if self.step % t.checkpoint_every == 0 or self.step == t.steps:
                        self.save()
            except KeyboardInterrupt:
                self.save()
                self.say(f"interrupted at step {self.step:,}; the same command with --resume goes on from there.")
                raise
        self.progress = None

    def save(self) -> None:
        """Writes a checkpoint of the state after the last whole step."""
        save_checkpoint(self.out / "checkpoint.pt", self.model, self.optimizers, self.step, self.key(self.step))

    def evaluate(self, windows: int | None) -> dict[str, HeldOut]:
        """The loss on each held-out text, or on so many windows of it."""
        return {
            name: held_out(
                self.model, self.corpus.tokens(shard), shard.text_bytes, windows=windows, bfloat16=self.bfloat16
            )
            for name, shard in self.corpus.valid.items()
        }

    def record(self, **values: Any) -> None:
        """Appends a line to the metrics."""
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        (self.progress or Progress("", None)).say(line)

    def _one_step(self) -> tuple[float, float]:
        """One optimizer step; returns the batch's loss in nats and the gradient's norm before clipping."""
        t = self.recipe.training
        inputs, targets = (torch.from_numpy(ids).to(self.device) for ids in self.batches.batch(self.step))  # [B, T]
        size = t.micro_batch_size or t.batch_size
        total = 0.0
        for first in range(0, t.batch_size, size):
            piece = slice(first, first + size)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss = self._loss(inputs[piece], targets[piece]) * (size / t.batch_size)
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss is {total} at step {self.step:,}; lower the learning rate or warm up for longer. The "
                f"checkpoint in {self.out} is from before."
            )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.clip_norm).item()
        rate = rate_at(self.step, t)
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return total, norm

    def _validate(self, windows: int, train_loss: float) -> None:
        found = {name: result.bits_per_byte for name, result in self.evaluate(windows).items()}
        self.record(step=self.step, train_loss=train_loss, valid=found)
        words = ", ".join(f"{name} {bits:.4f}" for name, bits in found.items())
        if found:
            self.say(f"step {self.step:,}: bits per byte held out: {words}; training loss {train_loss:.3f}")

    def _introduction(self) -> str:
        t = self.recipe.training
        n = sum(p.numel() for p in self.model.parameters())
        tokens = t.steps * t.batch_size * self.recipe.model.context_length
        epochs = ", ".join(
            f"{name} {seen:.1f}" for name, seen in zip(self.corpus.train, self.batches.epochs(t.steps), strict=True)
        )
        kind = "bfloat16" if self.bfloat16 else "float32"
        start = f" from step {self.step:,}" if self.step else ""
        return (
            f"{n:,} parameters, {tokens:,} tokens in {t.steps:,} steps{start} (epochs: {epochs}), "
            f"{kind} on {self.device.type}"
        )


class _Clock:
    """Tokens a second and the time left, from the steps of this session, and a smoothed loss."""

    def __init__(self, steps: int, tokens_a_step: int) -> None:
        self.left, self.tokens_a_step = steps, tokens_a_step
        self.seconds = 0.0  # a step, smoothed over about the last 50
        self.loss = 0.0
        self._steps = 0
        self._last = time.monotonic()

    def tick(self, loss: float) -> None:
        now = time.monotonic()
        self._steps += 1
        self.left -= 1
        # The first step compiles and warms up: it says nothing about the next ones.
        share = 1.0 if self._steps <= 2 else max(1 / self._steps, 0.02)
        self.seconds += share * (now - self._last - self.seconds)
        self.loss += (1.0 if self._steps == 1 else max(1 / self._steps, 0.02)) * (loss - self.loss)
        self._last = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._last += time.monotonic() - before

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_a_step / self.seconds

    def __str__(self) -> str:
        return f"{self.tokens_per_second:,.0f} tokens/s, {duration(self.left * self.seconds)} left"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32; without instructions they are 100 times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise TrainingError(f"there is no device {name!r} here; use cpu or auto.") from None


def _need_compiler(device: torch.device) -> None:
    """Raises where torch.compile would find no C++ compiler, for which it looks only at the first step."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise TrainingError(
            f"the recipe sets compile, which needs a C++ compiler on a CPU, and there is no {compiler!r} here; "
            "install one, or set compile = false in the recipe (training is slower then)."
        )


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line that was cut short when the run was killed


def _special_ids(corpus: Corpus) -> dict[str, Any]:
    return {"bos_token_id": corpus.tokenizer.end_of_text, "eos_token_id": corpus.tokenizer.end_of_text}
