"""The training loop: steps, with reports, validations and checkpoints on the way.

A step is in `step.py`, a checkpoint in `checkpoint.py`, the record of a run in `record.py`; `train.py` starts a run.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.cells import cell_len
from torch import nn
from torch.distributed.tensor import DTensor

from clearhead.model import GPTModel
from clearhead.training.async_checkpoints import AsyncCheckpoints
from clearhead.training.card import model_card, score_label
from clearhead.training.checkpoint import (
    CheckpointState,
    RunFingerprint,
    check_fingerprint,
    checkpoints,
    load_tensors,
    read_state,
    save_checkpoint,
    tensors_by_name,
)
from clearhead.training.clock import Clock
from clearhead.training.cpu.choices import gradients_stay_low, head_operations, use_cpu_kernels
from clearhead.training.display import Status
from clearhead.training.distributed import Processes
from clearhead.training.environment import cpu_features, environment
from clearhead.training.length import find_milestones
from clearhead.training.objective import Objective
from clearhead.training.optimizer import make_optimizers
from clearhead.training.precision import PrecisionChoice, autocast, choose_precision, dtype_name, float32_products
from clearhead.training.preference import PreferenceObjective, count_pairs
from clearhead.training.recipe import RESUMABLE_KEYS, Recipe
from clearhead.training.record import RunRecord
from clearhead.training.run_folder import TEST_OUTPUTS, write_text
from clearhead.training.samples import encode_prompts, sample_continuations
from clearhead.training.schedule import rate_at
from clearhead.training.step import Step, Stepper
from clearhead.training.stopping import handle_stop_signals
from clearhead.training.task import Scores, Task
from clearhead.training.throughput import memory_used, peak_flops, training_flops
from clearhead.training.trackers import make_trackers
from clearhead.utils.json_files import json_text
from clearhead.utils.localization import localized
from clearhead.utils.progress import duration

_STEADY = 5  # steps of this session after which the time of the others is foretold, if it is a minute or more
_SETTLED = 5.0  # seconds of training before the machine's peak is measured; shorter runs go without


class Run:
    """One run: the model, its optimizers, and its state so far.

    Args:
        recipe: its `[model]` and `[training]`.
        task: draws the batches.
        out: the run's folder.
        group: the processes that share the work.
        model: the model to train; None for one with random weights.
        precision: the precision of the matrix products; None to choose it.
        reference: with `kind = "preferences"`, the model to which the gains are relative.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        out: Path,
        group: Processes,
        model: GPTModel | None = None,
        precision: PrecisionChoice | None = None,
        reference: GPTModel | None = None,
    ) -> None:
        self.recipe, self.task, self.out, self.group = recipe, task, out, group
        t = recipe.training
        encode_prompts(task.tokenizer, t.samples)  # fail early on prompts that cannot be encoded
        if model is None:
            torch.manual_seed(t.seed)
            model = GPTModel(recipe.model)
        self._sharded = t.parallel != "replicate" and group.world > 1
        # A sharded model is gathered into a copy of it, and so is one that is written while training goes on.
        self._skeleton = _without_values(model) if self._sharded or t.async_checkpoints else None
        self.model = model if self._sharded else model.to(group.device)
        self.background = AsyncCheckpoints(group) if t.async_checkpoints else None
        self.precision = precision or choose_precision(t.precision, group.device)
        self.dtype = self.precision.dtype
        self.kernels: dict[str, str] = {}
        head = None
        if group.device.type == "cuda":
            self.kernels = {"float32": float32_products()}
        if group.device.type == "cpu":
            alone, low = group.world == 1, gradients_stay_low(t, group.world)
            head = head_operations(self.dtype, alone=alone)
            if not t.compile:
                chosen = use_cpu_kernels(
                    self.model, recipe.model, self.dtype, alone=alone, low_gradients=low, recompute=t.recompute
                )
                self.kernels = {"processor": cpu_features(), **chosen}
        self.parameters = sum(p.numel() for p in self.model.parameters())
        how: dict[str, Any] = {"chunk": t.head_chunk, "compiled": t.compile, "recompute": t.recompute, "head": head}
        self.objective = Objective(self.model, **how)
        if reference is not None:
            assert recipe.finetune is not None
            self.objective = PreferenceObjective(self.model, reference.to(group.device), recipe.finetune.beta, **how)
        count = None if reference is None else count_pairs
        spread = group.spread(self.objective, list(self.model.blocks), t.parallel, t.shard_processes)
        dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()) or recipe.model.drop_rate > 0
        self.stepper = Stepper(spread, make_optimizers(self.model, t), t, group, self.dtype, dropout, count)
        trackers = make_trackers(recipe, out) if group.is_first else []
        self.record = RunRecord(out, group.is_first, t.steps, trackers)
        self.step = 0
        self.milestones = {milestone.step: milestone.name for milestone in find_milestones(t.milestones, task)}
        self.clock = Clock()
        self.tokens = 0
        self._peak: float | None = None  # FLOP/s of all processes' devices
        self._foretold = False

    def resume(self) -> None:
        """Restore the newest checkpoint; metrics of later steps are removed, as they are computed again.

        Raises:
            TrainingError: if it is broken, or belongs to another recipe or corpus.
        """
        newest = checkpoints(self.out)[-1]
        state = read_state(newest)
        steps = self.recipe.training.steps
        check_fingerprint(state, self._fingerprint(min(state["step"], steps)), newest, steps)
        self.step, self.tokens = state["step"], state["tokens"]
        self.stepper.restore(state)
        self.clock.restore(state["clock"])
        before = state.get("precision", dtype_name(self.dtype))
        if before != dtype_name(self.dtype):
            self.record.say(f"the products were in {before} and are in {dtype_name(self.dtype)} from here on.")
        load_tensors(newest, state, tensors_by_name(self.model, self.stepper.optimizers), self.group)
        self.record.resume_from(self.step)

    def go(self) -> None:
        """Run the steps that are left, with reports, validations and checkpoints on the way.

        Asked to stop, by Ctrl-C or SIGTERM, it completes its step and writes a checkpoint first. A checkpoint precedes
        the validation of the same step, which may fail; a run that resumes there makes up for a missing validation.

        Raises:
            KeyboardInterrupt: if it was asked to stop.
            TrainingError: as `Stepper.take` and `save`.
        """
        t = self.recipe.training
        self.record.say(self._introduction())
        for operation, choice in self.kernels.items():
            name, _, text = localized(f"{operation}: {choice}").replace("：", ": ", 1).partition(": ")
            self.record.say(f"  {name}{' ' * (14 - cell_len(name))} {text}", verbatim=True)
        for due, name in self.milestones.items():
            if due > t.steps:
                self.record.say(
                    f"the milestone {name} is not reached: that takes {due:,} steps, and the run has {t.steps:,}."
                )
        self.clock.start(t.steps - self.step)
        with self.record, handle_stop_signals() as stop, self.background or contextlib.nullcontext():
            if self._is_validated() and not self.group.from_first(self.record.contains(self.step, "valid")):
                with self.clock.paused():
                    self._validate()
            while self.step < t.steps:
                step = self.stepper.take(self.step, self.task.draw(self.step), lambda: stop.received)
                self.step += 1
                self._report(step)
                ends = self.step == t.steps or step.stop or self.step in self.milestones
                if ends or self.step % t.checkpoint_every == 0:
                    with self.clock.paused():
                        self.save()
                        if self.background is not None and (step.stop or self.step == t.steps):
                            self.background.wait()
                if step.stop:
                    self.record.say(f"stopped after step {self.step:,}; --resume continues from there.")
                    raise KeyboardInterrupt
                if self._is_validated():
                    with self.clock.paused():
                        self._validate()

    def _is_validated(self) -> bool:
        """Return whether a validation follows the last completed step; after the very last one all is evaluated."""
        return 0 < self.step < self.recipe.training.steps and self.step % self.recipe.training.evaluate_every == 0

    def save(self) -> None:
        """Write a checkpoint of the state after the last completed step."""
        state: CheckpointState = {
            **self.stepper.state(),
            **self._fingerprint(self.step),
            "clock": self.clock.state(),
            "tokens": self.tokens,
            "step": self.step,
            "milestone": self.milestones.get(self.step),
        }
        tensors = tensors_by_name(self.model, self.stepper.optimizers)
        whole = self.whole_model(copied=self.background is not None)

        def save_model(folder: Path) -> None:
            self.task.save(whole, folder, "float32")

        keep = self.recipe.training.keep_checkpoints
        if self.background is not None:
            self.background.save(self.out, state, tensors, save_model, keep)
        else:
            save_checkpoint(self.out, state, tensors, save_model, self.group, keep)

    def evaluate(self, windows: int | None) -> Scores:
        """Score the model on the held-out data.

        Args:
            windows: score only this many windows or examples of each held-out text, in the precision of the training;
                None to score all of them in float32, as `clearhead evaluate` does.
        """
        dtype = torch.float32 if windows is None else self.dtype

        def evaluator(*batch: Any, **how: Any) -> torch.Tensor:
            with torch.no_grad(), autocast(self.group.device, dtype):
                found: torch.Tensor = self.objective(*batch, **how)
                return found

        return self.task.evaluate(self.model, evaluator, windows, self.group)

    def finish(self, dtype: str) -> Path:
        """Evaluate the model on all held-out data, draw the curves and write the model folder; return its path."""
        scores = self.evaluate(None)
        self.record.add(self.step, final=scores)
        for name, values in scores.items():
            line = localized("{0}: {1} on all held-out data").format(name, _scores_line(values))
            self.record.say(line, verbatim=True)
        self.record.draw()
        folder = self.out / "model"
        whole = self.whole_model()
        with self.group.first_alone() as first:
            if first:
                self.task.save(whole, folder, dtype)
                if outputs := self.task.test_outputs(whole):
                    lines = (json_text(output) + "\n" for output in outputs)
                    write_text(self.out / TEST_OUTPUTS, "".join(lines))
                    self.record.say(f"{len(outputs):,} test examples with the model's outputs are in {TEST_OUTPUTS}")
                write_text(folder / "README.md", self._card(scores))
        self.record.close()
        return folder

    def whole_model(self, copied: bool = False) -> GPTModel:
        """Return the model in one piece: itself or, sharded or `copied`, a copy on the CPU of the first process.

        All processes call this together; of a copy the others get one without values.
        """
        if self._skeleton is None or not (self._sharded or copied):
            return self.model
        whole = copy.deepcopy(self._skeleton)
        values = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self.group.is_first:
                values[name] = gathered.detach().to("cpu", copy=not self._sharded)
        if values:
            whole.load_state_dict(values, assign=True)
        return whole

    def _foretell_time(self) -> None:
        """Say once how long the other steps will take, as soon as the first ones have shown it."""
        if self._foretold or self.clock.steps < _STEADY:
            return
        self._foretold = True
        seconds = self.clock.left * self.clock.seconds
        if seconds >= 60:
            self.record.say(
                f"the other {self.clock.left:,} steps will take about {duration(seconds)} on this machine, and the "
                "validations a little more."
            )

    def _report(self, step: Step) -> None:
        self.tokens += step.tokens
        self.clock.tick(step.loss, step.tokens)
        self._foretell_time()
        # Fine-tuning leaves out part of the arithmetic on which the share of the peak is based.
        known = self._peak is not None or self.recipe.finetune is not None
        if not known and self.clock.running > _SETTLED and self.group.is_first:
            with self.clock.paused():
                self._peak = self.group.world * peak_flops(self.group.device, self.dtype)
        speed = self.clock.tokens_per_second
        share = None if self._peak is None else speed * training_flops(self.recipe.model) / self._peak
        memory = memory_used(self.group.device)
        left = self.clock.left * self.clock.seconds
        loss = step.loss if self.clock.loss is None else self.clock.loss
        if self.clock.steps > 1 or not self.clock.left:  # the first compiles: its speed says nothing about the others
            self.record.update(Status(self.step, loss, speed, share, memory, left))
        if step.anomaly:
            self.record.add(self.step, odd=step.anomaly, taken=step.taken)
            self.record.say(f"step {self.step:,}: {step.anomaly}{'' if step.taken else '; skipped'}")
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
        scores = self.evaluate(t.evaluate_windows)
        whole = self.whole_model() if t.samples else None
        written = []
        if whole is not None and self.group.is_first:
            written = sample_continuations(whole, self.task.tokenizer, t.samples, t.sample_tokens, t.sampling)
        # Only now, when all of it is computed: a run that resumes asks whether there is such a line.
        self.record.add(self.step, train_loss=self.clock.loss, valid=scores)
        if scores:
            each = [localized("{0}: {1}").format(name, _scores_line(values)) for name, values in scores.items()]
            trained = [] if self.clock.loss is None else [localized(f"training loss {self.clock.loss:.3f}")]
            found = localized("; ").join((*each, *trained))
            self.record.say(localized("step {0}: held out {1}").format(f"{self.step:,}", found), verbatim=True)
        for prompt, text in written:
            self.record.add(self.step, prompt=prompt, sample=text)
            self.record.say(f"  {prompt}|{text}", verbatim=True)

    def _fingerprint(self, step: int) -> RunFingerprint:
        """Return what the first steps of a run depend on: a run may resume under any recipe with the same fingerprint.

        So a run can be made longer or shorter as long as its learning rate has not begun to fall.
        """
        t = asdict(self.recipe.training)
        f = {} if self.recipe.finetune is None else asdict(self.recipe.finetune)
        rates = [rate_at(s, self.recipe.training) for s in range(step)]
        return {
            "model": asdict(self.recipe.model),
            "training": {key: value for key, value in t.items() if key not in RESUMABLE_KEYS},
            "finetune": {key: value for key, value in f.items() if key not in RESUMABLE_KEYS},
            "data": self.task.key,
            "rates": hashlib.sha256(repr(rates).encode()).hexdigest(),
            "precision": dtype_name(self.dtype),
        }

    def _introduction(self) -> str:
        t = self.recipe.training
        learned = sum(p.numel() for p in self.stepper.parameters)
        some = f" ({learned:,} of them trained)" if learned < self.parameters else ""
        seen = self.task.describe(t.steps)
        if self.step:
            seen = f"from step {self.step:,}; {seen}"
        together = f", {self.group.world} processes" if self.group.world > 1 else ""
        reason = f" ({self.precision.reason})" if self.precision.reason else ""
        return (
            f"{self.parameters:,} parameters{some}, {t.steps:,} steps of {self.task.describe_batch()} ({seen}), "
            f"{dtype_name(self.dtype)}{reason} on {self.group.device.type}{together}"
        )

    def _card(self, scores: Scores) -> str:
        # The LoRA matrices are merged into the model's own.
        saved = sum(p.numel() for name, p in self.model.named_parameters() if "lora_" not in name)
        facts = {**environment(self.group, self.dtype), "parameters": saved, "steps": self.step}
        return model_card(
            self.out.resolve().name,
            self.recipe,
            self.task.about(),
            scores,
            {**facts, "tokens": self.tokens, "batch": self.task.describe_batch()},
        )


def _without_values(model: GPTModel) -> GPTModel:
    """Return a copy of a model without its values, on torch's meta device: they are in memory once."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def _scores_line(scores: dict[str, float]) -> str:
    shown = ("bits_per_byte", "accuracy", "loss")
    return localized(", ").join(f"{score_label(key)} {scores[key]:.4f}" for key in shown if key in scores)
