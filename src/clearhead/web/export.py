"""The page as one HTML file: the page's own modules, a model's weights and its tokenizer, without any other file.

Matrices are stored as int8 in groups of 32 weights with a bfloat16 scale each, vectors as float32, positions as
bfloat16; all in base64. The browser computes in float32 with exactly these values.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clearhead.drawing.screen import document_head, screen_css, script_json
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.config import GPTConfig
    from clearhead.tokenizer import Tokenizer

LARGEST_FILE = 256_000_000
"""The most bytes of weights in one file: beyond this, browsers cannot hold the file's base64 as one string."""

GROUP = 32  # weights that share a scale
_HERE = Path(__file__).parent
# In the order in which they are put together; each module imports only from those before it.
WORKER_MODULES = ("tokenizer.js", "sampling.js", "compute.js", "model.js", "worker.js")
PAGE_MODULES = (
    "sampling.js",
    "words.js",
    "backend.js",
    "tree.js",
    "dom.js",
    "pictures.js",
    "distribution.js",
    "inside.js",
    "exports.js",
    "app.js",
)

LIVE_MODULES = (
    "sampling.js",
    "words.js",
    "backend.js",
    "dom.js",
    "pictures.js",
    "distribution.js",
    "inside.js",
    "live.js",
)

Arrays = Mapping[str, npt.NDArray[np.float32]]


def page_html(name: str, config: GPTConfig, tensors: Arrays, tokenizer: Tokenizer | None, language: str = "en") -> str:
    """Return the page with a model in it.

    Args:
        name: the model's name, which the page shows.
        config: its shape.
        tensors: its weights by canonical names, float32.
        tokenizer: must be byte-level BPE, as GPT-2's.
        language: the initial language, `en` or `zh`.

    Raises:
        InputError: if the model is too large for one file, or its tokenizer is not byte-level BPE.
    """
    about, weights = packed_model(name, config, tensors, tokenizer)
    return fill_page({**about, "language": language}, weights)


def live_json(name: str, config: GPTConfig, tensors: Arrays, tokenizer: Tokenizer | None) -> str:
    """Return what `live.js` fetches: a model and the worker's script. The arguments are those of `page_html`."""
    about, weights = packed_model(name, config, tensors, tokenizer)
    return json.dumps({"about": about, "weights": weights, "worker": bundle(WORKER_MODULES)})


def packed_model(
    name: str, config: GPTConfig, tensors: Arrays, tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], str]:
    """Return what the worker opens: a description of the model, and its weights in base64.

    Raises:
        InputError: if the model is too large for one file, or its tokenizer is not byte-level BPE.
    """
    about = {
        "name": name,
        "parameters": sum(array.size for tensor, array in tensors.items() if not _is_tied(tensor, config)),
        "config": asdict(config),
        "tokenizer": tokenizer_definition(tokenizer),
        "kernels": base64.b64encode((_HERE / "js" / "kernels.wasm").read_bytes()).decode("ascii"),
    }
    size = sum(_stored_size(array.shape) for tensor, array in tensors.items() if not _is_tied(tensor, config))
    if size > LARGEST_FILE:
        raise InputError(
            f"the model's weights take {size / 1e6:,.0f} MB as int8, but one HTML file can have at most "
            f"{LARGEST_FILE / 1e6:,.0f} MB; choose a smaller model."
        )
    table, data = pack({name: array for name, array in tensors.items() if not _is_tied(name, config)})
    return {**about, "tensors": table}, base64.b64encode(data).decode("ascii")


def fill_page(about: Mapping[str, Any], weights: str, connect: str = "'none'") -> str:
    """Return the page's HTML with its scripts, its style sheet and the given data in it.

    Args:
        about: the model's name, shape, tokenizer and tensors; with `server`, the page asks a server instead.
        weights: base64 of the tensors.
        connect: what the page may request, as a source of a Content-Security-Policy.
    """
    style = screen_css() + components_css() + (_HERE / "page.css").read_text(encoding="utf-8")
    script = bundle(PAGE_MODULES)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}' 'wasm-unsafe-eval'; style-src '{_digest(style)}'; "
        f"img-src data: blob:; worker-src blob:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    marks = {
        "HEAD": document_head("Clearhead", policy=policy, style=style),
        "WORKER": bundle(WORKER_MODULES),
        "ABOUT": script_json(about),
        "WEIGHTS": weights,
        "SCRIPT": script,
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda mark: marks[mark[1]], template)


def components_css() -> str:
    """Return the style sheet of the components that the page and the tour's chapters share."""
    return (_HERE / "components.css").read_text(encoding="utf-8")


def bundle(modules: tuple[str, ...]) -> str:
    """Return JavaScript modules as one script: without their imports and exports, in the given order."""
    sources = [(_HERE / "js" / module).read_text(encoding="utf-8") for module in modules]
    joined = "\n".join(
        re.sub(
            r"^export (?=const|function|class|async)",
            "",
            re.sub(r"^import [^;]*;\n", "", source, flags=re.M),
            flags=re.M,
        )
        for source in sources
    )
    return f'"use strict";\n{joined}'


def tokenizer_definition(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return what `tokenizer.js` needs: each id's bytes, the merges as ids, and the end of text.

    Raises:
        InputError: if the tokenizer is not byte-level BPE.
    """
    parts = tokenizer.bpe if tokenizer is not None else None
    if tokenizer is None or parts is None:
        raise InputError("the page needs a model with a byte-level BPE tokenizer, as GPT-2's; this model has none.")
    vocabulary, merges = parts
    pieces = [_piece(tokenizer, id) for id in range(tokenizer.vocab_size)]
    flat = [vocabulary[token] for left, right in merges for token in (left, right, left + right)]
    return {"pieces": pieces, "merges": flat, "endOfText": tokenizer.end_of_text}


def pack(tensors: Arrays) -> tuple[list[dict[str, Any]], bytes]:
    """Return a table of the tensors and their bytes."""
    table: list[dict[str, Any]] = []
    parts: list[bytes] = []
    offset = 0
    for name, array in tensors.items():
        dtype = "float32" if array.ndim == 1 else "bfloat16" if name.startswith("position") else "int8"
        data = {"float32": _float32, "bfloat16": _bfloat16_bytes, "int8": _int8}[dtype](array)
        table.append({"name": name, "shape": list(array.shape), "dtype": dtype, "offset": offset})
        parts.append(data)
        offset += len(data)
    return table, b"".join(parts)


def rounded(tensors: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights with the values that the page computes with."""
    kept = {}
    for name, array in tensors.items():
        if array.ndim == 1:
            kept[name] = array
        elif name.startswith("position"):
            kept[name] = _to_bfloat16(array)
        else:
            whole, scales = quantize(array)
            kept[name] = (whole.astype(np.float32).reshape(*scales.shape, GROUP) * scales[..., None]).reshape(
                len(array), -1
            )
            kept[name] = np.ascontiguousarray(kept[name][:, : array.shape[1]])
    return kept


def quantize(matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return a matrix [R, C] as int8 [R, G * 32], padded with zeros, and its scales [R, G], rounded to bfloat16."""
    rows, columns = matrix.shape
    groups = -(-columns // GROUP)
    padded = np.zeros((rows, groups, GROUP), np.float32)
    padded.reshape(rows, -1)[:, :columns] = matrix
    scales = _to_bfloat16(np.abs(padded).max(-1) / np.float32(127))
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(scales[..., None] > 0, np.rint(padded / scales[..., None]), 0)
    return np.clip(whole, -127, 127).astype(np.int8).reshape(rows, -1), scales


def _is_tied(tensor: str, config: GPTConfig) -> bool:
    """Tell whether a tensor is a tied head, which is not stored."""
    return tensor == "head.weight" and config.tie_weights


def _piece(tokenizer: Tokenizer, id: int) -> str:
    try:
        return tokenizer.token_bytes(id).decode("latin-1")
    except Exception:
        return ""


def _stored_size(shape: tuple[int, ...]) -> int:
    return 4 * shape[0] if len(shape) == 1 else shape[0] * (shape[1] + 2 * -(-shape[1] // GROUP))


def _int8(matrix: npt.NDArray[np.float32]) -> bytes:
    whole, scales = quantize(matrix)
    return np.ascontiguousarray(whole[:, : matrix.shape[1]]).tobytes() + _bfloat16_bytes(scales)


def _float32(array: npt.NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(array, "<f4").tobytes()


def _bfloat16_bytes(array: npt.NDArray[np.float32]) -> bytes:
    return (_to_bfloat16(array).view(np.uint32) >> 16).astype("<u2").tobytes()


def _to_bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return an array rounded to bfloat16's nearest values, as float32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded_bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded_bits.astype(np.uint32).view(np.float32)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
