"""The whole GPT-2 family: what transformers, peft and wrappers of them save opens here with the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead import weights
from clearhead.errors import ClearheadError, InputError, WeightsError
from clearhead.tokenizer import Tokenizer

IDS = [5, 61, 2, 2, 33, 90, 17, 4, 12, 45, 0, 71]


def config(**changes: Any) -> GPT2Config:
    shape = {"vocab_size": 97, "n_positions": 24, "n_embd": 48, "n_head": 3, "n_layer": 3}
    special = {"bos_token_id": 1, "eos_token_id": 1, "attn_implementation": "eager", "initializer_range": 0.2}
    return GPT2Config(**{**shape, **special, **changes})


def random_model(settings: GPT2Config, kind: type[Any] = GPT2LMHeadModel) -> Any:
    """A model of transformers whose every parameter is random, biases and norms too."""
    torch.manual_seed(0)
    model = kind(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        out = model(torch.tensor([IDS]))
    return out.logits[0].numpy()


def assert_same_logits(path: Path, expected: np.ndarray, backends: Any = ("torch", "engine")) -> None:
    for backend in backends:
        ours = clearhead.load(path, backend=backend).runner.logits(IDS)
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0, err_msg=backend)


SCALES = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
]
ACTIVATIONS = ["gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh", "relu"]
SHAPES = [{}, {"n_inner": 40, "n_embd": 40, "n_head": 5, "n_positions": 40}, {"tie_word_embeddings": False}]


class TestSettings:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("scale", SCALES, ids=str)
    def test_attention_scales_and_activations(self, tmp_path: Path, scale: dict[str, Any], activation: str) -> None:
        model = random_model(config(activation_function=activation, **scale))
        model.save_pretrained(tmp_path)
        assert_same_logits(tmp_path, logits_of(model))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("scale", SCALES, ids=str)
    def test_shapes(self, tmp_path: Path, scale: dict[str, Any], shape: dict[str, Any]) -> None:
        model = random_model(config(**scale, **shape))
        model.save_pretrained(tmp_path)
        assert_same_logits(tmp_path, logits_of(model))

    @pytest.mark.parametrize(
        "to", ["huggingface", "book", "nanogpt", "transformerlens", "llmc", "gguf", "onnx", "openai"]
    )
    def test_a_scaled_model_goes_into_every_layout(self, tmp_path: Path, to: str) -> None:
        model = random_model(config(**SCALES[3], n_embd=128, n_head=2))  # heads of 64, which every reader infers
        model.save_pretrained(tmp_path / "model")
        saved = weights.open(tmp_path / "model").save(tmp_path / "out", to)
        assert_same_logits(saved.path, logits_of(model), ("torch",))

    def test_the_plan_shows_the_scale(self, tmp_path: Path) -> None:
        random_model(config(**SCALES[1])).save_pretrained(tmp_path)
        rows = {row.target: row for row in weights.open(tmp_path).plan().rows()}
        scaled = [name for name, row in rows.items() if "scale" in row.operations]
        assert scaled == [f"blocks.{i}.attention.qkv.{part}" for i in range(3) for part in ("weight", "bias")]
        assert "the queries" in rows[scaled[0]].reason


class TestHeads:
    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("GPT2DoubleHeadsModel", "multiple_choice_head"),
            ("GPT2ForSequenceClassification", "score.weight"),
            ("GPT2ForTokenClassification", "classifier.weight"),
            ("GPT2ForQuestionAnswering", "qa_outputs.weight"),
        ],
    )
    def test_another_head_is_named_and_left_aside(self, tmp_path: Path, kind: str, name: str) -> None:
        model = random_model(config(pad_token_id=0), getattr(transformers, kind))
        model.save_pretrained(tmp_path)
        plain = GPT2LMHeadModel(config()).eval()
        plain.transformer.load_state_dict(model.transformer.state_dict())
        plain.tie_weights()
        assert_same_logits(tmp_path, logits_of(plain), ("torch",))
        assert any(name in ignored for ignored in weights.open(tmp_path).plan().ignored)

    def test_the_value_head_of_reinforcement_learning(self, tmp_path: Path) -> None:
        model = random_model(config())
        model.save_pretrained(tmp_path)
        state = {f"pretrained_model.{n}": t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"}
        state |= {"v_head.summary.weight": torch.randn(1, 48), "v_head.summary.bias": torch.randn(1)}
        save_file(state, tmp_path / "model.safetensors")
        assert_same_logits(tmp_path, logits_of(model), ("torch",))
        assert "a value head" in weights.open(tmp_path).plan().ignored["v_head.summary.weight"]

    def test_a_head_under_another_name(self, tmp_path: Path) -> None:
        model = random_model(config(tie_word_embeddings=False))
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        state["lm_head.decoder.weight"] = state.pop("lm_head.weight")
        save_file(state, tmp_path / "model.safetensors")
        assert_same_logits(tmp_path, logits_of(model), ("torch",))


@pytest.mark.parametrize(
    "prefix", ["model.", "module.", "pretrained_model.", "_orig_mod.", "net.gpt.", "module._orig_mod.", "my_gpt2."]
)
class TestPrefixes:
    def test_huggingface(self, tmp_path: Path, prefix: str) -> None:
        model = random_model(config())
        model.save_pretrained(tmp_path)
        torch.save({prefix + n: t for n, t in model.state_dict().items()}, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        assert_same_logits(tmp_path, logits_of(model), ("torch",))

    def test_lightning(self, tmp_path: Path, prefix: str) -> None:
        model = random_model(config())
        model.config.save_pretrained(tmp_path)
        state = {prefix + n: t for n, t in model.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 1e-3}]}, tmp_path / "last.ckpt")
        assert_same_logits(tmp_path / "last.ckpt", logits_of(model), ("torch",))

    def test_the_book(self, tmp_path: Path, prefix: str) -> None:
        model = random_model(config(n_embd=128, n_head=2))
        model.save_pretrained(tmp_path / "model")
        weights.open(tmp_path / "model").save(tmp_path / "book.pth", "book")
        state = torch.load(tmp_path / "book.pth")
        both = {"model_state_dict": {prefix + n: t for n, t in state.items()}, "optimizer_state_dict": {"state": {}}}
        torch.save(both, tmp_path / "book.pth")
        assert_same_logits(tmp_path / "book.pth", logits_of(model), ("torch",))


def test_two_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    model = random_model(config())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    both = {f"{which}.{n}": t.clone() for which in ("policy", "reference") for n, t in state.items()}
    torch.save(both, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="two names of one tensor"):
        weights.open(tmp_path).plan()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
class TestLora:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        random_model(config(tie_word_embeddings=False)).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    def adapted(self, base: Path, folder: Path, **settings: Any) -> np.ndarray:
        """Save a random adapter of a base; return the logits of the adapted model."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        model = GPT2LMHeadModel.from_pretrained(base, attn_implementation="eager")
        lora = LoraConfig(
            **{"r": 4, "lora_alpha": 10, "target_modules": ["c_attn"], "fan_in_fan_out": True, **settings}
        )
        adapted = get_peft_model(model, lora).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        adapted.save_pretrained(folder)
        return logits_of(adapted)

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 2},
            {"use_rslora": True},
            {"target_modules": ["c_attn", "c_fc"], "alpha_pattern": {"c_fc": 3}, "rank_pattern": {"c_fc": 2}},
            {"modules_to_save": ["lm_head"]},
            {"target_modules": ["c_attn", "wte"]},
        ],
        ids=str,
    )
    def test_an_adapter_is_added_to_the_base_that_it_names(
        self, base: Path, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        expected = self.adapted(base, tmp_path / "adapter", **settings)
        assert np.abs(expected - logits_of(GPT2LMHeadModel.from_pretrained(base))).max() > 1e-2
        assert_same_logits(tmp_path / "adapter", expected)
        opened = weights.open(tmp_path / "adapter")
        assert any("LoRA adapter" in note and str(base) in note for note in opened.notes)
        assert base / "model.safetensors" in opened.files and tmp_path / "adapter/adapter_config.json" in opened.files
        opened.save(tmp_path / "merged")
        assert_same_logits(tmp_path / "merged", expected, ("torch",))

    def test_an_adapter_that_cannot_be_merged_is_refused_by_name(self, base: Path, tmp_path: Path) -> None:
        folder = tmp_path / "adapter"
        self.adapted(base, folder)
        file = folder / "adapter_config.json"
        settings = json.loads(file.read_text())
        for changes, words in (
            ({"base_model_name_or_path": None}, "names no base model"),
            ({"base_model_name_or_path": str(tmp_path / "gone")}, "LoRA adapter of the base model .*gone"),
            ({"peft_type": "IA3"}, "an adapter of the kind 'IA3'"),
            ({"use_dora": True}, "DoRA"),
            ({"lora_alpha": "many"}, "lora_alpha 'many'"),
        ):
            file.write_text(json.dumps({**settings, **changes}))
            with pytest.raises(WeightsError, match=words):
                weights.open(folder)

    def test_an_adapter_of_another_shape_is_refused(self, base: Path, tmp_path: Path) -> None:
        self.adapted(base, tmp_path / "adapter")
        random_model(config(n_embd=24)).save_pretrained(base)
        with pytest.raises(WeightsError, match="belongs to another base model"):
            weights.open(tmp_path / "adapter").load()

    def test_the_books_appendix_e(self, tmp_path: Path) -> None:
        model = random_model(config(n_embd=128, n_head=2))
        model.save_pretrained(tmp_path / "model")
        weights.open(tmp_path / "model").save(tmp_path / "book.pth", "book")
        state = torch.load(tmp_path / "book.pth")
        plain = {n: t.clone() for n, t in state.items()}
        for name in [n for n in state if n.endswith(".weight") and "emb" not in n]:
            rows, columns = state[name].shape
            first, second = torch.randn(columns, 2) * 0.05, torch.randn(2, rows) * 0.05
            module = name.removesuffix(".weight")
            state[f"{module}.linear.weight"] = state.pop(name)
            if f"{module}.bias" in state:
                state[f"{module}.linear.bias"] = state.pop(f"{module}.bias")
            state |= {f"{module}.lora.A": first, f"{module}.lora.B": second}
            plain[name] = plain[name] + 16 * (first @ second).T
        torch.save(state, tmp_path / "lora.pth")
        torch.save(plain, tmp_path / "plain.pth")
        with pytest.raises(WeightsError, match=r"LoRA layers .*\"lora_alpha\": 16"):
            weights.open(tmp_path / "lora.pth")
        (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
        ours, theirs = weights.open(tmp_path / "lora.pth").load(), weights.open(tmp_path / "plain.pth").load()
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_allclose(ours[name], values, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: transformers.OpenAIGPTConfig(n_layer=1, n_embd=8, n_head=2), "GPT-1"),
        (lambda: transformers.ImageGPTConfig(n_layer=1, n_embd=8, n_head=2), "ImageGPT"),
        (lambda: transformers.GPTNeoConfig(), "GPT-Neo"),
        (lambda: transformers.GPTJConfig(), "GPT-J"),
        (lambda: transformers.BertConfig(), "BERT"),
        (lambda: transformers.T5Config(), "T5"),
        (lambda: transformers.ViTConfig(), "ViT"),
        (lambda: transformers.LlamaConfig(), "Llama"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_models_are_refused_by_their_names(tmp_path: Path, make: Callable[[], Any], words: str) -> None:
    make().save_pretrained(tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ClearheadError, match=f"describes {words}.*not a GPT-2"):
        weights.open(tmp_path)


_TINY = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 40, "n_positions": 16}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: transformers.OpenAIGPTConfig(**_TINY), "GPT-1"),
        (lambda: transformers.ImageGPTConfig(**_TINY), "ImageGPT"),
        (lambda: transformers.GPTJConfig(**_TINY, rotary_dim=8), "GPT-J"),
        (
            lambda: transformers.GPTNeoConfig(
                hidden_size=64, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], vocab_size=40
            ),
            "GPT-Neo",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_with_names_like_gpt2s_are_refused_too(tmp_path: Path, make: Callable[[], Any], words: str) -> None:
    """Some tensors of GPT-Neo have the names and shapes of a nanoGPT."""
    config = make()
    imagegpt = isinstance(config, transformers.ImageGPTConfig)
    kind = transformers.ImageGPTForCausalImageModeling if imagegpt else transformers.AutoModelForCausalLM.from_config
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(ClearheadError, match=f"describes {words}.*not a GPT-2"):
        weights.open(tmp_path)
    with pytest.raises(ClearheadError, match=f"describes {words}.*not a GPT-2"):
        weights.open(tmp_path / "model.safetensors")


class TestTokenizersBesideTheRows:
    """Tokens that were added to a tokenizer and not to the model; files of tokenizers that are not read."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tokenizer = Tokenizer.train(["the fox and the hound and the other fox " * 4], 270)
        random_model(config(vocab_size=270, bos_token_id=269, eos_token_id=269)).save_pretrained(tmp_path)
        tokenizer.save(tmp_path)
        values = json.loads((tmp_path / "tokenizer.json").read_text())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        values["added_tokens"].append({"id": 270, "content": "[PAD]", **flags})
        (tmp_path / "tokenizer.json").write_text(json.dumps(values))
        return tmp_path

    def test_a_token_more_than_rows_is_noted_and_refused_only_in_a_text(self, folder: Path) -> None:
        peer = GPT2LMHeadModel.from_pretrained(folder)
        for backend in ("engine", "torch"):
            gpt = clearhead.load(folder, backend=backend)
            assert any("270 rows for tokens and none for '[PAD]'" in note for note in gpt.notes)
            ids = gpt.tokenizer.encode("the other fox") if gpt.tokenizer else []
            expected = peer.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=5, pad_token_id=0)
            assert [*ids, *gpt.generate("the other fox", temperature=0, max_new_tokens=5).ids] == expected[0].tolist()
            assert gpt.generate("[PAD] fox", temperature=0, max_new_tokens=2).text is not None  # as plain text
            with pytest.raises(InputError, match=r"the token '\[PAD\]' \(270\), for which the model"):
                gpt.generate("[PAD] fox", special=True)
            assert gpt.score("the fox").tokens

    def test_an_end_of_text_beyond_the_rows_is_never_written(self, folder: Path) -> None:
        values = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**values, "eos_token": "[PAD]"}))
        gpt = clearhead.load(folder)
        assert gpt.end_of_text is None and gpt.generate("the fox", max_new_tokens=3, temperature=0).ids
        assert gpt.score("the fox").tokens

    def test_a_vocabulary_of_another_model_is_refused(self, folder: Path) -> None:
        random_model(config(vocab_size=200)).save_pretrained(folder)
        with pytest.raises(WeightsError, match="belong to different models"):
            clearhead.load(folder)

    @pytest.mark.parametrize(
        ("names", "what"),
        [
            (["tokenizer.model"], "tokenizer.model is a SentencePiece model"),
            (["a.tokenizer.json", "b.tokenizer.json"], "holds a.tokenizer.json and b.tokenizer.json; rename"),
            ([], "give token ids to generate, or put the tokenizer's files"),
        ],
    )
    def test_no_tokenizer_names_the_file_that_is_there(self, tmp_path: Path, names: list[str], what: str) -> None:
        random_model(config()).save_pretrained(tmp_path)
        for name in names:
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=f"no tokenizer, which .* needs.*{what}"):
            clearhead.load(tmp_path).generate("hello")
