"""Score a trained model on a file of examples: the loss of the responses, or a classifier's accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from clearhead.data.examples import pad_together
from clearhead.data.instructions import read_instructions
from clearhead.data.labelled import read_labelled
from clearhead.data.templates import NAMED, PromptTemplate
from clearhead.errors import InputError
from clearhead.evaluation.cross_entropy import CrossEntropy
from clearhead.gpt import GPT
from clearhead.losses import NOT_COUNTED
from clearhead.tokenizer import Tokenizer
from clearhead.training.classifier import Classifier
from clearhead.training.example_tasks import BATCH
from clearhead.training.objective import Objective, counted_indices

_PLAIN = "{prompt}"


@dataclass(frozen=True, slots=True)
class ResponseScore:
    """How well a model predicts the responses of a file.

    Attributes:
        cross_entropy: of the responses and the end of text after each; it has no bytes.
        examples: how many were scored.
        left_out: how many are longer than the context.
    """

    cross_entropy: CrossEntropy
    examples: int
    left_out: int


@dataclass(frozen=True, slots=True)
class LabelledScore:
    """How well a classifier predicts the classes of a file.

    Attributes:
        labels: the classes.
        confusion: how many texts of class i were given class j, int64 [classes, classes].
        loss: the mean cross-entropy of the classes, in nats.
    """

    labels: list[str]
    confusion: npt.NDArray[np.int64]
    loss: float

    @property
    def examples(self) -> int:
        """The number of texts."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of texts that were given their class."""
        return float(np.trace(self.confusion)) / self.examples


def template_of(tokenizer: Tokenizer) -> PromptTemplate:
    """Return the template of the recipe that a model was trained by, found by what was saved with its tokenizer.

    Raises:
        InputError: if the model has another chat template.
    """
    if tokenizer.chat_template is None:
        return PromptTemplate.from_recipe(_PLAIN)
    for name in (_PLAIN, *NAMED):
        if (template := PromptTemplate.from_recipe(name)).to_jinja() == tokenizer.chat_template:
            return template
    raise InputError(
        "the model was trained with a chat template of its own; give the text before a response, as in its recipe: "
        f"--template, with {{prompt}} for the prompt, or {' or '.join(NAMED)}."
    )


@torch.inference_mode()
def score_responses(
    gpt: GPT, path: Path, template: PromptTemplate, advance: Callable[[int], None] = lambda examples: None
) -> ResponseScore:
    """Compute the cross-entropy of a model on the responses to a file's prompts, in float32.

    Args:
        gpt: a model of PyTorch with its tokenizer.
        path: the file, as `instructions.read_instructions` reads it.
        template: the text before a response.
        advance: is called with the number of examples after each batch.

    Raises:
        TrainingError: if the file has another form, or no example fits into the context.
        TokenizerError: if the vocabulary cannot encode a text.
    """
    assert gpt.tokenizer is not None
    length = gpt.config.context_length
    found, left_out = read_instructions(path, gpt.tokenizer, template, length)
    objective, device = Objective(gpt.model.eval()), gpt.model.token_embedding.weight.device
    nats, tokens = 0.0, 0
    for first in range(0, len(found), BATCH):
        examples = [one.example for one in found[first : first + BATCH]]
        inputs, targets = (torch.from_numpy(array).to(device) for array in pad_together(examples, length))
        nats += objective(inputs, targets, counted_indices(targets)).item()
        tokens += int((targets != NOT_COUNTED).sum())
        advance(len(examples))
    return ResponseScore(CrossEntropy(nats, tokens, math.nan), len(found), left_out)


def score_labelled(
    classifier: Classifier, path: Path, advance: Callable[[int], None] = lambda examples: None
) -> LabelledScore:
    """Compute the accuracy, the loss and the confusion matrix of a classifier on texts with labels.

    Args:
        classifier: one that gives a text one class.
        path: the file, as `labelled.read_labelled` reads it.
        advance: is called with the number of texts after each batch.

    Raises:
        InputError: if the classifier is of another kind.
        TrainingError: if the file has another form, or a label that the classifier does not have.
        TokenizerError: if the vocabulary cannot encode a text.
    """
    if classifier.output != "probabilities":
        raise InputError(
            "accuracy is measured for models that give a text one of several classes, and this one does not; "
            "use `clearhead classify`."
        )
    assert classifier.gpt.tokenizer is not None
    labels = classifier.labels
    rows, _ = read_labelled(path, classifier.gpt.tokenizer, classifier.gpt.config.context_length, labels)
    rows.sort(key=lambda row: len(row.example.inputs))  # so that little is padded
    confusion, nats = np.zeros((len(labels), len(labels)), np.int64), 0.0
    for first in range(0, len(rows), BATCH):
        group = rows[first : first + BATCH]
        wanted = torch.tensor([labels.index(row.label) for row in group])
        logits = classifier.logits([classifier.encode(row.text) for row in group])  # [B, classes]
        nats += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        np.add.at(confusion, (wanted.numpy(), logits.argmax(dim=-1).numpy()), 1)
        advance(len(group))
    return LabelledScore(labels, confusion, nats / len(rows))
