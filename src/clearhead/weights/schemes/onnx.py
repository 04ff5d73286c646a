"""GPT-2 as an ONNX graph, built operation by operation from the config; its tensors come from a plan.

The inputs and outputs are those of the decoders that Hugging Face's optimum exports with a key/value cache, so that
its `ORTModelForCausalLM`, transformers.js and onnxruntime run the folder that is written:

    input_ids                      int64 [B, T]        the new tokens
    attention_mask                 int64 [B, P + T]    0 where a token, earlier or new, is padding
    position_ids                   int64 [B, T]        the position of each new token in its sequence
    past_key_values.{i}.key        float [B, H, P, D]  of the P tokens before these; P is 0 at the start
    past_key_values.{i}.value      float [B, H, P, D]

    logits                         float [B, T, V]
    present.{i}.key                float [B, H, P + T, D]
    present.{i}.value              float [B, H, P + T, D]
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.version import __version__
from clearhead.weights import writing
from clearhead.weights.formats.onnx import CONFIG_KEY, KINDS, write_onnx
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.tensors import TensorInfo, encode
from clearhead.weights.writing import AddFiles

MODEL_FILE = "model.onnx"
"""The file with the graph, under the name that optimum looks for."""

DATA_FILE = "model.onnx_data"
"""The file with the weights, if they are too large for one file."""

OPSET = 20
"""The version of ONNX's operators: the first that has the tanh approximation of GELU (onnxruntime 1.17 or later)."""

_IR_VERSION = 9  # the version of the file format that belongs to opset 20
_INT64, _BOOL = 7, 9  # ONNX's codes for dtypes


def write_folder(
    folder: Path,
    plan: ConversionPlan,
    dtype: str,
    extra_config: Mapping[str, Any],
    add_files: AddFiles | None = None,
) -> list[Path]:
    """Write `model.onnx` and `config.json`; return the files written.

    No file is replaced before all files are complete; the graph is moved last.

    Args:
        folder: is created if it does not exist; other files in it stay.
        plan: a plan to the layout `onnx`.
        dtype: `float32` or `float16`; the graph also computes in it.
        extra_config: more keys for `config.json`, such as the ids of special tokens.
        add_files: writes what else belongs into the folder, such as a tokenizer.

    Raises:
        WeightsError: if the `onnx` library is not installed, a value is too large for float16, or the folder cannot
            be written.
    """
    model = build(plan.config, dtype)
    tensors = {name: TensorInfo(shape, dtype) for name, shape in plan.targets.items()}
    data_file = _free_name(folder)

    def write(temporary: Path) -> list[str]:
        if add_files is not None:
            add_files(temporary)
        with ByteProgress(f"Saving {folder.name}", sum(info.nbytes for info in tensors.values())) as progress:
            data = _encoded(plan, dtype, progress)
            external = write_onnx(temporary / MODEL_FILE, model, tensors, data, temporary / data_file)
        values = {**plan.config.to_huggingface(), "dtype": dtype, **extra_config}
        (temporary / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
        return [*([data_file] if external else []), "config.json", MODEL_FILE]

    return writing.write_folder(folder, write, lambda name: name.startswith(f"{MODEL_FILE}_data"))


def _free_name(folder: Path) -> str:
    """Return a name for the weights that no file has, so that replacing the graph switches to them."""
    names = (DATA_FILE if attempt == 0 else f"{DATA_FILE}_{attempt}" for attempt in count())
    return next(name for name in names if not (folder / name).exists())


def _encoded(plan: ConversionPlan, dtype: str, progress: ByteProgress) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name in plan.targets:
        values = encode(plan.read(name, None), dtype, name)
        yield name, values
        progress.advance(values.nbytes)


def build(config: GPTConfig, dtype: str = "float32") -> Any:
    """Return the graph as an `onnx.ModelProto` that refers to its weights by the names of the layout `onnx`.

    Args:
        config: the shape.
        dtype: `float32` or `float16`.

    Raises:
        WeightsError: if the `onnx` library is not installed.
    """
    onnx = _library()
    nodes = _Nodes(onnx, KINDS[dtype])
    _model(nodes, config)
    names = [f"past_key_values.{layer}.{which}" for layer in range(config.n_layers) for which in ("key", "value")]
    batch, new, past, whole = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
    heads, width, tensor = config.n_heads, config.head_dim, onnx.helper.make_tensor_value_info
    inputs = [
        tensor("input_ids", _INT64, [batch, new]),
        tensor("attention_mask", _INT64, [batch, whole]),
        tensor("position_ids", _INT64, [batch, new]),
        *(tensor(name, KINDS[dtype], [batch, heads, past, width]) for name in names),
    ]
    presents = [name.replace("past_key_values", "present") for name in names]
    outputs = [
        tensor("logits", KINDS[dtype], [batch, new, config.vocab_size]),
        *(tensor(name, KINDS[dtype], [batch, heads, whole, width]) for name in presents),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes.made, "gpt2", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="clearhead",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, {CONFIG_KEY: json.dumps(dataclasses.asdict(config))})
    return model


def _library() -> Any:
    try:
        import onnx
    except ImportError:
        raise WeightsError(
            "a model is written as ONNX with the onnx library; install it with: pip install 'clearhead[onnx]'."
        ) from None
    return onnx


class _Nodes:
    """Builds the operations of a graph, in order. A value in the graph is its name.

    Attributes:
        made: the nodes so far.
        kind: ONNX's code for the weights' dtype.
    """

    def __init__(self, onnx: Any, kind: int) -> None:
        self._onnx, self.kind = onnx, kind
        self.made: list[Any] = []
        self._constants: dict[tuple[Any, ...], str] = {}

    def __call__(self, op: str, *inputs: str, name: str | Sequence[str] = "", **attributes: Any) -> Any:
        """Add an operation.

        Args:
            op: its ONNX name.
            inputs: its input values.
            name: the name of its result or results; generated if empty.
            attributes: its ONNX attributes.

        Returns:
            the name of its result, or the names of its results.
        """
        outputs = [name or f"{op.lower()}_{len(self.made)}"] if isinstance(name, str) else list(name)
        self.made.append(self._onnx.helper.make_node(op, inputs, outputs, name=f"{outputs[0]}/{op}", **attributes))
        return outputs[0] if isinstance(name, str) else outputs

    def integers(self, *values: int) -> str:
        """Return a constant list of integers, int64 [len(values)]."""
        if values not in self._constants:
            self._constants[values] = self("Constant", name=f"integers_{'_'.join(map(str, values))}", value_ints=values)
        return self._constants[values]

    def scalar(self, name: str, value: float | int, kind: int) -> str:
        """Return a constant scalar."""
        made: str = self("Constant", name=name, value=self._onnx.helper.make_tensor(name, kind, [], [value]))
        return made


def _model(nodes: _Nodes, config: GPTConfig) -> None:
    """Add the whole of GPT-2, as `clearhead.model.GPTModel` computes it."""
    allowed = _mask(nodes)
    scale = nodes.scalar("scale", config.head_dim**-0.5, nodes.kind)
    least = nodes.scalar("least", float(np.finfo("f2" if nodes.kind == KINDS["float16"] else "f4").min), nodes.kind)
    tokens = nodes("Gather", "token_embedding.weight", "input_ids")  # [B, T, C]
    x = nodes("Add", tokens, nodes("Gather", "position_embedding.weight", "position_ids"), name="embedded")
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        normed = _norm(nodes, x, f"{block}.norm_1", config)
        x = nodes("Add", x, _attention(nodes, normed, layer, config, (allowed, scale, least)), name=f"{block}.middle")
        normed = _norm(nodes, x, f"{block}.norm_2", config)
        wide = _linear(nodes, normed, f"{block}.feed_forward.up")  # [B, T, F]
        activated = _activation(nodes, wide, config)
        x = nodes("Add", x, _linear(nodes, activated, f"{block}.feed_forward.down"), name=f"{block}.out")
    x = nodes("Reshape", _norm(nodes, x, "final_norm", config), nodes.integers(-1, config.emb_dim))  # [B T, C]
    # Gemm transposes the matrix itself, so that a tied head stays the token embedding's own tensor.
    head = "token_embedding.weight" if config.tie_weights else "head.weight"
    logits = nodes("Gemm", x, head, transB=1)  # [B T, V]
    shape = nodes("Concat", nodes("Shape", "input_ids"), nodes.integers(config.vocab_size), axis=0)
    nodes("Reshape", logits, shape, name="logits")


def _mask(nodes: _Nodes) -> str:
    """Return which tokens each new token attends to, bool [B, 1, T, P + T]: itself and earlier ones, no padding."""
    past = nodes("Shape", "past_key_values.0.key", start=2, end=3)
    new = nodes("Shape", "input_ids", start=1, end=2)
    zero, one = (nodes.scalar(name, value, _INT64) for name, value in (("zero", 0), ("one", 1)))
    first, end = nodes("Squeeze", past), nodes("Squeeze", nodes("Add", past, new))
    asking = nodes("Unsqueeze", nodes("Range", first, end, one), nodes.integers(1))  # [T, 1]
    causal = nodes("LessOrEqual", nodes("Range", zero, end, one), asking)  # [T, P + T]
    real = nodes("Cast", "attention_mask", to=_BOOL)
    return str(nodes("And", causal, nodes("Unsqueeze", real, nodes.integers(1, 2)), name="allowed"))


def _norm(nodes: _Nodes, x: str, name: str, config: GPTConfig) -> str:
    made: str = nodes(
        "LayerNormalization", x, f"{name}.weight", f"{name}.bias", name=name, axis=-1, epsilon=config.norm_eps
    )
    return made


def _linear(nodes: _Nodes, x: str, name: str, bias: bool = True) -> str:
    product = nodes("MatMul", x, f"{name}.weight")
    made: str = nodes("Add", product, f"{name}.bias", name=name) if bias else product
    return made


def _activation(nodes: _Nodes, x: str, config: GPTConfig) -> str:
    if config.activation == "relu":
        return str(nodes("Relu", x))
    return str(nodes("Gelu", x, approximate="tanh" if config.activation == "gelu_tanh" else "none"))


def _attention(nodes: _Nodes, x: str, layer: int, config: GPTConfig, common: tuple[str, str, str]) -> str:
    """Return the attention output, [B, T, C]; `common` is the mask, the scale and the value for masked scores."""
    allowed, scale, least = common
    name = f"blocks.{layer}.attention"
    qkv = _linear(nodes, x, f"{name}.qkv", config.qkv_bias)  # [B, T, 3 C]
    apart = nodes.integers(0, 0, config.n_heads, config.head_dim)
    queries, keys, values = (
        nodes("Transpose", nodes("Reshape", part, apart), perm=[0, 2, 1, 3])  # [B, T, C] -> [B, H, T, D]
        for part in nodes("Split", qkv, name=[f"{name}.{which}" for which in "qkv"], axis=-1, num_outputs=3)
    )
    past, present = f"past_key_values.{layer}", f"present.{layer}"
    keys = nodes("Concat", f"{past}.key", keys, name=f"{present}.key", axis=2)  # [B, H, P + T, D]
    values = nodes("Concat", f"{past}.value", values, name=f"{present}.value", axis=2)
    scores = nodes("MatMul", queries, nodes("Transpose", keys, perm=[0, 1, 3, 2]))  # [B, H, T, P + T]
    # The least finite number and not minus infinity: a row of padding alone would become NaN.
    scores = nodes("Where", allowed, nodes("Mul", scores, scale), least)
    attended = nodes("MatMul", nodes("Softmax", scores, name=f"{name}.pattern", axis=-1), values)  # [B, H, T, D]
    together = nodes("Reshape", nodes("Transpose", attended, perm=[0, 2, 1, 3]), nodes.integers(0, 0, config.emb_dim))
    return _linear(nodes, together, f"{name}.out")  # [B, T, C]
