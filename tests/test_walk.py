"""`clearhead walk`: its numbers beside transformers', its text, and its page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call, refused
from rich.cells import cell_len
from transformers import GPT2LMHeadModel

import clearhead
from clearhead.config import GPTConfig
from clearhead.gpt import GPT
from clearhead.inference.options import SamplingParams
from clearhead.lens import page
from clearhead.lens import walk as walk_module
from clearhead.lens.words import LANGUAGES, words
from clearhead.loading import bundled
from clearhead.model import GPTModel

PROMPT = "Every effort moves you"
HOSTILE = "</script><b>&amp;@WORDS@ @WALK@ 你好 🙂\n\x01<!--"


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    peer = GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()
    peer.set_attn_implementation("eager")
    return peer


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return clearhead.load(backend="torch")


def walked(gpt: GPT, text: str, **options: Any) -> dict[str, Any]:
    assert gpt.tokenizer is not None
    return walk_module.walk(gpt.model, gpt.tokenizer.encode(text), gpt.tokenizer, SamplingParams(**options))


def with_peer(peer: GPT2LMHeadModel, ids: list[int]) -> Any:
    with torch.inference_mode():
        return peer(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)


def check_against_peer(data: dict[str, Any], peer: GPT2LMHeadModel, ids: list[int]) -> None:
    """Holds every number that transformers gives too to it, within the rounding of the walk."""
    found = with_peer(peer, ids)
    first = data["first_shown"]
    assert [token["id"] for token in data["tokens"]] == ids[first:]
    for block, attention in zip(data["blocks"], found.attentions, strict=True):
        for head, expected in zip(block["pattern"], attention[0].numpy(), strict=True):
            for t, row in enumerate(head):
                assert len(row) == t + 1
                assert np.abs(np.array(row) - expected[first + t, first : first + t + 1]).max() < 1e-4
    sizes = [state[0, first:].square().mean(-1).sqrt().numpy() for state in found.hidden_states]
    for size, expected in zip(data["residual_size"][:-1], sizes, strict=False):  # the peer's last one is normed
        assert np.allclose(size, expected, atol=1e-3, rtol=1e-4)
    after = found.hidden_states[-1][0, first:].numpy()
    assert np.allclose(data["final_norm"]["after"]["mean"], after.mean(-1), atol=1e-4)
    assert np.allclose(data["final_norm"]["after"]["variance"], after.var(-1), atol=1e-3)
    logits = found.logits[0].numpy()
    probabilities = torch.softmax(found.logits[0].double(), -1).numpy()
    for t, best in enumerate(data["lens"][-1]):
        for id, share in best:
            assert share == pytest.approx(probabilities[first + t, id], abs=1e-4)
    assert data["lens"][-1][-1][0][0] == int(logits[-1].argmax())
    for id, logit in data["next"]["top"]:
        assert logit == pytest.approx(logits[-1, id], abs=1e-3)


def embedded(html: str) -> dict[str, Any]:
    """The JSON that a page holds, by the id of its element; fails where the page asks for anything from elsewhere."""
    found: dict[str, Any] = {}

    class Reader(HTMLParser):
        into: str | None = None

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            values = dict(attrs)
            assert "src" not in values
            assert (values.get("href") or "data:").startswith("data:")
            if tag == "script" and values.get("type") == "application/json":
                self.into = values["id"]

        def handle_endtag(self, tag: str) -> None:
            if tag == "script":
                self.into = None

        def handle_data(self, data: str) -> None:
            if self.into:
                found[self.into] = found.get(self.into, "") + data

    Reader(convert_charrefs=False).feed(html)
    return {name: json.loads(text) for name, text in found.items()}


# ---------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------


def test_the_page_holds_transformers_numbers(tmp_path: Path, gpt: GPT, peer: GPT2LMHeadModel) -> None:
    file = tmp_path / "walk.html"
    result = call("walk", PROMPT, "--html", file)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().startswith(f"{file} (")
    data = embedded(file.read_text(encoding="utf-8"))
    assert gpt.tokenizer is not None
    check_against_peer(data["walk"], peer, gpt.tokenizer.encode(PROMPT))
    assert {"first", *LANGUAGES} == set(data["words"])
    assert [path.name for path in tmp_path.iterdir()] == ["walk.html"]


def test_a_long_prompt_runs_whole_and_its_end_is_shown(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    text = "Once upon a time there was a little girl who had a red ball. " * 8
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.encode(text)
    data = walked(gpt, text, seed=1)
    assert data["prompt_tokens"] == len(ids) > len(data["tokens"]) == walk_module.MOST_TOKENS
    check_against_peer(data, peer, ids)
    printed = call("walk", text).stdout.decode()
    assert f"The prompt has {len(ids)} tokens." in printed
    assert "of the weight is on tokens before those shown" in printed


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 5), (0.8, 10), (1.7, 4096), (0.0, 3)])
def test_the_token_is_the_one_that_generate_draws(gpt: GPT, temperature: float, top_k: int) -> None:
    for seed in range(4):
        data = walked(gpt, PROMPT, temperature=temperature, top_k=top_k, seed=seed)["next"]
        written = gpt.generate(
            PROMPT,
            temperature=temperature,
            top_k=top_k,
            top_p=1,
            seed=seed,
            max_new_tokens=1,
            stop_at_end_of_text=False,
        )
        assert [data["chosen"]] == list(written.ids)
    kept = torch.tensor([share for share in data["kept"] if share])
    if temperature:
        logits = torch.tensor([logit for _, logit in data["top"]][:top_k])
        expected = torch.softmax(torch.cat([logits, _others(data, top_k)]).double() / temperature, 0)
        assert torch.allclose(kept.double(), expected[: len(kept)], atol=2e-3)
        assert kept.sum() == pytest.approx(1 if top_k <= 100 else float(expected[:100].sum()), abs=2e-3)
    else:
        assert kept.tolist() == [1.0]


def _others(data: dict[str, Any], top_k: int) -> torch.Tensor:
    """The logits that a page knows only as counts in steps; none where top-k leaves them out."""
    if top_k <= len(data["top"]):
        return torch.zeros(0)
    rest = data["rest"]
    return torch.tensor(np.repeat(rest["logits"], rest["counts"]) * rest["step"], dtype=torch.float32)


def test_a_model_without_a_tokenizer_and_with_one_token_is_walked_through() -> None:
    config = GPTConfig(vocab_size=7, context_length=4, emb_dim=4, n_heads=2, n_layers=1)
    data = walk_module.walk(GPTModel(config), [3], None, SamplingParams(seed=0))
    assert data["tokens"] == [{"id": 3, "text": "3"}]
    assert data["blocks"][0]["pattern"] == [[[1.0]], [[1.0]]]
    assert len(data["next"]["top"]) == 7


def test_what_is_not_shown_is_not_kept_for_large_models() -> None:
    config = GPTConfig.named("1558M")
    with torch.device("meta"):
        model = GPTModel(config.replace(emb_dim=25, ff_dim=25, vocab_size=2))
    shown = walk_module.shown_tokens(model, 1024)
    assert shown.stop == 1024
    assert len(shown) ** 2 * config.n_layers * config.n_heads <= 600_000


# ---------------------------------------------------------------------------------------------------------------
# The terminal
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("text", [PROMPT, "x", HOSTILE, "Once upon a time there was a dog. " * 4])
def test_every_step_is_printed_in_80_columns_without_colour(language: str, text: str) -> None:
    result = call("walk", text, "--lang", language, "--block", 5, "--head", 6)
    assert result.returncode == 0, result.stderr
    printed = result.stdout.decode()
    assert "\x1b" not in printed
    assert max(cell_len(line) for line in printed.splitlines()) <= 80
    steps = ("tokens", "embedding", "norm", "attention", "gelu", "residual", "lens", "next")
    for number, step in enumerate(steps, start=1):
        assert f"\n{number}  {words(language)[step]}\n" in printed


def test_the_printed_weights_are_transformers(peer: GPT2LMHeadModel, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    printed = call("walk", PROMPT, "--block", 4, "--head", 2).stdout.decode()
    table = printed.partition("the weights\n")[2].splitlines()[1:6]
    expected = with_peer(peer, gpt.tokenizer.encode(PROMPT)).attentions[4][0, 2].numpy()
    for t, line in enumerate(table):
        cells = line.split()[1:]
        assert cells[t + 1 :] == ["·"] * (4 - t)
        assert np.abs(np.array(cells[: t + 1], float) - expected[t, : t + 1]).max() <= 0.0051


def test_json_is_the_same_walk() -> None:
    result = call("walk", "-", "--json", "--temperature", 1, "--top-k", 3, "--seed", 5, stdin=f"{PROMPT}\n".encode())
    data = json.loads(result.stdout)
    own = clearhead.load().walk(PROMPT, temperature=1.0, top_k=3, seed=5)  # in NumPy, as on the command line
    expected = json.loads(json.dumps(own.values))
    expected.pop("name")
    assert {key: data[key] for key in expected} == expected
    assert data["prompt"] == PROMPT


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--block", "6"], "there is no block 6; the model's blocks are 0 to 5."),
        (["--head", "-1"], "there is no head -1; the model's heads are 0 to 6."),
        (["--lang", "de"], "--lang is 'de'; give en or zh"),
        (["--top-k", "0"], "--top-k is 0; give a whole number of at least 1 (leave it out for no limit)."),
        (["--html", "/nowhere/walk.html"], "could not be written"),
    ],
)
def test_what_cannot_be_is_refused(args: list[str], sentence: str) -> None:
    result = call("walk", PROMPT, *args)
    # On a slow machine a line of progress comes first.
    assert result.returncode == 2
    assert sentence in result.stderr.decode().splitlines()[-1]


def test_a_prompt_that_cannot_be_is_refused() -> None:
    assert "the prompt is empty" in refused(call("walk", ""))
    assert "the model reads 256" in refused(call("walk", "word " * 400))


def test_both_languages_have_the_same_places_to_fill() -> None:
    english, chinese = (words(language) for language in LANGUAGES)
    for key, sentence in english.items():
        assert set(re.findall(r"{\w+}", sentence)) == set(re.findall(r"{\w+}", chinese[key])), key


# ---------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------


def test_no_prompt_breaks_out_of_the_page(gpt: GPT) -> None:
    data = {"name": None, "prompt": HOSTILE, "block": 0, "head": 0, **walked(gpt, HOSTILE)}
    found = embedded(page.page(data))
    assert found["walk"] == json.loads(json.dumps(data))
    assert set(found) == {"walk", "words"}


needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium for the page")


def in_browser(html: str, folder: Path) -> str:
    """The page's document as Chromium has it after its scripts ran; fails where one of them failed."""
    file = folder / "walk.html"
    file.write_text(html, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    result = subprocess.run(
        ["chromium", *options, "--window-size=1280,900", "--dump-dom", file.as_uri()],
        capture_output=True,
        timeout=300,
        check=True,
    )
    dom = result.stdout.decode()
    assert re.search(r'<html lang="[\w-]+" data-state="ready">', dom), re.findall(r'id="error"[^>]*>([^<]*)', dom)
    return re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


def table(dom: str, name: str) -> str:
    return dom.partition(f'<table id="{name}"')[2].partition("</table>")[0]


def numbers(dom: str, name: str) -> list[float]:
    return [float(cell) for cell in re.findall(r"<td[^>]*>(-?\d+\.\d+)%?</td>", table(dom, name))]


@needs_chromium
@pytest.mark.parametrize(("text", "language"), [(PROMPT, "en"), (HOSTILE + " word" * 80, "zh")])
def test_the_page_draws_itself(gpt: GPT, tmp_path: Path, text: str, language: str) -> None:
    data = {"name": "a <b>model</b>", "prompt": text, "block": 2, "head": 3, **walked(gpt, text, seed=1, top_k=5)}
    dom = in_browser(page.page(data, language), tmp_path)
    shown = len(data["tokens"])
    matrix = table(dom, "matrix")
    assert matrix.count("<td") == shown * shown + 1
    assert matrix.count('class="masked"') == shown * (shown - 1) // 2
    assert dom.count("data-at=") == 42
    assert words(language)["attention"] in dom
    # The first probability that the page computes is the one that clearhead drew with.
    shares = re.findall(r">([\d.]+)%</td>", table(dom, "next"))
    assert np.allclose([float(share) for share in shares[:5]], [100 * p for p in data["next"]["kept"][:5]], atol=0.06)


@needs_chromium
def test_the_page_follows_what_is_chosen(gpt: GPT, tmp_path: Path) -> None:
    data = {"name": None, "prompt": PROMPT, "block": 0, "head": 0, **walked(gpt, PROMPT, seed=1, top_k=5)}
    use = """
        $("heads").querySelector('[data-at="4,2"]').click();
        $("tokens").children[1].click();
        $("language").click();
        $("temperature").value = 2; $("topK").value = topKs.length - 1; $("topK").oninput();
        $("draw").click();
        move("head", 1); move("block", -5);
        for (const step of ["weights", "scores"]) document.querySelector(`#steps input[value=${step}]`).click();
    """
    dom = in_browser(page.page(data).replace("</body>", f"<script>{use}</script></body>"), tmp_path)
    assert 'lang="zh-CN"' in dom
    assert words("zh")["ui.drew"].partition("{")[0] in dom
    block, head = data["config"]["n_layers"] - 1, 3  # one block back from the first is the last
    scores = numbers(dom, "matrix")
    assert np.allclose(scores, np.ravel(data["blocks"][block]["scores"][head]), atol=0.0051)
    mixed = numbers(dom, "mixed")[-4:]
    assert np.allclose(mixed, data["blocks"][block]["mixed"][head][1], atol=0.0006)
    logits = torch.tensor(gpt.watch(PROMPT, "logits")["logits"][-1]).double()
    expected = torch.softmax(logits / 2, 0).sort(descending=True).values[:15].numpy()
    shares = [float(share) for share in re.findall(r">([\d.]+)%</td>", table(dom, "next"))]
    assert np.allclose(np.array(shares[:15]) / 100, expected, atol=0.0006)
