"""`clearhead evaluate`: the loss of a model on held-out texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.console import write_json
from clearhead.cli.model_argument import load_model
from clearhead.cli.options import Device, Json, Model

EPILOG = """
Examples:

[bold]clearhead evaluate held_out.txt[/]

[bold]clearhead evaluate wiki.test.raw --model gpt2 --json[/]
"""

Files = Annotated[list[Path], typer.Argument(help="Text files; a line <|endoftext|> separates documents.")]


def evaluate(files: Files, model: Model = None, device: Device = "cpu", as_json: Json = False) -> None:
    """Measure a model's loss on texts that it was not trained on.

    Perplexity is the number of equally likely tokens that would be as hard to guess; it depends on the vocabulary. Bits
    per byte does not, so models with different tokenizers can be compared by it. The text is cut into windows of the
    context length, and each token is predicted from those before it in its window.
    """
    import numpy as np

    from clearhead.data.documents import encode_documents
    from clearhead.errors import InputError
    from clearhead.evaluation.perplexity import evaluate_perplexity
    from clearhead.utils.progress import Progress

    gpt = load_model(model, backend="torch", device=device)  # the loss is computed by the PyTorch model
    if gpt.tokenizer is None:
        raise InputError("this model has no tokenizer; put its files (tokenizer.json) beside the weights.")
    if not as_json:
        print(f"{'bits/byte':>9} {'perplexity':>11} {'tokens':>10} {'bytes':>11}  file")
    for file in files:
        ids: list[int] = []
        text_bytes = 0
        for tokens, size in encode_documents(file, gpt.tokenizer):
            ids += tokens
            text_bytes += size
        if len(ids) < 2:
            raise InputError(f"{file} has no text in it; give a file with some.")
        with Progress(f"evaluating {file.name}", len(ids)) as progress:
            found = evaluate_perplexity(gpt.model, np.array(ids), text_bytes, advance=progress.advance)
        if as_json:
            write_json(
                {
                    "file": str(file),
                    "bits_per_byte": found.bits_per_byte,
                    "perplexity": found.perplexity,
                    "tokens": found.tokens,
                    "bytes": text_bytes,
                }
            )
        else:
            print(
                f"{found.bits_per_byte:9.4f} {found.perplexity:11.3f} {found.tokens:10,} {text_bytes:11,}  {file}",
                flush=True,
            )
