"""Caching, attribution, patching, ablation, probes and autoencoders: results that check themselves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lens_models import CLEAN, CONFIG, CORRUPTED, METRIC, TEXTS, perturbed_model
from torch import Tensor

from clearhead import lens
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.lens.attribution import last_logits_from
from clearhead.model import Block, GPTModel


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return perturbed_model()


# --- Attribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, -1])
def test_attribution_sums_to_the_logit(model: GPTModel, position: int) -> None:
    logits = lens.watch(model, TEXTS[0], "logits")["logits"][position]
    found = lens.direct_logit_attribution(model, TEXTS[0], 5, position=position)
    assert found.sum() == pytest.approx(logits[5], abs=1e-4)
    assert len(found.values) == 2 + 3 * (4 + 3) + 1
    difference = lens.direct_logit_attribution(model, TEXTS[0], 5, versus=9, position=position)
    assert difference.sum() == pytest.approx(logits[5] - logits[9], abs=1e-4)


def test_a_heads_attribution_is_what_its_removal_takes_while_the_norm_is_fixed(model: GPTModel) -> None:
    """Of the last layer's heads: nothing but the final norm comes after them and the feed-forward layer."""
    found = lens.direct_logit_attribution(model, TEXTS[0], 5)
    mixed = lens.watch(model, TEXTS[0], "blocks.2.attention.mixed")["blocks.2.attention.mixed"]
    block = model.blocks[2]
    assert isinstance(block, Block)
    part = block.attention.out.weight.detach().numpy()[:, 8:16] @ mixed[1, -1]
    variance = lens.watch(model, TEXTS[0], "final_norm.variance")["final_norm.variance"][-1]
    weight = model.final_norm.weight.detach().numpy() * model.head.weight.detach().numpy()[5]
    expected = (part - part.mean()) @ weight / np.sqrt(variance + 1e-5)
    assert dict(zip(found.labels[0], found.values, strict=True))["layer 2 head 1"] == pytest.approx(expected, abs=1e-4)


def test_integrated_gradients_sum_to_the_difference_from_zero_embeddings(model: GPTModel) -> None:
    found = lens.integrated_gradients(model, TEXTS[0], 5, versus=9, steps=300)
    positions = model.position_embedding.weight[:8]
    ends = [
        last_logits_from(model, x[None], 0)[0].detach()
        for x in (model.token_embedding.weight[TEXTS[0]] + positions, positions)
    ]
    expected = (ends[0][5] - ends[0][9]) - (ends[1][5] - ends[1][9])
    assert found.sum() == pytest.approx(float(expected), abs=0.02)
    assert len(lens.gradient_times_input(model, TEXTS[0], 5).values) == 8


# --- Patching ----------------------------------------------------------------------------------------------------


def test_patching_all_positions_of_a_layer_gives_the_clean_text_bit_for_bit(model: GPTModel) -> None:
    found = lens.patch(model, CLEAN, CORRUPTED, "blocks.*.residual_in", METRIC, positions=False)
    assert (found.values.values == found.clean).all()
    assert found.clean != found.corrupted


def test_patching_a_text_into_itself_changes_no_bit(model: GPTModel) -> None:
    found = lens.patch(model, CORRUPTED, CORRUPTED, "blocks.*.attention.mixed", METRIC, heads=True, positions=False)
    assert found.clean == found.corrupted
    np.testing.assert_array_equal(found.values.values, np.full((3, 4), found.values.values[0, 0]))
    with pytest.raises(InputError, match="the same for both texts"):
        found.recovered()


def test_a_sweep_equals_single_edits(model: GPTModel) -> None:
    found = lens.patch(model, CLEAN, CORRUPTED, "blocks.*.attention.mixed", METRIC, heads=True)
    assert found.values.values.shape == (3, 4, 6) and found.values.axes == ("layer", "head", "position")
    clean = lens.watch(model, CLEAN, "blocks.*.attention.mixed")
    for layer, head, position in ((0, 0, 2), (1, 3, 5), (2, 2, 4)):
        name = f"blocks.{layer}.attention.mixed"
        with lens.edit(model, name, clean[name][[head]][:, [position]], heads=head, positions=position):
            logits = lens.watch(model, CORRUPTED, "logits")["logits"][-1]
        assert found.values.values[layer, head, position] == pytest.approx(logits[5] - logits[6], abs=1e-5)


def test_only_the_token_that_differs_matters_before_the_first_block(model: GPTModel) -> None:
    recovered = lens.patch(model, CLEAN, CORRUPTED, "blocks.0.residual_in", METRIC).recovered()
    np.testing.assert_allclose(recovered.values, [[0, 0, 1, 0, 0, 0]], atol=1e-5)


def test_a_path_to_the_logits_is_the_heads_direct_effect(model: GPTModel) -> None:
    patched, clean, corrupted = lens.path_patch(model, CLEAN, CORRUPTED, (1, 2), "logits", METRIC)
    for ids, measured in ((CLEAN, clean), (CORRUPTED, corrupted)):
        logits = lens.watch(model, ids, "logits")["logits"][-1]
        assert measured == pytest.approx(logits[5] - logits[6], abs=1e-5)
    same, *_ = lens.path_patch(model, CORRUPTED, CORRUPTED, (1, 2), "logits", METRIC)
    assert same == pytest.approx(corrupted, abs=1e-5) and patched != pytest.approx(corrupted, abs=1e-7)


def test_attribution_patching_is_patching_to_first_order(model: GPTModel) -> None:
    """Token 13 becomes nearly token 20, so that patches are small."""
    near = copy.deepcopy(model)
    with torch.no_grad():
        near.token_embedding.weight[13] = near.token_embedding.weight[20] + 1e-3 * torch.randn(32)
    clean = [13 if id == 20 else id for id in CORRUPTED]
    for where, heads, positions in (
        ("residual_mid", False, True),
        ("attention.mixed", True, True),
    ):
        exact, estimate = (
            sweep(near, clean, CORRUPTED, f"blocks.*.{where}", METRIC, heads=heads, positions=positions)
            for sweep in (lens.patch, lens.attribution_patch)
        )
        assert estimate.values.axes == exact.values.axes and estimate.values.labels == exact.values.labels
        assert (estimate.clean, estimate.corrupted) == pytest.approx((exact.clean, exact.corrupted), abs=1e-5)
        found, expected = (one.values.values - one.corrupted for one in (estimate, exact))
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max() + 2e-6)
    with pytest.raises(InputError, match="has no heads"):
        lens.attribution_patch(model, CLEAN, CORRUPTED, "blocks.*.residual_in", METRIC, heads=True)


def test_patches_that_cannot_be_are_refused(model: GPTModel) -> None:
    with pytest.raises(InputError, match="6 tokens and the corrupted one 5"):
        lens.patch(model, CLEAN, CORRUPTED[:5], "blocks.*.residual_in", METRIC)
    with pytest.raises(InputError, match="has no heads"):
        lens.patch(model, CLEAN, CORRUPTED, "blocks.*.residual_in", METRIC, heads=True)
    with pytest.raises(InputError, match="a sweep goes over one activation"):
        lens.patch(model, CLEAN, CORRUPTED, "logits", METRIC)
    with pytest.raises(InputError, match="did you mean"):
        lens.patch(model, CLEAN, CORRUPTED, "blocks.0.residual_inn", METRIC)
    with pytest.raises(InputError, match="no head 9 in layer 0"):
        lens.path_patch(model, CLEAN, CORRUPTED, (0, 9), "logits", METRIC)
    with pytest.raises(InputError, match=r"computed before head 2 of layer 1, so no path"):
        lens.path_patch(model, CLEAN, CORRUPTED, (1, 2), "blocks.0.*", METRIC)


# --- Ablation and steering ---------------------------------------------------------------------------------------


def test_ablations_do_what_they_say(model: GPTModel) -> None:
    name = "blocks.1.feed_forward.output"
    with lens.ablate(model, name, "zero"):
        assert not lens.watch(model, CLEAN, name)[name].any()
    with lens.ablate(model, name, "mean", reference=TEXTS):
        ablated = lens.watch(model, CLEAN, name)[name]
    mean = np.concatenate([lens.watch(model, ids, name)[name] for ids in TEXTS]).mean(0)
    np.testing.assert_allclose(ablated, np.tile(mean, (6, 1)), atol=1e-5)
    with lens.ablate(model, "blocks.1.attention.mixed", "resample", heads=2, reference=TEXTS):
        ablated = lens.watch(model, CLEAN, "blocks.1.attention.mixed")["blocks.1.attention.mixed"]
    untouched = lens.watch(model, CLEAN, "blocks.1.attention.mixed")["blocks.1.attention.mixed"]
    pool = np.concatenate([lens.watch(model, ids, "*.mixed")["blocks.1.attention.mixed"] for ids in TEXTS], axis=1)
    assert all(np.isclose(pool[2], row, atol=1e-5).all(-1).any() for row in ablated[2])
    np.testing.assert_array_equal(ablated[[0, 1, 3]], untouched[[0, 1, 3]])


def test_ablations_that_cannot_be_are_refused(model: GPTModel) -> None:
    unknown: Any = "x"
    with pytest.raises(InputError, match="kinds of ablation are zero, mean"), lens.ablate(model, "logits", unknown):
        pass
    with pytest.raises(InputError, match="needs reference texts"), lens.ablate(model, "logits", "mean"):
        pass
    pattern = "blocks.0.attention.pattern"
    with pytest.raises(InputError, match="relates each token"), lens.ablate(model, pattern, "mean", reference=TEXTS):
        pass


def test_a_steering_vector_is_added_at_every_token(model: GPTModel) -> None:
    vector = lens.steering_vector(model, TEXTS[:2], TEXTS[2:], 1)
    name = "blocks.1.residual_in"
    ends = [lens.watch(model, ids, name)[name][-1] for ids in TEXTS]
    np.testing.assert_allclose(vector.numpy(), (ends[0] + ends[1]) / 2 - ends[2], atol=1e-5)
    plain = lens.watch(model, CLEAN, name)[name]
    with lens.steer(model, vector.numpy(), 1, strength=2.5):
        steered = lens.watch(model, CLEAN, name)[name]
    np.testing.assert_allclose(steered - plain, np.tile(2.5 * vector.numpy(), (6, 1)), atol=1e-5)
    with pytest.raises(InputError, match=r"shape \[3\]"), lens.steer(model, torch.zeros(3), 1):
        pass


def test_what_is_no_network_no_ids_and_no_autoencoder_is_refused(model: GPTModel) -> None:
    wrong: Any = GPT(model)
    text: Any = "text"
    with pytest.raises(InputError, match=r"a GPT was given where a network was expected; of a GPT give gpt\.model"):
        lens.patch(wrong, CLEAN, CORRUPTED, "blocks.*.residual_in", METRIC)
    with pytest.raises(InputError, match="a GPT was given"), lens.ablate(wrong, "logits", "zero"):
        pass
    with pytest.raises(InputError, match="text 0 is 'text'; token ids were expected"):
        lens.patch(model, text, text, "blocks.*.residual_in", METRIC)
    with pytest.raises(InputError, match=r"token id 5000 is not in the model's vocabulary"):
        lens.patch(model, CLEAN, CORRUPTED, "blocks.*.residual_in", lens.logit_difference(1, 5000))
    with pytest.raises(InputError, match="a GPT has no encode"), lens.splice(model, wrong, "blocks.0.residual_out"):
        pass


# --- Heads -------------------------------------------------------------------------------------------------------


def test_scores_find_heads_that_were_made_for_a_purpose() -> None:
    """A head whose scores depend on positions alone attends to the token before."""
    torch.manual_seed(1)
    config = CONFIG.replace(n_layers=1, n_heads=2, emb_dim=48, context_length=24)
    made = GPTModel(config).eval()
    block = made.blocks[0]
    assert isinstance(block, Block)
    with torch.no_grad():
        made.position_embedding.weight.zero_()
        made.position_embedding.weight[:, :24] = 30 * torch.eye(24)  # one direction for each position
        made.token_embedding.weight[:, :24] = 0
        block.norm_1.weight.fill_(1.0)
        block.attention.qkv.weight.zero_()
        block.attention.qkv.bias.zero_()
        shift = torch.zeros(24, 48)
        shift[torch.arange(23), torch.arange(1, 24)] = 1  # the query of position t is direction t - 1
        block.attention.qkv.weight[:24] = 3 * shift
        block.attention.qkv.weight[48 : 48 + 24, :24] = 3 * torch.eye(24)
    scores = lens.head_scores(made, length=12, batch=2)
    assert scores.labels[0] == ("previous token", "duplicate token", "induction", "copying")
    assert scores.values[0, 0, 0] > 0.99
    assert scores.values[0, 0, 1] < 0.5 and scores.values[2, 0, 0] < 0.05
    with pytest.raises(InputError, match="two repetitions must fit"):
        lens.head_scores(made, length=13)


def test_copying_is_the_trace_of_the_whole_circuit(model: GPTModel) -> None:
    from clearhead.lens.scored_heads import copying_scores

    block = model.blocks[1]
    assert isinstance(block, Block)
    embedding = model.token_embedding.weight.detach().double()
    value = block.attention.qkv.weight.detach().double()[64 + 8 : 64 + 16]
    out = block.attention.out.weight.detach().double()[:, 8:16]
    circuit = embedding @ value.T @ out.T @ model.head.weight.detach().double().T  # [V, V]
    eigenvalues = torch.linalg.eigvals(circuit)
    expected = float(eigenvalues.real.sum() / eigenvalues.abs().sum())
    assert copying_scores(model, 1)[1] == pytest.approx(expected, abs=1e-3)


def test_heads_compute_with_their_own_weights(model: GPTModel) -> None:
    trace = lens.watch_tensors(model, TEXTS[0], "blocks.1.*")
    weights, at = lens.head_weights(model, 1), "blocks.1.attention."
    x = trace["blocks.1.norm_1.output"]  # [T, C]
    for name, w, b in (("queries", "W_Q", "b_Q"), ("keys", "W_K", "b_K"), ("values", "W_V", "b_V")):
        found = x @ getattr(weights, w) + getattr(weights, b)[:, None]  # [H, T, D]
        torch.testing.assert_close(found, trace[at + name], atol=1e-5, rtol=1e-5)
    out = (trace[at + "mixed"] @ weights.W_O).sum(0) + weights.b_O
    torch.testing.assert_close(out, trace[at + "output"], atol=1e-5, rtol=1e-5)
    block = model.blocks[1]
    assert isinstance(block, Block)
    assert weights.W_Q.untyped_storage().data_ptr() == block.attention.qkv.weight.untyped_storage().data_ptr()
    assert weights.W_O.untyped_storage().data_ptr() == block.attention.out.weight.untyped_storage().data_ptr()
    with pytest.raises(InputError, match="no layer 3; the model's layers are 0 to 2"):
        lens.head_weights(model, 3)
    assert not lens.head_weights(GPTModel(CONFIG.replace(qkv_bias=False)), 0).b_V.any()


# --- Autoencoders and probes -------------------------------------------------------------------------------------


class Identity:
    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, features: Tensor) -> Tensor:
        return features


class Lossy(Identity):
    def encode(self, x: Tensor) -> Tensor:
        return x.relu()


def test_an_identity_autoencoder_changes_nothing(model: GPTModel) -> None:
    plain = lens.watch(model, CLEAN, "logits")["logits"]
    with lens.splice(model, Identity(), "blocks.1.residual_out") as spliced:
        found = lens.watch(model, CLEAN, "logits")["logits"]
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert spliced.features is not None and spliced.features.shape == (1, 6, 32)


def test_an_error_term_makes_up_for_what_is_lost(model: GPTModel) -> None:
    plain = lens.watch(model, CLEAN, "logits")["logits"]
    with lens.splice(model, Lossy(), "blocks.1.residual_out"):
        assert not np.allclose(lens.watch(model, CLEAN, "logits")["logits"], plain, atol=1e-3)
    with lens.splice(model, Lossy(), "blocks.1.residual_out", error_term=True) as spliced:
        np.testing.assert_allclose(lens.watch(model, CLEAN, "logits")["logits"], plain, atol=1e-5)
    assert spliced.error is not None and (spliced.error <= 0).all() and (spliced.error < 0).any()


def test_splices_that_cannot_be_are_refused(model: GPTModel) -> None:
    with (
        pytest.raises(InputError, match="a vector for each token"),
        lens.splice(model, Identity(), "blocks.*.residual_out"),
    ):
        pass

    class Narrow(Identity):
        def decode(self, features: Tensor) -> Tensor:
            return features[..., :3]

    with (
        lens.splice(model, Narrow(), "blocks.1.residual_out"),
        pytest.raises(InputError, match=r"returned shape \[1, 6, 3\]"),
    ):
        lens.watch(model, CLEAN, "logits")


@pytest.mark.slow
def test_a_probe_finds_what_is_there_and_not_what_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600, 8, generator=generator)
    labels = ["high" if value > 0 else "low" for value in (x @ torch.arange(8.0)).tolist()]
    probe = lens.train_probe(x, labels)
    assert probe.accuracy > 0.95 and probe.baseline < 0.65 and probe.n_held_out == 120
    assert probe.predict(x[:3]) == labels[:3]
    nothing = lens.train_probe(x, torch.randint(2, (600,), generator=generator).tolist())
    assert 0.3 < nothing.accuracy < 0.7


def test_groups_are_held_out_as_a_whole() -> None:
    """A property of whole texts can be remembered text by text; the probe must not be measured on texts it has seen."""
    generator = torch.Generator().manual_seed(2)
    text = torch.arange(300) // 10
    x = torch.nn.functional.one_hot(text).float()
    labels = torch.randint(2, (30,), generator=generator)[text].tolist()
    assert lens.train_probe(x, labels).accuracy > 0.9
    assert lens.train_probe(x, labels, groups=text.tolist()).accuracy < 0.85


def test_probes_that_cannot_be_are_refused() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(InputError, match="and 3 labels"):
        lens.train_probe(x, [1, 2, 3])
    with pytest.raises(InputError, match="needs two or more"):
        lens.train_probe(x, [1] * 4)
    with pytest.raises(InputError, match="1 groups cannot be divided"):
        lens.train_probe(x, [1, 2, 1, 2], groups=[0] * 4)


# --- Disk, pictures ----------------------------------------------------------------------------------------------


def test_activations_of_a_corpus_come_back_from_disk(model: GPTModel, tmp_path: Path) -> None:
    texts = [TEXTS[i % 3] for i in range(20)]
    name = "blocks.1.attention.mixed"
    n = lens.stream_activations(model, iter(texts), name, tmp_path / "acts", batch_size=3, tokens_per_shard=25)
    assert n == sum(map(len, texts))
    shards = list(lens.read_activations(tmp_path / "acts"))
    assert [len(rows) for rows, _, _ in shards[:-1]] == [25] * (len(shards) - 1)
    rows, text, position = (np.concatenate(parts) for parts in zip(*shards, strict=True))
    for i in (0, 4, 19):
        expected = lens.watch(model, texts[i], name)[name].swapaxes(0, 1)  # [T, H, D]
        np.testing.assert_allclose(rows[text == i], expected, atol=2e-5)
        assert position[text == i].tolist() == list(range(len(texts[i])))
    with pytest.raises(InputError, match="holds activations already"):
        lens.stream_activations(model, texts, name, tmp_path / "acts")
    with pytest.raises(InputError, match=r"activations\.json could not be read \(No such file or directory\); name a"):
        list(lens.read_activations(tmp_path))
    for wrong, words in (("", "shards is '', and a whole number"), (-1, "shards is -1, and a whole number from 0 on")):
        index = {"activation": name, "tokens": n, "texts": 20, "shards": wrong}
        (tmp_path / "activations.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=words):
            list(lens.read_activations(tmp_path))


def test_labelled_arrays_print_and_draw_themselves(model: GPTModel) -> None:
    found = lens.direct_logit_attribution(model, TEXTS[0], 5)
    assert repr(found).startswith("logit of 5 (24 components), largest first\n")
    assert found.top(1)[0][1] == pytest.approx(max(found.values, key=abs))
    sweep = lens.patch(model, CLEAN, CORRUPTED, "blocks.*.residual_in", METRIC)
    assert sweep._repr_html_().startswith("<div") and "layer 2" in sweep.values.to_svg()
    assert np.asarray(sweep.values).shape == (3, 6)
    with pytest.raises(InputError, match="give one label for each entry"):
        lens.LabelledArray(np.zeros((2, 2)), ("a", "b"), (("x",), ("y", "z")))
