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
        tolerance: a result agrees if it differs by no more than this fraction; None if it is not comparable, and
            listed only.
    """

    value: float
    source: str
    tolerance: float | None = 0.01


_PAPER = "Radford et al. 2019, table 3"
_HARNESS = "lm-evaluation-harness"
_COMPLETION = "karpathy/build-nanogpt"
_TRANSFORMERS = "transformers' documentation on perplexity"

# The columns of the paper's table 3. Its detokenizers are not published, so results may differ by 5%. Its LAMBADA text
# is formatted differently and has an unpublished stop-word filter, so those values are listed but not compared.
_COLUMNS = (
    ("lambada", "paper_perplexity", None),
    ("lambada", "paper_acc", None),
    ("cbt-cn", "acc", 0.05),
    ("cbt-ne", "acc", 0.05),
    ("wikitext2", "word_perplexity", 0.05),
    ("ptb", "word_perplexity", 0.05),
    ("enwik8", "bits_per_byte", 0.05),
    ("text8", "bits_per_character", 0.05),
    ("wikitext103", "word_perplexity", 0.05),
    ("1bw", "word_perplexity", 0.05),
)
_TABLE_3 = {
    "124M": (35.13, 45.99, 87.65, 83.4, 29.41, 65.85, 1.16, 1.17, 37.50, 75.20),
    "355M": (15.60, 55.48, 92.35, 87.1, 22.76, 47.33, 1.01, 1.06, 26.37, 55.72),
    "774M": (10.87, 60.12, 93.45, 88.0, 19.93, 40.31, 0.97, 1.02, 22.05, 44.575),
    "1558M": (8.63, 63.24, 93.30, 89.05, 18.34, 35.76, 0.93, 0.98, 17.48, 42.16),
}


def _paper(size: str) -> dict[tuple[str, str], PublishedScore]:
    found = {}
    for (task, metric, tolerance), value in zip(_COLUMNS, _TABLE_3[size], strict=True):
        share = value / 100 if metric.endswith("acc") else value  # the paper gives accuracies in percent
        found[task, metric] = PublishedScore(share, _PAPER, tolerance)
    return found


PUBLISHED_SCORES: Mapping[str, Mapping[tuple[str, str], PublishedScore]] = {
    "124M": _paper("124M")
    | {
        ("lambada", "acc"): PublishedScore(0.3256, _HARNESS),
        ("lambada", "perplexity"): PublishedScore(40.0554, _HARNESS),
        ("hellaswag", "acc"): PublishedScore(0.2892, _HARNESS),
        ("hellaswag", "acc_norm"): PublishedScore(0.3114, _HARNESS),
        ("hellaswag-completion", "acc"): PublishedScore(0.2859, _COMPLETION),
        ("hellaswag-completion", "acc_norm"): PublishedScore(0.2955, _COMPLETION),
    },
    "355M": _paper("355M"),
    "774M": _paper("774M")
    | {
        ("perplexity", "token_perplexity, stride 1024"): PublishedScore(19.44, _TRANSFORMERS),
        ("perplexity", "token_perplexity, stride 512"): PublishedScore(16.45, _TRANSFORMERS),
    },
    "1558M": _paper("1558M")
    | {
        ("hellaswag", "acc"): PublishedScore(0.4004, _HARNESS),
        ("hellaswag", "acc_norm"): PublishedScore(0.5089, _HARNESS),
        ("hellaswag-completion", "acc"): PublishedScore(0.3842, _COMPLETION),
        ("hellaswag-completion", "acc_norm"): PublishedScore(0.4893, _COMPLETION),
    },
}
"""By size, task and metric. "paper_" before a metric marks another form of the task, ", stride N" a setting."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A result and the published value that it is compared with.

    Attributes:
        metric: the metric's name.
        value: what was measured.
        published: what was published.
        agrees: whether the two differ by no more than the tolerance; None if they are not comparable.
    """

    metric: str
    value: float
    published: PublishedScore
    agrees: bool | None


def compare_published(size: str, result: TaskResult) -> list[Agreement]:
    """Return the metrics of a result for which a value of this size of GPT-2 is published."""
    known = PUBLISHED_SCORES.get(size, {})
    found = []
    for metric in result.metrics:
        with_stride = f"{metric.name}, stride {result.settings.get('stride')}"
        for name in (metric.name, with_stride, f"paper_{metric.name}"):
            published = known.get((result.task, name))
            if published is None:
                continue
            agrees = None
            if published.tolerance is not None:
                agrees = abs(metric.value - published.value) <= published.tolerance * published.value
            found.append(Agreement(metric.name, metric.value, published, agrees))
    return found
