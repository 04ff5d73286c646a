"""`clearhead evaluate`: how well a model foresees held-out texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Examples:

[bold]clearhead evaluate held_out.txt[/]

[bold]clearhead evaluate wiki.test.raw --model gpt2 --json[/]
"""

Files = Annotated[list[Path], typer.Argument(help="Text files; a line <|endoftext|> separates documents.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A folder, or a name on the hub. The bundled one if left out.")
]
Device = Annotated[str, typer.Option(help="Where it runs: cpu, cuda, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for each file.")]


def evaluate(files: Files, model: Model = None, device: Device = "cpu", as_json: Json = False) -> None:
    """Measure a model's loss on texts that it was not trained on.

    Perplexity says between how many tokens the model seems to choose; it depends on the vocabulary. Bits per byte does
    not: models with different tokenizers can be compared by it. The text is cut into windows of the context length,
    one after another, and each token is predicted from those before it in its window.
    """
    import numpy as np

    from clearhead.data.documents import encode_documents
    from clearhead.errors import InputError
    from clearhead.evaluation.perplexity import evaluate_perplexity
    from clearhead.loading import load
    from clearhead.utils.progress import Progress

    gpt = load(model, backend="torch", device=device)  # the loss is computed by the PyTorch model
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
            print(
                json.dumps(
                    {
                        "file": str(file),
                        "bits_per_byte": found.bits_per_byte,
                        "perplexity": found.perplexity,
                        "tokens": found.tokens,
                        "bytes": text_bytes,
                    }
                )
            )
        else:
            print(
                f"{found.bits_per_byte:9.4f} {found.perplexity:11.3f} {found.tokens:10,} {text_bytes:11,}  {file}",
                flush=True,
            )
