"""A GPT-2 that names a class: saved as `transformers` has it, opened again, and asked.

The folder is one of Hugging Face's `GPT2ForSequenceClassification`: the model without its head, and `score.weight`
[classes, C], which reads the class from the last token's vector.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from torch import Tensor

from clearhead.errors import InputError, WeightsError
from clearhead.gpt import GPT, load
from clearhead.inference.torch_weights import ModelTensors
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.weights import save_huggingface

_WEIGHTS = "model.safetensors"
_SCORE = "score.weight"


def save_classifier(model: GPTModel, tokenizer: Tokenizer, labels: Sequence[str], folder: Path, dtype: str) -> None:
    """Writes a classifier's folder.

    Args:
        model: its head is the classes' [classes, C].
        tokenizer: its own.
        labels: the classes in the head's order.
        folder: made where it is not there.
        dtype: of the stored weights.

    Raises:
        WeightsError: where it cannot be written.
    """
    body = {name: values for name, values in ModelTensors(model).items() if name != "head.weight"}
    numbers = range(len(labels))
    # Behind the end of a shorter text of a batch stands this token; transformers looks for the last other one.
    padding = tokenizer.end_of_text if tokenizer.end_of_text is not None else 0
    extra = {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(n): labels[n] for n in numbers},
        "label2id": {labels[n]: n for n in numbers},
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "pad_token_id": padding,
    }
    config = model.config.replace(tie_weights=True)  # there is no head over the vocabulary to be stored
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
            without, whole = Path(beside) / "model", Path(beside) / _WEIGHTS
            save_huggingface(without, config, body, dtype=dtype, extra_config=extra, shard_bytes=1 << 62)
            stored = load_torch(without / _WEIGHTS)
            head = model.head.weight.detach().cpu().to(next(iter(stored.values())).dtype)
            stored = {f"transformer.{name}": values for name, values in stored.items()}
            save_torch({**stored, _SCORE: head.contiguous()}, whole, metadata={"format": "pt"})
            (without / "config.json").replace(folder / "config.json")
            whole.replace(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:  # the library has an error of its own where a disk is full
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"{folder} could not be written ({reason}). What was there before is untouched: make room or put right "
            "what is wrong, and go on with --resume."
        ) from None
    tokenizer.save(folder)


class Classifier:
    """A GPT-2 that names the class of a text.

    Args:
        gpt: the model and its tokenizer; its own head is not used.
        score: the classes' head, [classes, C].
        labels: their names.
    """

    def __init__(self, gpt: GPT, score: Tensor, labels: Sequence[str]) -> None:
        self.gpt, self.score, self.labels = gpt, score, list(labels)

    @torch.inference_mode()
    def probabilities(self, text: str) -> dict[str, float]:
        """How likely each class is, the likeliest first; of a text longer than the context, the beginning counts.

        Raises:
            TokenizerError: where the text cannot be encoded; InputError where it is empty.
        """
        assert self.gpt.tokenizer is not None
        ids = self.gpt.tokenizer.encode(text)[: self.gpt.config.context_length]
        if not ids:
            raise InputError("there is no text to name the class of; give some.")
        last = self.gpt.model.hidden(torch.tensor([ids]))[0, -1]  # [C]
        found = (self.score @ last).softmax(dim=-1).tolist()
        return dict(sorted(zip(self.labels, found, strict=True), key=lambda pair: -pair[1]))


def load_classifier(folder: str | os.PathLike[str]) -> Classifier:
    """Opens a classifier's folder.

    Raises:
        WeightsError: where it is none, or is broken.
    """
    path = Path(folder)
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        score = load_torch(path / _WEIGHTS)[_SCORE].float()
        labels = [values["id2label"][str(n)] for n in range(len(score))]
    except (OSError, ValueError, KeyError, SafetensorError):
        raise WeightsError(
            f'{path} is no classifier: it has no {_SCORE} or no names of classes; train one with kind = "classes".'
        ) from None
    gpt = load(path, backend="torch")
    if gpt.tokenizer is None:
        raise WeightsError(f"{path} has no tokenizer; put its files (tokenizer.json) beside the weights.")
    return Classifier(gpt, score, labels)
