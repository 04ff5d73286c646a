"""What a run trains on: the interface of its data, and the pre-training task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from clearhead.data.batches import Batch, WindowBatches
from clearhead.data.corpus import Corpus
from clearhead.data.documents import TokenIds
from clearhead.data.word_count import count_words
from clearhead.errors import TrainingError
from clearhead.evaluation.cross_entropy import CrossEntropy
from clearhead.evaluation.perplexity import evaluate_perplexity
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors
from clearhead.tokenizer import Tokenizer
from clearhead.training.distributed import Processes
from clearhead.training.recipe import Recipe
from clearhead.utils.localization import localized
from clearhead.weights import save_huggingface

_MANY_STEPS = 10_000  # enough for the texts' shares to match the recipe's

Scores = dict[str, dict[str, float]]
"""The scores of each held-out text by name: loss, bits_per_byte, perplexity; for a classifier also accuracy."""


class Evaluator(Protocol):
    """Runs the model on a batch without training it, like `objective.Objective`."""

    def __call__(self, ids: Tensor, targets: Tensor, counted: Tensor | None = None, guess: bool = False) -> Tensor:
        """Return the summed nats of the targets, or the likeliest ids."""


class Task(Protocol):
    """The data of a run: where its batches come from, and how the model is evaluated."""

    tokenizer: Tokenizer

    @property
    def key(self) -> str:
        """A digest of the data."""

    def draw(self, step: int) -> Batch:
        """Return the batch of a step, for all processes together: a pure function of the step."""

    def evaluate(self, model: GPTModel, evaluator: Evaluator, windows: int | None, processes: Processes) -> Scores:
        """Score the model on the held-out data, or on a number of windows of it. All processes call this together."""

    def steps_per_epoch(self) -> float:
        """Return the number of steps that see as much as all training data once."""

    def tokens_per_step(self) -> int | None:
        """Return the number of tokens of a step; None if it varies."""

    def words_per_step(self) -> float | None:
        """Return the number of words of a step, on average; None if they are not counted."""

    def describe_batch(self) -> str:
        """Return what a step reads, such as `8 windows`."""

    def describe(self, steps: int) -> str:
        """Describe the data that a number of steps sees, for the first line of a run."""

    def about(self) -> str:
        """Return a description of the data for the model's card, in Markdown."""

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write the model's folder."""

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return what the model makes of each test example, as JSON objects; none if there is no test set."""


class PretrainingTask:
    """Windows of a corpus, and the loss on its held-out texts.

    Raises:
        TrainingError: if a text is too short for a window, or its held-out part for a prediction.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        for name, split in corpus.valid.items():
            if split.tokens < 2 or not split.text_bytes:
                raise TrainingError(
                    f"the held-out part of the text {name!r} has {split.tokens:,} tokens for {split.text_bytes:,} "
                    "bytes; a loss on it needs two tokens and some text. Hold out more, or nothing."
                )
        self.corpus, self.tokenizer, self.key = corpus, corpus.tokenizer, corpus.key
        self.batches = WindowBatches(
            {name: corpus.tokens(split) for name, split in corpus.train.items()},
            {source.name: source.weight for source in recipe.corpus.source},
            recipe.model.context_length,
            recipe.training.batch_size,
            recipe.training.seed,
        )

    def draw(self, step: int) -> Batch:
        """Return windows of the training texts, in the recipe's shares."""
        return self.batches.draw(step)

    def evaluate(self, model: GPTModel, evaluator: Evaluator, windows: int | None, processes: Processes) -> Scores:
        """Return loss, perplexity and bits per byte of each held-out text."""
        return {
            name: score_text(model, self.corpus.tokens(split), split.text_bytes, evaluator, windows, processes)
            for name, split in self.corpus.valid.items()
        }

    def steps_per_epoch(self) -> float:
        """Return the training tokens over the tokens of a step."""
        return self.batches.tokens / self.batches.tokens_per_step

    def tokens_per_step(self) -> int | None:
        """Return the tokens of a batch."""
        return self.batches.tokens_per_step

    def words_per_step(self) -> float | None:
        """Return the average number of words of a batch, with each text's share of the batches."""
        words = [count_words(self.corpus.tokens(split), self.tokenizer) for split in self.corpus.train.values()]
        return sum(n * times for n, times in zip(words, self.batches.epochs(_MANY_STEPS), strict=True)) / _MANY_STEPS

    def describe_batch(self) -> str:
        """Return the number of windows of a step."""
        return f"{self.batches.batch_size} windows"

    def describe(self, steps: int) -> str:
        """Return how often each text is seen."""
        seen = zip(self.corpus.train, self.batches.epochs(steps), strict=True)
        return "epochs: " + ", ".join(f"{name} {times:.1f}" for name, times in seen)

    def about(self) -> str:
        """Return the texts with their sizes."""
        rows = [f"| {name} | {split.tokens:,} | {split.documents:,} |" for name, split in self.corpus.train.items()]
        return "\n".join([f"| {' | '.join(map(localized, ('text', 'tokens', 'documents')))} |", "|---|---|---|", *rows])

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Write a Hugging Face GPT-2 folder with the corpus's tokenizer."""
        save_model(model, self.tokenizer, folder, dtype)

    def test_outputs(self, model: GPTModel) -> list[dict[str, Any]]:
        """Return none: a corpus has held-out texts only."""
        return []


def save_model(model: GPTModel, tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    """Write a model and its tokenizer as a Hugging Face folder."""
    special = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    save_huggingface(folder, model.config, ModelTensors(model), dtype=dtype, extra_config=special)
    tokenizer.save(folder)


def score_text(
    model: GPTModel, ids: TokenIds, text_bytes: int, evaluator: Evaluator, windows: int | None, processes: Processes
) -> dict[str, float]:
    """Return loss, bits per byte and perplexity of a held-out text, computed by all processes together.

    Args:
        model: the model.
        ids: the text, integers [tokens].
        text_bytes: its length in UTF-8.
        evaluator: computes the nats of a batch.
        windows: the number of windows to score; None for all.
        processes: the processes of the run.
    """
    share = (processes.rank, processes.world)
    found = evaluate_perplexity(model, ids, text_bytes, windows=windows, batch_nats=evaluator, share=share)
    sums = processes.sums([found.nats, found.tokens, found.text_bytes])
    whole = CrossEntropy(sums[0], int(sums[1]), sums[2])
    return {"loss": whole.loss, "bits_per_byte": whole.bits_per_byte, "perplexity": whole.perplexity}
