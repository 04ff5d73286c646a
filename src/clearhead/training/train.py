"""Start, resume and finish a training run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import torch

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import corpus_folder as folder_of_corpus
from clearhead.data.corpus_builder import corpus_of_recipe
from clearhead.errors import TrainingError
from clearhead.training.checkpoint import checkpoints, read_state
from clearhead.training.distributed import Processes, connect_processes
from clearhead.training.environment import environment
from clearhead.training.find_lr import find_rate, save_search
from clearhead.training.finetune import begin_finetuning, resolve_start
from clearhead.training.length import resolve_steps
from clearhead.training.loop import Run
from clearhead.training.memory import memory_errors_explained
from clearhead.training.precision import PrecisionChoice, choose_precision
from clearhead.training.recipe import Recipe
from clearhead.training.run_folder import ENVIRONMENT, RECIPE, run_lock, write_text
from clearhead.training.task import PretrainingTask
from clearhead.training.trackers import check_trackers
from clearhead.weights.tensors import SAVED


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    corpus_folder: Path | None = None,
    resume: bool | Literal["auto"] = False,
    device: str = "auto",
    dtype: str = "float32",
) -> Path:
    """Train a model from a recipe. Under torchrun each process calls this, and they train together.

    Args:
        recipe: the recipe.
        data: the folder of the recipe's texts.
        out: the run's folder.
        corpus_folder: the folder of the token shards; None for `corpus` in the run's folder.
        resume: continue from the newest checkpoint in `out`; "auto" to do so if there is one, and to start otherwise.
        device: `cpu`, `cuda`, `mps`, or `auto`: `cuda` if there is one, else `cpu`.
        dtype: the type of the weights in the model folder: float32, float16 or bfloat16.

    Returns:
        the model's folder.

    Raises:
        TrainingError: if texts, recipe, corpus and checkpoint do not fit together, another run holds the folder, the
            disk is full, memory runs out, the loss is NaN or infinite, the weights cannot be saved as `dtype`, or the
            device, or the compiler that the recipe asks for, does not exist.
    """
    with connect_processes(device) as group, memory_errors_explained(), contextlib.ExitStack() as held:
        resume = group.from_first(bool(checkpoints(out)) if resume == "auto" else resume)
        with group.first_alone() as first:
            if first:
                _check_settings(recipe, dtype, group.device)
                held.enter_context(run_lock(out))
                _check_folder(out, bool(resume))
        precision = _choose_precision(recipe, out, bool(resume), group)
        run = _new_run(recipe, data, out, corpus_folder, group, precision)
        if resume:
            run.resume()
        with group.first_alone() as first:
            if first:
                if not resume:
                    run.record.begin()
                write_text(out / RECIPE, recipe.text)
                values = {**environment(group, run.dtype), "data": str(data.resolve())}
                values["steps"] = run.recipe.training.steps
                values["corpus"] = None if corpus_folder is None else str(corpus_folder.resolve())
                values["start"] = None if recipe.finetune is None else resolve_start(recipe.finetune.start)
                write_text(out / ENVIRONMENT, json.dumps(values, indent=1) + "\n")
        run.go()
        return run.finish(dtype)


def find_lr(
    recipe: Recipe, data: Path, out: Path, *, corpus_folder: Path | None = None, device: str = "auto"
) -> dict[str, float]:
    """Search for a learning rate with a model of its own; write `find_lr.json` and `find_lr.svg` into `out`.

    Args:
        recipe, data, out, corpus_folder, device: as `train`.

    Returns:
        the suggested peak rates, by the recipe's keys.

    Raises:
        TrainingError: as `train`, and if the loss falls at no rate.
    """
    with connect_processes(device) as group, memory_errors_explained():
        run = _new_run(recipe, data, out, corpus_folder, group)
        found = find_rate(run.stepper, run.task)
        rates = {"learning_rate": recipe.training.learning_rate}
        if recipe.training.optimizer != "adamw":
            rates["muon_learning_rate"] = recipe.training.muon_learning_rate
        with group.first_alone() as first:
            if first:
                save_search(found, rates, out)
        return {key: rate * found.share for key, rate in rates.items()}


def _check_settings(recipe: Recipe, dtype: str, device: torch.device) -> None:
    if dtype not in SAVED:
        raise TrainingError(f"the model cannot be saved as {dtype!r}; choose {', '.join(SAVED)} (--dtype).")
    if recipe.training.compile:
        _check_compiler(device)
    check_trackers(recipe.training.log_to)


def _check_folder(out: Path, resume: bool) -> None:
    found = checkpoints(out)
    if found and not resume:
        raise TrainingError(f"{out} contains a run already; continue it with --resume, or name another folder.")
    if resume and not found:
        raise TrainingError(f"there is no checkpoint in {out} to resume from; start the run without --resume.")


def _choose_precision(recipe: Recipe, out: Path, resume: bool, group: Processes) -> PrecisionChoice:
    """Choose the precision in the first process, for all."""
    choice = None
    with group.first_alone() as first:
        if first:
            checkpoint = read_state(checkpoints(out)[-1]).get("precision") if resume else None
            choice = choose_precision(recipe.training.precision, group.device, checkpoint)
    chosen: PrecisionChoice = group.from_first(choice)
    return chosen


def _new_run(
    recipe: Recipe,
    data: Path,
    out: Path,
    corpus_folder: Path | None,
    group: Processes,
    precision: PrecisionChoice | None = None,
) -> Run:
    """Return a run that has not begun: of a new model, or of an existing one."""
    if recipe.finetune is not None:
        start = begin_finetuning(recipe, data)
        ready = resolve_steps(start.recipe, start.task)
        return Run(ready, start.task, out, group, start.model, precision, start.reference)
    corpus = _corpus(recipe, data, corpus_folder or out / "corpus", group)
    task = PretrainingTask(recipe, corpus)
    return Run(resolve_steps(recipe, task), task, out, group, precision=precision)


def _corpus(recipe: Recipe, data: Path, folder: Path, group: Processes) -> Corpus:
    """Return the corpus, which the first process builds while the others wait."""
    corpus = None
    with group.first_alone() as first:
        if first:
            corpus = corpus_of_recipe(recipe.corpus, recipe.model.vocab_size, data, folder)
    return corpus or Corpus(folder_of_corpus(recipe.corpus, data, folder))


def _check_compiler(device: torch.device) -> None:
    """Raise if torch.compile would find no C++ compiler, for which it looks only at the first step."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise TrainingError(
            f"the recipe sets compile, which needs a C++ compiler on a CPU, and there is no {compiler!r} here; "
            "install one, or set compile = false in the recipe (training is slower then)."
        )
