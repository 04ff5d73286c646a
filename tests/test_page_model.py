"""The model in the page, in a real Chromium from file://, against the same weights in PyTorch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from browsers import needs_chromium
from pages import OpenPage, without_simd

from clearhead import GPT
from clearhead.config import Activation, GPTConfig
from clearhead.lens import logit_lens
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.web import export

pytest_plugins = ["page_fixtures"]
pytestmark = needs_chromium

PROMPTS = ("Once upon a time", "The little dog saw a cat.", "One day, Lily and Tom went to the park", '"I am sorry,"')


@pytest.fixture(scope="module")
def shared(browser: Any, file: Path) -> Iterator[OpenPage]:
    """The page as browsers with WebAssembly and SIMD run it."""
    opened = OpenPage(browser, file.as_uri())
    assert opened.ask("() => page.simd") is True
    yield opened
    opened.check()
    opened.close()


@pytest.fixture(scope="module")
def plain(browser: Any, plain_file: Path) -> Iterator[OpenPage]:
    """The page as browsers without SIMD run it: plain JavaScript."""
    opened = OpenPage(browser, plain_file.as_uri())
    assert opened.ask("() => page.simd") is False
    yield opened
    opened.check()
    opened.close()


@pytest.fixture(params=["shared", "plain"])
def either(request: pytest.FixtureRequest) -> OpenPage:
    """Both, one after the other."""
    opened: OpenPage = request.getfixturevalue(request.param)
    return opened


GENERATE = """async ({ids, params, most}) => {
  const found = [];
  const options = {generated: 0, params: {...DEFAULTS, ...params}, most, ablation: []};
  await page.backend.generate(ids, options, ({id}) => found.push(id));
  return found;
}"""


def compare_texts(
    page: OpenPage, gpt: GPT, prompts: list[str], tokens: int, js: dict[str, Any], **options: Any
) -> None:
    """Compare the page's continuations with Python's, token by token."""
    assert gpt.tokenizer is not None
    expected = gpt.generate(prompts, max_new_tokens=tokens, **options)
    for prompt, continued in zip(prompts, expected, strict=True):
        found = page.ask(GENERATE, {"ids": gpt.tokenizer.encode(prompt), "params": js, "most": tokens})
        assert found == list(continued.ids), (prompt, options)


def test_logits_are_those_of_python(either: OpenPage, rounded_gpt: GPT) -> None:
    assert rounded_gpt.tokenizer is not None
    for prompt in PROMPTS:
        ids = rounded_gpt.tokenizer.encode(prompt)
        found = either.ask("async ids => Array.from(await page.backend.logits(ids, []))", ids)
        assert np.allclose(found, rounded_gpt.watch(prompt, "logits")["logits"][-1], atol=1e-3)


def test_greedy_texts_are_those_of_python(either: OpenPage, rounded_gpt: GPT) -> None:
    compare_texts(either, rounded_gpt, list(PROMPTS), 40, {"temperature": 0}, temperature=0)


@pytest.mark.slow
def test_a_hundred_greedy_texts_are_those_of_python(shared: OpenPage, rounded_gpt: GPT) -> None:
    names, things = ("Tom", "Lily", "Ben", "Mia", "Max"), ("a dog", "a red hat", "the sea", "an old tree")
    starts = (
        "{0} had {1}.",
        "One day, {0} saw {1}",
        "{0} was sad because of {1}",
        "Look, {0}! It is {1}",
        "{0} ate {1}",
    )
    prompts = [start.format(name, thing) for start in starts for name in names for thing in things]
    assert len(prompts) == 100
    compare_texts(shared, rounded_gpt, prompts, 100, {"temperature": 0}, temperature=0)


@pytest.mark.slow
def test_a_seed_gives_the_same_text_as_in_python(shared: OpenPage, rounded_gpt: GPT) -> None:
    for seed in (*range(47), 2**31, 2**32 + 1, 2**53 - 1):
        compare_texts(shared, rounded_gpt, ["Once upon a time"], 20, {"seed": seed}, seed=seed)


@pytest.mark.parametrize(
    ("js", "options"),
    [
        ({"topK": 5, "topP": 1}, {"top_k": 5, "top_p": 1}),
        ({"topK": 40, "topP": 0.5, "temperature": 1.5}, {"top_k": 40, "top_p": 0.5, "temperature": 1.5}),
        ({"minP": 0.1, "topP": 1, "temperature": 1.3}, {"min_p": 0.1, "top_p": 1, "temperature": 1.3}),
        ({"repetition": 1.3, "temperature": 1}, {"repetition_penalty": 1.3, "temperature": 1}),
        ({"presence": 1.5, "frequency": 0.5}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}),
        ({"topP": 1, "temperature": 2}, {"top_p": 1, "temperature": 2}),
    ],
)
def test_every_option_acts_as_in_python(
    shared: OpenPage, rounded_gpt: GPT, js: dict[str, Any], options: dict[str, Any]
) -> None:
    compare_texts(shared, rounded_gpt, list(PROMPTS[:2]), 25, {"seed": 3, **js}, seed=3, **options)


def test_a_text_beyond_the_context_goes_on_as_in_python(either: OpenPage, rounded_gpt: GPT) -> None:
    assert rounded_gpt.tokenizer is not None
    prompt = " ".join(["The cat sat on the mat and the dog sat too."] * 21)
    count = len(rounded_gpt.tokenizer.encode(prompt))
    assert 240 < count <= rounded_gpt.config.context_length
    compare_texts(either, rounded_gpt, [prompt], 40, {"temperature": 0}, temperature=0)


def test_the_tokenizer_is_exact(shared: OpenPage, rounded_gpt: GPT) -> None:
    assert rounded_gpt.tokenizer is not None
    rng = random.Random(1)
    letters = [chr(code) for code in (*range(32, 127), *range(32, 127), *range(0xA0, 0x250), *range(0x391, 0x4FF))]
    letters += [
        *" \t\n\r\u0085\u00a0\u2003\u3000\ufeff\u200b",
        *"'s't'll're'd've",
        "词",
        "元",
        "한",
        "😀",
        "👩‍👩‍👧",
        "e\u0301",
    ] * 8
    texts = ["".join(rng.choices(letters, k=rng.randrange(40))) for _ in range(10_000)]
    texts += ["", "a" * 5000, " " * 3000, "<|endoftext|>", "\n\n\n x", "don't've 12,345 …"]
    found = shared.ask("texts => Promise.all(texts.map(async text => (await page.backend.encode(text)).ids))", texts)
    assert found == [rounded_gpt.tokenizer.encode(text) for text in texts]


def test_what_is_inside_is_what_python_sees(either: OpenPage, rounded_gpt: GPT) -> None:
    assert rounded_gpt.tokenizer is not None
    prompt = "The little dog saw a cat. The dog"
    ids, trace = rounded_gpt.tokenizer.encode(prompt), rounded_gpt.watch(prompt)
    code = """async ids => {
      const found = await page.backend.inspect(ids, [], 32);
      return {...found, patterns: found.patterns.map(heads => heads.map(rows => rows.map(row => Array.from(row)))),
        lens: await page.backend.lens(4, 5), journey: await page.backend.journey(4, 2)};
    }"""
    found = either.ask(code, ids)
    for layer, heads in enumerate(found["patterns"]):
        expected = trace[f"blocks.{layer}.attention.pattern"]
        for head, rows in enumerate(heads):
            for t, row in enumerate(rows):
                assert np.allclose(row, expected[head, t, : t + 1], atol=1e-3)
    residuals = [trace["embedding"], *(trace[f"blocks.{i}.residual_out"] for i in range(rounded_gpt.config.n_layers))]
    assert np.allclose(found["norms"], [np.sqrt((x.astype(np.float64) ** 2).mean(-1)) for x in residuals], rtol=1e-3)
    for depth, top in enumerate(found["lens"]):
        logits = logit_lens(rounded_gpt.model, residuals[depth][4:5])[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert [one["id"] for one in top] == list(np.argsort(-probabilities, kind="stable")[:5])
        assert np.allclose([one["probability"] for one in top], np.sort(probabilities)[::-1][:5], atol=1e-3)
    for step in found["journey"]:
        name = step["name"] if step["name"] == "embedding" else f"blocks.2.{step['name']}"
        vector = trace[name][4]
        assert step["width"] == len(vector)
        assert np.allclose(step["numbers"], vector[:8], rtol=1e-3, atol=1e-3)
    assert found["count"] == len(ids)


@pytest.mark.parametrize("name", ["attention.2.5", "attention.1", "feed_forward.3"])
def test_an_ablation_is_that_of_python(either: OpenPage, rounded_gpt: GPT, name: str) -> None:
    assert rounded_gpt.tokenizer is not None
    prompt = PROMPTS[1]
    part, block, *head = name.split(".")
    if head:
        edit = rounded_gpt.edit(f"blocks.{block}.attention.mixed", 0, heads=int(head[0]))
    else:
        edit = rounded_gpt.edit(f"blocks.{block}.{part}.output", 0)
    with edit:
        expected = rounded_gpt.watch(prompt, "logits")["logits"][-1]
    ids = rounded_gpt.tokenizer.encode(prompt)
    found = either.ask("async ([ids, name]) => Array.from(await page.backend.logits(ids, [name]))", [ids, name])
    assert np.allclose(found, expected, atol=1e-3)
    intact = either.ask("async ids => Array.from(await page.backend.logits(ids, []))", ids)
    assert not np.allclose(found, intact, atol=1e-2)


# --- Other models ----------------------------------------------------------------------------------------------------


def random_model(config: GPTConfig, tokenizer: Tokenizer, path: Path) -> GPT:
    """Write a page with a random model of a shape, and return the same model in PyTorch with the page's weights."""
    torch.manual_seed(1)
    network = GPTModel(config)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    if config.tie_weights:
        tensors.pop("head.weight")
    for name, array in tensors.items():
        if name.endswith("bias"):
            array += 0.1 * np.random.default_rng(len(name)).standard_normal(array.shape).astype(np.float32)
    path.write_text(export.page_html("random", config, tensors, tokenizer), encoding="utf-8")
    rounded = export.rounded(tensors)
    with torch.no_grad():
        for name, parameter in network.state_dict().items():
            parameter.copy_(torch.from_numpy(rounded[name if name in rounded else "token_embedding.weight"]))
    return GPT(network, tokenizer)


def compare_logits(browser: Any, path: Path, gpt: GPT, simd: bool) -> None:
    """Compare the logits of a page with Python's, for a prompt in one pass and with one more token."""
    opened = OpenPage(browser, path.as_uri())
    assert opened.ask("() => page.simd") is simd
    ids = list(gpt.tokenizer.encode(PROMPTS[1])) if gpt.tokenizer else []
    for given in (ids, [*ids, ids[0]]):
        found = opened.ask("async ids => Array.from(await page.backend.logits(ids, []))", given)
        assert np.allclose(found, gpt.watch(given, "logits")["logits"][-1], atol=1e-3)
    opened.check()
    opened.close()


@pytest.mark.parametrize("activation", get_args(Activation))
def test_any_shape_of_gpt2_is_that_of_python(browser: Any, rounded_gpt: GPT, tmp_path: Path, activation: str) -> None:
    """Widths that no vector divides, a head of its own, no bias of the queries, and every activation."""
    assert rounded_gpt.tokenizer is not None
    shape = {"emb_dim": 33, "n_heads": 3, "n_layers": 2, "context_length": 48, "ff_dim": 70, "drop_rate": 0.0}
    config = rounded_gpt.config.replace(**shape, qkv_bias=False, tie_weights=False, activation=activation)
    path = tmp_path / "odd.html"
    model = random_model(config, rounded_gpt.tokenizer, path)
    compare_logits(browser, path, model, simd=True)
    compare_logits(browser, without_simd(path), model, simd=False)


def test_a_model_of_124m_works_in_one_file(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "124M.html"
    model = random_model(GPTConfig.named("124M"), Tokenizer.gpt2(), path)
    assert 125e6 < path.stat().st_size < 200e6
    compare_logits(browser, path, model, simd=True)
