"""The training run: a recipe and texts in, a model folder out, with checkpoints from which it goes on exactly.

What a step is stands in `step.py`, what a run leaves behind in `run_folder.py` and `checkpoint.py`; this file is the
order of things.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import corpus_folder as folder_of_corpus
from clearhead.data.corpus_builder import corpus_of_recipe
from clearhead.errors import TrainingError
from clearhead.model import GPTModel
from clearhead.training.card import model_card
from clearhead.training.checkpoint import (
    check_past,
    checkpoints,
    load_tensors,
    read_state,
    save_checkpoint,
    tensors_of,
    understood,
)
from clearhead.training.clock import Clock
from clearhead.training.display import Standing
from clearhead.training.distributed import Processes, processes
from clearhead.training.environment import environment
from clearhead.training.find_lr import find_rate, save_search
from clearhead.training.finetune import begin, from_anywhere
from clearhead.training.memory import enough_memory
from clearhead.training.objective import Objective
from clearhead.training.optimizer import optimizers
from clearhead.training.precision import autocast, dtype_name, product_dtype
from clearhead.training.recipe import NOT_OF_THE_PAST, Recipe
from clearhead.training.record import Record
from clearhead.training.run_folder import ENVIRONMENT, RECIPE, locked, write_text
from clearhead.training.samples import continuations, encoded_prompts
from clearhead.training.schedule import rate_at
from clearhead.training.step import Step, Stepper
from clearhead.training.stopping import listening
from clearhead.training.task import NextTokens, Scores, Task
from clearhead.training.throughput import memory_used, peak_flops, training_flops
from clearhead.weights.tensors import SAVED

_SETTLED = 5.0  # seconds of training before the machine's peak is measured; shorter runs go without


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
            the disk is full, memory runs out, the loss is no number, the weights cannot be saved as `dtype`, or the
            device, or the compiler that the recipe asks for, is not there.
    """
    with processes(device) as group, enough_memory(), contextlib.ExitStack() as held:
        with group.first_alone() as first:
            if first:
                _check_settings(recipe, dtype, group.device)
                held.enter_context(locked(out))
                _check_folder(out, resume)
        run = _new_run(recipe, data, out, corpus_folder, group)
        if resume:
            run.resume()
        with group.first_alone() as first:
            if first:
                if not resume:
                    run.record.begin()
                write_text(out / RECIPE, recipe.text)
                values = {**environment(group, run.dtype), "data": str(data.resolve())}
                values["corpus"] = None if corpus_folder is None else str(corpus_folder.resolve())
                values["start"] = None if recipe.finetune is None else from_anywhere(recipe.finetune.start)
                write_text(out / ENVIRONMENT, json.dumps(values, indent=1) + "\n")
        run.go()
        return run.finish(dtype)


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
        encoded_prompts(task.tokenizer, t.samples)  # what cannot be continued is heard of now
        if model is None:
            torch.manual_seed(t.seed)
            model = GPTModel(recipe.model)
        self._outline: GPTModel | None = None  # what the parts of a sharded model are put together in
        if t.parallel == "shard" and group.world > 1:
            self.model, self._outline = model, _outline(model)
        else:
            self.model = model.to(group.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.objective = Objective(self.model, chunk=t.head_chunk, compiled=t.compile, recompute=t.recompute)
        spread = group.spread(self.objective, list(self.model.blocks), t.parallel)
        self.dtype = product_dtype(t.precision, group.device)
        draws = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()) or recipe.model.drop_rate > 0
        self.stepper = Stepper(spread, optimizers(self.model, t), t, group, self.dtype, draws)
        self.record = Record(out, group.is_first, t.steps)
        self.step = 0
        self.clock = Clock()
        self.tokens = 0
        self._peak: float | None = None  # FLOP/s of all processes' devices

    def resume(self) -> None:
        """Brings back the newest checkpoint; metrics of steps after it are forgotten, as they come again.

        Raises:
            TrainingError: where there is none, or it belongs to another recipe or corpus.
        """
        newest = checkpoints(self.out)[-1]
        state = read_state(newest)
        with understood(newest):
            check_past(state, self._past(state["step"]), newest, self.recipe.training.steps)
            self.step, self.tokens = state["step"], state["tokens"]
            self.stepper.restore(state)
            self.clock.restore(state["clock"])
        load_tensors(newest, tensors_of(self.model, self.stepper.optimizers), self.group)
        self.record.go_on_from(self.step)

    def go(self) -> None:
        """Runs the steps that are left, with reports, validations and checkpoints on the way.

        Asked to stop, by Ctrl-C or SIGTERM, it finishes its step and writes a checkpoint first. A checkpoint comes
        before the validation of the same step, which may fail; where a run goes on from it, it makes up for a
        validation that is missing.

        Raises:
            KeyboardInterrupt: where it was asked to stop.
            TrainingError: as `Stepper.take` and `save`.
        """
        t = self.recipe.training
        self.record.say(self._introduction())
        self.clock.start(t.steps - self.step)
        with self.record, listening() as stop:
            if self._is_examined() and not self.group.from_first(self.record.holds(self.step, "valid")):
                with self.clock.paused():
                    self._validate()
            while self.step < t.steps:
                step = self.stepper.take(self.step, self.task.draw(self.step), lambda: stop.asked)
                self.step += 1
                self._report(step)
                if self.step % t.checkpoint_every == 0 or self.step == t.steps or step.stop:
                    with self.clock.paused():
                        self.save()
                if step.stop:
                    self.record.say(f"stopped after step {self.step:,}; --resume goes on from there.")
                    raise KeyboardInterrupt
                if self._is_examined():
                    with self.clock.paused():
                        self._validate()

    def _is_examined(self) -> bool:
        """Whether a validation follows the step that was done last; the whole run's follows the last one."""
        return 0 < self.step < self.recipe.training.steps and self.step % self.recipe.training.evaluate_every == 0

    def save(self) -> None:
        """Writes a checkpoint of the state after the last whole step."""
        state = {**self.stepper.state(), **self._past(self.step), "clock": self.clock.state(), "tokens": self.tokens}
        tensors = tensors_of(self.model, self.stepper.optimizers)
        save_checkpoint(self.out, self.step, tensors, state, self.group, self.recipe.training.keep_checkpoints)

    def examine(self, windows: int | None) -> Scores:
        """Score the model on the held-out data.

        Args:
            windows: score only so many windows or examples of each held-out text, in the precision of the training;
                None to score all of them in float32, as `clearhead evaluate` does.
        """
        dtype = torch.float32 if windows is None else self.dtype

        def examiner(*batch: Any, **how: Any) -> torch.Tensor:
            with torch.no_grad(), autocast(self.group.device, dtype):
                return self.objective(*batch, **how)

        return self.task.examine(self.model, examiner, windows, self.group)

    def finish(self, dtype: str) -> Path:
        """Examines the model on all that is held out, draws the curves, writes the model folder; returns it."""
        scores = self.examine(None)
        self.record.add(self.step, final=scores)
        for name, values in scores.items():
            self.record.say(f"{name}: {_words(values)} on the whole held-out text")
        self.record.draw()
        folder = self.out / "model"
        whole = self.whole_model()
        with self.group.first_alone() as first:
            if first:
                self.task.save(whole, folder, dtype)
                write_text(folder / "README.md", self._card(scores))
        self.record.close()
        return folder

    def whole_model(self) -> GPTModel:
        """The model in one piece: itself, or, where it is spread over processes, a copy of it on the first one's CPU.

        All processes come here together; of a spread model the others get one without values.
        """
        if self._outline is None:
            return self.model
        whole = copy.deepcopy(self._outline)
        values = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self.group.is_first:
                values[name] = gathered.detach().cpu()
        if values:
            whole.load_state_dict(values, assign=True)
        return whole

    def _report(self, step: Step) -> None:
        self.tokens += step.tokens
        self.clock.tick(step.loss, step.tokens)
        # Fine-tuning leaves out part of the arithmetic that the share of the peak is counted by.
        known = self._peak is not None or self.recipe.finetune is not None
        if not known and self.clock.running > _SETTLED and self.group.is_first:
            with self.clock.paused():
                self._peak = self.group.world * peak_flops(self.group.device, self.dtype)
        speed = self.clock.tokens_per_second
        share = None if self._peak is None else speed * training_flops(self.recipe.model) / self._peak
        memory = memory_used(self.group.device)
        left = self.clock.left * self.clock.seconds
        loss = step.loss if self.clock.loss is None else self.clock.loss
        self.record.update(Standing(self.step, loss, speed, share, memory, left))
        if step.odd:
            self.record.add(self.step, odd=step.odd, taken=step.taken)
            self.record.say(f"step {self.step:,}: {step.odd}{'' if step.taken else '; left out'}")
        if self.step % self.recipe.training.log_every == 0:
            self.record.add(
                self.step,
                loss=step.loss,
                norm=step.norm,
                rate=step.rate,
                tokens=self.tokens,
                tokens_per_second=round(speed),
                **({} if share is None else {"share_of_peak": round(share, 4)}),
                memory=memory,
                seconds=round(self.clock.running, 1),
            )

    def _validate(self) -> None:
        t = self.recipe.training
        scores = self.examine(t.evaluate_windows)
        whole = self.whole_model() if t.samples else None
        written = []
        if whole is not None and self.group.is_first:
            written = continuations(whole, self.task.tokenizer, t.samples, t.sample_tokens)
        # Only now, when all of it is there: a run that goes on asks whether there is such a line.
        self.record.add(self.step, train_loss=self.clock.loss, valid=scores)
        if scores:
            found = "; ".join(f"{name}: {_words(values)}" for name, values in scores.items())
            trained = "" if self.clock.loss is None else f"; training loss {self.clock.loss:.3f}"
            self.record.say(f"step {self.step:,}: held out {found}{trained}")
        for prompt, text in written:
            self.record.add(self.step, prompt=prompt, sample=text)
            self.record.say(f"  {prompt}|{text}")

    def _past(self, step: int) -> dict[str, Any]:
        """What the first steps of a run depend on: it may go on under any recipe that shares it.

        So a run can be made longer or shorter while its learning rate has not begun to fall.
        """
        t = asdict(self.recipe.training)
        f = {} if self.recipe.finetune is None else asdict(self.recipe.finetune)
        rates = [rate_at(s, self.recipe.training) for s in range(step)]
        return {
            "model": asdict(self.recipe.model),
            "training": {key: value for key, value in t.items() if key not in NOT_OF_THE_PAST},
            "finetune": {key: value for key, value in f.items() if key not in NOT_OF_THE_PAST},
            "data": self.task.key,
            "rates": hashlib.sha256(repr(rates).encode()).hexdigest(),
        }

    def _introduction(self) -> str:
        t = self.recipe.training
        learned = sum(p.numel() for p in self.stepper.parameters)
        some = f" ({learned:,} of them learn)" if learned < self.parameters else ""
        start = f" from step {self.step:,}" if self.step else ""
        together = f", {self.group.world} processes" if self.group.world > 1 else ""
        return (
            f"{self.parameters:,} parameters{some}, {t.steps:,} steps of {t.batch_size} windows{start} "
            f"({self.task.describe(t.steps)}), {dtype_name(self.dtype)} on {self.group.device.type}{together}"
        )

    def _card(self, scores: Scores) -> str:
        # What LoRA learned is added into the matrices that it stands beside.
        saved = sum(p.numel() for name, p in self.model.named_parameters() if "lora_" not in name)
        facts = {**environment(self.group, self.dtype), "parameters": saved, "steps": self.step}
        return model_card(
            self.out.resolve().name, self.recipe, self.task.about(), scores, {**facts, "tokens": self.tokens}
        )


def find_lr(
    recipe: Recipe, data: Path, out: Path, *, corpus_folder: Path | None = None, device: str = "auto"
) -> dict[str, float]:
    """Searches for a learning rate with a model of its own; writes `find_lr.json` and `find_lr.svg` into `out`.

    Args:
        recipe, data, out, corpus_folder, device: as `train`.

    Returns:
        the suggested peak rates, by the recipe's keys.

    Raises:
        TrainingError: as `train`, and where the loss falls at no rate.
    """
    with processes(device) as group, enough_memory():
        run = _new_run(recipe, data, out, corpus_folder, group)
        found = find_rate(run.stepper, run.task)
        rates = {"learning_rate": recipe.training.learning_rate}
        if recipe.training.optimizer == "muon":
            rates["muon_learning_rate"] = recipe.training.muon_learning_rate
        with group.first_alone() as first:
            if first:
                save_search(found, rates, out)
        return {key: rate * found.share for key, rate in rates.items()}


def _check_settings(recipe: Recipe, dtype: str, device: torch.device) -> None:
    if dtype not in SAVED:
        raise TrainingError(f"the model cannot be saved as {dtype!r}; choose {', '.join(SAVED)} (--dtype).")
    if recipe.training.compile:
        _need_compiler(device)


def _check_folder(out: Path, resume: bool) -> None:
    there = checkpoints(out)
    if there and not resume:
        raise TrainingError(f"{out} holds a run already; go on with --resume, or name another folder.")
    if resume and not there:
        raise TrainingError(f"there is no checkpoint in {out} to go on from; start the run without --resume.")


def _outline(model: GPTModel) -> GPTModel:
    """A copy without the values: they are left out on the way, so that they are in memory once."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def _new_run(recipe: Recipe, data: Path, out: Path, corpus_folder: Path | None, group: Processes) -> Run:
    """A run that has not begun: of a new model, or of one that is there."""
    if recipe.finetune is not None:
        start = begin(recipe, data)
        return Run(start.recipe, start.task, out, group, start.model)
    corpus = _corpus(recipe, data, corpus_folder or out / "corpus", group)
    return Run(recipe, NextTokens(recipe, corpus), out, group)


def _corpus(recipe: Recipe, data: Path, folder: Path, group: Processes) -> Corpus:
    """The corpus, which the first process builds while the others wait."""
    corpus = None
    with group.first_alone() as first:
        if first:
            corpus = corpus_of_recipe(recipe.corpus, recipe.model.vocab_size, data, folder)
    return corpus or Corpus(folder_of_corpus(recipe.corpus, data, folder))


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
