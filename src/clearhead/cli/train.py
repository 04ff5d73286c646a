"""`clearhead train`: a model from a recipe and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Examples:

[bold]clearhead train recipes/storyteller.toml --data texts --out runs/storyteller[/]

[bold]clearhead train recipes/storyteller.toml --data texts --out runs/storyteller --resume[/]

[bold]clearhead generate "Once upon a time" --model runs/storyteller/model[/]
"""

RecipeFile = Annotated[Path, typer.Argument(help="A recipe: a TOML file with the model, the texts and the training.")]
Data = Annotated[Path, typer.Option(help="The folder that holds the recipe's texts.")]
Out = Annotated[Path, typer.Option(help="The run's folder: checkpoints, metrics and, at the end, model/.")]
Corpus = Annotated[
    Path | None, typer.Option(help="Where the tokenized texts go and are found again. OUT/corpus if left out.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUT.")]
Device = Annotated[
    str, typer.Option(help="Where it trains: cpu, cuda, mps; auto takes cuda where there is one, else cpu.")
]
Dtype = Annotated[str, typer.Option(help="The number format of the saved weights: float32, float16, bfloat16.")]


def train(
    recipe: RecipeFile,
    data: Data,
    out: Out,
    corpus: Corpus = None,
    resume: Resume = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Train a model from scratch, as a recipe says.

    The texts become token shards with a vocabulary learned from them; then come the steps, with validations
    and checkpoints on the way. Ctrl-C writes a checkpoint before it stops, and --resume goes on exactly from there.

    A text file separates its documents by a line <|endoftext|>.
    """
    from clearhead.training.loop import train as run
    from clearhead.training.recipe import Recipe

    folder = run(Recipe.from_file(recipe), data, out, corpus_folder=corpus, resume=resume, device=device, dtype=dtype)
    print(f'The model is in {folder}. Try: clearhead generate "Once upon a time" --model {folder}')
