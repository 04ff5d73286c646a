"""Write a model with its tokenizer and settings as one Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.tokenizer import Tokenizer
from clearhead.utils.atomic import write_text
from clearhead.weights.schemes.huggingface import save_huggingface


@dataclass(frozen=True)
class FolderContents:
    """What the folder contains in addition to the weights.

    Attributes:
        tokenizer: its files are written; None if there is none.
        end_of_text: the id that begins and ends a text; None if there is none.
        end_ids: all ids that end a text, if there are several.
        generation_config: the contents of `generation_config.json`; not written if empty.
    """

    tokenizer: Tokenizer | None
    end_of_text: int | None
    end_ids: Sequence[int] = ()
    generation_config: Mapping[str, Any] = field(default_factory=dict)


def save_model(
    folder: Path, config: GPTConfig, tensors: Mapping[str, npt.NDArray[Any]], contents: FolderContents, dtype: str
) -> None:
    """Write `config.json`, `model.safetensors`, the tokenizer and `generation_config.json`.

    Args:
        folder: created if it does not exist; other files in it are left alone.
        config: the model's shape.
        tensors: by canonical name.
        contents: what else is written.
        dtype: how the weights are stored: float32, bfloat16 or float16.

    Raises:
        WeightsError, TokenizerError: if the folder cannot be written, or the dtype is unknown.
    """
    end = contents.end_of_text
    # Written even if there is none: transformers would assume 50256, beyond the end of a small vocabulary.
    special = {"bos_token_id": end, "eos_token_id": list(contents.end_ids) or end}
    save_huggingface(folder, config, tensors, dtype=dtype, extra_config=special)
    if contents.tokenizer is not None:
        contents.tokenizer.save(folder)
    if contents.generation_config:
        write_text(folder / "generation_config.json", json.dumps(contents.generation_config, indent=2) + "\n")
