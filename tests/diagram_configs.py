"""Configs for tests of the diagram: every kind of model that it can draw."""

from hypothesis import strategies as st

from clearhead.config import GPTConfig


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    n_heads = draw(st.sampled_from([1, 2, 7, 25, 96]))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 1_000_000)),
        context_length=draw(st.integers(1, 100_000)),
        emb_dim=n_heads * draw(st.integers(1, 300)),
        n_heads=n_heads,
        n_layers=draw(st.sampled_from([1, 2, 48, 120])),
        drop_rate=draw(st.sampled_from([0.0, 0.1])),
        qkv_bias=draw(st.booleans()),
        tie_weights=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu_tanh", "gelu_erf", "relu"])),
        ff_dim=draw(st.integers(0, 50_000)),
    )
