"""Watching and editing values, beside transformers' hidden states and attentions of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL, ours_of, peer_logits, peer_of
from torch import nn
from transformers import GPT2LMHeadModel

import clearhead
from clearhead import lens
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.model import GPTModel

IDS = torch.randint(97, (20,), generator=torch.Generator().manual_seed(3)).tolist()
LAYERS, HEADS = SMALL.n_layers, SMALL.n_heads


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    peer = peer_of(SMALL, std=0.2)
    peer.set_attn_implementation("eager")
    return peer


@pytest.fixture(scope="module")
def gpt(peer: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> GPT:
    return GPT(ours_of(peer, tmp_path_factory.mktemp("lens")))


@pytest.fixture(scope="module")
def bundled() -> GPT:
    return clearhead.load(backend="torch")


def peer_modules(peer: GPT2LMHeadModel, modules: dict[str, nn.Module]) -> dict[str, np.ndarray]:
    """What modules of the peer return for IDS."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[0].detach().numpy()

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        peer_logits(peer, torch.tensor([IDS]))
    return found


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < 1e-4)


# ---------------------------------------------------------------------------------------------------------------
# Watching
# ---------------------------------------------------------------------------------------------------------------


def test_residuals_and_patterns_are_transformers_hidden_states_and_attentions(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    with torch.inference_mode():
        theirs = peer(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    trace = gpt.watch(IDS)
    states = [state[0].numpy() for state in theirs.hidden_states]  # the last one is after the final norm
    assert close(trace["embedding"], states[0])
    for layer in range(LAYERS):
        assert close(trace[f"blocks.{layer}.residual_in"], states[layer])
        assert close(trace[f"blocks.{layer}.attention.pattern"], theirs.attentions[layer][0].numpy())
        if layer + 1 < LAYERS:
            assert close(trace[f"blocks.{layer}.residual_out"], states[layer + 1])
    assert close(trace["final_norm.output"], states[-1])
    assert close(trace["logits"], theirs.logits[0].numpy())


def test_what_modules_return_is_what_transformers_modules_return(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    body = peer.transformer
    modules = {"embedding.token": body.wte, "embedding.position": body.wpe, "final_norm.output": body.ln_f}
    for i, block in enumerate(body.h):
        modules |= {
            f"blocks.{i}.norm_1.output": block.ln_1,
            f"blocks.{i}.attention.output": block.attn,
            f"blocks.{i}.norm_2.output": block.ln_2,
            f"blocks.{i}.feed_forward.up": block.mlp.c_fc,
            f"blocks.{i}.feed_forward.activated": block.mlp.act,
            f"blocks.{i}.feed_forward.output": block.mlp,
            f"blocks.{i}.residual_out": block,
            f"blocks.{i}.qkv": block.attn.c_attn,
        }
    theirs = peer_modules(peer, modules)
    trace = gpt.watch(IDS)
    for name in modules:
        if not name.endswith("qkv"):
            assert close(trace[name], theirs[name]), name
    for i in range(LAYERS):
        parts = np.split(theirs[f"blocks.{i}.qkv"], 3, axis=-1)  # [T, C] each
        for name, part in zip(("queries", "keys", "values"), parts, strict=True):
            by_head = part.reshape(len(IDS), HEADS, -1).transpose(1, 0, 2)
            assert close(trace[f"blocks.{i}.attention.{name}"], by_head)


def test_the_steps_of_attention_and_of_norms_follow_from_each_other(gpt: GPT) -> None:
    trace = gpt.watch(IDS)
    for i in range(LAYERS):
        at = f"blocks.{i}.attention."
        scores = trace[at + "queries"] @ trace[at + "keys"].transpose(0, 2, 1) / SMALL.head_dim**0.5
        assert close(trace[at + "scores"], scores)
        seen = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(len(IDS))
        assert close(trace[at + "pattern"], seen / seen.sum(-1, keepdims=True))
        assert close(trace[at + "mixed"], trace[at + "pattern"] @ trace[at + "values"])
        for norm, read in (("norm_1", "residual_in"), ("norm_2", "residual_mid")):
            assert close(trace[f"blocks.{i}.{norm}.mean"], trace[f"blocks.{i}.{read}"].mean(-1))
            assert close(trace[f"blocks.{i}.{norm}.variance"], trace[f"blocks.{i}.{read}"].var(-1))
        assert close(
            trace[f"blocks.{i}.residual_mid"], trace[f"blocks.{i}.residual_in"] + trace[f"blocks.{i}.attention.output"]
        )


@settings(deadline=None, max_examples=20)
@given(
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    layers=st.integers(1, 3),
    ff_dim=st.integers(1, 9),
    bias=st.booleans(),
    tokens=st.integers(1, 8),
)
def test_every_name_is_produced_with_the_shape_that_the_table_states(
    heads: int, width: int, layers: int, ff_dim: int, bias: bool, tokens: int
) -> None:
    config = SMALL.replace(
        n_heads=heads, emb_dim=heads * width, n_layers=layers, ff_dim=ff_dim, qkv_bias=bias, context_length=8
    )
    trace = lens.watch(GPTModel(config), IDS[:tokens])
    known = lens.names(config)
    assert list(trace) == list(known)
    for name, value in trace.items():
        assert value.shape == known[name].shape(config, tokens), name
        assert value.dtype == np.float32


def test_wildcards_choose_and_nothing_else_is_kept(gpt: GPT) -> None:
    assert list(gpt.watch(IDS, "blocks.*.attention.pattern")) == [
        f"blocks.{i}.attention.pattern" for i in range(LAYERS)
    ]
    assert list(gpt.watch(IDS, ["logits", "embed*"])) == [
        "embedding.token",
        "embedding.position",
        "embedding",
        "logits",
    ]


@settings(deadline=None, max_examples=15)
@given(positions=st.lists(st.integers(0, len(IDS) - 1), min_size=1, max_size=5, unique=True))
def test_only_some_positions_are_kept(gpt: GPT, positions: list[int]) -> None:
    whole, part = gpt.watch(IDS), gpt.watch(IDS, positions=positions)
    for name, value in lens.names(SMALL).items():
        assert np.array_equal(part[name], np.take(whole[name], positions, value.token_axis)), name


def test_a_position_outside_the_text_is_refused(gpt: GPT) -> None:
    with pytest.raises(InputError, match="no position 20; the text's positions are 0 to 19"):
        gpt.watch(IDS, "logits", positions=[0, 20])


@settings(deadline=None, max_examples=15)
@given(st.text(max_size=8))
def test_pieces_are_the_text_or_bytes(bundled: GPT, text: str) -> None:
    tokenizer = bundled.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    for id, piece in zip(ids, lens.pieces(tokenizer, ids), strict=True):
        data = tokenizer.token_bytes(id)
        whole = piece.encode("utf-8") == data
        assert whole or bytes.fromhex(piece[1:-1]) == data


def test_the_logit_lens_on_the_last_residual_is_the_model(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    trace = gpt.watch(IDS, ["*.residual_out", "logits"])
    found = lens.logit_lens(gpt.model, trace[f"blocks.{LAYERS - 1}.residual_out"])
    assert found.shape == (len(IDS), SMALL.vocab_size)
    assert close(found, trace["logits"])
    early = trace["blocks.0.residual_out"]
    with torch.inference_mode():
        theirs = peer.lm_head(peer.transformer.ln_f(torch.tensor(early))).numpy()
    assert close(lens.logit_lens(gpt.model, early), theirs)
    with pytest.raises(InputError, match=r"has shape \[20, 3\]; \[..., 48\] was expected"):
        lens.logit_lens(gpt.model, early[:, :3])


def test_a_trace_prints_its_tokens_names_and_shapes(bundled: GPT) -> None:
    text = repr(bundled.watch("Every effort", ["embedding", "*.pattern"]))
    assert text.splitlines()[0] == "2 tokens: 'Every' ' effort'"
    assert "blocks.5.attention.pattern  [7, 2, 2]" in text
    assert isinstance(bundled.watch("Every effort", "logits", as_torch=True)["logits"], torch.Tensor)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("blocks.3.attention.pattern", "block 3, but the model's blocks are 0 to 2"),
        ("blocks.-1.residual_out", "block -1, but the model's blocks are 0 to 2"),
        ("blocks.1.attention.patern", "did you mean blocks.1.attention.pattern"),
        ("pattern", "did you mean blocks.0.attention.pattern"),
        ("logit", "did you mean logits"),
        ("blocks.*.nothing_at_all", "is not an activation of this model"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(gpt: GPT, name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("*", r"\*")):
        gpt.watch(IDS, name)
    with pytest.raises(InputError, match=r"is not an activation|blocks are"), gpt.edit(name, 0):
        pass


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [([], "no tokens"), ([1] * 65, "65 tokens, but the model reads 64"), ([97], "token 97"), ([-1], "contains -1")],
)
def test_a_text_that_cannot_run_is_refused(gpt: GPT, ids: list[int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        gpt.watch(ids, "logits")


# ---------------------------------------------------------------------------------------------------------------
# Editing
# ---------------------------------------------------------------------------------------------------------------


def without_head(peer: GPT2LMHeadModel, layer: int, head: int) -> np.ndarray:
    """The peer's logits where the rows of a head in the output projection are zero: [T, V]."""
    weight = peer.transformer.h[layer].attn.c_proj.weight  # transformers stores [in, out]
    rows = slice(head * SMALL.head_dim, (head + 1) * SMALL.head_dim)
    kept = weight.detach()[rows].clone()
    with torch.no_grad():
        weight[rows] = 0
        logits = peer_logits(peer, torch.tensor([IDS]))[0].numpy()
        weight[rows] = kept
    return logits


@settings(deadline=None, max_examples=8)
@given(layer=st.integers(0, LAYERS - 1), head=st.integers(0, HEADS - 1), name=st.sampled_from(["pattern", "mixed"]))
def test_a_head_set_to_zero_is_a_head_without_weights(
    gpt: GPT, peer: GPT2LMHeadModel, layer: int, head: int, name: str
) -> None:
    with gpt.edit(f"blocks.{layer}.attention.{name}", 0, heads=head):
        assert close(gpt.runner.logits(IDS), without_head(peer, layer, head))


@pytest.mark.parametrize("name", [f"blocks.{i}.{n}" for i in (0, 2) for n in ("residual_in", "residual_mid")])
def test_a_residual_of_another_text_in_place_of_this_ones_makes_it_the_other_from_there_on(gpt: GPT, name: str) -> None:
    other = IDS[::-1]
    trace = gpt.watch(other)
    with gpt.edit(name, trace[name]):
        patched = gpt.watch(IDS)
    after = list(trace).index(name)
    for later in list(trace)[after:]:
        assert np.array_equal(patched[later], trace[later]), later
    assert not np.array_equal(patched["embedding"], trace["embedding"])


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(list(lens.names(SMALL))), data=st.data())
def test_a_patched_position_holds_what_was_put_there_and_the_others_what_they_had(
    gpt: GPT, name: str, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, len(IDS) - 1), min_size=1, max_size=4, unique=True))
    value = lens.names(SMALL)[name]
    axis = value.letters.index("T")
    plain = gpt.watch(IDS, name)[name]
    new = np.random.default_rng(0).random(plain.shape).astype(np.float32)
    with gpt.edit(name, np.take(new, positions, axis), positions=positions):
        found = gpt.watch(IDS, name)[name]
    others = [t for t in range(len(IDS)) if t not in positions]
    assert np.array_equal(np.take(found, positions, axis), np.take(new, positions, axis))
    assert np.array_equal(np.take(found, others, axis), np.take(plain, others, axis))


@pytest.mark.parametrize("name", list(lens.names(SMALL.replace(n_layers=1))))
def test_putting_back_what_was_there_changes_nothing_and_a_change_changes_the_logits(gpt: GPT, name: str) -> None:
    before = gpt.watch(IDS, [name, "logits"])
    with gpt.edit(name, before[name]):
        assert close(gpt.runner.logits(IDS), before["logits"])
    with gpt.edit(name, lambda value: value * torch.linspace(0.5, 2, value.shape[-1])):
        assert not close(gpt.runner.logits(IDS), before["logits"])
    assert np.array_equal(gpt.runner.logits(IDS), GPT(gpt.model).runner.logits(IDS))


def test_edits_stand_one_in_another(gpt: GPT) -> None:
    name = "blocks.1.feed_forward.up"
    plain = gpt.watch(IDS, name)[name]
    with gpt.edit(name, lambda up: up + 1):
        with gpt.edit(name, lambda up: up * 2):
            assert np.allclose(gpt.watch(IDS, name)[name], (plain + 1) * 2)
        assert np.allclose(gpt.watch(IDS, name)[name], plain + 1)
    with gpt.edit("blocks.1.residual_out", 0), gpt.edit("blocks.1.residual_mid", 1):
        assert not gpt.watch(IDS, "blocks.2.residual_in")["blocks.2.residual_in"].any()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_generating_with_an_edit_is_running_the_whole_text_with_it(gpt: GPT, data: st.DataObject) -> None:
    """With a cache, token by token, in ragged batches: as without any of these."""
    name = f"blocks.{data.draw(st.integers(0, LAYERS - 1))}." + data.draw(
        st.sampled_from(
            [
                "attention.pattern",
                "attention.scores",
                "attention.keys",
                "attention.mixed",
                "residual_mid",
                "norm_2.mean",
            ]
        )
    )
    value = lens.names(SMALL)[name]
    positions = data.draw(st.none() | st.lists(st.integers(0, 25), min_size=1, unique=True))
    heads = (
        data.draw(st.none() | st.lists(st.integers(0, HEADS - 1), min_size=1, unique=True)) if value.per_head else None
    )

    def change(old: torch.Tensor) -> torch.Tensor:
        if name.endswith(("pattern", "scores")):
            old[..., 1:3] *= 0.3  # the last axis counts all tokens so far
            return old
        return old * 0.5 + 0.1

    prompts = [IDS[:length] for length in data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))]
    with gpt.edit(name, change, heads=heads, positions=positions):
        texts = gpt.generate(prompts, temperature=0, max_new_tokens=8, stop_at_end_of_text=False)
        for prompt, text in zip(prompts, texts, strict=True):
            ids = list(prompt)
            for token in text.ids:
                logits = gpt.runner.logits(ids)[-1]
                assert logits.max() - logits[token] < 1e-4
                ids.append(token)


def test_score_sees_an_edit(gpt: GPT) -> None:
    with gpt.edit("logits", 0):
        assert gpt.score(IDS).perplexity == pytest.approx(SMALL.vocab_size)


def test_what_the_lens_does_to_the_network_reaches_a_gpt_on_the_engine(peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    """The engine would go on with its own weights, without a word."""
    peer.save_pretrained(tmp_path)
    gpt = clearhead.load(tmp_path, backend="engine")
    plain = gpt.score(IDS).perplexity
    with lens.ablate(gpt.model, "logits", "zero"):
        assert gpt.score(IDS).perplexity == pytest.approx(SMALL.vocab_size)
        with gpt.edit("logits", lambda logits: logits + 1):
            assert gpt.score(IDS).perplexity == pytest.approx(SMALL.vocab_size)
        with ThreadPoolExecutor() as other:  # which is not inside the `with`
            assert other.submit(gpt.score, IDS).result().perplexity == plain
    assert gpt.score(IDS).perplexity == plain != pytest.approx(SMALL.vocab_size)


def test_a_network_that_was_trained_beside_the_engine_runs_itself(peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    peer.save_pretrained(tmp_path)
    gpt = clearhead.load(tmp_path, backend="engine")
    model = gpt.model.train()
    plain = gpt.score(IDS).perplexity
    assert type(gpt.runner).__name__ == "EngineRunner"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(model(torch.tensor([IDS]))[0, :-1], torch.tensor(IDS[1:])).backward()
    optimizer.step()
    trained = gpt.score(IDS).perplexity
    assert trained < plain and model.training
    gpt.save(tmp_path / "trained")
    assert clearhead.load(tmp_path / "trained", backend="engine").score(IDS).perplexity == pytest.approx(trained)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("blocks.0.attention.pattern", 0, {"heads": 4}), "no head 4; the model's heads are 0 to 3"),
        (("blocks.0.attention.pattern", 0, {"heads": []}), "heads is empty"),
        (("blocks.0.attention.pattern", 0, {"heads": [1, 1]}), "twice"),
        (("blocks.0.residual_out", 0, {"heads": 1}), "has no axis for heads"),
        (("blocks.0.residual_out", 0, {"positions": -1}), "no position -1; the model's positions are 0 to 63"),
        (("blocks.0.residual_out", "zero", {}), "the change is a str; give a number, an array or a tensor"),
        (("blocks.0.residual_out", np.zeros((20, 47)), {}), r"has shape \[20, 47\], which does not fit \[20, 48\]"),
        (("blocks.0.residual_out", np.zeros((19, 48)), {}), "has 19 tokens, but 20 were expected"),
        (("blocks.0.residual_out", np.zeros((2, 48)), {"positions": [1, 2, 3]}), "has 2 tokens, but 3 were expected"),
        (("blocks.0.residual_out", lambda x: None, {}), "returned None"),
        (("blocks.0.residual_out", lambda x: "x", {}), "returned is a str"),
        (("blocks.0.residual_out", lambda x: x[:, :5], {}), r"has shape \[20, 5\]"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(gpt: GPT, arguments: tuple[str, Any, dict[str, Any]], sentence: str) -> None:
    name, change, options = arguments
    with pytest.raises(InputError, match=sentence), gpt.edit(name, change, **options):
        gpt.watch(IDS, "logits")
    assert_untouched(gpt.model)


# ---------------------------------------------------------------------------------------------------------------
# Afterwards
# ---------------------------------------------------------------------------------------------------------------


def assert_untouched(model: GPTModel) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_no_hook_remains(gpt: GPT) -> None:
    gpt.watch(IDS)
    assert_untouched(gpt.model)
    with gpt.edit("blocks.*", lambda value: value):
        assert gpt.model.blocks[0]._forward_hooks
    assert_untouched(gpt.model)

    def fail(value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"), gpt.edit("*", fail):
        gpt.generate(IDS[:4])
    assert_untouched(gpt.model)


def test_watching_changes_no_logits(gpt: GPT) -> None:
    plain = gpt.runner.logits(IDS)
    assert np.abs(gpt.watch(IDS)["logits"] - plain).max() < 1e-5
    assert np.array_equal(gpt.runner.logits(IDS), plain)


def test_a_model_in_training_stays_in_training_and_is_watched_without_dropout() -> None:
    model = GPTModel(SMALL.replace(drop_rate=0.5))
    first, second = lens.watch(model, IDS, "logits"), lens.watch(model, IDS, "logits")
    assert np.array_equal(first["logits"], second["logits"])
    assert all(module.training for module in model.modules())
    with lens.edit(model, "blocks.*.attention.pattern", lambda pattern: pattern):
        ids = torch.tensor([IDS])
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_compiled_model_is_watched_edited_and_compiled_as_before(peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    model = ours_of(peer, tmp_path)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, backend=count)
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        before = compiled(ids)
        made = graphs
        trace = lens.watch(model, IDS, ["blocks.1.attention.pattern", "logits"])
        with lens.edit(model, "blocks.1.attention.output", 0):
            edited = compiled(ids)
            assert torch.equal(edited, model(ids))
        assert torch.equal(compiled(ids), before)
    assert made >= 1
    assert graphs == made
    assert np.abs(trace["logits"] - before[0].numpy()).max() < 1e-4
    assert (edited - before).abs().max() > 1e-2


def test_bfloat16_values_come_as_float32_arrays(peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    model = ours_of(peer, tmp_path).to(torch.bfloat16)
    trace = lens.watch(model, IDS)
    assert {value.dtype for value in trace.values()} == {np.dtype(np.float32)}
    tensors = lens.watch_tensors(model, IDS, "*.pattern")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_no_public_name_is_that_of_a_module() -> None:
    """Names are imported when they are used; a module of the same name would take their place."""
    folder = Path(lens.__file__).parent
    assert not set(lens.__all__) & {path.stem for path in folder.iterdir()}
    assert set(lens._HOME) == set(lens.__all__)
    assert all(getattr(lens, name).__name__ == name for name in lens.__all__)
