"""Makes one model with random weights in every form that `peers.py` runs.

    python bench/peer_models.py FOLDER --python PEERS_PYTHON

Clearhead writes a transformers folder and the GGUF files of float16 and q8_0; the peers' own converters, in their
Python, make the others from these. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SOURCE = "transformers"
ONNX = "onnx"
GGUF = {"gguf-f16": "float16", "gguf-q8_0": "q8_0"}
CONVERTED = {
    "ctranslate2-float32": "ctranslate2",
    "ctranslate2-int8": "ctranslate2",
    "gguf-q4_0": "llama_cpp",
    "onnx-int8": "onnxruntime",
    "openvino-fp16": "optimum.intel",
    "openvino-int8": "optimum.intel",
    "openvino-int4": "optimum.intel",
}
"""What the peers' converters make, and the package that it takes."""


def make_source(folder: Path, size: str) -> None:
    """Writes the transformers folder and the GGUF files, with Clearhead."""
    from clearhead.config import GPTConfig
    from clearhead.tokenizer import Tokenizer
    from clearhead.weights import save
    from clearhead.weights.random_tensors import RandomTensors

    config = GPTConfig.named(size)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / SOURCE
    if not (source / "config.json").exists():
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        _write_vocabulary(vocab, merges, config.vocab_size)
        Tokenizer.from_bpe_files(vocab, merges).save(source)
        for file in (vocab, merges):
            shutil.copy(file, source)
        save(source, config, RandomTensors(config), tokenizer_folder=source)
    for name, dtype in GGUF.items():
        if not (folder / name).exists():
            save(folder / name, config, RandomTensors(config), "gguf", dtype, tokenizer_folder=source)
    if not (folder / ONNX).exists():
        save(folder / ONNX, config, RandomTensors(config), "onnx", tokenizer_folder=source)


def _write_vocabulary(vocab: Path, merges: Path, size: int) -> None:
    """A byte-level BPE of as many tokens as the model has: the 256 bytes, pairs of them, and the end of text.

    The converters want a tokenizer; the measured prompts are ids, so its words do not matter.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    pairs = [(a, b) for a in letters for b in letters][: size - 257]
    tokens = [*letters, *(a + b for a, b in pairs), "<|endoftext|>"]
    vocab.write_text(json.dumps({token: id for id, token in enumerate(tokens)}), encoding="utf-8")
    merges.write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in pairs), ""]), encoding="utf-8")


def convert(folder: Path, name: str) -> None:
    """Makes one of `CONVERTED`; runs in the peers' Python."""
    beside = folder / f".making-{name}"
    shutil.rmtree(beside, ignore_errors=True)
    kind, _, form = name.partition("-")
    makers: dict[str, Callable[[Path, Path, str], None]] = {
        "ctranslate2": _ctranslate2,
        "gguf": _gguf,
        "openvino": _openvino,
        "onnx": _onnx,
    }
    makers[kind](folder, beside, form)
    beside.rename(folder / name)


def _ctranslate2(folder: Path, made: Path, form: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder / SOURCE)).convert(str(made), quantization=form)


def _gguf(folder: Path, made: Path, form: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form.upper()}")
    if llama_cpp.llama_model_quantize(str(folder / "gguf-f16").encode(), str(made).encode(), params):
        raise SystemExit("llama.cpp could not quantize the model")


def _onnx(folder: Path, made: Path, form: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made.mkdir()
    quantize_dynamic(folder / ONNX / "model.onnx", made / "model.onnx", weight_type=QuantType.QInt8)


def _openvino(folder: Path, made: Path, form: str) -> None:
    program = "from optimum.commands.optimum_cli import main; main()"
    options = ["--task", "text-generation-with-past", "--weight-format", form, str(made)]
    subprocess.run(
        [sys.executable, "-c", program, "export", "openvino", "-m", str(folder / SOURCE), *options], check=True
    )


def make(folder: Path, size: str, python: str, installed: set[str], wanted: set[str]) -> None:
    """Makes what is missing of the wanted forms whose packages are installed for `python`."""
    make_source(folder, size)
    for name, package in CONVERTED.items():
        if name in wanted and package in installed and not (folder / name).exists():
            print(f"making {name}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [python, __file__, str(folder), "--convert", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            if done.returncode:
                sys.stderr.write(done.stdout.decode(errors="replace")[-3000:])
                raise SystemExit(f"{name} could not be made")


def installed_for(python: str) -> set[str]:
    """Which of the peers' packages that interpreter has."""
    names = ["transformers", "torchao", "onnx", *sorted(set(CONVERTED.values())), "openvino_genai"]
    program = (
        "import importlib.util, json, sys\n"
        "def has(name):\n"
        "    try: return importlib.util.find_spec(name) is not None\n"
        "    except ModuleNotFoundError: return False\n"
        "print(json.dumps([name for name in sys.argv[1:] if has(name)]))"
    )
    return set(json.loads(subprocess.run([python, "-c", program, *names], check=True, capture_output=True).stdout))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="124M")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--convert", choices=CONVERTED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        convert(arguments.folder, arguments.convert)
    else:
        make(arguments.folder, arguments.size, arguments.python, installed_for(arguments.python), set(CONVERTED))
