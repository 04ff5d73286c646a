"""Models other than GPT-2, by the names that config files give them, and why GPT-2's network cannot run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_ROTARY = "it has rotary positions and RMS norms, and GPT-2 has learned positions and layer norms"
_ENCODER = "it is an encoder, which reads a whole text at once and does not continue it"
_SEQ2SEQ = "it is an encoder-decoder, which has a second network with cross-attention"
_VISION = "it is a vision model, which reads images and not text"
_AUDIO = "it is a speech model, which reads audio and not text"


class OtherModel(NamedTuple):
    """A kind of model that is not a GPT-2.

    Attributes:
        title: how people call it.
        reason: a clause that says why GPT-2's network cannot run it.
        decoder: whether it is a decoder-only transformer, as GPT-2 is.
    """

    title: str
    reason: str
    decoder: bool = True


OTHER_MODEL_TYPES: dict[str, OtherModel] = {
    "openai-gpt": OtherModel(
        "GPT-1",
        "its norms come after attention and feed-forward, where GPT-2 has them before, and it has no final norm",
    ),
    "imagegpt": OtherModel(
        "ImageGPT", "it continues pixels and not text, and its norms and its GELU differ from GPT-2's"
    ),
    "gpt_neo": OtherModel(
        "GPT-Neo", "every second layer attends to the last 256 tokens only, and its attention is not scaled"
    ),
    "gptj": OtherModel("GPT-J", "it has rotary positions, and attention and feed-forward run side by side"),
    "gpt_neox": OtherModel(
        "GPT-NeoX (Pythia)", "it has rotary positions, and attention and feed-forward run side by side"
    ),
    "gpt_neox_japanese": OtherModel("GPT-NeoX Japanese", "it has rotary positions"),
    "gpt_bigcode": OtherModel(
        "GPTBigCode (StarCoder)", "all heads share one key and one value (multi-query attention)"
    ),
    "codegen": OtherModel("CodeGen", "it has rotary positions, and attention and feed-forward run side by side"),
    "biogpt": OtherModel("BioGPT", "its embeddings are scaled and its positions start at 2"),
    "ctrl": OtherModel("CTRL", "it has sinusoidal positions and not learned ones"),
    "xlnet": OtherModel("XLNet", "it has relative positions and predicts tokens in permuted order"),
    "opt": OtherModel("OPT", "its positions are offset by 2, and q, k and v are separate tensors"),
    "bloom": OtherModel("BLOOM", "it has ALiBi biases and no position embedding"),
    "mpt": OtherModel("MPT", "it has ALiBi biases and no position embedding"),
    "falcon": OtherModel("Falcon", "it has rotary positions and shares keys and values between heads"),
    "gpt_oss": OtherModel("GPT-OSS", "it has rotary positions and experts"),
    "mamba": OtherModel("Mamba", "it is a state-space model without attention", decoder=False),
    "mamba2": OtherModel("Mamba 2", "it is a state-space model without attention", decoder=False),
    "rwkv": OtherModel("RWKV", "it is a recurrent model without attention", decoder=False),
    **{
        name: OtherModel(title, _ROTARY)
        for name, title in {
            "llama": "Llama",
            "mistral": "Mistral",
            "mixtral": "Mixtral",
            "qwen2": "Qwen2",
            "qwen2_moe": "Qwen2-MoE",
            "qwen3": "Qwen3",
            "qwen3_moe": "Qwen3-MoE",
            "gemma": "Gemma",
            "gemma2": "Gemma 2",
            "gemma3": "Gemma 3",
            "gemma3_text": "Gemma 3",
            "phi": "Phi",
            "phi3": "Phi-3",
            "olmo": "OLMo",
            "olmo2": "OLMo 2",
            "stablelm": "StableLM",
            "deepseek_v3": "DeepSeek-V3",
            "smollm3": "SmolLM3",
        }.items()
    },
    **{
        name: OtherModel(title, _ENCODER, decoder=False)
        for name, title in {
            "bert": "BERT",
            "roberta": "RoBERTa",
            "xlm-roberta": "XLM-RoBERTa",
            "distilbert": "DistilBERT",
            "albert": "ALBERT",
            "electra": "ELECTRA",
            "deberta": "DeBERTa",
            "deberta-v2": "DeBERTa-v2",
            "mpnet": "MPNet",
            "modernbert": "ModernBERT",
            "longformer": "Longformer",
        }.items()
    },
    **{
        name: OtherModel(title, _SEQ2SEQ, decoder=False)
        for name, title in {
            "t5": "T5",
            "mt5": "mT5",
            "bart": "BART",
            "mbart": "mBART",
            "marian": "MarianMT",
            "pegasus": "Pegasus",
            "blenderbot": "BlenderBot",
            "m2m_100": "M2M-100",
            "encoder-decoder": "an encoder-decoder",
            "vision-encoder-decoder": "an image captioner",
        }.items()
    },
    **{
        name: OtherModel(title, _VISION, decoder=False)
        for name, title in {
            "vit": "ViT",
            "swin": "Swin",
            "deit": "DeiT",
            "beit": "BEiT",
            "convnext": "ConvNeXt",
            "resnet": "ResNet",
            "detr": "DETR",
        }.items()
    },
    **{
        name: OtherModel(title, "it is a vision and text model, which compares images with captions", decoder=False)
        for name, title in {"clip": "CLIP", "siglip": "SigLIP"}.items()
    },
    "whisper": OtherModel("Whisper", _AUDIO, decoder=False),
    "wav2vec2": OtherModel("Wav2Vec2", _AUDIO, decoder=False),
}
"""By `model_type`."""

_QUANTIZERS = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "hqq": "HQQ", "aqlm": "AQLM"}


def why_not_gpt2(values: Mapping[str, Any]) -> str:
    """Return a clause that says what a Hugging Face config describes instead of a GPT-2; empty if it is a GPT-2.

    A quantized GPT-2 counts as another kind: its matrices are stored as packed integers under other names.
    """
    kind = values.get("model_type", "gpt2")
    if kind != "gpt2":
        if isinstance(kind, str) and kind in OTHER_MODEL_TYPES:
            other = OTHER_MODEL_TYPES[kind]
            return f"describes {other.title} (model_type {kind!r}), which is not a GPT-2: {other.reason}"
        return f"says model_type {kind!r}; Clearhead runs models of type 'gpt2' only"
    quantization = values.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = str(quantization.get("quant_method", "an unknown method"))
        return (
            f"describes a GPT-2 quantized with {_QUANTIZERS.get(method, method)}, whose packed integers only that "
            "library reads; take the unquantized model, or convert it back to float16 with the library first"
        )
    return ""
