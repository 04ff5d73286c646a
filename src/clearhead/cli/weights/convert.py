"""`clearhead weights convert`: write a model in another layout, read it back and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.options import Config, WeightsSource
from clearhead.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clearhead.weights import ReadBack, SaveResult, Source

EPILOG = """
Examples:

[bold]clearhead weights convert gpt2 gpt2.gguf --to gguf --dtype q8_0[/]     for llama.cpp

[bold]clearhead weights convert ckpt.pt my-gpt2/ --to huggingface[/]         from nanoGPT to transformers

[bold]clearhead weights convert my-gpt2/ gpt.pth --to book[/]                for the book's GPTModel
"""


def convert_weights(
    source: WeightsSource,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The file to write, or the folder.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="LAYOUT",
            help="huggingface, openai, onnx (folders); gguf, book, nanogpt, llmc, transformerlens, canonical (files).",
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, float16, bfloat16, for gguf q8_0; the source's own if the layout allows it, else float32.",
        ),
    ] = None,
    config: Config = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write the model even if the layout cannot hold every part of it.")
    ] = False,
) -> None:
    """Write a model in another layout.

    One tensor is in memory at a time. What the layout cannot hold (special tokens, a classifier's head, a setting) is
    named before anything is written. The result is read back and compared with the source: every number, the settings,
    the tokenizer and its special tokens, the head.
    """
    from clearhead import weights
    from clearhead.cli.console import notice
    from clearhead.weights.saving import DTYPES, check

    check(to, dtype or DTYPES.get(to, ("float32",))[0])
    dest = dest.expanduser()
    _refuse_occupied(dest, to, force)
    opened = weights.open(source, config=config)
    for note in opened.notes:
        notice(note)
    if dtype is None:
        dtype = opened.dtype if opened.dtype in DTYPES[to] else "float32"
    _refuse_itself(opened, dest, to)
    saved = opened.save(dest, to, dtype, lossy=lossy)
    for note in saved.notes:
        notice(note)
    _print_result(saved, weights.read_back(opened, saved))


def _refuse_occupied(dest: Path, to: str, force: bool) -> None:
    from clearhead.weights.saving import FOLDERS

    if to in FOLDERS:
        if dest.exists() and not dest.is_dir():
            raise InputError(f"{dest} is a file, and the layout {to} is a folder; give the name of a folder.")
        if not force and dest.is_dir() and any(dest.iterdir()):
            raise InputError(f"{dest} is not empty; give another name, or --force to write the model there.")
    elif not force and dest.is_file():
        raise InputError(f"{dest} exists already; give another name, or --force to overwrite it.")


def _refuse_itself(opened: Source, dest: Path, to: str) -> None:
    """Refuse to overwrite the source, which is needed for the comparison."""
    from clearhead.weights.saving import FOLDERS

    own = opened.folder if to in FOLDERS and opened.layout == to else opened.path
    if dest.exists() and dest.samefile(own):
        raise WeightsError(f"{dest} is the source itself; give another path.")


def _print_result(saved: SaveResult, found: ReadBack) -> None:
    from clearhead.cli.console import output
    from clearhead.weights.layouts import LAYOUTS

    console = output()
    layout = LAYOUTS[saved.layout].title
    console.print(f"{saved.path}: {layout}, {saved.dtype}, {saved.nbytes:,} bytes", style="bold", soft_wrap=True)
    if len(saved.files) > 1:
        width = max(len(path.name) for path in saved.files)
        for path in saved.files:
            console.print(f"  {path.name:{width}} {path.stat().st_size:15,}", soft_wrap=True)
    console.print(f"Read back and compared: {found}", soft_wrap=True)
