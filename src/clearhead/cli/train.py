"""`clearhead train`: train a model from a recipe and texts."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clearhead.cli.console import print_error, say
from clearhead.cli.exit_codes import USAGE
from clearhead.cli.options import flatten
from clearhead.errors import ClearheadError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from clearhead.training.recipe import Recipe

EPILOG = """
Examples:

[bold]clearhead train my.txt --out runs/mine[/]                    from one text, with defaults that suit its size

[bold]clearhead train recipes/storyteller.toml --data texts --out runs/storyteller[/]

[bold]clearhead train recipes/storyteller.toml --data texts --out runs/storyteller --find-lr[/]

[bold]clearhead train hf:roneneldan/TinyStories --out runs/tiny[/]             a data set on the hub

[bold]clearhead train --resume --out runs/storyteller[/]

[bold]clearhead train recipes/classes.toml --data examples --out runs/spam[/]

[bold]torchrun --nproc-per-node=8 -m clearhead train recipe.toml --data texts --out runs/large --auto-resume[/]
"""


@contextlib.contextmanager
def _errors_printed_once() -> Iterator[None]:
    """Let one process of several print the error that ends them all."""
    try:
        yield
    except ClearheadError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        from clearhead.training.one_message import print_once

        sentence = str(error)
        print_once(lambda: print_error(sentence))
        sys.exit(USAGE)


@_errors_printed_once()
def _find_recipe(given: Path | None) -> Path | None:
    """Return the file of a recipe that was named; one that is missing is refused before options that are missing.

    Raises:
        InputError: if there is no such file.
    """
    if given is not None and given.is_dir():
        raise InputError(f"{given} is a folder; give a text file in it, or a recipe and the folder as --data.")
    if given is None or given.exists() or _is_dataset(given):
        return given
    from clearhead.training.text_recipe import bundled_recipe

    if (found := bundled_recipe(str(given))) is not None:
        return found
    raise InputError(f"{given} could not be read ({os.strerror(errno.ENOENT)}); give a text file or a recipe.")


def _is_dataset(recipe: Path) -> bool:
    return recipe.as_posix().startswith("hf:")


RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        callback=_find_recipe,
        help="A recipe: a TOML file with the model, the texts and the training, or the name of one that comes along "
        "(storyteller, babylm, instructions, classes, shakespeare_char); or, without --data, a text file, with "
        "defaults that suit its size, or a data set on the hub (hf:NAME). With --resume, OUT's own.",
    ),
]
Data = Annotated[
    Path | None, typer.Option(help="The folder with the recipe's texts. With --resume, the same as before.")
]
Out = Annotated[Path, typer.Option(help="The run's folder: checkpoints, metrics and, at the end, model/.")]
Corpus = Annotated[
    Path | None, typer.Option(help="Where the tokenized texts are stored for reuse. OUT/corpus if left out.")
]


@dataclass(frozen=True)
class StartOptions:
    """Where training starts."""

    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in OUT.")] = False
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Continue from the newest checkpoint in OUT if there is one, and start otherwise: the same command "
            "survives a restart by torchrun or a cluster.",
        ),
    ] = False
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Search for a learning rate with a hundred steps, and do not train.")
    ] = False

    def __post_init__(self) -> None:
        if (self.resume or self.auto_resume) and self.find_lr:
            raise InputError("--find-lr starts from new weights; leave out --resume.")
        if self.resume and self.auto_resume:
            raise InputError("--resume needs a checkpoint and --auto-resume does not; give one of them.")


Device = Annotated[
    str, typer.Option(help="Train on this device: cpu, cuda, mps; auto takes cuda if there is one, else cpu.")
]
Dtype = Annotated[str, typer.Option(help="The dtype of the saved weights: float32, float16, bfloat16.")]


@flatten
@_errors_printed_once()
def train(
    start_from: StartOptions,
    recipe: RecipeFile = None,
    *,
    data: Data = None,
    out: Out,
    corpus: Corpus = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Train a model as a recipe describes: from scratch, or from an existing model.

    From scratch, the texts become token shards with a vocabulary learned from them. Then training runs, with
    validations and checkpoints. Ctrl-C writes a checkpoint before it stops, and --resume continues exactly from there,
    whatever stopped the run. Under torchrun, all processes train one model together.

    A recipe with [finetune] starts from an existing model (bundled, a folder, a name on the hub) and trains it on
    texts, on prompts and responses, or on classes; either all weights, or with lora_rank a few added ones.

    A text file instead of a recipe is enough to begin: the recipe is made for it, and stored in OUT to be changed. So
    is a data set on the hub, hf:NAME, whose column "text" is read; what will be downloaded is said first.

    A line <|endoftext|> separates the documents in a text file.
    """
    from clearhead.training import train as training
    from clearhead.training.distributed import first_process
    from clearhead.training.memory import exempt_loaded_objects, keep_freed_memory
    from clearhead.training.run_folder import RECIPE, read_origin

    resuming = start_from.resume or start_from.auto_resume
    start = None
    from_text = recipe is not None and data is None and not resuming and recipe.suffix != ".toml"
    if recipe is not None and from_text:
        data = Path() if _is_dataset(recipe) else recipe.parent
    if start_from.resume:
        before = read_origin(out)
        start = before.start if recipe is None else None
        recipe, data, corpus = recipe or out / RECIPE, data or before.data, corpus or before.corpus
    if recipe is None or data is None:
        missing = "a recipe" if recipe is None else "the folder of its texts (--data)"
        raise InputError(f"{missing} is missing; it can be left out only with --resume.")
    chosen = _read(recipe, from_text)
    if start and chosen.finetune:  # which the recipe may name as it was seen from another folder
        chosen = replace(chosen, finetune=replace(chosen.finetune, start=start))
    keep_freed_memory()
    exempt_loaded_objects()
    if start_from.find_lr:
        rates = training.find_lr(chosen, data, out, corpus_folder=corpus, device=device)
        if first_process():
            _print_rates(rates, out)
        return
    how: bool | Literal["auto"] = "auto" if start_from.auto_resume else start_from.resume
    folder = training.train(chosen, data, out, corpus_folder=corpus, resume=how, device=device, dtype=dtype)
    if not first_process():
        return
    if chosen.verb == "chat":
        say(f"The model is in {folder}. Try: clearhead chat -m {folder}")
    else:
        say(f'The model is in {folder}. Try: clearhead {chosen.verb} "Once upon a time" -m {folder}')


def _print_rates(rates: Mapping[str, float], out: Path) -> None:
    for key, rate in rates.items():
        print(f"{key} = {rate:.2g}")
    say(f"The curve is in {out / 'find_lr.svg'}.")


def _read(file: Path, from_text: bool) -> Recipe:
    """Read a recipe, or make one for a text or a data set and say what the training will take."""
    from clearhead.training.recipe_reader import parse_recipe, read_recipe

    if not from_text:
        return read_recipe(file)
    from clearhead.anatomy import count_parameters
    from clearhead.training.text_recipe import recipe_for_dataset, recipe_for_text

    name = file.name
    if _is_dataset(file):
        name = file.as_posix()
        recipe = parse_recipe(recipe_for_dataset(name, _say_download(name)))
    else:
        recipe = parse_recipe(recipe_for_text(file))
    tokens = recipe.training.steps * recipe.training.batch_size * recipe.model.context_length
    parameters = count_parameters(recipe.model).total
    say(
        f"{name}: a GPT-2 with {parameters:,} parameters will read {tokens:,} tokens in "
        f"{recipe.training.steps:,} steps, some {6 * parameters * tokens / 1e12:,.1f} TFLOPs."
    )
    return recipe


def _say_download(name: str) -> int | None:
    """Say what a data set on the hub will download; return the size of its texts in bytes, None if it is unknown."""
    from clearhead.data.sources.hub_dataset import HubDataset

    found = HubDataset.from_name(name, "text").download()
    if found.n_bytes is not None:
        say(f"{name}: {found.n_bytes / 1e6:,.0f} MB will be downloaded to {found.folder} (HF_HOME moves it).")
    return found.text_bytes
