"""What others measured with OpenAI's models, to compare results with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clearhead.evaluation.results import TaskResult


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """A published value.

    Attributes:
        value: an accuracy is a fraction.
        source: where it was published.
        tolerance: a result agrees if it differs by no more than this fraction.
    """

    value: float
    source: str
    tolerance: float = 0.01


_PAPER = "Radford et al. 2019, table 3"
_HARNESS = "lm-evaluation-harness"
_COMPLETION = "karpathy/build-nanogpt"


def _paper(value: float) -> PublishedScore:
    # The paper does not publish its detokenizers, nor its stop-word filter for LAMBADA.
    return PublishedScore(value, _PAPER, tolerance=0.05)


PUBLISHED_SCORES: Mapping[str, Mapping[tuple[str, str], PublishedScore]] = {
    "124M": {
        ("lambada", "acc"): PublishedScore(0.3256, _HARNESS),
        ("lambada", "perplexity"): PublishedScore(40.0554, _HARNESS),
        ("hellaswag", "acc"): PublishedScore(0.2892, _HARNESS),
        ("hellaswag", "acc_norm"): PublishedScore(0.3114, _HARNESS),
        ("hellaswag-completion", "acc"): PublishedScore(0.2859, _COMPLETION),
        ("hellaswag-completion", "acc_norm"): PublishedScore(0.2955, _COMPLETION),
        ("wikitext2", "word_perplexity"): _paper(29.41),
    },
    "355M": {("wikitext2", "word_perplexity"): _paper(22.76)},
    "774M": {("wikitext2", "word_perplexity"): _paper(19.93)},
    "1558M": {
        ("hellaswag", "acc"): PublishedScore(0.4004, _HARNESS),
        ("hellaswag", "acc_norm"): PublishedScore(0.5089, _HARNESS),
        ("hellaswag-completion", "acc"): PublishedScore(0.3842, _COMPLETION),
        ("hellaswag-completion", "acc_norm"): PublishedScore(0.4893, _COMPLETION),
        ("wikitext2", "word_perplexity"): _paper(18.34),
    },
}
"""By size, task and metric."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A result beside a published value.

    Attributes:
        metric: the metric's name.
        value: what was measured.
        published: what was published.
        agrees: whether the two differ by no more than the tolerance.
    """

    metric: str
    value: float
    published: PublishedScore
    agrees: bool


def compare_published(size: str, result: TaskResult) -> list[Agreement]:
    """Return the metrics of a result for which a value of this size of GPT-2 is published."""
    found = []
    for metric in result.metrics:
        published = PUBLISHED_SCORES.get(size, {}).get((result.task, metric.name))
        if published is not None:
            agrees = abs(metric.value - published.value) <= published.tolerance * published.value
            found.append(Agreement(metric.name, metric.value, published, agrees))
    return found
