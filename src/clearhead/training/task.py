"""What a run learns from: where its batches come from, and how it is examined on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from clearhead.data.batches import Batch, WindowBatches
from clearhead.data.corpus import Corpus
from clearhead.errors import TrainingError
from clearhead.evaluation.perplexity import CrossEntropy, evaluate_perplexity
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors
from clearhead.tokenizer import Tokenizer
from clearhead.training.distributed import Processes
from clearhead.training.recipe import Recipe
from clearhead.weights import save_huggingface

Scores = dict[str, dict[str, float]]
"""For each held-out text its numbers by name: loss, bits_per_byte, perplexity; accuracy of a classifier."""


class Examiner(Protocol):
    """Runs the model on a batch without learning from it, as `objective.Objective` does."""

    def __call__(self, ids: Tensor, targets: Tensor, counted: Tensor | None = None, guess: bool = False) -> Tensor:
        """The summed nats of the targets, or the likeliest ids in their place."""


class Task(Protocol):
    """What `Run` needs to know of its data."""

    tokenizer: Tokenizer

    @property
    def key(self) -> str:
        """Differs where the data differ."""

    def draw(self, step: int) -> Batch:
        """The batch of a step, for all processes together: a pure function of the step."""

    def examine(self, model: GPTModel, examiner: Examiner, windows: int | None, processes: Processes) -> Scores:
        """How the model does on what it is not trained on, or on so many windows of it. All processes take part."""

    def describe(self, steps: int) -> str:
        """What so many steps see, for the first line of a run."""

    def about(self) -> str:
        """What the data are, for the model's card, in Markdown."""

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """Writes the model folder."""


class NextTokens:
    """Windows of a corpus, and the loss on its held-out texts.

    Raises:
        TrainingError: where a text is too short for a window, or what is held out of it for a prediction.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        for name, part in corpus.valid.items():
            if part.tokens < 2 or not part.text_bytes:
                raise TrainingError(
                    f"what is held out of the text {name!r} has {part.tokens:,} tokens that write {part.text_bytes:,} "
                    "bytes; a loss on it needs two tokens and some text. Hold out more, or nothing."
                )
        self.corpus, self.tokenizer, self.key = corpus, corpus.tokenizer, corpus.key
        self.batches = WindowBatches(
            {name: corpus.tokens(shard) for name, shard in corpus.train.items()},
            {source.name: source.weight for source in recipe.corpus.source},
            recipe.model.context_length,
            recipe.training.batch_size,
            recipe.training.seed,
        )

    def draw(self, step: int) -> Batch:
        """Windows of the training texts, in the recipe's shares."""
        return self.batches.draw(step)

    def examine(self, model: GPTModel, examiner: Examiner, windows: int | None, processes: Processes) -> Scores:
        """Loss, perplexity and bits per byte of each held-out text."""
        scores: Scores = {}
        for name, shard in self.corpus.valid.items():
            found = evaluate_perplexity(
                model,
                self.corpus.tokens(shard),
                shard.text_bytes,
                windows=windows,
                batch_nats=examiner,
                share=(processes.rank, processes.world),
            )
            sums = processes.sums([found.nats, found.tokens, found.text_bytes])
            scores[name] = numbers_of(CrossEntropy(sums[0], int(sums[1]), sums[2]))
        return scores

    def describe(self, steps: int) -> str:
        """How often each text is seen."""
        seen = zip(self.corpus.train, self.batches.epochs(steps), strict=True)
        return "epochs: " + ", ".join(f"{name} {times:.1f}" for name, times in seen)

    def about(self) -> str:
        """The texts with their sizes."""
        rows = [f"| {name} | {part.tokens:,} | {part.documents:,} |" for name, part in self.corpus.train.items()]
        return "\n".join(["| text | tokens | documents |", "|---|---|---|", *rows])

    def save(self, model: GPTModel, folder: Path, dtype: str) -> None:
        """A Hugging Face GPT-2 folder with the corpus's tokenizer."""
        save_model(model, self.tokenizer, folder, dtype)


def save_model(model: GPTModel, tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    """Writes a model and its tokenizer as a Hugging Face folder."""
    special = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    save_huggingface(folder, model.config, ModelTensors(model), dtype=dtype, extra_config=special)
    tokenizer.save(folder)


def numbers_of(found: CrossEntropy) -> dict[str, float]:
    """A held-out result as the metrics hold it."""
    return {"loss": found.loss, "bits_per_byte": found.bits_per_byte, "perplexity": found.perplexity}
