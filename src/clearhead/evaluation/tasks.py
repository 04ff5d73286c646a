"""Evaluation tasks over local files: perplexity by sliding windows, LAMBADA, HellaSwag, WikiText-2 and BLiMP.

The tasks follow lm-evaluation-harness in how texts are put together, so that results can be compared: nothing is put
before a context, an empty context is the end-of-text token, and a sentence of BLiMP has a space before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from clearhead.errors import InputError
from clearhead.evaluation.paper_tasks import (
    evaluate_billion_words,
    evaluate_common_nouns,
    evaluate_enwik8,
    evaluate_named_entities,
    evaluate_text8,
    evaluate_treebank,
    evaluate_wikitext103,
)
from clearhead.evaluation.points import evaluate_points
from clearhead.evaluation.results import TaskResult, accuracy, perplexity
from clearhead.evaluation.task_files import (
    detokenize_wikitext,
    read_blimp,
    read_hellaswag,
    read_lambada,
)
from clearhead.evaluation.task_scoring import PairScorer, TaskOptions, score_text
from clearhead.gpt import GPT
from clearhead.utils.text import read_text


def evaluate_lambada(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Predict the last word of each passage: accuracy of greedy generation, and perplexity of the word."""
    scorer = PairScorer(gpt, options)
    passages = read_lambada(file)[: options.limit]
    pairs = [(passage[: passage.rindex(" ")], passage[passage.rindex(" ") :]) for passage in passages]
    answers = scorer.score(pairs, "LAMBADA")
    metrics = (
        accuracy("acc", [answer.greedy for answer in answers]),
        perplexity("perplexity", [-answer.logprob for answer in answers]),
    )
    return TaskResult("lambada", metrics, len(answers), scorer.settings())


def evaluate_hellaswag(gpt: GPT, file: Path, options: TaskOptions, *, with_label: bool = True) -> TaskResult:
    """Choose the ending of each context: by its log-likelihood, and by that per character ("acc_norm").

    Without the activity label this is the completion style, whose "acc_norm" is per token.
    """
    scorer = PairScorer(gpt, options)
    questions = read_hellaswag(file, with_label=with_label)[: options.limit]
    pairs = [(question.context, f" {ending}") for question in questions for ending in question.endings]
    answers = iter(scorer.score(pairs, "HellaSwag"))
    right, right_normalized = [], []
    for question in questions:
        scores = np.array([next(answers).logprob for _ in question.endings])
        lengths = [
            len(ending) if with_label else _n_tokens(scorer, question.context, ending) for ending in question.endings
        ]
        right.append(int(scores.argmax()) == question.answer)
        right_normalized.append(int((scores / np.array(lengths)).argmax()) == question.answer)
    name = "hellaswag" if with_label else "hellaswag-completion"
    metrics = accuracy("acc", right), accuracy("acc_norm", right_normalized)
    return TaskResult(name, metrics, len(questions), scorer.settings())


def _n_tokens(scorer: PairScorer, context: str, ending: str) -> int:
    encode = scorer.tokenizer.encode
    return max(1, len(encode(f"{context} {ending}")) - len(encode(context)))


def evaluate_blimp(gpt: GPT, source: Path, options: TaskOptions) -> TaskResult:
    """Compare the two sentences of each minimal pair: how often the acceptable one is more likely.

    A limit counts pairs of each paradigm.
    """
    scorer = PairScorer(gpt, options)
    pairs = read_blimp(source)
    if options.limit is not None:
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for pair in pairs:
            seen[pair.paradigm] += 1
            if seen[pair.paradigm] <= options.limit:
                kept.append(pair)
        pairs = kept
    answers = scorer.score([("", f" {one}") for pair in pairs for one in (pair.good, pair.bad)], "BLiMP")
    right = [good.logprob > bad.logprob for good, bad in zip(answers[::2], answers[1::2], strict=True)]
    by_paradigm: dict[str, list[bool]] = defaultdict(list)
    by_field: dict[str, list[bool]] = defaultdict(list)
    for pair, one in zip(pairs, right, strict=True):
        by_paradigm[pair.paradigm].append(one)
        if pair.field:
            by_field[pair.field].append(one)
    groups = {f"field {name}": (accuracy("acc", values),) for name, values in sorted(by_field.items())}
    groups |= {name: (accuracy("acc", values),) for name, values in sorted(by_paradigm.items())}
    return TaskResult("blimp", (accuracy("acc", right),), len(right), scorer.settings(), groups)


def evaluate_sliding(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of a text with overlapping windows: per token, per word, and bits per byte."""
    text = read_text(file)
    return score_text(gpt, text, text, options, "perplexity")


def evaluate_wikitext(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compute the perplexity of WikiText-2 per original word, on detokenized text.

    Words are counted in the original file, between white space, so the perplexity is per original token.
    """
    text = read_text(file)
    return score_text(gpt, detokenize_wikitext(text), text, options, "wikitext2")


def _hellaswag_completion(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    return evaluate_hellaswag(gpt, file, options, with_label=False)


TASKS: dict[str, Callable[[GPT, Path, TaskOptions], TaskResult]] = {
    "perplexity": evaluate_sliding,
    "lambada": evaluate_lambada,
    "hellaswag": evaluate_hellaswag,
    "hellaswag-completion": _hellaswag_completion,
    "wikitext2": evaluate_wikitext,
    "blimp": evaluate_blimp,
    "cbt-cn": evaluate_common_nouns,
    "cbt-ne": evaluate_named_entities,
    "ptb": evaluate_treebank,
    "wikitext103": evaluate_wikitext103,
    "1bw": evaluate_billion_words,
    "enwik8": evaluate_enwik8,
    "text8": evaluate_text8,
    "points": evaluate_points,
}
"""Every task by its name."""


def run_task(gpt: GPT, task: str, files: Sequence[Path], options: TaskOptions) -> Iterator[TaskResult]:
    """Yield the result of a task on each file.

    Raises:
        InputError: if there is no such task, or a file is malformed.
    """
    if task not in TASKS:
        raise InputError(f"there is no task named {task!r}; the tasks are {', '.join(TASKS)}.")
    for file in files:
        yield TASKS[task](gpt, file, options)
