"""`clearhead compress` and `clearhead decompress`: lossless compression of text by a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import say, write_file
from clearhead.cli.options import Config, Model, choices
from clearhead.errors import InputError
from clearhead.utils.arguments import Dtype

if TYPE_CHECKING:
    from clearhead.evaluation.compression import TextCompressor

EPILOG = """
Examples:

[bold]clearhead compress story.txt[/]                      writes story.txt.clearhead

[bold]clearhead decompress story.txt.clearhead -o out.txt[/]
"""

SUFFIX = ".clearhead"

Input = Annotated[Path, typer.Argument(metavar="FILE", help="The file; any bytes.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")]
WeightsDtype = Annotated[
    str,
    typer.Option(help="The weights in memory: float32 (compresses best), bfloat16, int8 or int4.", **choices(Dtype)),
]


def compress(
    file: Input, output: Output = None, model: Model = None, config: Config = None, dtype: WeightsDtype = "float32"
) -> None:
    """Compress a file with a model: text that the model predicts well becomes small.

    The same model on a processor with the same arithmetic is needed to get the file back; anything else is refused.
    """
    from clearhead.utils.progress import Progress

    data = _read(file)
    compressor = _compressor(model, config, dtype)
    with Progress(f"compressing {file.name}", None) as progress:
        done = 0

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            progress.advance(tokens, f"{done:,} tokens")

        container = compressor.compress(data, advance)
    target = output or file.with_name(file.name + SUFFIX)
    write_file(target, container)
    bits = 8 * len(container) / len(data) if data else 0.0
    say(f"{target}: {len(container):,} bytes of {len(data):,}, {bits:.3f} bits per byte")


def decompress(
    file: Input, output: Output = None, model: Model = None, config: Config = None, dtype: WeightsDtype = "float32"
) -> None:
    """Restore a file that `clearhead compress` made."""
    from clearhead.evaluation.compression import read_container
    from clearhead.utils.progress import Progress

    container = _read(file)
    header, _, _ = read_container(container)
    if output is None and file.suffix != SUFFIX:
        raise InputError(f"{file} does not end in {SUFFIX}; give the name of the file to write with -o.")
    target = output or file.with_suffix("")
    if output is None and target.exists():
        raise InputError(f"{target} exists already; give another name with -o.")
    compressor = _compressor(model, config, dtype)
    with Progress(f"decompressing {file.name}", header["tokens"]) as progress:
        data = compressor.decompress(container, progress.advance)
    write_file(target, data)
    say(f"{target}: {len(data):,} bytes")


def _compressor(model: str | None, config: str | None, dtype: str) -> TextCompressor:
    from clearhead import weights
    from clearhead.cli.model_argument import load_model
    from clearhead.evaluation.compression import TextCompressor
    from clearhead.evaluation.provenance import weights_digest

    gpt = load_model(model, dtype=dtype, backend="engine", config=config)
    return TextCompressor(gpt, weights_digest(weights.open(model or "bundled", config=config)), dtype)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); check the path.") from None
