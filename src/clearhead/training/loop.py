"""The training run: a recipe and texts in, a model folder out, with checkpoints from which it goes on exactly.

What a step is stands in `step.py`, what a run leaves behind in `run_folder.py` and `checkpoint.py`; this file is the
order of things.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from clearhead.errors import TrainingError
from clearhead.model import GPTModel
from clearhead.progress import Progress
from clearhead.training.checkpoint import checkpoints, load_tensors, read_state, save_checkpoint, tensors_of
from clearhead.training.clock import Clock
from clearhead.training.corpus import Corpus, build
from clearhead.training.distributed import Processes, processes
from clearhead.training.environment import environment
from clearhead.training.objective import Objective
from clearhead.training.optimizer import optimizers
from clearhead.training.precision import autocast, product_dtype
from clearhead.training.recipe import NOT_OF_THE_PAST, Recipe
from clearhead.training.run_folder import ENVIRONMENT, RECIPE, Metrics, locked, write_text
from clearhead.training.samples import continuations
from clearhead.training.schedule import rate_at
from clearhead.training.step import Step, Stepper
from clearhead.training.stopping import listening
from clearhead.training.task import NextTokens, Scores, Task
from clearhead.weights import save_huggingface
from clearhead.weights.into_torch import ModelTensors


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
    """Trains a model from a recipe. Under torchrun each process calls this, and they train together.

    Args:
        recipe: what to do.
        data: the folder that the recipe's texts are in.
        out: the run's folder.
        corpus_folder: where the token shards go, or are found again; `corpus` in the run's folder by default.
        resume: go on from the newest checkpoint in `out`.
        device: `cpu`, `cuda`, `mps`, or `auto`: `cuda` where there is one, else `cpu`.
        dtype: of the weights in the model folder: float32, float16 or bfloat16.

    Returns:
        the model's folder.

    Raises:
        TrainingError: where texts, recipe, corpus and checkpoint do not fit together, another run holds the folder,
            the disk is full, the loss is no number, or the device, or the compiler that the recipe asks for, is not
            there.
    """
    with processes(device) as group, contextlib.ExitStack() as held:
        with group.first_alone() as first:
            if first:
                _check_start(recipe, out, resume, group.device)
                held.enter_context(locked(out))
        corpus = _corpus(recipe, data, corpus_folder or out / "corpus", group)
        run = Run(recipe, NextTokens(recipe, corpus), out, group)
        if resume:
            run.resume()
        with group.first_alone() as first:
            if first:
                write_text(out / RECIPE, recipe.text)
                values = {**environment(group, run.dtype), "data": str(data.resolve())}
                values["corpus"] = None if corpus_folder is None else str(corpus_folder.resolve())
                write_text(out / ENVIRONMENT, json.dumps(values, indent=1) + "\n")
        run.go()
        run.finish()
        return run.save_model(dtype)


class Run:
    """One run: the model, what moves it, and what is known about it so far.

    Args:
        recipe: its `[model]` and `[training]`.
        task: where the batches come from.
        out: the run's folder.
        group: the processes that share the work.
        model: what is trained; one with random weights where it is not given.
    """

    def __init__(self, recipe: Recipe, task: Task, out: Path, group: Processes, model: GPTModel | None = None) -> None:
        self.recipe, self.task, self.out, self.group = recipe, task, out, group
        t = recipe.training
        if model is None:
            torch.manual_seed(t.seed)
            model = GPTModel(recipe.model)
        self.model = model if t.parallel == "shard" and group.world > 1 else model.to(group.device)
        self.objective = Objective(self.model, chunk=t.head_chunk, compiled=t.compile, recompute=t.recompute)
        spread = group.spread(self.objective, list(self.model.blocks), t.parallel)
        self.dtype = product_dtype(t.precision, group.device)
        self.stepper = Stepper(
            spread, optimizers(self.model, t), t, group, self.dtype, draws=recipe.model.drop_rate > 0
        )
        self.metrics = Metrics(out)
        self.step = 0
        self.clock = Clock(t.batch_size * recipe.model.context_length)
        self.progress: Progress | None = None

    def resume(self) -> None:
        """Brings back the newest checkpoint; metrics of steps after it are forgotten, as they come again.

        Raises:
            TrainingError: where there is none, or it belongs to another recipe or corpus.
        """
        there = checkpoints(self.out)
        if not there:
            raise TrainingError(f"there is no checkpoint in {self.out} to go on from; start the run without --resume.")
        state = read_state(there[-1])
        self._check_past(state, there[-1])
        load_tensors(there[-1], tensors_of(self.model, self.stepper.optimizers), self.group)
        self.step = state["step"]
        self.stepper.restore(state)
        self.clock.loss = state["smooth_loss"]
        if self.group.is_first:
            self.metrics.forget_after(self.step)

    def go(self) -> None:
        """Runs the steps that are left, with reports, validations and checkpoints on the way.

        Asked to stop, by Ctrl-C or SIGTERM, it finishes its step and writes a checkpoint first.

        Raises:
            KeyboardInterrupt: where it was asked to stop.
            TrainingError: as `Stepper.take` and `save`.
        """
        t = self.recipe.training
        self.say(self._introduction())
        self.clock.start(t.steps - self.step)
        with Progress("training", t.steps) as self.progress, listening() as stop:
            self.progress.advance(self.step)
            while self.step < t.steps:
                step = self.stepper.take(self.step, self.task.batch(self.step), stop.asked)
                self.step += 1
                self._report(step)
                if self.step % t.evaluate_every == 0 and self.step < t.steps:
                    with self.clock.paused():
                        self._validate()
                if self.step % t.checkpoint_every == 0 or self.step == t.steps or step.stop:
                    with self.clock.paused():
                        self.save()
                if step.stop:
                    self.say(f"stopped at step {self.step:,}; the same command with --resume goes on from there.")
                    raise KeyboardInterrupt
        self.progress = None

    def save(self) -> None:
        """Writes a checkpoint of the state after the last whole step."""
        state = {**self.stepper.state(), "smooth_loss": self.clock.loss, **self._past(self.step)}
        tensors = tensors_of(self.model, self.stepper.optimizers)
        save_checkpoint(self.out, self.step, tensors, state, self.group, self.recipe.training.keep_checkpoints)

    def examine(self, windows: int | None) -> Scores:
        """The scores on what is held out, or on so many windows of it."""

        def nats(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            with autocast(self.group.device, self.dtype):
                return self.objective(inputs, targets)

        return self.task.examine(self.model, nats, windows, self.group)

    def finish(self) -> None:
        """The last examination, on all that is held out."""
        scores = self.examine(None)
        self.record(final=scores)
        for name, values in scores.items():
            self.say(f"{name}: {_words(values)} on the whole held-out text")

    def whole_model(self) -> GPTModel:
        """The model in one piece: itself, or, where it is spread over processes, a copy of it on the first one's CPU.

        All processes come here together; of a spread model the others get one without values.
        """
        if not any(isinstance(p, DTensor) for p in self.model.parameters()):
            return self.model
        with torch.device("meta"):
            whole = GPTModel(self.recipe.model)
        values = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self.group.is_first:
                values[name] = gathered.detach().cpu()
        if values:
            whole.load_state_dict(values, assign=True)
        return whole

    def save_model(self, dtype: str) -> Path:
        """Writes the model folder; returns it."""
        whole = self.whole_model()
        folder = self.out / "model"
        end = self.task.tokenizer.end_of_text
        special = {"bos_token_id": end, "eos_token_id": end}
        with self.group.first_alone() as first:
            if first:
                save_huggingface(folder, self.recipe.model, ModelTensors(whole), dtype=dtype, extra_config=special)
                self.task.tokenizer.save(folder)
        return folder

    def record(self, **values: Any) -> None:
        """Adds a line to the metrics."""
        if self.group.is_first:
            self.metrics.add(step=self.step, **values)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self.group.is_first:
            (self.progress or Progress("", None)).say(line)

    def _report(self, step: Step) -> None:
        self.clock.tick(step.loss)
        assert self.progress is not None
        if self.group.is_first:
            note = f"step {self.step:,} of {self.recipe.training.steps:,}, loss {self.clock.loss:.3f}, {self.clock}"
            self.progress.advance(1, note)
        if step.odd:
            self.record(odd=step.odd, taken=step.taken)
            self.say(f"step {self.step:,}: {step.odd}{'' if step.taken else '; left out'}")
        if self.step % self.recipe.training.log_every == 0:
            self.record(
                loss=step.loss,
                norm=step.norm,
                rate=step.rate,
                tokens=self.step * step.tokens,
                tokens_per_second=round(self.clock.tokens_per_second),
            )

    def _validate(self) -> None:
        t = self.recipe.training
        scores = self.examine(t.evaluate_windows)
        self.record(train_loss=self.clock.loss, valid=scores)
        if scores:
            words = "; ".join(f"{name}: {_words(values)}" for name, values in scores.items())
            self.say(f"step {self.step:,}: held out {words}; training loss {self.clock.loss:.3f}")
        whole = self.whole_model() if t.samples else None
        if whole is not None and self.group.is_first:
            for prompt, text in continuations(whole, self.task.tokenizer, t.samples, t.sample_tokens):
                self.record(prompt=prompt, sample=text)
                self.say(f"    {prompt}|{text}")

    def _past(self, step: int) -> dict[str, Any]:
        """What the first steps of a run depend on: it may go on under any recipe that shares it.

        So a run can be made longer or shorter while its learning rate has not begun to fall.
        """
        t = asdict(self.recipe.training)
        settings = {key: value for key, value in t.items() if key not in NOT_OF_THE_PAST}
        rates = [rate_at(s, self.recipe.training) for s in range(step)]
        return {
            "model": asdict(self.recipe.model),
            "training": settings,
            "data": self.task.key,
            "rates": _digest(rates),
        }

    def _check_past(self, state: dict[str, Any], checkpoint: Path) -> None:
        past = json.loads(json.dumps(self._past(state["step"])))
        different = [
            f"{key} was {was.get(key)} and is {value}"
            for table, was in ((past["model"], state.get("model", {})), (past["training"], state.get("training", {})))
            for key, value in table.items()
            if was.get(key) != value
        ]
        if state.get("data") != past["data"]:
            different.append("its texts or their shares were others")
        if not different and state.get("rates") != past["rates"]:
            different.append("its learning rate went another way up to there")
        if different:
            raise TrainingError(
                f"the checkpoint {checkpoint} belongs to another recipe or corpus: {'; '.join(different)}. Give "
                "the one that it was made with, or another folder for the new run."
            )
        if state["step"] > self.recipe.training.steps:
            raise TrainingError(
                f"the checkpoint has done {state['step']:,} steps and the recipe asks for "
                f"{self.recipe.training.steps:,}; raise steps."
            )

    def _introduction(self) -> str:
        t = self.recipe.training
        n = sum(p.numel() for p in self.model.parameters())
        tokens = t.steps * t.batch_size * self.recipe.model.context_length
        start = f" from step {self.step:,}" if self.step else ""
        together = f", {self.group.world} processes" if self.group.world > 1 else ""
        return (
            f"{n:,} parameters, {tokens:,} tokens in {t.steps:,} steps{start} ({self.task.describe(t.steps)}), "
            f"{str(self.dtype).removeprefix('torch.')} on {self.group.device.type}{together}"
        )


def _check_start(recipe: Recipe, out: Path, resume: bool, device: torch.device) -> None:
    there = checkpoints(out)
    if there and not resume:
        raise TrainingError(f"{out} holds a run already; go on with --resume, or name another folder.")
    if resume and not there:
        raise TrainingError(f"there is no checkpoint in {out} to go on from; start the run without --resume.")
    if recipe.training.compile:
        _need_compiler(device)


def _corpus(recipe: Recipe, data: Path, folder: Path, group: Processes) -> Corpus:
    """The corpus, which the first process builds while the others wait."""
    corpus = None
    with group.first_alone() as first:
        if first:
            corpus = build(recipe.corpus, recipe.model.vocab_size, data, folder)
    return corpus or Corpus(folder)


def _need_compiler(device: torch.device) -> None:
    """Raises where torch.compile would find no C++ compiler, for which it looks only at the first step."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise TrainingError(
            f"the recipe sets compile, which needs a C++ compiler on a CPU, and there is no {compiler!r} here; "
            "install one, or set compile = false in the recipe (training is slower then)."
        )


def _words(scores: dict[str, float]) -> str:
    names = {"bits_per_byte": "bits per byte", "accuracy": "accuracy", "loss": "loss"}
    return ", ".join(f"{words} {scores[key]:.4f}" for key, words in names.items() if key in scores)


def _digest(rates: list[float]) -> str:
    return hashlib.sha256(repr(rates).encode()).hexdigest()
