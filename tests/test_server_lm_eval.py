"""lm-evaluation-harness through the server, against the harness's own `hf` model of the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import TestServer, serving

import clearhead
from clearhead.loading import bundled
from clearhead.verification.reference_text import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # lm-eval and what it imports

PAIRS = [
    ("Once upon a", " time"),
    ("", "The dog sat on the mat."),
    ("The end.<|endoftext|>", "Once upon a time"),
    ("北京 🙂", " é naïve"),
    *[("The little dog was a very good dog, and he lived with", end) for end in (" a cat", " his mother.", " x")],
]


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    with serving(clearhead.load()) as running:
        yield running


@pytest.fixture(scope="module")
def theirs() -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(bundled()), device="cpu", dtype="float32", batch_size=2)


@pytest.fixture(scope="module", params=["remote", "huggingface"])
def ours(request: pytest.FixtureRequest, server: TestServer) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model="clearhead",
        base_url=f"{server.url}/v1/completions",
        tokenizer=str(bundled()),
        tokenizer_backend=request.param,
        max_length=256,
        batch_size=4,
        num_concurrent=1,
    )


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def test_log_likelihoods(ours: Any, theirs: Any) -> None:
    found = ours.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] and any(g for _, g in found)


def test_a_text_beyond_the_context_loses_its_beginning(ours: Any, theirs: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    # The harness keeps 255 tokens for a request, and `hf` one more than its `max_length`.
    shorter = HFLM(pretrained=theirs.model, tokenizer=theirs.tokenizer, max_length=254)
    long = instances("loglikelihood", [(TEXT[:3000], " and the dog.")])
    ((found, _),) = ours.loglikelihood(long, disable_tqdm=True)
    ((expected, _),) = shorter.loglikelihood(long, disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4)


def test_generated_texts(ours: Any, theirs: Any) -> None:
    settings = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    prompts = [("Once upon a time", settings), ("The dog", settings), ("Tom and Lily went to", settings)]
    found = ours.generate_until(instances("generate_until", prompts), disable_tqdm=True)
    expected = theirs.generate_until(instances("generate_until", prompts), disable_tqdm=True)
    assert found == expected and all(found)
