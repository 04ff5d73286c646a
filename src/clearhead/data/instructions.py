"""Examples of prompts and responses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearhead.data.examples import Example
from clearhead.data.labelled import describe_fields, encode_field, refuse_none
from clearhead.data.records import Record, read_records
from clearhead.data.templates import PromptFields, PromptTemplate
from clearhead.errors import TokenizerError, TrainingError
from clearhead.losses import NOT_COUNTED
from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Instruction:
    """A prompt with its response.

    Attributes:
        example: the tokens of both, and the targets.
        prompt_ids: the tokens before the response.
        prompt: the text before the response.
        response: the response.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    prompt: str
    response: str

    @property
    def tokens(self) -> int:
        """The number of tokens that the model reads."""
        return len(self.example.inputs)


def read_instructions(
    path: Path, tokenizer: Tokenizer, template: PromptTemplate, length: int, *, all_tokens: bool = False
) -> tuple[list[Instruction], int]:
    """Read prompts and responses. Each token of the response and the end of text after it count.

    The fields are `prompt` and `response`, or those of the Alpaca data and the book's chapter 7: `instruction`,
    `input` (which may be empty) and `output`.

    Args:
        path: the file, as `records.read_records` reads it.
        tokenizer: the model's.
        template: the text before the response.
        length: the maximum number of tokens of an example; longer ones are left out.
        all_tokens: whether the tokens of the prompt count too.

    Returns:
        the examples, and the number of those left out.

    Raises:
        InputError: if the file cannot be read or is malformed.
        TrainingError: if a record lacks a field or has nothing before its response, or no example is left.
        TokenizerError: if the vocabulary cannot encode a record.
    """
    found, left_out = [], 0
    encoder = InstructionEncoder(tokenizer, template, all_tokens)
    for record in read_records(path):
        fields, response = _fields_and_response(record)
        one = encoder(record, fields, response)
        if one.tokens > length:
            left_out += 1
        else:
            found.append(one)
    refuse_none(path, len(found), left_out, length)
    return found, left_out


@dataclass(frozen=True, slots=True)
class InstructionEncoder:
    """Encode a prompt and a response as an example.

    Attributes:
        tokenizer: the model's.
        template: the text before the response.
        all_tokens: whether the tokens of the prompt count too.
    """

    tokenizer: Tokenizer
    template: PromptTemplate
    all_tokens: bool = False

    def __call__(self, record: Record, fields: PromptFields, response: str) -> Instruction:
        """Return the example for a prompt and a response.

        Raises:
            TrainingError: if nothing is before the response.
            TokenizerError: if the vocabulary cannot encode a text; the message gives the record's location.
        """
        end = [] if self.tokenizer.end_of_text is None else [self.tokenizer.end_of_text]
        try:
            before = self.template.encode(fields, self.tokenizer)
        except TokenizerError as error:
            raise TokenizerError(f"in {record.where}: {error}") from None
        ids = np.array([*before, *encode_field(self.tokenizer, response, record), *end], np.int64)
        if not before:
            raise TrainingError(
                f"{record.where} has an empty prompt, so that there is nothing before the response; remove it, or "
                "set a template with more in it than {prompt}."
            )
        targets = ids[1:].copy()
        if not self.all_tokens:
            targets[: len(before) - 1] = NOT_COUNTED
        return Instruction(Example(ids[:-1], targets), tuple(before), self.template.fill(fields), response)


def _fields_and_response(record: Record) -> tuple[PromptFields, str]:
    values = record.values
    keys = ("instruction", "output") if "instruction" in values and "output" in values else ("prompt", "response")
    instruction, response = values.get(keys[0]), values.get(keys[1])
    more = values.get("input") or "" if keys[0] == "instruction" else ""
    if not all(isinstance(value, str) for value in (instruction, response, more)) or not response:
        raise TrainingError(
            f"{record.where} needs a prompt and a response, two texts (or instruction, input and output); "
            f"{describe_fields(values, *keys, *(['input'] if more else []))}."
        )
    return PromptFields(str(instruction), str(more)), str(response)
