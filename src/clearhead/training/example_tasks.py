"""Shared parts of the fine-tuning tasks with examples: the split, the batches and the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from clearhead.data.batches import Batch
from clearhead.data.examples import Example, ExampleBatches, draw_split, pad_together
from clearhead.errors import TrainingError
from clearhead.evaluation.perplexity import evenly_spaced
from clearhead.losses import NOT_COUNTED
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.distributed import Processes
from clearhead.training.objective import counted_indices
from clearhead.training.recipe import FineTuneRecipe, TrainingRecipe
from clearhead.training.task import Evaluator, Scores

_T = TypeVar("_T")
BATCH = 16
"""Examples that are evaluated together."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """What a fine-tuning task is made from.

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
            TrainingError: if no training example is left, or a share is less than one example.
        """
        f = self.recipe
        kinds = draw_split(len(examples), f.valid_share, f.test_share, self.training.seed)
        train, valid, test = ([examples[n] for n in indices] for indices in kinds)
        for key, found in {"valid_share": valid, "test_share": test}.items():
            if getattr(f, key) and not found:
                raise TrainingError(
                    f"{key} {getattr(f, key)} of the {len(examples):,} examples of {self.train} is less than one; "
                    "raise it, or leave it out."
                )
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
        names = Path(f.valid).name or "valid", Path(f.test).name or "test"
        if names[0] == names[1]:  # files of two folders
            names = "valid", "test"
        named = {names[0]: valid}
        if windows is None:
            named[names[1]] = test
        return {name: found for name, found in named.items() if found}


class ExampleTask(Generic[_T]):
    """A task whose data are examples: shuffled in each epoch for training, or held out for validation and test.

    A subclass reads a file (`read`), turns an example into tokens (`example_of`), and saves the model.

    Attributes:
        train, valid, test: the examples.
    """

    measures_accuracy = False

    def __init__(self, data: TaskData) -> None:
        self.data, self.tokenizer, self.key = data, data.tokenizer, data.key
        self.left_out = 0  # of the training file
        examples = self.read(data.train)
        of_train = self.left_out
        self.train, self.valid, self.test = data.divide(examples, self.read)
        self.left_out = of_train
        t = data.training
        self.batches = ExampleBatches([self.example_of(one) for one in self.train], t.batch_size, t.seed, data.length)

    def read(self, path: Path) -> list[_T]:
        """Return the examples of a file."""
        raise NotImplementedError

    def example_of(self, one: _T) -> Example:
        """Return the tokens of an example."""
        raise NotImplementedError

    def batch_of(self, rows: Sequence[_T], context_length: int) -> Batch:
        """Return examples as rows of one batch."""
        return pad_together([self.example_of(one) for one in rows], context_length)

    def draw(self, step: int) -> Batch:
        """Return the batch of a step, in the epoch's order."""
        return self.batch_of([self.train[index] for index in self.batches.indices(step)], self.data.length)

    def evaluate(self, model: GPTModel, evaluator: Evaluator, windows: int | None, processes: Processes) -> Scores:
        """Return the scores on held-out examples and, if all are scored, on test examples."""
        found = {}
        for name, examples in self.data.held_out(self.valid, self.test, windows).items():
            chosen = [examples[n] for n in evenly_spaced(len(examples), windows)]
            found[name] = self._score(chosen, model, evaluator, processes)
        return found

    def _score(
        self, chosen: Sequence[_T], model: GPTModel, evaluator: Evaluator, processes: Processes
    ) -> dict[str, float]:
        """Return the mean loss and, if it is measured, the accuracy, computed by all processes together."""
        nats = right = count = 0.0
        training = model.training
        model.eval()
        rounds = -(-len(chosen) // (BATCH * processes.world))
        for first in range(processes.rank * BATCH, rounds * BATCH * processes.world, BATCH * processes.world):
            # A process without rows runs the model too: a sharded model needs every process.
            rows = chosen[first : first + BATCH]
            batch = self.batch_of(rows or chosen[:1], model.config.context_length)
            inputs, targets = (torch.from_numpy(array) for array in batch)
            if not rows:
                targets.fill_(NOT_COUNTED)
            indices = counted_indices(targets)
            inputs, device_targets = inputs.to(processes.device), targets.to(processes.device)
            counted = None if indices is None else indices.to(processes.device)
            nats += evaluator(inputs, device_targets, counted).item()
            wanted = self.wanted(targets)
            count += len(wanted) if rows else 0
            if self.measures_accuracy:
                guessed = evaluator(inputs, device_targets, counted, guess=True).cpu()
                right += int((guessed == wanted).sum()) if rows else 0
        model.train(training)
        nats, right, count = processes.sums([nats, right, count])
        return {"loss": nats / count} | ({"accuracy": right / count} if self.measures_accuracy else {})

    def wanted(self, targets: torch.Tensor) -> torch.Tensor:
        """Return what the objective should guess for targets [B, T]: one number for each term of the loss."""
        flat = targets.flatten()
        return flat[flat != NOT_COUNTED]

    def steps_per_epoch(self) -> float:
        """Return the number of training examples, divided by the examples of a step."""
        return len(self.train) / self.batches.batch_size

    def tokens_per_step(self) -> int | None:
        """Return None: examples have different lengths."""
        return None

    def words_per_step(self) -> float | None:
        """Return None: words are counted in texts only."""
        return None

    def describe_batch(self) -> str:
        """Return the number of examples of a step."""
        return f"{self.data.training.batch_size} examples"

    def describe(self, steps: int) -> str:
        """Return how often the examples are seen."""
        left_out = f", {self.left_out:,} too long and left out" if self.left_out else ""
        count = len(self.train)
        return f"{count:,} examples, epochs: {steps * self.batches.batch_size / count:.1f}{left_out}"

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return the model's output for each test example."""
        raise NotImplementedError
