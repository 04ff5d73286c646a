"""The logit lens and the tuned lens: what each depth of a model would predict."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from lens_models import CONFIG, TEXTS, perturbed_model

import clearhead
from clearhead import lens
from clearhead.errors import InputError
from clearhead.model import GPTModel


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return perturbed_model()


def test_the_last_depth_is_the_models_output(model: GPTModel) -> None:
    found = lens.layer_predictions(model, TEXTS[0])
    logits = lens.watch(model, TEXTS[0], "logits")["logits"].astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(found.top_ids[-1], order)
    np.testing.assert_allclose(found.top_probabilities[-1], np.take_along_axis(probabilities, order, 1), rtol=1e-4)
    targets = [*TEXTS[0][1:], order[-1, 0]]
    np.testing.assert_allclose(found.probabilities.values[-1], probabilities[np.arange(8), targets], rtol=1e-4)
    ranks = [(row > row[target]).sum() for row, target in zip(logits, targets, strict=True)]
    assert found.ranks.values[-1].tolist() == ranks
    assert not found.kl.values[-1].any() and (found.kl.values[:-1] > 1e-4).all()


def test_each_depth_is_the_logit_lens_of_its_residual(model: GPTModel) -> None:
    found = lens.layer_predictions(model, TEXTS[0], target=7, top=2)
    assert found.depths[:3] == ("embedding", "layer 0 attention", "layer 0") and len(found.depths) == 7
    trace = lens.watch(model, TEXTS[0])
    final = torch.tensor(trace["logits"]).double().log_softmax(-1)
    for row, name in ((0, "embedding"), (1, "blocks.0.residual_mid"), (4, "blocks.1.residual_out")):
        logits = torch.tensor(lens.logit_lens(model, trace[name])).double().log_softmax(-1)
        np.testing.assert_allclose(found.probabilities.values[row], logits[:, 7].exp(), rtol=1e-3)
        np.testing.assert_allclose(
            found.kl.values[row], torch.nn.functional.kl_div(logits, final, log_target=True, reduction="none").sum(1),
            atol=1e-4,
        )  # fmt: skip
    assert len(lens.layer_predictions(model, TEXTS[0], sublayers=False).depths) == 4


def test_predictions_that_cannot_be_are_refused(model: GPTModel) -> None:
    with pytest.raises(InputError, match="there are 2 targets for 8 tokens"):
        lens.layer_predictions(model, TEXTS[0], target=[1, 2])
    with pytest.raises(InputError, match="token id 60"):
        lens.layer_predictions(model, TEXTS[0], target=60)
    with pytest.raises(InputError, match="top is 0; give 1 to 60"):
        lens.layer_predictions(model, TEXTS[0], top=0)


def test_predictions_print_and_draw_themselves() -> None:
    gpt = clearhead.load(backend="torch")
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.encode("One day, Lily was very happy because")
    found = lens.layer_predictions(gpt.model, ids, tokenizer=gpt.tokenizer)
    lines = repr(found).splitlines()
    assert lines[0] == "logit lens after the last of 8 tokens; target ' she'" and len(lines) == 14
    assert lines[-1].startswith("layer 5 ") and "' she'" in lines[-1] and "KL  0.00" in lines[-1]
    picture = ET.fromstring(found.to_svg("zh"))
    texts = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert (
        texts[0] == "各深度最可能的下一个词元（logit lens）"
        and texts.count("␣she") >= 5
        and "第 5 层" in texts
        and "第 0 层注意力" in texts
    )
    assert found._repr_html_().startswith("<div")


def test_a_tuned_lens_is_nearer_to_the_output_on_texts_that_it_has_not_seen(model: GPTModel) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(60, (60, 24), generator=generator).tolist()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = lens.train_tuned_lens(model, texts, sublayers=True, steps=80, learning_rate=3e-3)
    plain, translated = tuned.kl.values
    assert (translated < 0.7 * plain).all()
    assert tuned.n_train == 48 * 24 and tuned.n_held_out == 12 * 24
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "as it is" in repr(tuned) and tuned.kl.labels[1][1] == "layer 0 attention"
    unseen = torch.randint(60, (24,), generator=generator).tolist()
    with_it = lens.layer_predictions(model, unseen, tuned=tuned)
    without = lens.layer_predictions(model, unseen)
    assert with_it.lens == "tuned lens" and not with_it.kl.values[-1].any()
    assert (with_it.kl.values[:-1].mean(1) < without.kl.values[:-1].mean(1)).all()
    np.testing.assert_allclose(with_it.probabilities.values[-1], without.probabilities.values[-1])


def test_a_tuned_lens_starts_as_the_logit_lens(model: GPTModel) -> None:
    tuned = lens.train_tuned_lens(model, TEXTS * 4, steps=1, learning_rate=0)
    np.testing.assert_array_equal(*tuned.kl.values)
    x = torch.ones(2, CONFIG.emb_dim)
    assert torch.equal(tuned.translate("blocks.1.residual_out", x), x)
    with pytest.raises(InputError, match="steps is 0"):
        lens.train_tuned_lens(model, TEXTS * 4, steps=0)
