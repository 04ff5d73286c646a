"""Single published values of a model, each of which passes or fails.

A file of points is a JSON object with any of these; the tests of lm-evaluation-harness have such values for gpt2:

    {"loglikelihood_nats": [{"context": "Hello", "continuation": " World", "value": -8.682}],
     "greedy_flags": [{"context": "...", "continuation": "...", "is_greedy": false}],
     "rolling": {"text": "...", "with_context_1024": [-4.96, ...], "with_context_5": [-4.96, ...]}}

A rolling value is a token's log-probability in disjoint windows of the context in its name, the first one after the
end-of-text token. Other keys are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clearhead.errors import InputError
from clearhead.evaluation.results import Metric, TaskResult, accuracy
from clearhead.evaluation.task_scoring import PairScorer, TaskOptions
from clearhead.gpt import GPT
from clearhead.inference.scoring import ScoreRequest, score_sequences, windows
from clearhead.utils.json_files import read_json_file

TOLERANCE = 1e-3
"""A value passes if it differs by no more than this fraction, as in the harness's own tests."""

_ROLLING = "with_context_"


def evaluate_points(gpt: GPT, file: Path, options: TaskOptions) -> TaskResult:
    """Compare single log-likelihoods, greedy flags and rolling values with those in a file; each passes or fails.

    Raises:
        InputError: if the file is malformed.
    """
    data = _read(file)
    groups: dict[str, tuple[Metric, ...]] = {}
    for name, found, expected in [*_pairs(gpt, data, options, file), *_rolling(gpt, data, file)]:
        passes = math.isclose(found, expected, rel_tol=TOLERANCE)
        groups[name] = Metric("value", found), Metric("published", expected), Metric("passes", float(passes))
    if not groups:
        raise InputError(f"{file} contains no loglikelihood_nats, greedy_flags or rolling; give a file of points.")
    passed = [metrics[-1].value == 1.0 for metrics in groups.values()]
    settings = {"tolerance": TOLERANCE, "bos": options.bos}
    return TaskResult("points", (accuracy("passes", passed),), len(groups), settings, groups)


def _pairs(gpt: GPT, data: Mapping[str, Any], options: TaskOptions, file: Path) -> Iterator[tuple[str, float, float]]:
    """Yield the name, our value and the expected value of each log-likelihood and each greedy flag."""
    likelihoods, flags = _rows(data, "loglikelihood_nats", file), _rows(data, "greedy_flags", file)
    pairs = [
        (_field(row, "context", str, file), _field(row, "continuation", str, file)) for row in [*likelihoods, *flags]
    ]
    answers = iter(PairScorer(gpt, options).score(pairs, "points"))
    for number, row in enumerate(likelihoods, start=1):
        yield f"log-likelihood {number}", next(answers).logprob, float(_field(row, "value", (int, float), file))
    for number, row in enumerate(flags, start=1):
        yield f"greedy flag {number}", float(next(answers).greedy), float(_field(row, "is_greedy", bool, file))


def _rolling(gpt: GPT, data: Mapping[str, Any], file: Path) -> Iterator[tuple[str, float, float]]:
    rolling = data.get("rolling")
    if rolling is None:
        return
    if not isinstance(rolling, dict) or gpt.tokenizer is None:
        raise InputError(f"{file} has no object under 'rolling'; give a file of points.")
    text = _field(rolling, "text", str, file)
    ids = [gpt.tokenizer.end_of_text or 0, *gpt.tokenizer.encode(text)]
    for key, expected in rolling.items():
        if not key.startswith(_ROLLING):
            continue
        size = key.removeprefix(_ROLLING)
        if not size.isdigit() or int(size) < 1 or not _are_numbers(expected, len(ids) - 1):
            raise InputError(
                f"{key!r} in {file} does not have a number for each of the text's {len(ids) - 1} tokens; give them all."
            )
        context = min(int(size), gpt.config.context_length)
        cuts = list(windows(len(ids), context, context))
        requests = [ScoreRequest(ids[first : last + 1], scored - first) for first, scored, last in cuts]
        found = [float(value) for one in score_sequences(gpt.runner, requests) for value in one.scores.logprobs]
        for number, (own, given) in enumerate(zip(found, expected, strict=True), start=1):
            yield f"rolling, context {size}, token {number}", own, float(given)


def _read(file: Path) -> Mapping[str, Any]:
    return read_json_file(file, dict[str, Any], InputError, "give a file of points")


def _rows(data: Mapping[str, Any], key: str, file: Path) -> Sequence[Mapping[str, Any]]:
    rows = data.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{key!r} in {file} is not a list of objects; give a file of points.")
    return rows


def _are_numbers(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(type(one) in (int, float) for one in values)


def _field(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...], file: Path) -> Any:
    value = row.get(key)
    if not isinstance(value, kind):
        raise InputError(f"a point in {file} has {value!r} under {key!r}; see the documentation of the task points.")
    return value
