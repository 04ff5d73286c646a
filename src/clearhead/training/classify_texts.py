"""Classify many texts in batches of similar length, with a row for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from clearhead.errors import InputError, TokenizerError
from clearhead.evaluation.surprisal import InputText, Row
from clearhead.training.classifier import Classifier

BATCH = 16
"""Texts that are classified together."""

_GROUP = 16 * BATCH  # texts that are sorted by length, so that little is padded


def classify_texts(classifier: Classifier, texts: Iterable[InputText]) -> Iterator[list[Row]]:
    """Yield one row for each text, in order.

    A row has the text's id, its label (several with commas, empty for none or a regression), and a column for each
    class: `probability_` or, for a regression, `value_` and its name.

    Raises:
        InputError: if a text is empty; the message gives its location.
        TokenizerError: if a text cannot be encoded.
    """
    prefix = "value_" if classifier.output == "value" else "probability_"
    remaining = iter(texts)
    while group := list(itertools.islice(remaining, _GROUP)):
        encoded = [_encode(classifier, text) for text in group]
        by_length = sorted(range(len(group)), key=lambda index: len(encoded[index]))
        found: dict[int, dict[str, float]] = {}
        for first in range(0, len(group), BATCH):
            indices = by_length[first : first + BATCH]
            found |= zip(indices, classifier.probabilities_of([encoded[index] for index in indices]), strict=True)
        for index, text in enumerate(group):
            label = ", ".join(classifier.likely(found[index]))
            yield [{"id": text.id, "label": label} | {prefix + name: found[index][name] for name in classifier.labels}]


def _encode(classifier: Classifier, text: InputText) -> list[int]:
    try:
        return classifier.encode(text.text)
    except (InputError, TokenizerError) as error:
        raise type(error)(f"in {text.where}: {error}") from None
