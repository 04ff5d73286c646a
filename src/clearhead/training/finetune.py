"""A model that is there learns more: texts, responses to prompts, or classes; with all weights, or with LoRA."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clearhead.data.batches import Batch, WindowBatches
from clearhead.data.encoding import COMPILE_FROM, ChunkEncoder
from clearhead.data.examples import Example, ExampleBatches, pad_together
from clearhead.data.instructions import read_instructions
from clearhead.data.labelled import read_labelled
from clearhead.data.records import file_digest, open_records
from clearhead.data.sources.base import Cursor
from clearhead.data.sources.text_file import TextFile
from clearhead.errors import TrainingError
from clearhead.evaluation.perplexity import CrossEntropy, evaluate_perplexity, evenly_spaced
from clearhead.loading import load
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.classifier import save_classifier
from clearhead.training.distributed import Processes
from clearhead.training.objective import counted_places
from clearhead.training.recipe import FineTuneRecipe, Recipe
from clearhead.training.task import Examiner, Scores, Task, numbers_of, save_model
from clearhead.weights.formats.tensorflow import index_in

_LEARNED = ["qkv", "out", "up", "down"]  # the matrices of a block, beside which LoRA learns its own
_AT_ONCE = 16  # examples that are examined together


@dataclass(frozen=True, slots=True)
class Start:
    """What a fine-tuning begins with: the recipe with the model's shape, the model, and its task."""

    recipe: Recipe
    model: GPTModel
    task: Task


def begin(recipe: Recipe, data: Path) -> Start:
    """Opens the model that a recipe starts from, and what it learns from.

    Args:
        recipe: with a `[finetune]` table.
        data: the folder of its files.

    Raises:
        WeightsError: where the model cannot be opened.
        TrainingError: where it has no tokenizer, the files do not fit it, or LoRA's library is not installed.
    """
    f = recipe.finetune
    assert f is not None
    gpt = load(None if f.start == "bundled" else f.start, backend="torch")
    if gpt.tokenizer is None:
        raise TrainingError(f"the model {f.start} has no tokenizer; put its files (tokenizer.json) beside the weights.")
    length = f.context_length or gpt.config.context_length
    if length > gpt.config.context_length:
        raise TrainingError(
            f"context_length is {length:,} and the model {f.start} has learned {gpt.config.context_length:,} "
            "positions; lower it."
        )
    model = gpt.model.train()
    recipe = replace(recipe, shape=model.config)
    # The model and the texts by what is in them, not by their names; the checkpoint has the other settings itself.
    key = hashlib.sha256(file_digest(data / f.train).encode())
    for _, parameter in sorted(model.named_parameters()):
        key.update(parameter.detach().contiguous().numpy().tobytes())
    torch.manual_seed(recipe.training.seed)
    task: Task
    if f.kind == "text":
        task = MoreText(recipe, f, data, gpt.tokenizer, length, key.hexdigest())
    elif f.kind == "instructions":
        task = Instructions(recipe, f, data, gpt.tokenizer, length, key.hexdigest())
    else:
        classes = Classes(recipe, f, data, gpt.tokenizer, length, key.hexdigest())
        model.head = nn.Linear(model.config.emb_dim, len(classes.labels), bias=False)
        nn.init.normal_(model.head.weight, std=0.02)
        task = classes
    if f.lora_rank:
        add_lora(model, f)
        model.head.weight.requires_grad_(f.kind == "classes")
    return Start(recipe, model, task)


def from_anywhere(start: str) -> str:
    """A model's name as it is found from any folder: a path in full, another name as it is."""
    path = Path(start).expanduser()
    return str(path.absolute()) if start != "bundled" and (path.exists() or index_in(path)) else start


def add_lora(model: GPTModel, f: FineTuneRecipe) -> None:
    """Puts LoRA's matrices beside those of every block, in place; only they are learned from here on.

    Raises:
        TrainingError: where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainingError(
            'lora_rank needs the package peft; install it with: pip install "clearhead[train]".'
        ) from None
    config = LoraConfig(r=f.lora_rank, lora_alpha=f.lora_alpha, lora_dropout=f.lora_dropout, target_modules=_LEARNED)
    inject_adapter_in_model(config, model)


def merged(model: GPTModel) -> GPTModel:
    """The model with what LoRA learned added to its own matrices; itself where it has none, else a copy."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(model)
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            owner, _, field = name.rpartition(".")
            setattr(whole.get_submodule(owner), field, module.get_base_layer())
    return whole


class MoreText:
    """Windows of a text file, with the loss on another: what pre-training does, by the model's own tokenizer."""

    def __init__(
        self, recipe: Recipe, f: FineTuneRecipe, data: Path, tokenizer: Tokenizer, length: int, key: str
    ) -> None:
        self.tokenizer, self.key, self.file = tokenizer, key, f.train
        self.ids, _ = _tokens(data / f.train, tokenizer)
        self.valid = _tokens(data / f.valid, tokenizer) if f.valid else None
        self.held_out = Path(f.valid).name
        if self.valid and len(self.valid[0]) < 2:
            raise TrainingError(
                f"{data / f.valid} has one token, and there is a loss from two on; hold out a longer text, or leave "
                "valid out."
            )
        t = recipe.training
        self.batches = WindowBatches({f.train: self.ids}, {f.train: 1.0}, length, t.batch_size, t.seed)

    def draw(self, step: int) -> Batch:
        """Windows of the text."""
        return self.batches.draw(step)

    def examine(self, model: GPTModel, examiner: Examiner, windows: int | None, processes: Processes) -> Scores:
        """Loss, perplexity and bits per byte of the held-out text."""
        if self.valid is None:
            return {}
        share = (processes.rank, processes.world)
        found = evaluate_perplexity(model, *self.valid, windows=windows, batch_nats=examiner, share=share)
        sums = processes.sums([found.nats, found.tokens, found.text_bytes])
        return {self.held_out: numbers_of(CrossEntropy(sums[0], int(sums[1]), sums[2]))}

    def describe(self, steps: int) -> str:
        """How often the text is seen."""
        return f"{len(self.ids):,} tokens, epochs: {self.batches.epochs(steps)[0]:.1f}"

    def about(self) -> str:
        """The text."""
        return f"The text {self.file}, {len(self.ids):,} tokens, after what the model it began with had learned."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """An ordinary model folder."""
        save_model(merged(model), self.tokenizer, folder, dtype)


class Instructions:
    """Prompts and responses, with the loss on the responses."""

    def __init__(
        self, recipe: Recipe, f: FineTuneRecipe, data: Path, tokenizer: Tokenizer, length: int, key: str
    ) -> None:
        self.tokenizer, self.key, self.file = tokenizer, key, f.train
        self.train, self.left_out = read_instructions(data / f.train, tokenizer, f.template, length)
        self.valid = read_instructions(data / f.valid, tokenizer, f.template, length)[0] if f.valid else []
        self.held_out = Path(f.valid).name
        self.batches = ExampleBatches(self.train, recipe.training.batch_size, recipe.training.seed, length)

    def draw(self, step: int) -> Batch:
        """Examples in the epoch's order."""
        return self.batches.draw(step)

    def examine(self, model: GPTModel, examiner: Examiner, windows: int | None, processes: Processes) -> Scores:
        """The loss on held-out responses."""
        found = _examine_examples(self.valid, model, examiner, windows, processes, classes=False)
        return {self.held_out: found} if found else {}

    def describe(self, steps: int) -> str:
        """How often the examples are seen."""
        short = f", {self.left_out:,} too long and left out" if self.left_out else ""
        return f"{_times(self.train, self.batches, steps)}{short}"

    def about(self) -> str:
        """The examples."""
        return f"{len(self.train):,} prompts with responses from {self.file}; the loss was on the responses only."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """An ordinary model folder."""
        save_model(merged(model), self.tokenizer, folder, dtype)


class Classes:
    """Texts and their classes, read from the last token (the book's chapter 6).

    Attributes:
        labels: the classes; a target is a place in this list.
    """

    def __init__(
        self, recipe: Recipe, f: FineTuneRecipe, data: Path, tokenizer: Tokenizer, length: int, key: str
    ) -> None:
        self.tokenizer, self.key, self.file = tokenizer, key, f.train
        self.train, self.labels = read_labelled(data / f.train, tokenizer, length, None)
        self.valid = read_labelled(data / f.valid, tokenizer, length, self.labels)[0] if f.valid else []
        self.held_out = Path(f.valid).name
        self.batches = ExampleBatches(self.train, recipe.training.batch_size, recipe.training.seed, length)

    def draw(self, step: int) -> Batch:
        """Examples in the epoch's order."""
        return self.batches.draw(step)

    def examine(self, model: GPTModel, examiner: Examiner, windows: int | None, processes: Processes) -> Scores:
        """Loss and accuracy on held-out texts."""
        found = _examine_examples(self.valid, model, examiner, windows, processes, classes=True)
        return {self.held_out: found} if found else {}

    def describe(self, steps: int) -> str:
        """How often the examples are seen."""
        return f"classes {', '.join(self.labels)}; {_times(self.train, self.batches, steps)}"

    def about(self) -> str:
        """The examples."""
        return f"{len(self.train):,} texts from {self.file} in the classes {', '.join(self.labels)}."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """A folder that transformers opens as `GPT2ForSequenceClassification`."""
        save_classifier(merged(model), self.tokenizer, self.labels, folder, dtype)


def _examine_examples(
    examples: Sequence[Example],
    model: GPTModel,
    examiner: Examiner,
    most: int | None,
    processes: Processes,
    classes: bool,
) -> dict[str, float]:
    """The mean loss of the counted targets, and of classes the share of right guesses; spread over the processes.

    Of more than `most` examples so many are taken, spread evenly: a file may be sorted, by its classes for instance.
    """
    if not examples:
        return {}
    chosen = [examples[n] for n in evenly_spaced(len(examples), most)]
    nats = right = count = 0.0
    training = model.training
    model.eval()
    rounds = -(-len(chosen) // (_AT_ONCE * processes.world))
    for first in range(processes.rank * _AT_ONCE, rounds * _AT_ONCE * processes.world, _AT_ONCE * processes.world):
        # An empty share still takes part: a model that is spread over processes needs all of them.
        rows = chosen[first : first + _AT_ONCE]
        batch = pad_together(rows or chosen[:1], model.config.context_length)
        inputs, targets = (torch.from_numpy(array) for array in batch)
        if not rows:
            targets.fill_(-100)
        places = counted_places(targets)
        inputs, there = inputs.to(processes.device), targets.to(processes.device)
        counted = None if places is None else places.to(processes.device)
        nats += examiner(inputs, there, counted).item()
        wanted = targets.flatten() if places is None else targets.flatten()[places]
        count += len(wanted)
        if classes:
            right += int((examiner(inputs, there, counted, guess=True).cpu() == wanted).sum())
    model.train(training)
    nats, right, count = processes.sums([nats, right, count])
    return {"loss": nats / count, **({"accuracy": right / count} if classes else {})}


def _times(examples: Sequence[Example], batches: ExampleBatches, steps: int) -> str:
    return f"{len(examples):,} examples, epochs: {steps * batches.batch_size / len(examples):.1f}"


def _tokens(path: Path, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """A text file's tokens, int32, as a corpus has them, and its length in bytes without separators."""
    with open_records(path):
        pass  # so that a wrong name is told in this recipe's words
    text = TextFile(str(path), path)
    encoder = ChunkEncoder.of(tokenizer, np.dtype(np.int32), compiled=text.size() >= COMPILE_FROM)
    cut = tokenizer.may_split != "nowhere"
    parts = [encoder(text, chunk.content) for chunk in text.chunks(Cursor(), cut_documents=cut)]
    ids = np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)])
    if not len(ids):
        raise TrainingError(f"{path} has no text in it; give a file with some.")
    return ids, sum(int(part.text_bytes.sum()) for part in parts)
