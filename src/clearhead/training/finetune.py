"""Begin a fine-tuning: open the model and its data, add LoRA or a classification head."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from clearhead.errors import TrainingError
from clearhead.loading import load
from clearhead.model import GPTModel
from clearhead.training.example_tasks import TaskData
from clearhead.training.finetune_tasks import Classes, Instructions, MoreText, Preferences
from clearhead.training.lora import add_lora
from clearhead.training.recipe import Recipe
from clearhead.training.recipe_files import file_digest, open_recipe_file
from clearhead.training.task import Task
from clearhead.weights.formats.tensorflow import index_in


@dataclass(frozen=True, slots=True)
class FineTuneStart:
    """Everything that a fine-tuning run starts from.

    Attributes:
        recipe: the recipe with the model's shape.
        model: the model to train.
        task: its data.
        reference: a frozen copy of the model, if the task compares with one.
    """

    recipe: Recipe
    model: GPTModel
    task: Task
    reference: GPTModel | None = None


def begin_finetuning(recipe: Recipe, data: Path) -> FineTuneStart:
    """Open the model that a recipe starts from, and its training data.

    Args:
        recipe: a recipe with a `[finetune]` table.
        data: the folder of its files.

    Raises:
        WeightsError: if the model cannot be opened.
        TrainingError: if it has no tokenizer, the files do not fit it, or LoRA's library is not installed.
    """
    f = recipe.finetune
    assert f is not None
    gpt = load(None if f.start == "bundled" else f.start, backend="torch")
    if gpt.tokenizer is None:
        raise TrainingError(f"the model {f.start} has no tokenizer; put its files (tokenizer.json) in the folder.")
    length = f.context_length or gpt.config.context_length
    if length > gpt.config.context_length:
        raise TrainingError(
            f"context_length is {length:,} and the model {f.start} has {gpt.config.context_length:,} positions; "
            "lower it."
        )
    model = gpt.model.train()
    recipe = replace(recipe, shape=model.config)
    key = _digest(data / f.train, model)
    if f.valid:
        with open_recipe_file(data / f.valid):
            pass  # so that a wrong name is reported as one of the recipe's
    torch.manual_seed(recipe.training.seed)
    task_data = TaskData(f, recipe.training, data, gpt.tokenizer, length, key)
    task: Task
    reference: GPTModel | None = None
    if f.kind == "text":
        task = MoreText(task_data)
    elif f.kind == "instructions":
        task = Instructions(task_data)
    elif f.kind == "preferences":
        task = Preferences(task_data)
        reference = copy.deepcopy(model)
    else:
        task = classes = Classes(task_data)
        model.head = nn.Linear(model.config.emb_dim, len(classes.labels), bias=False)
        nn.init.normal_(model.head.weight, std=0.02)
    if f.freeze == "all but the last block":
        model.requires_grad_(False)
        trained: list[nn.Module] = [model.blocks[-1], model.final_norm, *([model.head] if f.kind == "classes" else [])]
        for module in trained:
            module.requires_grad_(True)
    if f.lora_rank:
        add_lora(model, f)
        model.head.weight.requires_grad_(f.kind == "classes")
    return FineTuneStart(recipe, model, task, reference)


def _digest(train: Path, model: GPTModel) -> str:
    """Return a digest of the training file and the weights; the checkpoint contains the other settings itself."""
    digest = hashlib.sha256(file_digest(train).encode())
    for _, parameter in sorted(model.named_parameters()):
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resolve_start(start: str) -> str:
    """Return a model's name in a form that is valid in any folder: a full path, or another name unchanged."""
    path = Path(start).expanduser()
    return str(path.absolute()) if start != "bundled" and (path.exists() or index_in(path)) else start
