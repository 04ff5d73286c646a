"""Examples from JSON lines: read, made tokens, and put together into batches by the step alone."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from clearhead.data.batches import Batch
from clearhead.errors import TokenizerError, TrainingError
from clearhead.losses import NOT_COUNTED
from clearhead.tokenizer import Tokenizer

_LENGTHS = 32  # batches are as long as their longest example, rounded up to a multiple: few shapes, little padding


@dataclass(frozen=True, slots=True)
class Example:
    """One example: tokens, and for each the target that follows it.

    Attributes:
        inputs: ids [T].
        targets: ids [T]; -100 where nothing is to be learned.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


class ExampleBatches:
    """Batches of examples. Each epoch has an order of its own, drawn from the seed and the epoch's number.

    Args:
        examples: at least one.
        batch_size: examples in a batch.
        seed: of the orders.
        context_length: the most tokens that the model takes.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int, context_length: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.context_length = context_length
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of a step, int64 [B, T] twice."""
        first = step * self.batch_size
        rows = [self.examples[self._which(first + n)] for n in range(self.batch_size)]
        return together(rows, self.context_length)

    def _which(self, index: int) -> int:
        epoch, nth = divmod(index, len(self.examples))
        if epoch not in self._orders:
            random = np.random.Generator(np.random.PCG64([self.seed, 0x6578, epoch]))
            # A batch reaches into the next epoch at most.
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = random.permutation(len(self.examples))
        return int(self._orders[epoch][nth])


def together(examples: Sequence[Example], context_length: int) -> Batch:
    """Examples as rows of one batch; behind the end of each stand tokens that nobody learns from.

    Args:
        examples: none of them longer than the context.
        context_length: the most tokens that the model takes.

    Returns:
        inputs and targets, int64 [B, T] each.
    """
    longest = max(len(example.inputs) for example in examples)
    length = min(-(-longest // _LENGTHS) * _LENGTHS, context_length)
    inputs = np.zeros((len(examples), length), np.int64)
    targets = np.full((len(examples), length), NOT_COUNTED, np.int64)
    for row, example in enumerate(examples):
        inputs[row, : len(example.inputs)] = example.inputs
        targets[row, : len(example.targets)] = example.targets
    return inputs, targets


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with the numbers of their lines; blank lines are passed over.

    Raises:
        TrainingError: where the file cannot be read, or a line is no JSON object; the message gives its number.
    """
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8"), 1):
                if line.strip():
                    values = json.loads(line)
                    if not isinstance(values, dict):
                        raise TrainingError(f"line {number} of {path} is no JSON object; each line is one example.")
                    yield number, values
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"line {number} of {path} is not JSON ({error}); each line is one example.") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file of the recipe's.

    Raises:
        TrainingError: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TrainingError(
            f"{path} could not be read ({error.strerror}); point --data at the folder that has the recipe's files."
        ) from None


def digest_of(path: Path) -> str:
    """The file's SHA-256.

    Raises:
        TrainingError: where it cannot be read.
    """
    with opened(path) as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def instructions(path: Path, tokenizer: Tokenizer, template: str, length: int) -> tuple[list[Example], int]:
    """Prompts and responses; what counts is each token of the response and the end of text after it.

    The keys are `prompt` and `response`, or those of the Alpaca data and the book's chapter 7: `instruction`,
    `input` (which may be empty) and `output`.

    Args:
        path: of JSON lines.
        tokenizer: the model's.
        template: `{prompt}` in it stands for the prompt.
        length: the most tokens of an example; longer ones are left out.

    Returns:
        the examples, and how many were left out.

    Raises:
        TrainingError: where a line lacks a key or has nothing before its response, or nothing is left.
    """
    examples, left_out = [], 0
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for number, values in read_json_lines(path):
        prompt, response = _pair(values, number, path)
        before = _encoded(tokenizer, template.replace("{prompt}", prompt), number, path)
        ids = np.array([*before, *_encoded(tokenizer, response, number, path), *end], np.int64)
        if not before:
            raise TrainingError(
                f"line {number} of {path} has an empty prompt, so that nothing stands before the response; remove the "
                "line, or set a template with more in it than {prompt}."
            )
        if len(ids) - 1 > length:
            left_out += 1
            continue
        targets = ids[1:].copy()
        targets[: len(before) - 1] = NOT_COUNTED
        examples.append(Example(ids[:-1], targets))
    if not examples:
        raise _nothing(path, left_out, length)
    return examples, left_out


def _pair(values: dict[str, Any], number: int, path: Path) -> tuple[str, str]:
    if "instruction" in values and "output" in values:
        more = values.get("input") or ""
        prompt: Any = f"{values['instruction']}\n\n{more}" if more else values["instruction"]
        response: Any = values["output"]
    else:
        prompt, response = values.get("prompt"), values.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str) or not response:
        keys = ("instruction", "output") if "instruction" in values and "output" in values else ("prompt", "response")
        raise TrainingError(
            f"line {number} of {path} needs a prompt and a response, two texts (or instruction, input and output); "
            f"{_found(values, *keys)}."
        )
    return prompt, response


def _found(values: dict[str, Any], *keys: str) -> str:
    """What a line has for some keys, in words: `text is missing, label is null`."""

    def state(key: str) -> str:
        if key not in values:
            return "missing"
        value = values[key]
        if isinstance(value, str):
            return "a text" if value else "empty"
        return json.dumps(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"

    return ", ".join(f"{key} is {state(key)}" for key in keys)


def _encoded(tokenizer: Tokenizer, text: str, number: int, path: Path) -> list[int]:
    try:
        return tokenizer.encode(text)
    except TokenizerError as error:
        raise TokenizerError(f"in line {number} of {path}: {error}") from None


def classified(
    path: Path, tokenizer: Tokenizer, length: int, labels: Sequence[str] | None
) -> tuple[list[Example], list[str]]:
    """Texts with their classes; what counts is the last token, whose target is the class's number.

    A text that is longer is cut at its end, as in the book's chapter 6.

    Args:
        path: of JSON lines with `text` and `label`.
        tokenizer: the model's.
        length: the most tokens of an example.
        labels: the classes, in their order; None to take those of the file, sorted.

    Returns:
        the examples and the classes.

    Raises:
        TrainingError: where a line lacks a key, has no token, or has a class that is not among `labels`.
    """
    rows = []
    for number, values in read_json_lines(path):
        text, label = values.get("text"), values.get("label")
        if not isinstance(text, str) or not text or not isinstance(label, (str, int)):
            raise TrainingError(
                f"line {number} of {path} needs a text that is not empty and a label, a text or a whole number; "
                f"{_found(values, 'text', 'label')}."
            )
        if labels is not None and str(label) not in labels:
            raise TrainingError(
                f"line {number} of {path} has the label {label!r}, which no example to learn from has; those are "
                f"{', '.join(labels)}."
            )
        ids = np.array(_encoded(tokenizer, text, number, path)[:length], np.int64)
        if not len(ids):
            raise TrainingError(f"the text in line {number} of {path} has no tokens; remove the line.")
        rows.append((ids, str(label)))
    known = sorted({label for _, label in rows}) if labels is None else list(labels)
    if len(known) < 2:
        raise TrainingError(f"{path} has {len(known)} label{'s' if not known else ''}; classes need two at least.")
    examples = []
    for ids, label in rows:
        targets = np.full(len(ids), NOT_COUNTED, np.int64)
        targets[-1] = known.index(label)
        examples.append(Example(ids, targets))
    return examples, known


def _nothing(path: Path, left_out: int, length: int) -> TrainingError:
    if left_out:
        return TrainingError(
            f"none of the {left_out:,} examples of {path} fits into {length:,} tokens; raise context_length or give "
            "shorter ones."
        )
    return TrainingError(f"{path} has no example in it; each of its lines is a JSON object.")
