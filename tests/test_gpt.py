"""`GPT` and `load` on folders that transformers wrote, and transformers on folders that `save` wrote."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead.errors import InputError, WeightsError
from clearhead.gpt import GPT
from clearhead.inference.options import OPTIONS
from clearhead.inference.results import Generation
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.weights import location

TEXT = "Once upon a time there was a little girl — she said: “über naïve 🙂 cats!” and it was a big day. "


def peer_for(vocab_size: int) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    shape = GPT2Config(
        vocab_size=vocab_size, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, attn_pdrop=0.1
    )
    return GPT2LMHeadModel(shape).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, with 5 rows more than the tokenizer has ids."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([TEXT] * 4, 300)
    peer_for(tokenizer.vocab_size + 5).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(folder: Path) -> GPT:
    return clearhead.load(folder)


@pytest.fixture(scope="module")
def peer(folder: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def peer_logits(peer: GPT2LMHeadModel, ids: Any) -> torch.Tensor:
    with torch.no_grad():
        return peer(torch.tensor([list(ids)])).logits[0]


def test_greedy_text_is_transformers_text(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.encode("a little girl")
    batch = torch.tensor([ids])
    theirs = peer.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        do_sample=False,
        max_new_tokens=32 - len(ids),
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=list(range(gpt.tokenizer.vocab_size, gpt.config.vocab_size)),
    )[0, len(ids) :].tolist()
    found = gpt.generate("a little girl", temperature=0, max_new_tokens=32 - len(ids), stop_at_end_of_text=False)
    assert isinstance(found, Generation)
    assert list(found.ids) == theirs
    assert str(found) == found.text == gpt.tokenizer.decode(theirs)
    assert (found.prompt, found.prompt_ids, found.notices) == ("a little girl", tuple(ids), ())


def test_a_list_of_prompts_gives_a_list(gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    prompts: list[str | Sequence[int]] = ["a big day", gpt.tokenizer.encode("she said: “über"), "it"]
    together = gpt.generate(prompts, seed=3, max_new_tokens=10)
    alone = [gpt.generate(prompt, seed=3, max_new_tokens=10) for prompt in prompts]
    assert together == alone
    assert gpt.generate([]) == []
    (one,) = gpt.generate(["it"], seed=3, max_new_tokens=10)
    assert one == alone[2]


def test_samples_and_seed(gpt: GPT) -> None:
    found = gpt.generate("it", n=3, max_new_tokens=8, temperature=2.0, top_p=1.0, logprobs=2)
    assert len(set(found.texts)) == 3 and str(found) == found.texts[0]
    again = gpt.generate("it", n=3, max_new_tokens=8, temperature=2.0, top_p=1.0, logprobs=2, seed=found.seed)
    assert again == found
    assert all(len(one.top) == 2 for sample in found.samples for one in sample.logprobs or ())


def test_every_sampling_argument_reaches_the_sampler(gpt: GPT) -> None:
    chosen: dict[str, Any] = {
        "temperature": 0.6, "top_k": 9, "top_p": 0.7, "min_p": 0.02, "repetition_penalty": 1.2,
        "presence_penalty": 0.3, "frequency_penalty": 0.4, "logit_bias": {3: -1.0}, "seed": 8,
    }  # fmt: skip
    rest: dict[str, Any] = {
        "max_new_tokens": 5, "stop": ["x"], "stop_ids": [1], "n": 2, "logprobs": 1, "stop_at_end_of_text": False,
        "strict_context": True,
    }  # fmt: skip
    request = gpt.request([1, 2], **chosen, **rest)
    assert {name: getattr(request, name) for name in chosen} == chosen
    expected = {**rest, "stop": ("x",), "stop_ids": (1,)}
    assert {name: getattr(request, name) for name in rest} == expected
    assert request.prompt_ids == (1, 2)
    plain = gpt.request("it")
    assert (plain.temperature, plain.top_p) == (OPTIONS["temperature"].default, OPTIONS["top_p"].default)


def test_a_stream_gives_the_text_of_generate_in_pieces(gpt: GPT) -> None:
    whole = gpt.generate("a little", seed=5, max_new_tokens=60, stop_at_end_of_text=False)
    pieces = gpt.stream("a little", seed=5, max_new_tokens=60, stop_at_end_of_text=False)
    received = list(pieces)
    assert "".join(received) == whole.text and len(received) > 20
    assert (pieces.finish_reason, pieces.seed, tuple(pieces.notices)) == ("length", 5, whole.notices)
    assert len(whole.notices) == 1 and "reached the 32 tokens" in whole.notices[0]
    assert list(pieces) == []


def test_a_stream_can_be_left(gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []
    close = gpt.runner.close

    def closing(slot: Any) -> None:
        closed.append(slot)
        close(slot)

    monkeypatch.setattr(gpt.runner, "close", closing)
    with gpt.stream("a little", temperature=0, max_new_tokens=50, stop_at_end_of_text=False) as pieces:
        next(pieces)
        assert not closed
    assert len(closed) == 1
    assert list(pieces) == [] and pieces.finish_reason is None
    with pytest.raises(InputError, match="n is 2"):
        gpt.stream("it", n=2)
    with pytest.raises(InputError, match="temperature is -1"):
        gpt.stream("it", temperature=-1)


def test_score_is_transformers_loss(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    assert gpt.tokenizer is not None
    text = "a little girl — 🙂"
    ids = gpt.tokenizer.encode(text)
    end = gpt.tokenizer.end_of_text
    batch = torch.tensor([[end, *ids]])
    with torch.no_grad():
        loss = float(peer(batch, labels=batch).loss)
    found = gpt.score(text)
    assert found.n_scored == len(ids)
    assert -found.logprob == pytest.approx(loss * len(ids), abs=1e-3)
    assert found.bits_per_byte == pytest.approx(loss * len(ids) / math.log(2) / len(text.encode()), abs=1e-4)
    assert "".join(token.text or "" for token in found.tokens) == text
    bare = gpt.score(ids, after_end_of_text=False)
    with torch.no_grad():
        loss = float(peer(batch[:, 1:], labels=batch[:, 1:]).loss)
    assert bare.n_scored == len(ids) - 1 and -bare.logprob / bare.n_scored == pytest.approx(loss, abs=1e-5)
    long = gpt.score(TEXT * 3)
    assert long.n_scored == len(gpt.tokenizer.encode(TEXT * 3)) > 2 * gpt.config.context_length
    assert gpt.score(TEXT * 3, stride=1).logprob != pytest.approx(long.logprob, abs=1e-3)  # more context, other numbers
    with pytest.raises(InputError, match="stride is 33"):
        gpt.score(TEXT, stride=33)


def test_what_is_saved_transformers_opens_and_so_do_we(gpt: GPT, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    gpt.save(tmp_path)
    opened = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = list(range(20))
    torch.testing.assert_close(peer_logits(opened, ids), peer_logits(peer, ids))
    assert gpt.tokenizer is not None and opened.config.eos_token_id == gpt.tokenizer.end_of_text
    again = clearhead.load(tmp_path)
    assert again.config == gpt.config
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
    assert again.generate("a big", **options).ids == gpt.generate("a big", **options).ids
    # Over the files that the loaded model may still be reading from.
    again.save(tmp_path, dtype="bfloat16")
    half = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for name, values in half.state_dict().items():
        torch.testing.assert_close(values, peer.state_dict()[name].bfloat16().float(), rtol=0, atol=0)
    torch.testing.assert_close(
        torch.from_numpy(np.asarray(again.runner.logits(ids))), peer_logits(peer, ids), atol=1e-4, rtol=0
    )


def test_a_load_is_in_the_type_asked_for(folder: Path, gpt: GPT) -> None:
    assert {parameter.dtype for parameter in gpt.model.parameters()} == {torch.float32}
    half = clearhead.load(str(folder), dtype="bfloat16", backend="torch")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.model.head.weight is half.model.token_embedding.weight
    logits = half.runner.logits([1, 2, 3])
    assert logits.dtype == np.float32
    exact = gpt.runner.logits([1, 2, 3])
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_a_model_of_ones_own_is_run_without_dropout(gpt: GPT) -> None:
    own = GPTModel(gpt.config.replace(drop_rate=0.5))
    assert own.training
    held = GPT(own, gpt.tokenizer)
    assert not own.training and held.model is own and held.config == own.config
    np.testing.assert_array_equal(held.runner.logits([1, 2]), held.runner.logits([1, 2]))
    assert "n_layers=2" in repr(held)


def test_without_a_tokenizer_ids_go_in_and_out(folder: Path, gpt: GPT, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    bare = clearhead.load(tmp_path)
    assert bare.tokenizer is None
    found = bare.generate([1, 2, 3], temperature=0, max_new_tokens=4)
    assert found.text is None and found.texts == (None,)
    assert str(found) == " ".join(str(token) for token in found.ids)
    assert bare.score([1, 2, 3]).n_scored == 2
    for wanting_text in (bare.generate, bare.stream, bare.score):
        with pytest.raises(InputError, match="no tokenizer"):
            wanting_text("text")
    bare.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.json").exists()
    assert clearhead.load(tmp_path / "saved").generate([1, 2, 3], temperature=0, max_new_tokens=4).ids == found.ids


def test_a_vocabulary_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    peer_for(tokenizer.vocab_size - 2).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    sentence = f"ids up to {tokenizer.vocab_size - 1}, but the model has {tokenizer.vocab_size - 2} rows"
    with pytest.raises(WeightsError, match=sentence):
        clearhead.load(tmp_path)


def test_a_broken_tokenizer_is_an_error_and_not_passed_over(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(clearhead.ClearheadError, match=r"tokenizer\.json"):
        clearhead.load(tmp_path)


def test_the_empty_prompt_is_refused(gpt: GPT) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        gpt.generate("")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "abacus"}, "backend is 'abacus'; the backends are auto, engine, torch"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"device": "gpu"}, "device is 'gpu'.*give 'cpu'"),
        ({"device": "cuda:99"}, "device is 'cuda:99'.*give 'cpu'"),
    ],
)
def test_what_cannot_be_had_is_refused(folder: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        clearhead.load(folder, **options)


def test_the_bundled_model_is_what_load_opens(
    folder: Path, gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "__file__", str(tmp_path / "weights" / "location.py"))
    with pytest.raises(WeightsError, match="no bundled model"):
        clearhead.load()
    (tmp_path / "bundled").symlink_to(folder)
    assert clearhead.load().config == gpt.config


def test_importing_clearhead_is_light() -> None:
    code = (
        "import sys, json, clearhead\n"
        "light = [m for m in ('torch', 'numpy', 'numba', 'transformers') if m in sys.modules]\n"
        "names = [getattr(clearhead, n).__module__ for n in ('GPTConfig', 'SamplingParams', 'GPT', 'load')]\n"
        "print(json.dumps([light, names, 'torch' in sys.modules, sorted(clearhead.__all__), 'load' in dir(clearhead)]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, names, torch_loaded, public, listed = json.loads(out)
    assert loaded == []
    assert names == ["clearhead.config", "clearhead.inference.options", "clearhead.gpt", "clearhead.loading"]
    assert not torch_loaded  # not even to hold the names; torch comes with the first model
    expected = ["ClearheadError", "GPT", "GPTConfig", "SamplingParams", "__version__", "load", "verify", "weights"]
    assert public == expected and listed
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        getattr(clearhead, "laod")  # noqa: B009


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (b"text", "the prompt is bytes; decode it, or give a list of token ids"),
        (None, "the prompt is None; give text, token ids, or a list of prompts"),
        (5, "the prompt is an int; give text"),
        ({1: 2}, "the prompt is a dict; give text"),
        ([1.5, 2], "the prompt contains 1.5"),
        ([10**6, 3], "the prompt contains token 1000000, which is not in the model's vocabulary"),
        ([10**30, 3], "is not in the model's vocabulary"),
        ([-1, 3], "the prompt contains -1"),
        ([[1, 2], None], "the prompt is None"),
    ],
)
def test_what_is_no_prompt_is_refused_in_a_sentence(gpt: GPT, prompt: Any, sentence: str) -> None:
    for method in (gpt.generate, gpt.score):
        with pytest.raises(InputError, match=sentence):
            method(prompt)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repetition_penalty": 1e39}, "repetition_penalty is 1e.39; give a number from 0.001 to 1000"),
        ({"presence_penalty": -1e39}, "presence_penalty is -1e.39; give a number from -1000 to 1000"),
        ({"logit_bias": {1: 1e39}}, "logit_bias for token 1 is 1e.39"),
        ({"n": 10**9}, "n is 1000000000; give a whole number from 1 to 10000"),
        ({"stop": 5}, "stop is 5; give a string"),
        ({"stop": b"x"}, "stop is b'x'; give a string"),
        ({"stop_ids": 5}, "stop_ids is an int; give a list"),
        ({"stop_at_end_of_text": 1}, "stop_at_end_of_text is 1; give True or False"),
        ({"max_length": 5}, "'max_length' is not an option of generate"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_sentence(gpt: GPT, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        gpt.generate("it", **options)


def test_stop_may_be_none_and_special_tokens_are_read_when_asked_for(gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    whole = gpt.generate("it", temperature=0, max_new_tokens=5, seed=1)
    assert gpt.generate("it", temperature=0, max_new_tokens=5, seed=1, stop=None, stop_ids=None) == whole
    text = "it<|endoftext|>a"
    assert gpt.request(text, special=True).prompt_ids == tuple(gpt.tokenizer.encode(text, special=True))
    assert gpt.tokenizer.end_of_text in gpt.request(text, special=True).prompt_ids
    assert gpt.tokenizer.end_of_text not in gpt.request(text).prompt_ids
    with pytest.raises(TypeError, match="one positional argument"):
        gpt.request("it", 5)  # type: ignore[call-arg]


@pytest.mark.parametrize("threads", [0, 100_000, "2", 1.5])
def test_a_number_of_threads_that_cannot_be_is_refused(folder: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="give a whole number from 1 to"):
        clearhead.load(folder, threads=threads)
    with pytest.raises(InputError, match="the source is an int"):
        clearhead.load(5)  # type: ignore[arg-type]
