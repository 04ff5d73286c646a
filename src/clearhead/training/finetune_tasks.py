"""The tasks of fine-tuning: more text, responses to prompts, classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from clearhead.data.batches import Batch, WindowBatches
from clearhead.data.encoding import COMPILE_FROM, ChunkEncoder
from clearhead.data.examples import Example, ExampleBatches, draw_split, pad_together
from clearhead.data.instructions import Instruction, read_instructions
from clearhead.data.labelled import LabelledText, read_labelled
from clearhead.data.records import open_records
from clearhead.data.sources.base import Cursor
from clearhead.data.sources.text_file import TextFile
from clearhead.data.templates import PromptTemplate
from clearhead.data.word_count import count_words
from clearhead.errors import TrainingError
from clearhead.evaluation.perplexity import evenly_spaced
from clearhead.inference.generation import generate
from clearhead.inference.requests import Request
from clearhead.inference.torch_runner import TorchRunner
from clearhead.losses import NOT_COUNTED
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.chat_template import save_chat_template
from clearhead.training.classifier import save_classifier
from clearhead.training.distributed import Processes
from clearhead.training.lora import merge_lora, save_adapter
from clearhead.training.objective import counted_indices
from clearhead.training.recipe import FineTuneRecipe, TrainingRecipe
from clearhead.training.task import Evaluator, Scores, save_model, score_text

_T = TypeVar("_T")
_BATCH = 16  # examples that are evaluated together


@dataclass(frozen=True, slots=True)
class TaskData:
    """What the fine-tuning tasks are made from.

    Attributes:
        recipe: the `[finetune]` table.
        training: the `[training]` table.
        folder: the folder of the recipe's files.
        tokenizer: the model's.
        length: the maximum number of tokens of an example or a window.
        key: a digest of the model and the training file.
    """

    recipe: FineTuneRecipe
    training: TrainingRecipe
    folder: Path
    tokenizer: Tokenizer
    length: int
    key: str

    @property
    def train(self) -> Path:
        """The training file."""
        return self.folder / self.recipe.train

    @property
    def valid(self) -> Path | None:
        """The held-out file; None if there is none."""
        return self.folder / self.recipe.valid if self.recipe.valid else None

    def divide(self, examples: list[_T], read: Callable[[Path], list[_T]]) -> tuple[list[_T], list[_T], list[_T]]:
        """Return the training, validation and test examples.

        Args:
            examples: those of the training file.
            read: reads another file.

        Raises:
            TrainingError: if no training example is left.
        """
        f = self.recipe
        kinds = draw_split(len(examples), f.valid_share, f.test_share, self.training.seed)
        train, valid, test = ([examples[n] for n in indices] for indices in kinds)
        if not train:
            raise TrainingError(
                f"the {len(examples):,} examples of {self.train} are too few to hold some out; give more."
            )
        return (
            train,
            valid + (read(self.valid) if self.valid else []),
            test + (read(self.folder / f.test) if f.test else []),
        )

    def held_out(self, valid: list[_T], test: list[_T], windows: int | None) -> dict[str, list[_T]]:
        """Return the examples to evaluate on by the name of their scores; test examples only if all are scored."""
        f = self.recipe
        named = {Path(f.valid).name if f.valid else "valid": valid}
        if windows is None:
            named[Path(f.test).name if f.test else "test"] = test
        return {name: found for name, found in named.items() if found}


class MoreText:
    """Windows of a text file, with the loss on another: pre-training continued with the model's own tokenizer."""

    def __init__(self, data: TaskData) -> None:
        self.data, self.tokenizer, self.key = data, data.tokenizer, data.key
        self.ids, _ = _encode_file(data.train, data.tokenizer)
        self.valid = _encode_file(data.valid, data.tokenizer) if data.valid else None
        if self.valid and len(self.valid[0]) < 2:
            raise TrainingError(
                f"{data.valid} has one token, and a loss needs at least two; hold out a longer text, or remove valid."
            )
        name, t = data.recipe.train, data.training
        self.batches = WindowBatches({name: self.ids}, {name: 1.0}, data.length, t.batch_size, t.seed)

    def draw(self, step: int) -> Batch:
        """Return windows of the text."""
        return self.batches.draw(step)

    def evaluate(self, model: GPTModel, evaluator: Evaluator, windows: int | None, processes: Processes) -> Scores:
        """Return loss, perplexity and bits per byte of the held-out text."""
        if self.valid is None or self.data.valid is None:
            return {}
        return {self.data.valid.name: score_text(model, *self.valid, evaluator, windows, processes)}

    def steps_per_epoch(self) -> float:
        """Return the tokens of the text over those of a step."""
        return self.batches.tokens / self.batches.tokens_per_step

    def tokens_per_step(self) -> int | None:
        """Return the tokens of a batch."""
        return self.batches.tokens_per_step

    def words_per_step(self) -> float | None:
        """Return the words of the text that a batch has on average."""
        return count_words(self.ids, self.tokenizer) * self.batches.tokens_per_step / self.batches.tokens

    def describe(self, steps: int) -> str:
        """Return how often the text is seen."""
        return f"{len(self.ids):,} tokens, epochs: {self.batches.epochs(steps)[0]:.1f}"

    def about(self) -> str:
        """Return a description of the text."""
        text = f"{self.data.recipe.train}, {len(self.ids):,} tokens"
        return f"The text {text}, after the training of the model that it continues."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write an ordinary model folder."""
        save_model(merge_lora(model), self.tokenizer, folder, dtype)
        if self.data.recipe.save_adapter:
            save_adapter(model, self.data.recipe, folder / "adapter")

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return none: a text has no test examples."""
        return []


class Instructions:
    """Prompts and responses."""

    def __init__(self, data: TaskData) -> None:
        self.data, self.tokenizer, self.key = data, data.tokenizer, data.key
        self.template = PromptTemplate.from_recipe(data.recipe.template)
        examples, self.left_out = self._read(data.train)
        self.train, self.valid, self.test = data.divide(examples, lambda path: self._read(path)[0])
        self.batches = _example_batches([instruction.example for instruction in self.train], data)

    def _read(self, path: Path) -> tuple[list[Instruction], int]:
        all_tokens = self.data.recipe.loss == "all"
        return read_instructions(path, self.tokenizer, self.template, self.data.length, all_tokens=all_tokens)

    def draw(self, step: int) -> Batch:
        """Return examples in the epoch's order."""
        return self.batches.draw(step)

    def evaluate(self, model: GPTModel, evaluator: Evaluator, windows: int | None, processes: Processes) -> Scores:
        """Return the loss on held-out examples and, if all are scored, on test examples."""
        return {
            name: _score_examples([one.example for one in found], model, evaluator, windows, processes, accuracy=False)
            for name, found in self.data.held_out(self.valid, self.test, windows).items()
        }

    def steps_per_epoch(self) -> float:
        """Return the examples over those of a step."""
        return len(self.train) / self.batches.batch_size

    def tokens_per_step(self) -> int | None:
        """Return None: examples have different lengths."""
        return None

    def words_per_step(self) -> float | None:
        """Return None: words are counted in texts only."""
        return None

    def describe(self, steps: int) -> str:
        """Return how often the examples are seen."""
        left_out = f", {self.left_out:,} too long and left out" if self.left_out else ""
        return f"{_epochs(self.batches, steps)}{left_out}"

    def about(self) -> str:
        """Return a description of the examples."""
        source, counted = self.data.recipe.train, self.data.recipe.loss
        on = "the responses only" if counted == "response" else "prompts and responses"
        return f"{len(self.train):,} prompts with responses from {source}; the loss was on {on}."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write an ordinary model folder, with the template as the tokenizer's chat template."""
        save_model(merge_lora(model), self.tokenizer, folder, dtype)
        save_chat_template(self.template, folder)
        if self.data.recipe.save_adapter:
            save_adapter(model, self.data.recipe, folder / "adapter")

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return a response to each test prompt, with the likeliest token at each position."""
        longest = model.config.context_length - 1
        runner = TorchRunner(merge_lora(model))
        found = []
        for first in range(0, len(self.test), _BATCH):
            group = self.test[first : first + _BATCH]
            most = self.data.recipe.response_tokens
            requests = [Request(one.prompt_ids[-longest:], temperature=0.0, max_new_tokens=most) for one in group]
            for one, completion in zip(group, generate(runner, self.tokenizer, requests), strict=True):
                response = completion.samples[0].text or ""
                found.append({"prompt": one.prompt, "expected": one.response, "response": response})
        return found


class Classes:
    """Texts and their classes, read from the last token (the book's chapter 6).

    Attributes:
        labels: the classes; a target is an index of this list.

    Raises:
        TrainingError: if a class has no training example.
    """

    def __init__(self, data: TaskData) -> None:
        self.data, self.tokenizer, self.key = data, data.tokenizer, data.key
        examples, self.labels = read_labelled(data.train, data.tokenizer, data.length, None)
        self.train, self.valid, self.test = data.divide(examples, self._read)
        if missing := set(self.labels) - {one.label for one in self.train}:
            raise TrainingError(
                f"the class {min(missing)!r} is only among the examples that are held out of {data.train}; "
                "give more examples of it, or smaller shares."
            )
        self.batches = _example_batches([one.example for one in self.train], data)

    def _read(self, path: Path) -> list[LabelledText]:
        return read_labelled(path, self.tokenizer, self.data.length, self.labels)[0]

    def draw(self, step: int) -> Batch:
        """Return examples in the epoch's order."""
        return self.batches.draw(step)

    def evaluate(self, model: GPTModel, evaluator: Evaluator, windows: int | None, processes: Processes) -> Scores:
        """Return loss and accuracy on held-out texts and, if all are scored, on test texts."""
        return {
            name: _score_examples([one.example for one in found], model, evaluator, windows, processes, accuracy=True)
            for name, found in self.data.held_out(self.valid, self.test, windows).items()
        }

    def steps_per_epoch(self) -> float:
        """Return the examples over those of a step."""
        return len(self.train) / self.batches.batch_size

    def tokens_per_step(self) -> int | None:
        """Return None: examples have different lengths."""
        return None

    def words_per_step(self) -> float | None:
        """Return None: words are counted in texts only."""
        return None

    def describe(self, steps: int) -> str:
        """Return how often the examples are seen."""
        return f"classes {', '.join(self.labels)}; {_epochs(self.batches, steps)}"

    def about(self) -> str:
        """Return a description of the examples."""
        return f"{len(self.train):,} texts from {self.data.recipe.train} in the classes {', '.join(self.labels)}."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write a folder that transformers opens as `GPT2ForSequenceClassification`."""
        save_classifier(merge_lora(model), self.tokenizer, self.labels, folder, dtype)

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return the predicted class of each test text."""
        found = []
        training = model.training
        model.eval()
        with torch.inference_mode():
            for one in self.test:
                ids = torch.from_numpy(one.example.inputs)[None].to(model.token_embedding.weight.device)
                predicted = self.labels[int(model.head(model.forward_hidden(ids)[0, -1]).argmax())]
                found.append({"text": one.text, "label": one.label, "predicted": predicted})
        model.train(training)
        return found


def _example_batches(examples: Sequence[Example], data: TaskData) -> ExampleBatches:
    return ExampleBatches(examples, data.training.batch_size, data.training.seed, data.length)


def _score_examples(
    examples: Sequence[Example],
    model: GPTModel,
    evaluator: Evaluator,
    most: int | None,
    processes: Processes,
    *,
    accuracy: bool,
) -> dict[str, float]:
    """Return the mean loss of the counted targets, and if asked their accuracy, computed by all processes together.

    If there are more than `most` examples, so many are taken, evenly spaced: a file may be sorted, for instance by
    class.
    """
    chosen = [examples[n] for n in evenly_spaced(len(examples), most)]
    nats = right = count = 0.0
    training = model.training
    model.eval()
    rounds = -(-len(chosen) // (_BATCH * processes.world))
    for first in range(processes.rank * _BATCH, rounds * _BATCH * processes.world, _BATCH * processes.world):
        # An empty share takes part all the same: a model that is spread over processes needs all of them.
        rows = chosen[first : first + _BATCH]
        batch = pad_together(rows or chosen[:1], model.config.context_length)
        inputs, targets = (torch.from_numpy(array) for array in batch)
        if not rows:
            targets.fill_(NOT_COUNTED)
        indices = counted_indices(targets)
        inputs, device_targets = inputs.to(processes.device), targets.to(processes.device)
        counted = None if indices is None else indices.to(processes.device)
        nats += evaluator(inputs, device_targets, counted).item()
        wanted = targets.flatten() if indices is None else targets.flatten()[indices]
        count += len(wanted)
        if accuracy:
            right += int((evaluator(inputs, device_targets, counted, guess=True).cpu() == wanted).sum())
    model.train(training)
    nats, right, count = processes.sums([nats, right, count])
    return {"loss": nats / count} | ({"accuracy": right / count} if accuracy else {})


def _epochs(batches: ExampleBatches, steps: int) -> str:
    count = len(batches.examples)
    return f"{count:,} examples, epochs: {steps * batches.batch_size / count:.1f}"


def _encode_file(path: Path, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Return a text file's tokens, int32, as in a corpus, and its length in bytes without separators."""
    with open_records(path):
        pass  # so that a wrong name is reported as one of the recipe's
    text = TextFile(str(path), path)
    encoder = ChunkEncoder.of(tokenizer, np.dtype(np.int32), compiled=text.size() >= COMPILE_FROM)
    cut = tokenizer.may_split != "nowhere"
    parts = [encoder(text, chunk.content) for chunk in text.chunks(Cursor(), cut_documents=cut)]
    ids = np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)])
    if not len(ids):
        raise TrainingError(f"{path} has no text in it; give a file with some.")
    return ids, sum(int(part.text_bytes.sum()) for part in parts)
