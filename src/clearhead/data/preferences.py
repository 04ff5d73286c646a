"""Preference pairs: a prompt, the preferred response and a rejected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearhead.data.batches import Batch
from clearhead.data.examples import pad_together
from clearhead.data.instructions import Instruction, InstructionEncoder
from clearhead.data.labelled import describe_fields, refuse_none
from clearhead.data.records import read_records
from clearhead.data.templates import PromptFields, PromptTemplate
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with two responses.

    Attributes:
        chosen: the prompt with the preferred response.
        rejected: the prompt with the other one.
    """

    chosen: Instruction
    rejected: Instruction


def read_preferences(
    path: Path, tokenizer: Tokenizer, template: PromptTemplate, length: int
) -> tuple[list[Preference], int]:
    """Read prompts with a `chosen` and a `rejected` response each.

    The prompt is the field `prompt`, or `instruction` and `input`.

    Args:
        path: the file, as `records.read_records` reads it.
        tokenizer: the model's.
        template: the text before a response.
        length: the maximum number of tokens of a prompt with a response; pairs with a longer one are left out.

    Returns:
        the pairs, and the number of those left out.

    Raises:
        InputError: if the file cannot be read or is malformed.
        TrainingError: if a record lacks a field, or no pair is left.
        TokenizerError: if the vocabulary cannot encode a record.
    """
    encoder = InstructionEncoder(tokenizer, template)
    found, left_out = [], 0
    for record in read_records(path):
        values = record.values
        key = "instruction" if "instruction" in values else "prompt"
        texts = [values.get(key), values.get("input") or "", values.get("chosen"), values.get("rejected")]
        if not all(isinstance(text, str) for text in texts) or not texts[2] or not texts[3]:
            raise TrainingError(
                f"{record.where} needs a prompt and two responses, chosen and rejected, all texts; "
                f"{describe_fields(values, key, *(['input'] if texts[1] else []), 'chosen', 'rejected')}."
            )
        fields = PromptFields(str(texts[0]), str(texts[1]))
        pair = Preference(encoder(record, fields, str(texts[2])), encoder(record, fields, str(texts[3])))
        if max(pair.chosen.tokens, pair.rejected.tokens) > length:
            left_out += 1
        else:
            found.append(pair)
    refuse_none(path, len(found), left_out, length)
    return found, left_out


def pair_batch(pairs: Sequence[Preference], context_length: int) -> Batch:
    """Return pairs as rows of one batch: the first half of a row is the chosen text, the second the rejected one.

    Args:
        pairs: at least one.
        context_length: the maximum number of tokens of the model.

    Returns:
        inputs and targets, int64 [B, 2 T] each.
    """
    examples = [pair.chosen.example for pair in pairs] + [pair.rejected.example for pair in pairs]
    inputs, targets = pad_together(examples, context_length)  # [2 B, T]
    count = len(pairs)
    return np.hstack([inputs[:count], inputs[count:]]), np.hstack([targets[:count], targets[count:]])
