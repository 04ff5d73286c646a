"""Charts of any decoder-only transformer, held against models that transformers makes and files that gguf writes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file
from test_diagram import inside, labels, overlap
from typer.testing import CliRunner

from clearhead.anatomy.architecture.chart import architecture_diagram
from clearhead.anatomy.architecture.description import Architecture
from clearhead.anatomy.architecture.differences import active_parameters, differences
from clearhead.anatomy.architecture.families import FAMILIES, architecture_from_config
from clearhead.anatomy.architecture.headers import architecture_from_tensors
from clearhead.anatomy.architecture.roles import classify
from clearhead.anatomy.architecture.text import components
from clearhead.anatomy.architecture.words import CHART, DIFFERENCES, FACTS, MISSING
from clearhead.anatomy.diagram.layout import LAYOUTS, lay_out
from clearhead.anatomy.diagram.mermaid import diagram_mermaid
from clearhead.anatomy.diagram.svg import diagram_svg
from clearhead.cli.app import make_app
from clearhead.errors import ConfigError, WeightsError
from clearhead.weights.architecture import read_architecture

Shapes = dict[str, tuple[int, ...]]

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
_OPT = {**_SIZES, "ffn_dim": 48, "max_position_embeddings": 64}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}),
    "gpt-1": ("OpenAIGPTConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": 96,
        },
    ),
    "gpt-j": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "vocab_size": 96}),
    "llama": ("LlamaConfig", _GROUPED),
    "llama with biases": ("LlamaConfig", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", _GROUPED),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen2, tied": ("Qwen2Config", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "qwen3 with experts": (
        "Qwen3MoeConfig",
        {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 8}),
    "gemma 2": ("Gemma2Config", {**_GROUPED, "head_dim": 16}),
    "gemma 3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 8}),
    "olmo 2": ("Olmo2Config", {**_GROUPED, "pad_token_id": 0}),
    "phi-3": ("Phi3Config", {**_GROUPED, "pad_token_id": 0}),
    "gpt-neox": ("GPTNeoXConfig", {**_SIZES, "intermediate_size": 48, "max_position_embeddings": 64}),
    "gpt-neox, one after the other": ("GPTNeoXConfig", {**_SIZES, "use_parallel_residual": False}),
    "opt": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 32}),
    "opt, projected": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 16}),
    "opt, norms after": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon": ("FalconConfig", _SIZES),
    "falcon, newer": ("FalconConfig", {**_SIZES, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon with alibi": (
        "FalconConfig",
        {**_SIZES, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "gpt-oss": ("GptOssConfig", {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def reference(key: str) -> tuple[dict[str, Any], Shapes, int]:
    """Return a config as JSON values, the shapes of the model's state dict, and the number of its parameters."""
    name, settings = CONFIGS[key]
    config = getattr(transformers, name)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return json.loads(config.to_json_string()), shapes, sum(p.numel() for p in model.parameters())


def of_config(key: str) -> Architecture:
    name, settings = CONFIGS[key]
    return architecture_from_config(json.loads(getattr(transformers, name)(**settings).to_json_string()), key)


def boxed(architecture: Architecture) -> int:
    """Return the parameters of all boxes of a chart."""
    boxes = {box.key: box for panel in architecture_diagram(architecture).panels for box in panel.boxes}
    return sum(box.parameters * box.times for box in boxes.values())


@pytest.mark.slow
@pytest.mark.parametrize("key", CONFIGS)
def test_every_tensor_of_a_model_is_on_its_chart(key: str) -> None:
    config, shapes, n_parameters = reference(key)
    found = architecture_from_config(config, key)
    assert {tensor.name: tensor.shape for tensor in found.tensors} == shapes
    assert found.total == n_parameters
    assert boxed(found) == n_parameters
    assert {t.name: t.role for t in classify(shapes)} == {t.name: t.role for t in found.tensors}
    assert found.other() == ()


@pytest.mark.parametrize("key", CONFIGS)
def test_a_header_alone_shows_the_same_tensors(key: str) -> None:
    config, shapes, n_parameters = reference(key)
    if config.get("tie_word_embeddings", key.startswith("gpt2")):
        shapes.pop("lm_head.weight")  # files leave out the second name of a tied matrix
    known, found = architecture_from_config(config, key), architecture_from_tensors(shapes, key)
    assert found.total == boxed(found) == n_parameters
    assert found.other() == ()
    for same in ("vocab_size", "emb_dim", "n_layers", "norm", "norm_bias", "tied", "projected", "embedding_norm"):
        assert getattr(found, same) == getattr(known, same), same
    assert found.feed_forward.width == known.feed_forward.width
    assert found.feed_forward.gated == known.feed_forward.gated
    assert found.attention.qkv_bias == known.attention.qkv_bias


def test_published_models_have_the_published_number_of_parameters() -> None:
    llama = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    llama |= {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
    assert architecture_from_config(llama, "Llama 3 8B").total == 8_030_261_248
    oss = {"model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64, "num_hidden_layers": 24, "vocab_size": 201088}
    oss |= {"num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 2880, "num_local_experts": 32}
    found = architecture_from_config({**oss, "num_experts_per_tok": 4}, "gpt-oss-20b")
    assert found.total == 20_914_757_184
    assert round((active_parameters(found) - 201_088 * 2_880) / 1e9, 2) == 3.61  # its card does not count the embedding
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    assert architecture_from_config(gpt2, "GPT-2").total == 124_439_808


@pytest.mark.parametrize("key", CONFIGS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_it_says_how_a_model_differs_and_why_it_cannot_run(key: str, lang: str) -> None:
    sentences = differences(of_config(key), lang)
    if key == "gpt2":
        assert sentences == [DIFFERENCES[lang]["same"]]
    else:
        start = DIFFERENCES[lang]["cannot run"].partition("{")[0]
        assert key.startswith("opt") or sentences[-1].startswith(start)
        assert all("{" not in sentence for sentence in sentences)


def test_differences_name_what_is_special() -> None:
    def found(key: str) -> str:
        return " ".join(differences(of_config(key)))

    assert "RoPE" in found("llama") and "4 query heads share 2 key and value heads" in found("llama")
    assert "All 4 query heads share one" in found("falcon") and "One norm serves both halves" in found("falcon")
    assert "normalized before their product" in found("qwen3") and "normalized" not in found("qwen2")
    assert "4 experts, of which a router picks 2" in found("gpt-oss") and "learned sink" in found("gpt-oss")
    assert "bounds the logits at 30" in found("gemma 2")
    assert "Only 25% of each head" in found("gpt-neox")
    assert found("llama").endswith("no rotary positions, no RMSNorm, no grouped heads and no gated feed-forward layer.")


def test_both_languages_have_every_string() -> None:
    for table in (CHART, DIFFERENCES, FACTS, MISSING):
        assert table["en"].keys() == table["zh"].keys()
        for key, words in table["en"].items():
            assert set(re.findall(r"{(\w+)", words)) >= set(re.findall(r"{(\w+)", table["zh"][key])), key


# --- The drawing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", CONFIGS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_boxes_and_labels_do_not_overlap(key: str, lang: str) -> None:
    for layout in LAYOUTS:
        page = lay_out(architecture_diagram(of_config(key), lang), layout)
        boxes = [place for panel in page.panels for place in panel.boxes.values()]
        assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
        assert all(inside(place, panel.area) for panel in page.panels for place in panel.boxes.values())
        written = [(text, place) for text, place in labels(page) if text]
        for (text, one), (_, other) in combinations(written, 2):
            assert not overlap(one, other), (layout, text)
        for text, place in written:
            assert not any(overlap(place, box) for box in boxes), (layout, text)


@pytest.mark.parametrize("key", CONFIGS)
def test_drawings_are_well_formed(key: str) -> None:
    figure = architecture_diagram(of_config(key))
    root = ElementTree.fromstring(diagram_svg(figure))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    lines = diagram_mermaid(figure).splitlines()
    assert lines[0] == "flowchart BT"
    arrows = [line for line in lines if re.search(r" (-->|-\.-)", line)]
    assert len(arrows) == sum(len(panel.arrows) for panel in figure.panels)
    drawn = {box.key for panel in figure.panels for box in panel.boxes}
    assert all({arrow.start, arrow.end} <= drawn for panel in figure.panels for arrow in panel.arrows)


# --- Files and the command line ----------------------------------------------------------------------------------


def write_folder(folder: Path, key: str, with_config: bool = True) -> Shapes:
    config, shapes, _ = reference(key)
    folder.mkdir()
    if with_config:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, folder / "model.safetensors")
    return shapes


def test_a_folder_is_read_from_config_and_header(tmp_path: Path) -> None:
    shapes = write_folder(tmp_path / "tiny-llama", "llama")
    found = read_architecture(tmp_path / "tiny-llama")
    assert found.name == "tiny-llama" and found.family == "llama" and found.attention.n_kv_heads == 2
    assert {tensor.name: tensor.shape for tensor in found.tensors} == shapes


def test_a_header_without_config_says_what_it_cannot_know(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny", "llama", with_config=False)
    found = read_architecture(tmp_path / "tiny" / "model.safetensors")
    assert found.attention.n_heads is None
    assert found.notes == (
        "The header does not say the number of heads and how positions get in; a config.json beside it would.",
    )


def test_unknown_tensors_are_named(tmp_path: Path) -> None:
    _, shapes, n = reference("llama")
    found = architecture_from_tensors({**shapes, "vision.patch.weight": (8, 8)}, "odd")
    assert [tensor.name for tensor in found.other()] == ["vision.patch.weight"]
    assert found.total == n + 64
    assert "1 tensors with 64 parameters are not recognized: vision.patch.weight" in architecture_diagram(found).facts


def test_a_table_names_what_is_not_recognized() -> None:
    _, shapes, _ = reference("llama")
    found = architecture_from_tensors({**shapes, "vision.patch.weight": (8, 8)}, "odd")
    assert ("not recognized", 1, 64, 64) in components(found)
    assert ("未识别", 1, 64, 64) in components(found, "zh")


def test_a_family_that_is_not_known_is_read_from_header_and_config(tmp_path: Path) -> None:
    """Of the config come the numbers that no shape shows; of an encoder, that it is one."""
    config = transformers.ImageGPTConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64)
    transformers.ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path)
    found = read_architecture(tmp_path)
    assert (found.family, found.n_layers, found.emb_dim, found.context_length) == ("imagegpt", 2, 32, 64)
    assert (found.attention.n_heads, found.attention.head_dim, found.norm) == (4, 8, "RMSNorm")
    assert found.notes == ()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))
    with pytest.raises(ConfigError, match="it is an encoder"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "newgpt", "n_head": "four"}))
    assert read_architecture(tmp_path).notes == (
        "Nothing is known here of configs of type 'newgpt', so the number of heads stays open.",
    )


def write_gguf(path: Path) -> int:
    """Write a GGUF of a small Qwen3 with `gguf` and return its parameters."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("Tiny Qwen3")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    shapes = {"token_embd": (96, 32), "output_norm": (32,)}
    for i in range(2):
        block = {"attn_norm": (32,), "attn_q": (64, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_q_norm": (16,)}
        block |= {"attn_k_norm": (16,), "attn_output": (32, 64), "ffn_norm": (32,), "ffn_gate": (48, 32)}
        block |= {"ffn_up": (48, 32), "ffn_down": (32, 48)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sum(int(np.prod(shape)) for shape in shapes.values())


def test_a_gguf_header_has_all_of_it(tmp_path: Path) -> None:
    n = write_gguf(tmp_path / "tiny.gguf")
    found = read_architecture(tmp_path / "tiny.gguf")
    assert (found.name, found.family, found.total, found.tied) == ("Tiny Qwen3", "qwen3", n, True)
    assert boxed(found) == n and found.other() == ()
    t = found.attention
    assert (t.n_heads, t.n_kv_heads, t.head_dim, t.qk_norm) == (4, 2, 16, True)
    assert (found.norm, found.positions, found.rope_theta) == ("RMSNorm", "rotary", 1e6)
    assert found.feed_forward.gated and found.feed_forward.activation == "silu"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(make_app(), ["architecture", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_draws_and_compares(tmp_path: Path) -> None:
    for key in ("gpt2", "llama"):
        write_folder(tmp_path / key, key)
    text = run(tmp_path / "llama")
    assert "W_query" in text and "What differs from GPT-2:" in text and "RMSNorm" in text
    assert "query heads" in run(tmp_path / "gpt2", "--compare", tmp_path / "llama")
    assert "与 GPT-2 的不同" in run(tmp_path / "llama", "--lang", "zh")
    values = json.loads(run(tmp_path / "llama", "--json"))
    assert values["attention"]["n_kv_heads"] == 2 and len(values["tensors"]) == 21
    assert run(tmp_path / "llama", "--mermaid").startswith("flowchart BT")
    run(tmp_path / "gpt2", "--compare", tmp_path / "llama", "-o", tmp_path / "both.svg")
    both = ElementTree.fromstring((tmp_path / "both.svg").read_text(encoding="utf-8"))
    ids = [element.get("id") for element in both.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and any(i.endswith("W_query") or "query" in i for i in ids if i)


BAD = [
    ({"model_type": "bert"}, "is BERT (model_type 'bert'): it is an encoder"),
    ({"model_type": "t5"}, "is T5 (model_type 't5'): it is an encoder-decoder"),
    ({"model_type": "clip"}, "it is a vision and text model"),
    ({"model_type": "zebra", "hidden_size": 8}, "has the model type 'zebra', whose config is not known here"),
    ({"model_type": "llama", "hidden_size": 8}, "has no vocab_size"),
    ({"model_type": "llama", "vocab_size": 9, "hidden_size": -8}, "hidden_size is -8"),
    ({"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 10**9}, "from 1 to 10,000"),
    ({"model_type": "llama", "vocab_size": "many"}, "vocab_size is 'many'"),
]


@pytest.mark.parametrize(("config", "sentence"), BAD)
def test_a_config_that_cannot_be_drawn_is_refused_in_a_sentence(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_architecture(tmp_path)


def test_files_that_cannot_be_drawn_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no file or folder"):
        read_architecture(tmp_path / "nothing")
    with pytest.raises(WeightsError, match=r"has no config\.json and no weights files"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is not a config\.json"):
        read_architecture(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(WeightsError, match=r"neither a config\.json nor"):
        read_architecture(tmp_path / "notes.txt")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "odd.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="no token embedding among its 1 tensors"):
        read_architecture(tmp_path / "odd.safetensors")


def test_a_quantized_checkpoint_is_named(tmp_path: Path) -> None:
    shapes = write_folder(tmp_path / "tiny", "llama")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = read_architecture(tmp_path / "tiny")
    assert {tensor.name for tensor in found.tensors} == set(shapes)
    assert found.notes == (
        "Its weights are stored quantized (gptq); the chart shows the matrices that they stand for.",
    )
    with pytest.raises(WeightsError, match=r"quantized checkpoint .*0\.self_attn\.q_proj\.qweight"):
        architecture_from_tensors({"model.layers.0.self_attn.q_proj.qweight": (4, 32)}, "tiny")


def test_every_family_has_a_title_of_its_own() -> None:
    titles = [family.title for family in FAMILIES.values()]
    assert len(titles) == len(set(titles))
