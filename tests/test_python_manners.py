"""What people do with a `GPT` in Python besides generating: help, copies, threads, pickles, mistakes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import pydoc
import subprocess
import sys
import threading
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import clearhead
from clearhead import GPTConfig, SamplingParams
from clearhead.errors import ConfigError, InputError, WeightsError
from clearhead.gpt import GPT

GPT_2: dict[str, Any] = {"vocab_size": 50, "context_length": 8, "emb_dim": 12, "n_heads": 3, "n_layers": 1}
PROMPT = "One day, Lily was very happy because"


@pytest.fixture(scope="module", params=["engine", "torch"])
def gpt(request: pytest.FixtureRequest) -> GPT:
    return clearhead.load(backend=request.param)


def test_what_runs_before_ctrl_c_can_be_handled_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import clearhead.cli; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} == {"clearhead"}


def test_dir_shows_the_public_names_only() -> None:
    assert [name for name in dir(clearhead) if not name.startswith("__")] == sorted(
        name for name in clearhead.__all__ if not name.startswith("__")
    )


@pytest.mark.parametrize(
    "what", ["load", "verify", "GPT.generate", "GPT.stream", "GPT.score", "GPT.watch", "GPT.edit", "GPT.save"]
)
def test_a_help_page_fits_on_a_screen(what: str) -> None:
    item: Any = clearhead
    for name in what.split("."):
        item = getattr(item, name)
    assert len(pydoc.plain(pydoc.render_doc(item)).splitlines()) <= 60


def test_an_edit_in_one_thread_does_not_reach_another(gpt: GPT) -> None:
    plain = gpt.score(PROMPT).surprisal
    found: dict[str, Any] = {}

    def others() -> None:
        found["score"] = gpt.score(PROMPT).surprisal
        found["watch"] = gpt.watch(PROMPT, "logits")["logits"]

    with gpt.edit("blocks.*.attention.mixed", 0):
        thread = threading.Thread(target=others)
        thread.start()
        thread.join()
        inside = gpt.score(PROMPT).surprisal
        edited = gpt.watch(PROMPT, "logits")["logits"]
        with gpt.edit("blocks.*.feed_forward.output", 0):
            assert gpt.score(PROMPT).surprisal not in (plain, inside)
        assert gpt.score(PROMPT).surprisal == inside
    assert found["score"] == plain == gpt.score(PROMPT).surprisal != inside
    assert np.array_equal(found["watch"], gpt.watch(PROMPT, "logits")["logits"])
    assert not np.array_equal(found["watch"], edited)


def test_two_threads_with_edits_of_their_own_do_not_mix(gpt: GPT) -> None:
    changes = ["blocks.0.attention.mixed", "blocks.1.feed_forward.output"]

    def score(name: str) -> float:
        with gpt.edit(name, 0):
            return gpt.score(PROMPT).surprisal

    expected = [score(name) for name in changes]
    found: list[list[float]] = [[], []]
    gate = threading.Barrier(2)

    def run(index: int) -> None:
        gate.wait()
        for _ in range(5):
            found[index].append(score(changes[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[value] * 5 for value in expected]


def test_a_deep_copy_is_a_model_of_its_own(gpt: GPT) -> None:
    other = copy.deepcopy(gpt)
    assert other.runner is not gpt.runner and other.config == gpt.config
    assert other.generate(PROMPT, temperature=0).text == gpt.generate(PROMPT, temperature=0).text
    before = gpt.score(PROMPT).surprisal
    other.model.final_norm.weight.data.zero_()
    assert gpt.score(PROMPT).surprisal == before
    assert float(gpt.model.final_norm.weight.detach().abs().max()) > 0


def test_a_pickle_is_refused_in_a_sentence(gpt: GPT) -> None:
    with pytest.raises(InputError, match=r"save it with gpt\.save\(folder\)"):
        pickle.dumps(gpt)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda gpt: gpt.generate("a", max_tokens=3), "did you mean 'max_new_tokens'"),
        (lambda gpt: gpt.score("a", tops=3), "did you mean 'top'"),
        (lambda gpt: gpt.watch("a", position=3), "did you mean 'positions'"),
        (lambda gpt: gpt.edit("logits", 0, head=1), "did you mean 'heads'"),
        (lambda gpt: gpt.save("x", dtyp="float16"), "did you mean 'dtype'"),
        (lambda _: clearhead.load(dtypes="int8"), "did you mean 'dtype'"),  # type: ignore[call-arg]
        (lambda gpt: gpt.score("a", top="x"), "top is 'x'"),
        (lambda gpt: gpt.watch("a", 3), "an activation's name is 3"),
        (lambda gpt: gpt.watch("a", positions="x"), "positions is 'x'"),
        (lambda gpt: gpt.generate("a", temperature="hot"), "temperature is 'hot'"),
        (lambda _: clearhead.load(cache_tokens="x"), "cache_tokens is 'x'"),  # type: ignore[arg-type]
        (lambda _: clearhead.load(device=3), "device is 3"),  # type: ignore[arg-type]
        (lambda _: clearhead.load(3), "the source is an int"),  # type: ignore[arg-type]
        (lambda _: SamplingParams(temprature=1), "did you mean 'temperature'"),  # type: ignore[call-arg]
        (lambda gpt: gpt.config.replace(n_head=7), "did you mean 'n_heads'"),
        (lambda _: GPTConfig(**{**GPT_2, "n_embed": 3}), "'n_embed' is not a setting of a GPT-2"),
        (lambda gpt: gpt.generate(2.5), "the prompt is a float"),
        (lambda gpt: gpt.generate(None), "the prompt is None"),
        (lambda _: clearhead.verify(3), "the source has the type int"),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_named(gpt: GPT, call: Callable[[Any], object], sentence: str) -> None:
    with pytest.raises((ConfigError, InputError, WeightsError), match=sentence):
        call(gpt)


@pytest.mark.parametrize("made", [GPTConfig(**GPT_2), SamplingParams(temperature=0.5, seed=3)])
def test_a_structure_that_checks_names_stays_a_dataclass(made: Any) -> None:
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == dataclasses.replace(made) == made
    names = [one.name for one in dataclasses.fields(made)]
    assert list(inspect.signature(type(made)).parameters) == names == list(dataclasses.asdict(made))
    assert typing.get_type_hints(type(made).__init__).keys() >= set(names)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, names[0], 1)
    with pytest.raises(TypeError):
        type(made)(*range(99))


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from clearhead.utils.system import cache_folder

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CLEARHEAD_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder().is_absolute() and cache_folder().name.lower() == "clearhead"
    monkeypatch.setenv("CLEARHEAD_CACHE", "~nobody-of-this-name/cache")
    assert cache_folder().name == "cache"
