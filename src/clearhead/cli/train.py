"""`clearhead train`: a model from a recipe and texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Examples:

[bold]clearhead train recipes/storyteller.toml --data texts --out runs/storyteller[/]

[bold]clearhead train recipes/storyteller.toml --data texts --out runs/storyteller --find-lr[/]

[bold]clearhead train --resume --out runs/storyteller[/]

[bold]clearhead train recipes/classes.toml --data examples --out runs/spam[/]

[bold]torchrun --nproc-per-node=8 -m clearhead train recipe.toml --data texts --out runs/large[/]
"""

RecipeFile = Annotated[
    Path | None,
    typer.Argument(help="A recipe: a TOML file with the model, the texts and the training. With --resume, OUT's own."),
]
Data = Annotated[
    Path | None, typer.Option(help="The folder that holds the recipe's texts. With --resume, the same as before.")
]
Out = Annotated[Path, typer.Option(help="The run's folder: checkpoints, metrics and, at the end, model/.")]
Corpus = Annotated[
    Path | None, typer.Option(help="Where the tokenized texts go and are found again. OUT/corpus if left out.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUT.")]
FindLr = Annotated[
    bool, typer.Option("--find-lr", help="Search for a learning rate with a hundred steps, and do not train.")
]
Device = Annotated[
    str, typer.Option(help="Where it trains: cpu, cuda, mps; auto takes cuda where there is one, else cpu.")
]
Dtype = Annotated[str, typer.Option(help="The number format of the saved weights: float32, float16, bfloat16.")]


def train(
    recipe: RecipeFile = None,
    *,
    data: Data = None,
    out: Out,
    corpus: Corpus = None,
    resume: Resume = False,
    find_lr: FindLr = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Train a model as a recipe says: from scratch, or on from one that is there.

    From scratch, the texts become token shards with a vocabulary learned from them. Then come the steps, with
    validations and checkpoints on the way. Ctrl-C writes a checkpoint before it stops, and --resume goes on exactly
    from there, whatever stopped the run. Under torchrun, all processes train one model together.

    A recipe with [finetune] starts from a model that is there (bundled, a folder, a name on the hub) and goes on with
    texts, with prompts and responses, or with classes; all weights learn, or with lora_rank a few beside them.

    A text file separates its documents by a line <|endoftext|>.
    """
    from clearhead.errors import InputError
    from clearhead.training import loop
    from clearhead.training.memory import keep_freed_memory
    from clearhead.training.recipe import Recipe
    from clearhead.training.run_folder import RECIPE, remembered

    if resume and find_lr:
        raise InputError("--find-lr starts from new weights; leave --resume out.")
    start = None
    if resume:
        before = remembered(out)
        start = before.start if recipe is None else None
        recipe, data, corpus = recipe or out / RECIPE, data or before.data, corpus or before.corpus
    if recipe is None or data is None:
        missing = "a recipe" if recipe is None else "the folder of its texts (--data)"
        raise InputError(f"{missing} is missing; only with --resume can it be left out.")
    chosen = Recipe.from_file(recipe)
    if start and chosen.finetune:  # which the recipe may name as it was seen from another folder
        chosen = replace(chosen, finetune=replace(chosen.finetune, start=start))
    keep_freed_memory()
    if find_lr:
        rates = loop.find_lr(chosen, data, out, corpus_folder=corpus, device=device)
        for key, rate in rates.items():
            print(f"{key} = {rate:.2g}")
        print(f"The curve is in {out / 'find_lr.svg'}.")
        return
    folder = loop.train(chosen, data, out, corpus_folder=corpus, resume=resume, device=device, dtype=dtype)
    names = chosen.finetune is not None and chosen.finetune.kind == "classes"
    print(
        f'The model is in {folder}. Try: clearhead {"classify" if names else "generate"} "Once upon a time" -m {folder}'
    )
