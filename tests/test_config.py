"""The shape of a GPT-2, held against the book's printed dictionary and Hugging Face's own GPT2Config."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from clearhead.config import HUB_NAMES, RELEASED, GPTConfig
from clearhead.errors import ClearheadError, ConfigError

# As printed in chapter 4 of "Build a Large Language Model (From Scratch)".
GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

# The hparams.json in the folder of OpenAI's 355M.
OPENAI_355M = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24}


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    """Configs over the whole range of what a GPT-2 may be."""
    n_heads = draw(st.integers(1, 32))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 200_000)),
        context_length=draw(st.integers(1, 8192)),
        emb_dim=n_heads * draw(st.integers(1, 128)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 96)),
        drop_rate=draw(st.floats(0, 0.99)),
        qkv_bias=draw(st.booleans()),
        tie_weights=draw(st.booleans()),
        norm_eps=draw(st.floats(1e-12, 1e-2)),
        activation=draw(st.sampled_from(("gelu_tanh", "gelu_erf"))),
        ff_dim=draw(st.integers(0, 20_000)),
    )


def small(**changes: Any) -> GPTConfig:
    values = {"vocab_size": 100, "context_length": 16, "emb_dim": 24, "n_heads": 4, "n_layers": 2}
    return GPTConfig(**{**values, **changes})


def test_book_dictionary_works_as_printed() -> None:
    config = GPTConfig(**GPT_CONFIG_124M)
    assert {key: getattr(config, key) for key in GPT_CONFIG_124M} == GPT_CONFIG_124M
    assert config.tie_weights is False, "the book's model has a head of its own"
    assert config.ff_dim == 4 * 768
    assert config.head_dim == 64
    assert config.norm_eps == 1e-5
    assert config.activation == "gelu_tanh"
    assert GPTConfig.from_dict(GPT_CONFIG_124M) == config


@pytest.mark.parametrize(
    ("book_name", "changes", "size"),
    [
        ("gpt2-small (124M)", {"emb_dim": 768, "n_layers": 12, "n_heads": 12}, "124M"),
        ("gpt2-medium (355M)", {"emb_dim": 1024, "n_layers": 24, "n_heads": 16}, "355M"),
        ("gpt2-large (774M)", {"emb_dim": 1280, "n_layers": 36, "n_heads": 20}, "774M"),
        ("gpt2-xl (1558M)", {"emb_dim": 1600, "n_layers": 48, "n_heads": 25}, "1558M"),
    ],
)
def test_released_sizes_are_those_of_the_book(book_name: str, changes: dict[str, int], size: str) -> None:
    # Chapter 5 of the book updates its dictionary by these three numbers and sets qkv_bias.
    book = GPTConfig(**{**GPT_CONFIG_124M, **changes, "qkv_bias": True, "tie_weights": True})
    assert RELEASED[size] == book
    hub_name = book_name.split()[0].replace("gpt2-small", "gpt2")
    for name in (size, hub_name, f"openai-community/{hub_name}"):
        assert GPTConfig.named(name) == book


def test_every_hub_name_has_a_size() -> None:
    assert sorted(HUB_NAMES.values()) == sorted(RELEASED)


@pytest.mark.parametrize("name", ["125M", "gpt3", "", "GPT2", "openai-community/gpt5", "124m"])
def test_unknown_size_is_refused_with_the_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match="124M, 355M, 774M, 1558M") as refused:
        GPTConfig.named(name)
    assert repr(name) in str(refused.value)


def test_config_cannot_be_changed_in_place() -> None:
    config = small()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.emb_dim = 48  # type: ignore[misc]


@given(configs())
@settings(deadline=None, max_examples=50)
def test_equal_configs_hash_alike_and_pickle(config: GPTConfig) -> None:
    same = pickle.loads(pickle.dumps(config))
    assert same == config
    assert hash(same) == hash(config)
    assert GPTConfig.from_dict(dataclasses.asdict(config)) == config


def test_ff_dim_follows_the_width_unless_it_was_chosen() -> None:
    assert small().ff_dim == 96
    assert small(ff_dim=50).ff_dim == 50
    assert small().replace(emb_dim=48).ff_dim == 192
    assert small(ff_dim=50).replace(emb_dim=48).ff_dim == 50
    assert small().replace(emb_dim=48, ff_dim=96).ff_dim == 96
    assert small().replace(n_layers=3) == small(n_layers=3)


def test_replace_checks_like_a_new_config() -> None:
    with pytest.raises(ConfigError, match="does not divide into 4 heads"):
        small().replace(emb_dim=25)


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "ff_dim"])
@pytest.mark.parametrize("value", [-1, 1.0, 2.5, "12", None, True, [3]])
def test_whole_numbers_are_whole_and_positive(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        small(**{name: value})
    assert str(refused.value) == f"{name} is {value!r}; it must be a whole number of at least 1."


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"])
def test_zero_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; it must be a whole number of at least 1"):
        small(**{name: 0})


@pytest.mark.parametrize("name", ["qkv_bias", "tie_weights"])
@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_switches_are_true_or_false(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*; it must be true or false"):
        small(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, float("nan"), float("inf"), "0.1", None, False])
def test_drop_rate_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"drop_rate is .*from 0 up to, but not including, 1"):
        small(drop_rate=value)


@pytest.mark.parametrize("value", [0, -1e-5, 1, float("nan"), float("inf"), "1e-5", None, True])
def test_norm_eps_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"norm_eps is .*a small number above 0"):
        small(norm_eps=value)


@pytest.mark.parametrize("value", ["silu", "gelu", "", None, ["gelu_tanh"]])
def test_unknown_activation_is_refused_with_those_there_are(value: object) -> None:
    with pytest.raises(ConfigError, match=r"activation is .*gelu_tanh, gelu_erf, relu"):
        small(activation=value)


@given(st.integers(1, 2000), st.integers(1, 200))
@settings(deadline=None, max_examples=100)
def test_heads_must_divide_the_width(emb_dim: int, n_heads: int) -> None:
    if emb_dim % n_heads == 0:
        assert small(emb_dim=emb_dim, n_heads=n_heads).head_dim * n_heads == emb_dim
    else:
        with pytest.raises(ConfigError, match=f"emb_dim {emb_dim} does not divide into {n_heads} heads"):
            small(emb_dim=emb_dim, n_heads=n_heads)


def test_misspelt_key_names_the_near_one() -> None:
    values = {**GPT_CONFIG_124M, "n_head": 12}
    with pytest.raises(ConfigError, match=r"'n_head' is not a setting of a GPT-2 \(did you mean 'n_heads'\?\)"):
        GPTConfig.from_dict(values)
    with pytest.raises(ConfigError, match=r"'zebra' is not a setting of a GPT-2; the settings are vocab_size, "):
        GPTConfig.from_dict({**GPT_CONFIG_124M, "zebra": 1})


@pytest.mark.parametrize("key", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"])
def test_missing_key_is_named(key: str) -> None:
    values = {name: value for name, value in GPT_CONFIG_124M.items() if name != key}
    with pytest.raises(ConfigError, match=f"lacks {key};"):
        GPTConfig.from_dict(values)


@given(configs())
@settings(deadline=None, max_examples=100)
def test_written_config_is_read_alike_by_transformers(config: GPTConfig) -> None:
    theirs = GPT2Config(**json.loads(json.dumps(config.to_huggingface())))
    assert theirs.vocab_size == config.vocab_size
    assert theirs.n_positions == config.context_length
    assert theirs.n_embd == config.emb_dim
    assert theirs.n_head == config.n_heads
    assert theirs.n_layer == config.n_layers
    assert (theirs.n_inner or 4 * theirs.n_embd) == config.ff_dim
    assert theirs.attn_pdrop == theirs.embd_pdrop == theirs.resid_pdrop == config.drop_rate
    assert theirs.layer_norm_epsilon == config.norm_eps
    assert theirs.tie_word_embeddings is config.tie_weights
    assert theirs.activation_function == {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}[config.activation]
    # And back from what transformers itself writes for it.
    assert GPTConfig.from_huggingface(json.loads(theirs.to_json_string(use_diff=False))) == config


@given(
    n_head=st.integers(1, 16),
    head_dim=st.integers(1, 80),
    n_layer=st.integers(1, 48),
    vocab_size=st.integers(1, 60_000),
    n_positions=st.integers(1, 4096),
    n_inner=st.none() | st.integers(1, 9000),
    resid_pdrop=st.floats(0, 0.9),
    layer_norm_epsilon=st.sampled_from([1e-5, 1e-6, 1e-3]),
    tie_word_embeddings=st.booleans(),
    activation_function=st.sampled_from(["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"]),
)
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("diff_only", [False, True], ids=["all keys", "only what differs from the defaults"])
def test_config_that_transformers_writes_is_read(diff_only: bool, head_dim: int, **values: Any) -> None:
    theirs = GPT2Config(n_embd=head_dim * values["n_head"], **values)
    config = GPTConfig.from_huggingface(json.loads(theirs.to_json_string(use_diff=diff_only)))
    assert config.vocab_size == theirs.vocab_size
    assert config.context_length == theirs.n_positions
    assert config.emb_dim == theirs.n_embd
    assert config.n_heads == theirs.n_head
    assert config.n_layers == theirs.n_layer
    assert config.ff_dim == (theirs.n_inner or 4 * theirs.n_embd)
    assert config.drop_rate == theirs.resid_pdrop
    assert config.norm_eps == theirs.layer_norm_epsilon
    assert config.tie_weights is theirs.tie_word_embeddings
    assert config.qkv_bias is True, "their GPT-2 always has these biases"
    assert config.activation == ("gelu_erf" if theirs.activation_function == "gelu" else "gelu_tanh")


@pytest.mark.parametrize(
    "name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu", "gelu_python", "relu"]
)
def test_activation_names_mean_what_they_mean_in_transformers(name: str) -> None:
    import torch
    from transformers.activations import ACT2FN

    from clearhead.model import FeedForward

    config = GPTConfig.from_huggingface(GPT2Config(activation_function=name).to_dict())
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    torch.testing.assert_close(
        ACT2FN[name](x), FeedForward(small(activation=config.activation)).gelu(x), atol=1e-7, rtol=0
    )


def test_empty_hugging_face_config_means_their_defaults() -> None:
    assert GPTConfig.from_huggingface({"model_type": "gpt2"}) == RELEASED["124M"]
    assert GPTConfig.from_huggingface(GPT2Config().to_dict()) == RELEASED["124M"]


def test_the_general_names_of_keys_mean_what_they_mean_in_transformers() -> None:
    values = {
        "model_type": "gpt2",
        "hidden_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": 32,
    }
    theirs = GPT2Config.from_dict(values)
    config = GPTConfig.from_huggingface(values)
    assert (config.emb_dim, config.n_heads) == (theirs.n_embd, theirs.n_head) == (96, 4)
    assert (config.n_layers, config.context_length) == (theirs.n_layer, theirs.n_positions) == (3, 32)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "zamba"}, "model_type 'zamba'; Clearhead runs models of type 'gpt2' only"),
        ({"model_type": "llama"}, "describes Llama .*not a GPT-2: it has rotary positions and RMS norms"),
        ({"model_type": "imagegpt"}, "describes ImageGPT .*continues pixels"),
        ({"model_type": "openai-gpt"}, "describes GPT-1 .*norms come after attention"),
        ({"model_type": "gpt_neo"}, "describes GPT-Neo .*last 256 tokens only"),
        ({"model_type": "gptj"}, "describes GPT-J .*rotary"),
        ({"model_type": "bert"}, "describes BERT .*an encoder"),
        ({"model_type": "t5"}, "describes T5 .*an encoder-decoder"),
        ({"model_type": "vit"}, "describes ViT .*a vision model"),
        ({"model_type": ["gpt2"]}, r"model_type \['gpt2'\]"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized with GPTQ"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized with AWQ"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized with bitsandbytes"),
        ({"add_cross_attention": True}, "sets add_cross_attention, the decoder of an encoder-decoder"),
        ({"activation_function": "silu"}, "sets activation_function to 'silu'; Clearhead has gelu_new,"),
        ({"activation_function": ["gelu"]}, r"sets activation_function to \['gelu'\]; Clearhead has gelu_new,"),
        ({"activation_function": None}, "sets activation_function to None; Clearhead has gelu_new,"),
        ({"n_head": 7}, "emb_dim 768 does not divide into 7 heads"),
        ({"n_layer": "12"}, "n_layers is '12'; it must be a whole number"),
        ({"n_embd": None}, "emb_dim is None; it must be a whole number"),
        ({"layer_norm_epsilon": None}, "norm_eps is None"),
        ({"tie_word_embeddings": None}, "tie_weights is None; it must be true or false"),
        ({"qkv_bias": "no"}, "qkv_bias is 'no'; it must be true or false"),
    ],
)
def test_hugging_face_config_of_another_model_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GPTConfig.from_huggingface({**RELEASED["124M"].to_huggingface(), **changes})


def test_openai_hparams() -> None:
    # OpenAI's file knows nothing of dropout, so a model from it has none until a training sets it.
    assert GPTConfig.from_openai(OPENAI_355M) == RELEASED["355M"].replace(drop_rate=0.0)


@pytest.mark.parametrize("key", OPENAI_355M)
def test_openai_hparams_with_a_number_missing_are_refused(key: str) -> None:
    values = {name: value for name, value in OPENAI_355M.items() if name != key}
    with pytest.raises(ConfigError, match=f"hparams.json lacks {key};"):
        GPTConfig.from_openai(values)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (GPT_CONFIG_124M, GPTConfig(**GPT_CONFIG_124M)),
        (OPENAI_355M, RELEASED["355M"].replace(drop_rate=0.0)),
        (GPT2Config(n_embd=1280, n_layer=36, n_head=20).to_dict(), RELEASED["774M"]),
        (small(qkv_bias=True, ff_dim=40).to_huggingface(), small(qkv_bias=True, ff_dim=40)),
    ],
    ids=["book", "openai", "transformers", "clearhead"],
)
def test_file_is_told_from_its_keys(tmp_path: Path, contents: dict[str, Any], expected: GPTConfig) -> None:
    path = tmp_path / "any name.json"
    path.write_text(json.dumps(contents), encoding="utf-8")
    assert GPTConfig.from_file(path) == expected
    assert GPTConfig.from_file(str(path)) == expected


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "contains a JSON list; an object"),
        (b"null", "contains a JSON NoneType; an object"),
        (b"{}", "has none of the keys of a GPT-2 config"),
        (b'{"hidden_size": 768}', "has none of the keys of a GPT-2 config"),
        (b'{"n_vocab": 50257}', "hparams.json lacks n_ctx, n_embd, n_head, n_layer"),
        (b'{"emb_dim": 768}', "lacks vocab_size, context_length, n_heads, n_layers"),
        (b'{"n_embd": NaN}', "emb_dim is nan; it must be a whole number"),
    ],
)
def test_file_that_is_no_config_is_refused(tmp_path: Path, contents: bytes, sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(contents)
    with pytest.raises(ConfigError, match=sentence):
        GPTConfig.from_file(path)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.json"
    with pytest.raises(ConfigError, match=r"nowhere\.json could not be read"):
        GPTConfig.from_file(missing)
    with pytest.raises(ConfigError, match="could not be read"):
        GPTConfig.from_file(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
hf_keys = sorted(GPT2Config().to_dict())
book_keys = [field.name for field in dataclasses.fields(GPTConfig)]


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(hf_keys), json_values, max_size=6)
    | st.dictionaries(st.sampled_from(sorted(OPENAI_355M)), json_values)
    | st.dictionaries(st.sampled_from(book_keys), json_values)
)
@settings(deadline=None, max_examples=300)
def test_whatever_stands_in_a_file_is_a_config_or_a_sentence(values: dict[str, Any]) -> None:
    for read in (GPTConfig.from_huggingface, GPTConfig.from_openai, GPTConfig.from_dict):
        try:
            config = read(values)
        except ClearheadError as refused:
            assert str(refused).endswith("."), "an error is a sentence"
        else:
            assert isinstance(config, GPTConfig)


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "ff_dim"])
@pytest.mark.parametrize("value", [10**9, 2**63, 10**4000])
def test_an_absurd_size_is_refused_before_anything_is_sized_by_it(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*Clearhead runs models with at most") as caught:
        small(**{name: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[" * 100_000,
            '{"a":' * 100_000,
            "{" * 10,
            "",
            "null",
            "[1]",
            '{"n_layer": {"a": [1]}}',
            '{"n_embd": 1e999}',
        ),
        *('{"n_layer": 10000000, "n_embd": 8}', '{"n_ctx": 1, "n_vocab": []}', '{"emb_dim": 8, "x": 1}', "\ud800"),
    ],
)
def test_any_config_file_is_read_or_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        GPTConfig.from_file(path)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8-sig")
    assert GPTConfig.from_file(path) == RELEASED["124M"]
