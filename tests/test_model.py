"""The PyTorch model and its Runner, beside transformers' GPT-2 with the same weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL, ours_of, peer_logits, peer_of
from transformers import GPT2LMHeadModel

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.torch_runner import TorchRunner, TorchSlot
from clearhead.model import GPTModel, fused_attention, greedy, plain_attention

TOLERANCE = 1e-4

# Each differs from SMALL in one thing that changes what is computed.
SHAPES = {
    "tied": SMALL,
    "untied": SMALL.replace(tie_weights=False),
    "gelu_erf": SMALL.replace(activation="gelu_erf"),
    "narrow_ff": SMALL.replace(ff_dim=40),
    "norm_eps": SMALL.replace(norm_eps=1e-2),
    "one_head": SMALL.replace(n_heads=1),
}


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    return peer_of(SMALL, std=0.3)


@pytest.fixture(scope="module")
def model(peer: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> GPTModel:
    return ours_of(peer, tmp_path_factory.mktemp("small"))


def random_ids(config: GPTConfig, batch: int, length: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str, plain: bool, tmp_path: Path) -> None:
    peer = peer_of(SHAPES[name], std=0.3)
    ours = ours_of(peer, tmp_path, plain)
    assert ours.config == SHAPES[name]
    for batch, length in ((1, 1), (1, 64), (4, 33)):
        ids = random_ids(SMALL, batch, length)
        with torch.inference_mode():
            assert (ours(ids) - peer_logits(peer, ids)).abs().max() < TOLERANCE


@pytest.mark.slow
def test_logits_at_the_124m_shape(tmp_path: Path) -> None:
    config = GPTConfig.named("124M")
    peer = peer_of(config)
    ours = ours_of(peer, tmp_path)
    for batch, length in ((1, 1), (4, 17), (1, 1024)):
        ids = random_ids(config, batch, length)
        with torch.inference_mode():
            assert (ours(ids) - peer_logits(peer, ids)).abs().max() < TOLERANCE


def test_a_batch_of_four_at_full_context(tmp_path: Path) -> None:
    config = SMALL.replace(context_length=1024)
    peer = peer_of(config, std=0.1)
    ids = random_ids(config, 4, 1024)
    with torch.inference_mode():
        assert (ours_of(peer, tmp_path)(ids) - peer_logits(peer, ids)).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_gradients_of_every_parameter_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    peer = peer_of(SHAPES[name], std=0.1)
    ours = ours_of(peer, tmp_path)
    ids = random_ids(SMALL, 3, 32)
    peer(ids, labels=ids).loss.backward()
    ours.loss(ids[:, :-1], ids[:, 1:]).backward()
    # transformers' own gradients, brought to our names and layout by the plan that loads weights.
    with torch.no_grad():
        for parameter in peer.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    expected = dict(ours_of(peer, tmp_path / "gradients").named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[parameter_name], atol=1e-5, rtol=1e-4), parameter_name


def test_greedy_text_is_that_of_transformers(peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    config = SMALL.replace(context_length=96)
    peer = peer_of(config, std=0.3)
    ids = random_ids(config, 1, 5)
    expected = peer.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(greedy(ours_of(peer, tmp_path), ids, 64), expected)


def test_greedy_goes_on_past_the_context(model: GPTModel) -> None:
    ids = greedy(model, random_ids(SMALL, 1, 60), 10)
    last = model(ids[:, -65:-1])[:, -1].argmax()
    assert ids.shape == (1, 70)
    assert ids[0, -1] == last


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 24), st.integers(0, 2**32))
def test_plain_attention_is_fused_attention(batch: int, heads: int, tokens: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, tokens, width, generator=draw) for _ in range(3))
    assert torch.allclose(plain_attention(q, k, v), fused_attention(q, k, v), atol=1e-5)


def test_plain_attention_drops_the_share_that_it_is_asked_to() -> None:
    torch.manual_seed(0)
    ones = torch.ones(1, 1, 400, 1)
    # With equal scores and values of 1 the result is the sum of the kept weights: 1 on average, spread by dropping.
    mixed = plain_attention(torch.zeros_like(ones), torch.zeros_like(ones), ones, drop_rate=0.5)
    assert mixed[:, :, 100:].mean() == pytest.approx(1, abs=0.05)
    assert mixed[0, 0, 0] in (0, 2)


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    model = GPTModel(SMALL.replace(drop_rate=0.3))
    ids = random_ids(SMALL, 2, 16)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_initial_weights_have_openais_spread() -> None:
    torch.manual_seed(0)
    config = SMALL.replace(emb_dim=256, n_layers=8, vocab_size=512)
    spreads = {name: float(p.detach().std()) for name, p in GPTModel(config).named_parameters() if p.ndim == 2}
    assert spreads["token_embedding.weight"] == pytest.approx(0.02, rel=0.05)
    assert spreads["position_embedding.weight"] == pytest.approx(0.01, rel=0.05)
    assert spreads["blocks.3.attention.qkv.weight"] == pytest.approx(0.02, rel=0.05)
    assert spreads["blocks.3.feed_forward.up.weight"] == pytest.approx(0.02, rel=0.05)
    for name in ("attention.out", "feed_forward.down"):
        assert spreads[f"blocks.3.{name}.weight"] == pytest.approx(0.02 / math.sqrt(16), rel=0.05)


def test_an_untrained_model_is_as_unsure_as_it_can_be() -> None:
    torch.manual_seed(0)
    model = GPTModel(SMALL).eval()
    ids = random_ids(SMALL, 8, 32)
    assert model.loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(SMALL.vocab_size), abs=0.05)


def test_targets_of_minus_100_do_not_count(model: GPTModel) -> None:
    ids = random_ids(SMALL, 2, 12)
    targets = ids[:, 1:].clone()
    targets[:, 6:] = -100
    short = model.loss(ids[:, :6], ids[:, 1:7])
    assert model.loss(ids[:, :-1], targets).item() == pytest.approx(short.item(), rel=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_bfloat16_is_float32_to_its_rounding(peer: GPT2LMHeadModel, tmp_path: Path, plain: bool) -> None:
    ids = random_ids(SMALL, 2, 20)
    ours = ours_of(peer_of(SMALL), tmp_path, plain).to(torch.bfloat16)
    with torch.inference_mode():
        logits = ours(ids)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - peer_logits(peer_of(SMALL), ids)).abs().max() < 0.02


# ---------------------------------------------------------------------------------------------------------------
# The Runner
# ---------------------------------------------------------------------------------------------------------------


def expected_logits(peer: GPT2LMHeadModel, ids: list[int]) -> np.ndarray:
    return peer_logits(peer, torch.tensor([ids]))[0, -1].numpy()


def test_cached_logits_are_those_of_transformers_without_a_cache(peer: GPT2LMHeadModel, model: GPTModel) -> None:
    runner, ids = TorchRunner(model), random_ids(SMALL, 1, 64)[0].tolist()
    slot = runner.open()
    for length in range(1, 65):
        logits = runner.extend([(slot, ids[length - 1 : length])])
        assert logits.dtype == np.float32
        assert logits.shape == (1, SMALL.vocab_size)
        assert np.abs(logits[0] - expected_logits(peer, ids[:length])).max() < TOLERANCE
    assert slot.length == 64


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_mix_of_sequences_gives_what_each_gives_alone(
    peer: GPT2LMHeadModel, model: GPTModel, data: st.DataObject
) -> None:
    """Sequences open and close at any time and grow by any number of tokens, in any order within a call."""
    runner = TorchRunner(model)
    tokens = st.integers(0, SMALL.vocab_size - 1)
    running: list[tuple[TorchSlot, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 6), label="calls")):
        closes: bool = data.draw(st.booleans(), label="close one")
        if running and closes:
            slot, _ = running.pop(data.draw(st.integers(0, len(running) - 1)))
            runner.close(slot)
        for _ in range(data.draw(st.integers(0 if running else 1, 3), label="open")):
            running.append((runner.open(), []))
        chosen = data.draw(st.permutations(running), label="order")[: data.draw(st.integers(1, len(running)))]
        work = []
        for slot, ids in chosen:
            room = SMALL.context_length - len(ids)
            if room:
                new = data.draw(st.lists(tokens, min_size=1, max_size=min(room, data.draw(st.sampled_from([1, 12])))))
                ids += new
                work.append((slot, new))
        logits = runner.extend(work)
        for found, (slot, _) in zip(logits, work, strict=True):
            ids = next(ids for other, ids in running if other is slot)
            assert np.abs(found - expected_logits(peer, ids)).max() < TOLERANCE


def test_memory_that_was_never_written_is_not_seen(model: GPTModel) -> None:
    runner = TorchRunner(model)
    slots = [runner.open(), runner.open()]
    for store in (runner._cache.keys, runner._cache.values):
        for layer in store:
            layer.fill_(torch.nan)
    runner.extend([(slots[0], [1, 2, 3, 4]), (slots[1], [5])])
    assert np.isfinite(runner.extend([(slots[0], [6]), (slots[1], [7])])).all()


def test_logits_of_a_whole_sequence(peer: GPT2LMHeadModel, model: GPTModel) -> None:
    ids = random_ids(SMALL, 1, 50)
    found = TorchRunner(model).logits(ids[0].tolist())
    assert np.abs(found - peer_logits(peer, ids)[0].numpy()).max() < TOLERANCE


def test_a_model_in_training_is_run_without_dropout_and_stays_in_training() -> None:
    model = GPTModel(SMALL.replace(drop_rate=0.5)).train()
    runner = TorchRunner(model)
    assert np.array_equal(runner.logits([1, 2, 3]), runner.logits([1, 2, 3]))
    assert model.training


def test_a_closed_row_serves_the_next_sequence(model: GPTModel) -> None:
    runner = TorchRunner(model)
    first, second = runner.open(), runner.open()
    runner.close(first)
    runner.close(first)
    assert runner.open().row == first.row
    assert second.row != first.row


@pytest.mark.parametrize(
    ("ids", "words"),
    [([], "no tokens"), ([97], "97"), ([-1], "-1"), ([1] * 65, "context of 64")],
    ids=["none", "too large", "negative", "too many"],
)
def test_what_cannot_be_run_is_refused_and_changes_nothing(model: GPTModel, ids: list[int], words: str) -> None:
    runner = TorchRunner(model)
    slot, other = runner.open(), runner.open()
    with pytest.raises(InputError, match=words):
        runner.extend([(other, [1]), (slot, ids)])
    assert (slot.length, other.length) == (0, 0)


def test_a_slot_that_is_closed_or_stands_twice_is_refused(model: GPTModel) -> None:
    runner = TorchRunner(model)
    slot = runner.open()
    with pytest.raises(InputError, match="twice"):
        runner.extend([(slot, [1]), (slot, [2])])
    runner.close(slot)
    with pytest.raises(InputError, match="closed"):
        runner.extend([(slot, [1])])
