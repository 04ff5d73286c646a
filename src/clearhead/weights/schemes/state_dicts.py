"""State dicts: named tensors without a config, from the book, nanoGPT, TransformerLens and Clearhead itself.

The shapes tell most of the config (`recognize.py`), and a nanoGPT checkpoint all of it. The rest comes from a
`config.json` in the same folder or from the user; otherwise it is assumed, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from clearhead.config import Activation, GPTConfig
from clearhead.errors import ConfigError, WeightsError
from clearhead.weights.formats.pytorch import write_pytorch
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.recognize import config_from_shapes, has_qkv_bias, same_shape
from clearhead.weights.tensors import TensorFile, TensorInfo, encode

ConfigAndNotes = tuple[GPTConfig, tuple[str, ...]]
"""A model's config, its head as if tied, and notes for the user."""


def config_of(file: TensorFile, folder: Path, layout: str, heads: int | None = None) -> ConfigAndNotes:
    """Return the config of a model whose tensors are in `file`, in one of the layouts of this module.

    Args:
        file: the tensors, opened.
        folder: the folder that may hold a `config.json`.
        layout: `canonical`, `book`, `nanogpt`, `transformerlens`, or `huggingface` without a `config.json`.
        heads: the number of attention heads, if the user says it.

    Raises:
        WeightsError: if the shape is unknown, or the tensors are not those of a plain GPT-2.
        ConfigError: if a checkpoint states an impossible shape.
    """
    beside, notes = _config_beside(folder)
    if layout == "nanogpt" and (found := _nanogpt_config(file, beside)) is not None:
        return found
    config, inferred = config_from_shapes(file.path, layout, file.tensors, beside, heads)
    notes = (*notes, *inferred)
    if beside is not None and same_shape(config, beside):
        return config, notes  # it states the activation function too
    if beside is not None:
        notes = (
            *notes,
            f"{folder / 'config.json'} describes a model of another shape than {file.path.name} and is not used.",
        )
    if layout == "nanogpt":
        config = config.replace(activation="gelu_erf")
        notes = (*notes, _ERF)
    return config, notes


def refuse_changed(file: TensorFile, layout: str) -> None:
    """Raise if tensors of a layout were changed into something other than a GPT-2.

    Raises:
        WeightsError: for norms folded into matrices by TransformerLens.
    """
    if layout == "transformerlens":
        _refuse_folded(file)


def settle_qkv_bias(file: TensorFile, layout: str, config: GPTConfig) -> ConfigAndNotes:
    """Return a config that the user gave, with biases on q, k and v if the tensors have them."""
    there = has_qkv_bias(layout, file.tensors)
    if there == config.qkv_bias:
        return config, ()
    has = "has" if there else "has no"
    return config.replace(qkv_bias=there), (
        f"the config says qkv_bias={config.qkv_bias}, and the file {has} biases for query, key and value; "
        f"qkv_bias={there} is taken.",
    )


def _config_beside(folder: Path) -> tuple[GPTConfig | None, tuple[str, ...]]:
    """Return the config in the `config.json` in the weights' folder, or None, and a note if it cannot be used."""
    path = folder / "config.json"
    try:
        return (GPTConfig.from_file(path) if path.is_file() else None), ()
    except ConfigError as error:
        return None, (f"{path} is not used: {error}",)


# --- what the table of layouts does not tell -------------------------------------------------------------

_SAVE_UNFOLDED = (
    "save it from a model that was loaded with fold_ln=False, center_writing_weights=False, center_unembed=False "
    "(HookedTransformer.from_pretrained_no_processing does that)"
)


def _refuse_folded(file: TensorFile) -> None:
    """Raise if TransformerLens changed the weights on loading, by multiplying norms into the matrices after them."""
    bare = {LAYOUTS["transformerlens"].bare(name): name for name in file.tensors}
    if not any(re.fullmatch(r"blocks\.\d+\.ln1\.w", name) for name in bare):
        raise WeightsError(
            f"{file.path} has no weights for the layer norms (blocks.0.ln1.w): TransformerLens has folded them into "
            f"other matrices, which are then no longer GPT-2's; {_SAVE_UNFOLDED}."
        )
    bias = bare.get("unembed.b_U")
    if bias is not None and file.read(bias).any():
        raise WeightsError(
            f"{file.path}: {bias} holds numbers other than zero, and GPT-2 has no bias there; the weights were "
            f"processed by TransformerLens: {_SAVE_UNFOLDED}."
        )


def _constants(config: GPTConfig, layout: str) -> dict[str, npt.NDArray[Any]]:
    """Return the constant tensors without which the layout's own model does not accept a state dict."""
    length = config.context_length
    if layout == "book":
        mask = np.triu(np.ones((length, length), np.float32), 1)
        return {f"trf_blocks.{layer}.att.mask": mask for layer in range(config.n_layers)}
    if layout != "transformerlens":
        return {}
    found = {"unembed.b_U": np.zeros(config.vocab_size, np.float32)}
    for layer in range(config.n_layers):
        found[f"blocks.{layer}.attn.mask"] = np.tril(np.ones((length, length), np.bool_))
        found[f"blocks.{layer}.attn.IGNORE"] = np.array(-np.inf, np.float32)
    return found


# --- nanoGPT ---------------------------------------------------------------------------------------

_ERF = (
    "nanoGPT computes GELU exactly (erf), so this model is run with gelu_erf; if it was trained with the tanh "
    'approximation, as minGPT and OpenAI do, put a config.json with "activation_function": "gelu_new" and the model\'s '
    "shape into the same folder."
)
_TANH = (
    "the checkpoint says that nanoGPT took these weights from OpenAI and did not train them (init_from, iter_num 0); "
    "they were trained with the tanh form of GELU, so gelu_tanh is taken, where nanoGPT itself would compute gelu_erf."
)
_MODEL_ARGS = {
    "vocab_size": "vocab_size",
    "context_length": "block_size",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}


def _nanogpt_config(file: TensorFile, beside: GPTConfig | None) -> ConfigAndNotes | None:
    """Return the config from a checkpoint's `model_args`; None if the file has none."""
    contents = getattr(file, "contents", None)
    if not isinstance(contents, Mapping) or not isinstance(contents.get("model_args"), Mapping):
        return None
    args: Mapping[str, Any] = contents["model_args"]
    missing = [theirs for theirs in _MODEL_ARGS.values() if theirs not in args]
    if missing:
        raise WeightsError(f"{file.path}: model_args lacks {', '.join(missing)}; nanoGPT's train.py writes them.")
    activation, note = _nanogpt_activation(contents)
    config = GPTConfig(
        **{ours: args[theirs] for ours, theirs in _MODEL_ARGS.items()},
        drop_rate=args.get("dropout", 0.0),
        qkv_bias=has_qkv_bias("nanogpt", file.tensors),
        tie_weights=True,
        activation=activation,
    )
    if note and beside is not None and same_shape(config, beside):  # the checkpoint does not state it, config.json does
        return config.replace(activation=beside.activation), ()
    return config, note


def _nanogpt_activation(contents: Mapping[str, Any]) -> tuple[Activation, tuple[str, ...]]:
    """Return the variant of GELU that the weights were last trained with, and notes.

    nanoGPT's model has `nn.GELU()`, the exact variant, whatever it starts from. Weights that it trained, if only for a
    few steps, belong to that variant; weights that it took from OpenAI and saved unchanged do not.
    """
    settings = contents.get("config")
    settings = settings if isinstance(settings, Mapping) else {}
    if settings.get("activation") in get_args(Activation):  # as save_nanogpt writes it
        return settings["activation"], ()
    if str(settings.get("init_from", "")).startswith("gpt2") and contents.get("iter_num") == 0:
        return "gelu_tanh", (_TANH,)
    return "gelu_erf", (_ERF,)


# --- writing ---------------------------------------------------------------------------------------


def save_state_dict(path: Path, plan: ConversionPlan, dtype: str) -> tuple[str, ...]:
    """Write a plan's targets as one state dict, with one tensor in memory at a time; return notes.

    Args:
        path: the file; it is written in place, so give a temporary name and rename it.
        plan: a plan to `canonical`, `book` or `transformerlens`.
        dtype: `float32`, `float16` or `bfloat16`.

    Raises:
        WeightsError: if a value is too large for float16.
    """
    _write(path, plan, dtype, list(plan.targets), _constants(plan.config, plan.to))
    config = plan.config
    notes = []
    if plan.to != "transformerlens" and (config.emb_dim % 64 or config.n_heads != config.emb_dim // 64):
        notes.append(
            f"the file does not say that the model has {config.n_heads} attention heads; "
            "put a config.json with the number into its folder."
        )
    return tuple(notes)


def save_nanogpt(path: Path, plan: ConversionPlan, dtype: str) -> tuple[str, ...]:
    """Write a `ckpt.pt` that nanoGPT's sample.py opens, with one tensor in memory at a time; return notes.

    A model whose every bias is zero is written as nanoGPT's `bias=False`, without biases.

    Args:
        path: the file; it is written in place, so give a temporary name and rename it.
        plan: a plan to `nanogpt`.
        dtype: `float32`, `float16` or `bfloat16`.

    Raises:
        WeightsError: if a value is too large for float16.
    """
    config = plan.config
    bias = any(plan.read(name, None).any() for name in plan.targets if name.endswith(".bias"))
    names = [name for name in plan.targets if bias or not name.endswith(".bias")]
    args = {theirs: getattr(config, ours) for ours, theirs in _MODEL_ARGS.items()}
    beside = {
        "model_args": {**args, "bias": bias, "dropout": config.drop_rate},
        "iter_num": 0,
        "best_val_loss": 1e9,  # as train.py starts
        "config": {"activation": config.activation},
    }
    _write(path, plan, dtype, names, {}, under="model", beside=beside)
    return ()


def _write(
    path: Path,
    plan: ConversionPlan,
    dtype: str,
    names: list[str],
    constants: Mapping[str, npt.NDArray[Any]],
    **container: Any,
) -> None:
    shapes = plan.targets
    tensors = {name: TensorInfo(shapes[name], dtype) for name in names}
    tensors |= {name: TensorInfo(array.shape, str(array.dtype)) for name, array in constants.items()}
    same = {**_shared(plan), **plan.tied}
    tensors |= {name: tensors[other] for name, other in plan.tied.items()}
    masks = [name for name in constants if name.endswith(".mask")]
    same |= {name: masks[0] for name in masks[1:]}  # noqa: C420 - there may be none

    def data() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in names:
            if name not in same:
                yield name, encode(plan.read(name, None), dtype, name)
        for name, array in constants.items():
            if name not in same:
                yield name, array

    write_pytorch(path, tensors, data(), same=same, **container)


def _shared(plan: ConversionPlan) -> dict[str, str]:
    """Return targets that are unchanged copies of the same source, such as a tied head, with the first of them."""
    by_use: dict[tuple[Any, ...], str] = {}
    found = {}
    for step in plan.steps:
        if len(step.slices) == 1:
            part = step.slices[0]
            key = (part.source, step.tensor.dims, tuple(part.source_index.items()))
            if (first := by_use.setdefault(key, step.target)) != step.target:
                found[step.target] = first
    return found


SAVERS: dict[str, Callable[[Path, ConversionPlan, str], tuple[str, ...]]] = {
    "canonical": save_state_dict,
    "book": save_state_dict,
    "nanogpt": save_nanogpt,
    "transformerlens": save_state_dict,
}
"""What writes each layout of this module."""
