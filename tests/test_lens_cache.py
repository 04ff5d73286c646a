"""Caching activations of many texts, their gradients, and many edits in one pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lens_models import CONFIG, TEXTS, perturbed_model
from torch import Tensor

import clearhead
from clearhead import lens
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.lens.aliases import transformer_lens_names
from clearhead.lens.attribution import last_logits_from
from clearhead.model import GPTModel


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return perturbed_model()


def test_a_padded_batch_equals_single_texts(model: GPTModel) -> None:
    cache = lens.run_with_cache(model, TEXTS)
    for index, ids in enumerate(TEXTS):
        alone, together = lens.watch(model, ids), cache.text(index)
        assert list(alone) == list(together)
        for name, value in alone.items():
            assert together[name].shape == value.shape, name
            np.testing.assert_allclose(together[name], value, atol=2e-5, err_msg=name)


def test_padding_is_zero_and_only_what_was_asked_for_is_kept(model: GPTModel) -> None:
    cache = lens.run_with_cache(model, TEXTS, "blocks.1.residual_out")
    assert list(cache) == ["blocks.1.residual_out"]
    assert cache.nbytes == 3 * 8 * 32 * 4
    assert not cache["blocks.1.residual_out"][1, 3:].any() and cache["blocks.1.residual_out"][1, 2].all()
    with pytest.raises(KeyError, match="was not recorded"):
        cache["logits"]


def test_layers_above_the_last_wanted_one_are_not_run(model: GPTModel) -> None:
    ran = []
    handle = model.blocks[2].register_forward_pre_hook(lambda *_: ran.append(2))
    try:
        lens.run_with_cache(model, TEXTS, "blocks.0.*")
        assert ran == []
        lens.run_with_cache(model, TEXTS, "blocks.2.residual_in")
        assert ran == [2]
    finally:
        handle.remove()


def test_weights_and_mode_are_never_changed(model: GPTModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        lens.run_with_cache(model, TEXTS, "*", metric=lambda logits: logits[:, -1, 0])
        assert model.training
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_are_those_of_finite_differences(model: GPTModel) -> None:
    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 5]

    name, ids = "blocks.1.residual_out", TEXTS[:1]
    cache = lens.run_with_cache(model.double(), ids, name, metric=metric)
    try:
        direction = torch.randn(cache[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        step = 1e-5
        ends = [last_logits_from(model, cache[name] + sign * step * direction, 2)[:, 5] for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((cache.gradients[name] * direction).sum()) == pytest.approx(expected.item(), rel=1e-6)
    finally:
        model.float()


def test_a_metric_of_another_shape_is_refused(model: GPTModel) -> None:
    with pytest.raises(InputError, match=r"returned shape \[3, 8, 60\] for 3 texts"):
        lens.run_with_cache(model, TEXTS, "logits", metric=lambda logits: logits)


def test_transformer_lens_names_have_its_axis_order(model: GPTModel) -> None:
    cache = lens.run_with_cache(model, TEXTS, "*hook_*")
    assert list(cache) and set(cache) == set(transformer_lens_names(CONFIG))
    assert cache["blocks.0.attn.hook_z"].shape == (3, 8, 4, 8)
    assert cache["blocks.0.ln1.hook_scale"].shape == (3, 8, 1)
    assert torch.isneginf(cache["blocks.0.attn.hook_attn_scores"][0].triu(1)).sum() == 4 * 28
    mixed = lens.run_with_cache(model, TEXTS, ["blocks.0.attn.hook_z", "logits"])
    assert list(mixed) == ["blocks.0.attn.hook_z", "logits"]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["bundled", "124M"])
def test_every_value_equals_transformer_lens(which: str, tmp_path: Path) -> None:
    """A saved folder, opened there by its bridge, which leaves the weights as they are."""
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")
    from clearhead.loading import bundled

    folder = bundled()
    if which == "124M":
        folder = tmp_path
        torch.manual_seed(1)
        GPT(GPTModel(clearhead.GPTConfig.named("124M"))).save(folder)
    theirs = bridge.TransformerBridge.boot_transformers(str(folder), device="cpu")
    gpt = clearhead.load(folder, backend="torch")
    ids = gpt.tokenizer.encode("Once upon a time there was a small bird.") if gpt.tokenizer else list(range(1000, 1020))
    _, expected = theirs.run_with_cache(torch.tensor([ids]))
    found = lens.run_with_cache(gpt.model, [ids], "*hook_*")
    assert len(found) == 4 + gpt.config.n_layers * 17
    for name, value in found.items():
        # The bridge masks scores with the lowest float, which is minus infinity here.
        both = (value.clamp_min(-1e30).numpy(), expected[name].detach().clamp_min(-1e30).numpy())
        np.testing.assert_allclose(*both, atol=1e-4, err_msg=name)
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        weights = getattr(theirs.blocks[1].attn, name).detach()
        torch.testing.assert_close(getattr(lens.head_weights(gpt.model, 1), name), weights, atol=0, rtol=0)


def test_texts_that_cannot_be_run_are_refused(model: GPTModel) -> None:
    with pytest.raises(InputError, match="no texts to run"):
        lens.run_with_cache(model, [])
    with pytest.raises(InputError, match="text 1 has 0 tokens"):
        lens.run_with_cache(model, [[1], []])
    with pytest.raises(InputError, match="did you mean"):
        lens.run_with_cache(model, [[1]], "blocks.0.atention.mixed")


# --- Many texts, some positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [["blocks.1.attention.pattern", "blocks.2.residual_out"], ["blocks.0.attn.hook_z"]])
def test_batches_of_any_size_give_the_same(model: GPTModel, wanted: list[str]) -> None:
    texts = [[(3 * i + j) % 60 for j in range(1 + i % 7)] for i in range(23)]
    together = lens.run_with_cache(model, texts, wanted)
    for size in (1, 4, 10):
        apart = lens.run_with_cache(model, texts, wanted, batch_size=size)
        for name in wanted:
            assert apart[name].shape == together[name].shape
            torch.testing.assert_close(apart[name], together[name], atol=2e-5, rtol=0)


def test_only_a_batch_runs_at_a_time(model: GPTModel) -> None:
    sizes: list[int] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        lens.run_with_cache(model, [[1, 2]] * 50, "blocks.1.residual_in", batch_size=16)
    finally:
        handle.remove()
    assert sizes == [16, 16, 16, 2]


def test_chosen_positions_are_those_of_the_whole(model: GPTModel) -> None:
    names = ["blocks.1.attention.mixed", "blocks.1.attention.pattern", "blocks.2.residual_out", "blocks.0.attn.hook_z"]
    whole = lens.run_with_cache(model, TEXTS, names)
    some = lens.run_with_cache(model, TEXTS, names, positions=[0, -1])
    for text, ids in enumerate(TEXTS):
        n = len(ids)
        both, axes = (whole.text(text), some.text(text)), (1, 1, 0, 0)
        for name, axis in zip(names, axes, strict=True):
            expected = both[0][name].index_select(axis, torch.tensor([0, n - 1]))
            assert torch.equal(both[1][name], expected), name
    with pytest.raises(InputError, match="no position 3 in the shortest text, which has 3 tokens"):
        lens.run_with_cache(model, TEXTS, names, positions=3)
    with pytest.raises(InputError, match="hook_attn_scores are masked by position"):
        lens.run_with_cache(model, TEXTS, "blocks.0.attn.hook_attn_scores", positions=0)


MEMORY = """
import resource, torch
from clearhead import GPTConfig, lens
from clearhead.model import GPTModel
config = GPTConfig(vocab_size=4096, context_length=64, emb_dim=128, n_heads=8, n_layers=4, tie_weights=True)
model = GPTModel(config).eval()
texts = torch.randint(4096, (1000, 64)).tolist()
lens.run_with_cache(model, texts[:64], "blocks.3.residual_out", batch_size=32)  # what torch itself needs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache = lens.run_with_cache(model, texts, "blocks.3.residual_out", batch_size=32)
print(cache.nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_one_name_of_a_thousand_texts_takes_the_memory_of_that_name() -> None:
    """All activations of the thousand texts would take 3.7 GB, their logits alone 1 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    kept, grown = map(int, done.stdout.split())
    assert kept == 1000 * 64 * 128 * 4
    assert grown < 2 * kept + 60_000_000


# --- Gradients and edits -----------------------------------------------------------------------------------------


def test_watching_with_a_metric_gives_gradients(model: GPTModel) -> None:
    name = "blocks.1.residual_out"
    trace = lens.watch(model, TEXTS[0], [name, "embedding.position"], metric=lambda logits: logits[:, -1, 5])
    residual = torch.tensor(trace[name])[None].requires_grad_()
    (expected,) = torch.autograd.grad(last_logits_from(model, residual, 2)[0, 5], residual)
    np.testing.assert_allclose(trace.gradients[name], expected[0], atol=1e-5)
    assert trace.gradients["embedding.position"].shape == (8, 32)
    assert not lens.watch(model, TEXTS[0], name).gradients


def test_each_text_has_its_own_gradient_also_of_what_all_share(model: GPTModel) -> None:
    texts = [TEXTS[0][:3], TEXTS[1]]

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 5]

    both = lens.run_with_cache(model, texts, "embedding.position", metric=metric)
    for index, ids in enumerate(texts):
        alone = lens.run_with_cache(model, [ids], "embedding.position", metric=metric)
        torch.testing.assert_close(
            both.gradients["embedding.position"][index], alone.gradients["embedding.position"][0], atol=1e-5, rtol=0
        )


def test_gradients_go_through_an_edit_and_reach_what_it_puts_in(model: GPTModel) -> None:
    name, heads = "blocks.1.attention.mixed", "blocks.0.attention.mixed"
    with lens.edit(model, name, 0):
        trace = lens.watch(model, TEXTS[0], [heads, name], metric=lambda logits: logits[:, -1, 5])
    assert not trace[name].any() and trace.gradients[name].any() and trace.gradients[heads].any()
    vector = torch.zeros(32, requires_grad=True)
    at = "blocks.1.residual_in"
    with lens.edit(model, at, lambda value: value + vector):
        model(torch.tensor(TEXTS[:1]))[0, -1, 5].backward()
    expected = lens.watch(model, TEXTS[0], at, metric=lambda logits: logits[:, -1, 5]).gradients[at].sum(0)
    assert vector.grad is not None
    np.testing.assert_allclose(vector.grad, expected, atol=1e-5)
    model.zero_grad(set_to_none=True)


def test_many_edits_of_one_text_in_one_pass_are_those_edits_one_by_one(model: GPTModel) -> None:
    edits: list[lens.Edit | list[lens.Edit]] = [
        *(lens.Edit("blocks.1.attention.mixed", 0, heads=head) for head in range(4)),
        [],
        [
            lens.Edit("blocks.0.residual_out", lambda x: x + 1, positions=2),
            lens.Edit("blocks.*.residual_out", torch.abs),
        ],
    ]
    cache = lens.run_with_cache(model, [TEXTS[0]] * 6, "logits", edits=edits, batch_size=4)
    for row in range(4):
        with lens.edit(model, "blocks.1.attention.mixed", 0, heads=row):
            expected = lens.watch(model, TEXTS[0], "logits")["logits"]
        np.testing.assert_allclose(cache["logits"][row], expected, atol=1e-5)
    np.testing.assert_allclose(cache["logits"][4], lens.watch(model, TEXTS[0], "logits")["logits"], atol=1e-5)
    with (
        lens.edit(model, "blocks.0.residual_out", lambda x: x + 1, positions=2),
        lens.edit(model, "blocks.*.residual_out", torch.abs),
    ):
        expected = lens.watch(model, TEXTS[0], "logits")["logits"]
    np.testing.assert_allclose(cache["logits"][5], expected, atol=1e-5)


def test_edits_that_cannot_be_are_refused_before_anything_runs(model: GPTModel) -> None:
    with pytest.raises(InputError, match="there are 1 edits for 3 texts"):
        lens.run_with_cache(model, TEXTS, "logits", edits=[[]])
    with pytest.raises(InputError, match="did you mean"):
        lens.run_with_cache(model, TEXTS[:1], "logits", edits=[lens.Edit("blocks.0.atention.mixed", 0)])


# --- From a GPT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "engine"])
def test_a_gpt_caches_texts_on_any_backend(backend: Any) -> None:
    gpt = clearhead.load(backend=backend)
    texts = ["Once upon a time", "Tom and Lily went to the park. Tom"]
    cache = gpt.run_with_cache(texts, ["blocks.5.residual_out", "logits", "blocks.0.attn.hook_z"])
    for index, text in enumerate(texts):
        trace = gpt.watch(text, ["blocks.5.residual_out", "logits"])
        for name in trace:
            assert isinstance(cache[name], np.ndarray)
            np.testing.assert_allclose(cache.text(index)[name], trace[name], atol=1e-4)
    tensors = gpt.run_with_cache(texts, "blocks.5.residual_out", as_torch=True, positions=-1)
    assert isinstance(tensors["blocks.5.residual_out"], Tensor)
    assert tensors["blocks.5.residual_out"].shape == (2, 1, 224)
    with pytest.raises(InputError, match="a list of texts was expected"):
        gpt.run_with_cache("Once", "logits")
    with pytest.raises(TypeError, match="unexpected keyword"):
        gpt.run_with_cache(texts, "logits", position=1)  # type: ignore[call-overload]


def test_caches_show_themselves_in_notebooks(model: GPTModel) -> None:
    page = lens.run_with_cache(model, TEXTS, ["blocks.*.residual_out", "logits"])._repr_html_()
    assert "blocks.{i}.residual_out" in page and "[3, 8, 32]" in page and "0–2" in page
    assert "<code>&lt;b&gt;</code>" in lens.watch(model, [1], "logits", tokens=["<b>"])._repr_html_()
