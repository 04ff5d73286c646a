"""A GPT-2 that classifies texts: saved in the form of `transformers`, loaded and run.

The folder is one of Hugging Face's `GPT2ForSequenceClassification`: the model without its head, and `score.weight`
[classes, C], which reads the class from the last token's features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from torch import Tensor

from clearhead.errors import InputError, WeightsError
from clearhead.gpt import GPT
from clearhead.loading import load
from clearhead.model import GPTModel
from clearhead.model_weights import ModelTensors
from clearhead.tokenizer import Tokenizer
from clearhead.training.chat_template import add_tokenizer_setting
from clearhead.training.run_folder import resume_advice
from clearhead.utils.atomic import staged_files
from clearhead.utils.json_files import read_json_file
from clearhead.weights import Source, save_huggingface
from clearhead.weights import open as open_weights

_WEIGHTS = "model.safetensors"
_HEAD, _BIAS = "score.weight", "score.bias"


def save_classifier(model: GPTModel, tokenizer: Tokenizer, labels: Sequence[str], folder: Path, dtype: str) -> None:
    """Write a classifier's folder.

    Args:
        model: a model whose head is the classes' head, [classes, C].
        tokenizer: the model's tokenizer.
        labels: the classes in the head's order.
        folder: is created if it does not exist.
        dtype: the dtype of the stored weights.

    Raises:
        WeightsError: if the folder cannot be written.
    """
    body = {name: values for name, values in ModelTensors(model).items() if name != "head.weight"}
    numbers = range(len(labels))
    extra = {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(n): labels[n] for n in numbers},
        "label2id": {labels[n]: n for n in numbers},
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        # Pads shorter texts of a batch: transformers reads the class from the last other token. Without a token that no
        # text contains there is none, and transformers refuses batches.
        "pad_token_id": tokenizer.end_of_text,
    }
    config = model.config.replace(tie_weights=True)  # there is no head over the vocabulary to store
    try:
        with staged_files(folder, last=["config.json"]) as staged:
            save_huggingface(staged, config, body, dtype=dtype, extra_config=extra, shard_bytes=1 << 62)
            stored = load_torch(staged / _WEIGHTS)
            head = model.head.weight.detach().cpu().to(next(iter(stored.values())).dtype)
            save_torch({**stored, _HEAD: head.contiguous()}, staged / _WEIGHTS, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:  # the library raises its own error if the disk is full
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"{folder} could not be written ({reason}). What was there before is untouched: make room or correct "
            f"the cause, and {resume_advice(folder)}."
        ) from None
    tokenizer.save(folder)
    names = [name for name, token in tokenizer.special_tokens.items() if token == tokenizer.end_of_text]
    if names:  # transformers' pipeline pads the texts of a batch with it
        add_tokenizer_setting(folder, "pad_token", names[0])


class Classifier:
    """A GPT-2 that classifies a text.

    Args:
        gpt: the model and its tokenizer; its own head is not used.
        head: the classes' head, [classes, C].
        labels: their names.
        problem_type: how the head's outputs are meant; None if the config does not say.
        padding: the token that pads shorter texts of a batch; the class is read from the last other token.
        bias: of the head, [classes]; transformers has none.

    Attributes:
        labels: as given.
        pad_to: if set, texts are filled with the end of text to this number of tokens, and the class is read from the
            last of them, as in the book's chapter 6.
        output: "probabilities", which sum to one over the classes; "independent", one probability for each class; or
            "value", a number that is not a probability.
    """

    def __init__(
        self,
        gpt: GPT,
        head: Tensor,
        labels: Sequence[str],
        *,
        problem_type: str | None = None,
        padding: int | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.gpt, self.head, self.labels, self.padding = gpt, head, list(labels), padding
        self.bias, self.pad_to = bias, 0
        self.output: Literal["probabilities", "independent", "value"] = "probabilities"
        # The same decision as in transformers' text-classification pipeline.
        if problem_type == "regression":
            self.output = "value"
        elif problem_type == "multi_label_classification" or len(self.labels) == 1:
            self.output = "independent"

    def probabilities(self, text: str) -> dict[str, float]:
        """Return the probability (or value) of each class, the highest first.

        Of a text longer than the context, only the beginning is read.

        Raises:
            TokenizerError: if the text cannot be encoded.
            InputError: if it is empty.
        """
        return self.probabilities_of([self.encode(text)])[0]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that the model reads.

        Raises:
            TokenizerError: if the text cannot be encoded.
            InputError: if it is empty.
        """
        assert self.gpt.tokenizer is not None
        ids = self.gpt.tokenizer.encode(text)[: self.gpt.config.context_length]
        if not ids:
            raise InputError("the text to classify is empty; give some text.")
        return self._padded(ids) if self.pad_to else ids

    @torch.inference_mode()
    def logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return the head's outputs for a batch of texts, [B, classes].

        Args:
            texts: the tokens of each, as `encode` returns them. Shorter ones are padded at the end, where no token
                before it sees the padding: alone and in a batch, the numbers are equal to rounding.
        """
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True)  # [B, T]
        features = self.gpt.model.forward_hidden(rows)  # [B, T, C]
        last = features[torch.arange(len(texts)), torch.tensor([self._last(ids) for ids in texts])]  # [B, C]
        logits = last @ self.head.T  # [B, classes]
        return logits if self.bias is None else logits + self.bias

    def probabilities_of(self, texts: Sequence[Sequence[int]]) -> list[dict[str, float]]:
        """Return the probability (or value) of each class for each text of a batch, the highest first.

        Args:
            texts: as `logits` takes them.
        """
        logits = self.logits(texts)
        if self.output == "probabilities":
            logits = logits.softmax(dim=-1)
        elif self.output == "independent":
            logits = logits.sigmoid()
        return [dict(sorted(zip(self.labels, row, strict=True), key=lambda pair: -pair[1])) for row in logits.tolist()]

    def likely(self, found: dict[str, float]) -> list[str]:
        """Return the classes to name: the most likely one, those of 50% or more if they are independent, or none."""
        if self.output == "value":
            return []
        if self.output == "independent":
            return [label for label, probability in found.items() if probability >= 0.5]
        return [next(iter(found))]

    def _last(self, ids: Sequence[int]) -> int:
        """Return the position that the class is read from."""
        if self.pad_to:
            return self.pad_to - 1
        return max((index for index, token in enumerate(ids) if token != self.padding), default=0)

    def _padded(self, ids: list[int]) -> list[int]:
        """Return exactly `pad_to` tokens: a longer text is cut, a shorter one padded with the end-of-text token."""
        most = self.gpt.config.context_length
        if not 1 <= self.pad_to <= most:
            raise InputError(f"texts cannot be filled to {self.pad_to:,} tokens; give a number from 1 to {most:,}.")
        if (end := self.gpt.end_of_text) is None:
            raise InputError("texts are filled with the end of text, and the tokenizer has none.")
        return (ids + [end] * self.pad_to)[: self.pad_to]


def is_classifier(source: Source) -> bool:
    """Return whether weights have the head of a classifier."""
    return _HEAD in source.tensors


def load_classifier(folder: str | os.PathLike[str], labels: Sequence[str] | None = None) -> Classifier:
    """Open a classifier: a folder of `save_classifier` or `transformers`, or a file of the book's chapter 6.

    Args:
        folder: the folder, or a file of weights.
        labels: the classes' names in the head's order; by default those of `config.json`, or LABEL_0 and so on.

    Raises:
        WeightsError: if it contains no classifier, or is broken.
        InputError: if the number of labels is wrong.
    """
    path = Path(folder)
    source = open_weights(path)
    if not is_classifier(source):
        raise WeightsError(
            f'{path} is no classifier: it has no tensor {_HEAD}; train one with kind = "classes", or give the folder '
            "of a GPT2ForSequenceClassification, or the file of a classifier of the book's chapter 6."
        )
    head = torch.from_numpy(source.read(_HEAD).astype(np.float32))  # [classes, C]
    if head.ndim != 2 or head.shape[1] != source.config.emb_dim:
        shape = list(head.shape)
        raise WeightsError(f"{_HEAD} in {source.path} has shape {shape}; expected [classes, {source.config.emb_dim}].")
    bias = torch.from_numpy(source.read(_BIAS).astype(np.float32)) if _BIAS in source.tensors else None
    if bias is not None and bias.shape != head.shape[:1]:
        raise WeightsError(f"{_BIAS} in {source.path} has shape {list(bias.shape)}; expected [{len(head)}].")
    settings = _read_settings(source)
    gpt = load(path, backend="torch")
    if gpt.tokenizer is None:
        raise WeightsError(f"{path} has no tokenizer; put its files (tokenizer.json) next to the weights.")
    padding = settings.get("pad_token_id")
    return Classifier(
        gpt,
        head,
        _labels(settings, len(head), source.folder) if labels is None else _checked(labels, len(head)),
        problem_type=settings.get("problem_type"),
        padding=padding if isinstance(padding, int) else None,
        bias=bias,
    )


def _checked(labels: Sequence[str], count: int) -> Sequence[str]:
    if len(labels) != count or len(set(labels)) < count:
        raise InputError(f"the classes are named {', '.join(labels)}; give {count} different names.")
    return labels


def _read_settings(source: Source) -> dict[str, Any]:
    path = source.folder / "config.json"
    if source.layout != "huggingface" and not path.exists():
        return {}  # a file of weights without a folder
    return read_json_file(path, dict[str, Any], WeightsError, "a classifier needs it: download it again")


def _labels(settings: Mapping[str, Any], count: int, folder: Path) -> list[str]:
    """Return the classes' names; transformers omits names that are the default, LABEL_0 and so on."""
    named = settings.get("id2label")
    if named is None:
        return [f"LABEL_{n}" for n in range(count)]
    if not isinstance(named, dict) or set(named) != {str(n) for n in range(count)}:
        raise WeightsError(
            f"id2label in {folder / 'config.json'} does not name the {count} classes of {_HEAD}; "
            f"give it the keys 0 to {count - 1}."
        )
    labels = [str(named[str(n)]) for n in range(count)]
    if len(set(labels)) < count:
        raise WeightsError(f"id2label in {folder / 'config.json'} gives two classes the same name; rename one.")
    return labels
