"""The tasks of fine-tuning: more text, responses to prompts, preferences between responses, classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from clearhead.data.batches import Batch, WindowBatches
from clearhead.data.encoding import COMPILE_FROM, ChunkEncoder
from clearhead.data.examples import Example
from clearhead.data.instructions import Instruction, read_instructions
from clearhead.data.labelled import LabelledText, read_labelled
from clearhead.data.preferences import Preference, pair_batch, read_preferences
from clearhead.data.sources.base import Cursor
from clearhead.data.sources.text_file import TextFile
from clearhead.data.templates import PromptTemplate
from clearhead.data.word_count import count_words
from clearhead.errors import TrainingError
from clearhead.inference.generation import generate
from clearhead.inference.requests import Request
from clearhead.inference.torch_runner import TorchRunner
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.chat_template import save_chat_template
from clearhead.training.classifier import save_classifier
from clearhead.training.distributed import Processes
from clearhead.training.example_tasks import BATCH, ExampleTask, TaskData
from clearhead.training.lora import merge_lora, save_adapter
from clearhead.training.task import Evaluator, Scores, save_model, score_text

_T = TypeVar("_T")


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
        """Return the average number of words of a batch."""
        return count_words(self.ids, self.tokenizer) * self.batches.tokens_per_step / self.batches.tokens

    def describe_batch(self) -> str:
        """Return the number of windows of a step."""
        return f"{self.data.training.batch_size} windows"

    def describe(self, steps: int) -> str:
        """Return how often the text is seen."""
        return f"{len(self.ids):,} tokens, epochs: {self.batches.epochs(steps)[0]:.1f}"

    def about(self) -> str:
        """Return a description of the text."""
        text = f"{self.data.recipe.train}, {len(self.ids):,} tokens"
        return f"The text {text}, after the training of the model that it continues."

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write an ordinary model folder."""
        _save(model, self.data, folder, dtype)

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return none: a text has no test examples."""
        return []


class _ResponseTask(ExampleTask[_T]):
    """A task of prompts with responses: it saves a model that generates, and its template."""

    def __init__(self, data: TaskData) -> None:
        self.template = PromptTemplate.from_recipe(data.recipe.template)
        super().__init__(data)

    def instruction_of(self, one: _T) -> Instruction:
        """Return the prompt with the response that is wanted."""
        raise NotImplementedError

    def example_of(self, one: _T) -> Example:
        """Return the tokens of a prompt and its response."""
        return self.instruction_of(one).example

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write an ordinary model folder, with the template as the tokenizer's chat template."""
        _save(model, self.data, folder, dtype)
        save_chat_template(self.template, folder)

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return a response to each test prompt, with the likeliest token at each position."""
        longest = model.config.context_length - 1
        runner = TorchRunner(merge_lora(model))
        found = []
        for first in range(0, len(self.test), BATCH):
            group = [self.instruction_of(one) for one in self.test[first : first + BATCH]]
            most = self.data.recipe.response_tokens
            requests = [Request(one.prompt_ids[-longest:], temperature=0.0, max_new_tokens=most) for one in group]
            for one, completion in zip(group, generate(runner, self.tokenizer, requests), strict=True):
                response = completion.samples[0].text or ""
                found.append({"prompt": one.prompt, "expected": one.response, "response": response})
        return found


class Instructions(_ResponseTask[Instruction]):
    """Prompts and responses."""

    def read(self, path: Path) -> list[Instruction]:
        """Return the prompts and responses of a file."""
        all_tokens = self.data.recipe.loss == "all"
        found, self.left_out = read_instructions(
            path, self.tokenizer, self.template, self.data.length, all_tokens=all_tokens
        )
        return found

    def instruction_of(self, one: Instruction) -> Instruction:
        """Return it."""
        return one

    def about(self) -> str:
        """Return a description of the examples."""
        source, counted = self.data.recipe.train, self.data.recipe.loss
        on = "the responses only" if counted == "response" else "prompts and responses"
        return f"{len(self.train):,} prompts with responses from {source}; the loss was on {on}."


class Preferences(_ResponseTask[Preference]):
    """Prompts with a preferred and another response, see `preference.PreferenceObjective`.

    The loss is that of a pair; the accuracy is the share of pairs whose preferred response has gained more.
    """

    measures_accuracy = True

    def read(self, path: Path) -> list[Preference]:
        """Return the pairs of a file."""
        found, self.left_out = read_preferences(path, self.tokenizer, self.template, self.data.length)
        return found

    def instruction_of(self, one: Preference) -> Instruction:
        """Return the prompt with the preferred response."""
        return one.chosen

    def batch_of(self, rows: Sequence[Preference], context_length: int) -> Batch:
        """Return pairs as rows: the preferred text, then the other one."""
        return pair_batch(rows, context_length)

    def describe_batch(self) -> str:
        """Return the number of pairs of a step."""
        return f"{self.data.training.batch_size} pairs"

    def wanted(self, targets: torch.Tensor) -> torch.Tensor:
        """Return 1 for each pair: the preferred response should have gained more."""
        return torch.ones(len(targets), dtype=torch.int64)

    def about(self) -> str:
        """Return a description of the examples."""
        return (
            f"{len(self.train):,} pairs of responses from {self.data.recipe.train}; direct preference optimization "
            f"with beta {self.data.recipe.beta:g}."
        )


class Classes(ExampleTask[LabelledText]):
    """Texts and their classes, read from the last token (the book's chapter 6).

    Attributes:
        labels: the classes; a target is an index of this list.

    Raises:
        TrainingError: if a class has no training example.
    """

    measures_accuracy = True

    def __init__(self, data: TaskData) -> None:
        self.labels: list[str] = []  # those of the training file, which is read first
        super().__init__(data)
        if missing := set(self.labels) - {one.label for one in self.train}:
            raise TrainingError(
                f"the class {min(missing)!r} is only among the examples that are held out of {data.train}; "
                "give more examples of it, or smaller shares."
            )

    def read(self, path: Path) -> list[LabelledText]:
        """Return the texts of a file with their classes."""
        found, self.labels = read_labelled(path, self.tokenizer, self.data.length, self.labels or None)
        return found

    def example_of(self, one: LabelledText) -> Example:
        """Return the tokens of a text."""
        return one.example

    def describe(self, steps: int) -> str:
        """Return the classes, and how often the examples are seen."""
        return f"classes {', '.join(self.labels)}; {super().describe(steps)}"

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


def _save(model: GPTModel, data: TaskData, folder: Path, dtype: str) -> None:
    save_model(merge_lora(model), data.tokenizer, folder, dtype)
    if data.recipe.save_adapter:
        save_adapter(model, data.recipe, folder / "adapter")


def _encode_file(path: Path, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Return a text file's tokens, int32, as in a corpus, and its length in bytes without separators."""
    text = TextFile(str(path), path)
    encoder = ChunkEncoder.of(tokenizer, np.dtype(np.int32), compiled=text.size() >= COMPILE_FROM)
    cut = tokenizer.may_split != "nowhere"
    parts = [encoder(text, chunk.content) for chunk in text.chunks(Cursor(), cut_documents=cut)]
    ids = np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)])
    if not len(ids):
        raise TrainingError(f"{path} has no text in it; give a file with some.")
    return ids, sum(int(part.text_bytes.sum()) for part in parts)
