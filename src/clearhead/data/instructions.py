"""Examples of prompts and responses, whose loss counts on the responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clearhead.data.examples import Example
from clearhead.data.labelled import describe_fields, encode_field
from clearhead.data.records import Record, read_records
from clearhead.errors import TrainingError
from clearhead.losses import NOT_COUNTED
from clearhead.tokenizer import Tokenizer


def read_instructions(path: Path, tokenizer: Tokenizer, template: str, length: int) -> tuple[list[Example], int]:
    """Read prompts and responses. Each token of the response and the end of text after it count.

    The fields are `prompt` and `response`, or those of the Alpaca data and the book's chapter 7: `instruction`,
    `input` (which may be empty) and `output`.

    Args:
        path: the file, as `records.read_records` reads it.
        tokenizer: the model's.
        template: the text before the response; `{prompt}` in it is replaced by the prompt.
        length: the maximum number of tokens of an example; longer ones are left out.

    Returns:
        the examples, and the number of those left out.

    Raises:
        TrainingError: if a record lacks a field or has nothing before its response, or no example is left.
    """
    examples, left_out = [], 0
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for record in read_records(path):
        prompt, response = _prompt_and_response(record)
        before = encode_field(tokenizer, template.replace("{prompt}", prompt), record)
        ids = np.array([*before, *encode_field(tokenizer, response, record), *end], np.int64)
        if not before:
            raise TrainingError(
                f"{record.where} has an empty prompt, so that there is nothing before the response; remove it, or "
                "set a template with more in it than {prompt}."
            )
        if len(ids) - 1 > length:
            left_out += 1
            continue
        targets = ids[1:].copy()
        targets[: len(before) - 1] = NOT_COUNTED
        examples.append(Example(ids[:-1], targets))
    if not examples and left_out:
        raise TrainingError(
            f"none of the {left_out:,} examples of {path} fits into {length:,} tokens; raise context_length or give "
            "shorter ones."
        )
    if not examples:
        raise TrainingError(f"{path} contains no example; each of its lines is a JSON object.")
    return examples, left_out


def _prompt_and_response(record: Record) -> tuple[str, str]:
    values = record.values
    if "instruction" in values and "output" in values:
        keys = ("instruction", "output")
        more = values.get("input") or ""
        prompt = f"{values['instruction']}\n\n{more}" if more else values["instruction"]
        response = values["output"]
    else:
        keys = ("prompt", "response")
        prompt, response = values.get("prompt"), values.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str) or not response:
        raise TrainingError(
            f"{record.where} needs a prompt and a response, two texts (or instruction, input and output); "
            f"{describe_fields(values, *keys)}."
        )
    return prompt, response
