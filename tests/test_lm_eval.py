"""The adapter for lm-evaluation-harness, against the harness's own `hf` model of the same weights."""

from __future__ import annotations

from typing import Any

import pytest

from clearhead.errors import InputError
from clearhead.loading import bundled
from clearhead.verification.reference_text import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # lm-eval and what it imports


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """Ours and theirs."""
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    import clearhead.evaluation.lm_eval  # noqa: F401

    ours = get_model("clearhead").create_from_arg_string(
        f"pretrained={bundled()}", {"batch_size": 3, "max_batch_size": None, "device": "cpu"}
    )
    return ours, HFLM(pretrained=str(bundled()), device="cpu", dtype="float32", batch_size=2)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def test_log_likelihoods(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    pairs = [
        ("Once upon a", " time"),
        ("Once upon a ", "time"),
        ("", "The dog sat on the mat."),
        ("", "<|endoftext|>The dog"),
        ("The end.<|endoftext|>", "Once upon a time"),
        ("北京 🙂", " é\u0301 naïve"),
        (TEXT[:3000], " and the dog."),  # longer than the context
        *[
            ("The little dog was a very good dog, and he lived with", ending)
            for ending in (" a cat", " his mother.", " x")
        ],
    ]
    found = ours.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] and any(g for _, g in found)


def test_rolling_log_likelihoods(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    texts = [("One day.",), (TEXT[:4000],)]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-6)


def test_generation(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    settings = {"until": ["\n", " she"], "do_sample": False, "max_gen_toks": 20}
    prompts = [("Once upon a time", settings), ("The dog", settings), (TEXT[:3000], settings)]
    found = ours.generate_until(requests("generate_until", prompts), disable_tqdm=True)
    assert found == theirs.generate_until(requests("generate_until", prompts), disable_tqdm=True)


def test_what_cannot_be_scored_is_refused(models: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="more than the context's 256"):
        models[0].loglikelihood(requests("loglikelihood", [("a", TEXT)]), disable_tqdm=True)
    with pytest.raises(InputError, match="no room in the context"):
        models[0].generate_until(requests("generate_until", [("a", {"max_gen_toks": 256})]), disable_tqdm=True)
