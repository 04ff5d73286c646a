"""`clearhead new`: create a model with random weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import say
from clearhead.cli.options import flatten
from clearhead.config import RELEASED, GPTConfig
from clearhead.errors import ConfigError, InputError

if TYPE_CHECKING:
    from clearhead.model import GPTModel
    from clearhead.tokenizer import Tokenizer

EPILOG = """
Examples:

[bold]clearhead new my-gpt2 --size 124M[/]              the small GPT-2, untrained

[bold]clearhead new tiny --emb-dim 64 --n-layers 2 --n-heads 4 --tokenizer gpt2/[/]

[bold]clearhead new long --size 124M --context-length 2048[/]

The folder is a Hugging Face GPT-2 folder: transformers opens it too.
"""

# The values of the released models, for what neither --size nor --config nor an option says.
_AS_RELEASED = {"vocab_size": 50257, "context_length": 1024, "qkv_bias": True, "tie_weights": True}

_SHAPE = "The shape (each overrides --size and --config)"


@dataclass(frozen=True)
class ShapeOptions:
    """The shape of a new model, value by value; None: as --size or --config says."""

    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size", help="Number of token ids; the tokenizer's if one is given.", rich_help_panel=_SHAPE
        ),
    ] = None
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context-length", help="Number of positions: the most tokens in a sequence.", rich_help_panel=_SHAPE
        ),
    ] = None
    emb_dim: Annotated[
        int | None, typer.Option("--emb-dim", help="Width of a token's vector.", rich_help_panel=_SHAPE)
    ] = None
    n_heads: Annotated[
        int | None, typer.Option("--n-heads", help="Attention heads; must divide --emb-dim.", rich_help_panel=_SHAPE)
    ] = None
    n_layers: Annotated[int | None, typer.Option("--n-layers", help="Blocks.", rich_help_panel=_SHAPE)] = None
    ff_dim: Annotated[
        int | None,
        typer.Option("--ff-dim", help="Width inside the feed-forward layer; 4 × emb-dim.", rich_help_panel=_SHAPE),
    ] = None
    drop_rate: Annotated[
        float | None,
        typer.Option("--drop-rate", help="Dropout rate in training.", rich_help_panel=_SHAPE),
    ] = None
    qkv_bias: Annotated[
        bool | None,
        typer.Option("--qkv-bias/--no-qkv-bias", help="A bias on query, key and value.", rich_help_panel=_SHAPE),
    ] = None
    tie_weights: Annotated[
        bool | None,
        typer.Option(
            "--tie-weights/--no-tie-weights",
            help="Use the token embedding's tensor as the output head.",
            rich_help_panel=_SHAPE,
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Return the values that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@flatten
def new(
    folder: Annotated[Path, typer.Argument(help="The folder to create.")],
    values: ShapeOptions,
    size: Annotated[str | None, typer.Option("--size", help=f"A released shape: {', '.join(RELEASED)}.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="A JSON file: Hugging Face's config.json, OpenAI's hparams.json, the book's keys."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Copy the tokenizer of a model's folder, a tokenizer.json, or a hub name."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights: the same seed gives the same weights.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that is not empty, over a model there.")
    ] = False,
) -> None:
    """Create a model with random weights.

    They are initialised as OpenAI did for GPT-2: normal with standard deviation 0.02 (positions 0.01), divided by the
    square root of twice the number of blocks in the projections that add to the residual stream. Such a model
    generates noise until it is trained.
    """
    from clearhead.cli.model_argument import open_tokenizer

    _refuse_occupied(folder, force)
    _refuse_seed(seed)
    vocabulary = None if tokenizer is None else open_tokenizer(tokenizer)
    changes = values.given()
    if vocabulary is not None:
        changes.setdefault("vocab_size", vocabulary.vocab_size)
    shape = make_config(size, config, changes)
    if vocabulary is not None and vocabulary.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"vocab_size is {shape.vocab_size:,}, but the tokenizer has {vocabulary.vocab_size:,} ids; "
            f"give --vocab-size {vocabulary.vocab_size} or more."
        )
    _make(folder, shape, vocabulary, seed)


def make_config(size: str | None, file: Path | None, changes: dict[str, Any]) -> GPTConfig:
    """Return the shape from a size's name, a file, or neither, with single values changed.

    Raises:
        ConfigError: if both are given, a value is not valid, or a value is missing.
    """
    if size is not None and file is not None:
        raise ConfigError("--size and --config were both given; give one of them.")
    if size is not None:
        return GPTConfig.named(size).replace(**changes)
    if file is not None:
        return GPTConfig.from_file(file).replace(**changes)
    missing = [name for name in ("emb_dim", "n_heads", "n_layers") if name not in changes]
    if missing:
        options = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise ConfigError(f"the shape is not known; give --size, --config, or {options} as well.")
    return GPTConfig.from_dict({**_AS_RELEASED, **changes})


def _refuse_occupied(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give the name of a folder to create.")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give another name, or --force to write the model into it.")


def _refuse_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed is {seed}; give a whole number from 0 to 2^63 - 1.")


def _make(folder: Path, config: GPTConfig, vocabulary: Tokenizer | None, seed: int) -> None:
    import torch

    from clearhead.anatomy import bytes_of, count_parameters
    from clearhead.model import GPTModel
    from clearhead.utils.progress import busy
    from clearhead.utils.system import free_memory
    from clearhead.utils.units import format_bytes

    total = count_parameters(config).total
    needed, free = bytes_of(total), free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"the model takes {format_bytes(needed)} in float32, and {format_bytes(free)} of memory are free; "
            "choose a smaller shape."
        )
    with busy(f"Drawing {total:,} random numbers ..."):
        torch.manual_seed(seed)
        model = GPTModel(config)
    _save(folder, model, vocabulary)
    say(f"{folder}: a GPT-2 with {total:,} parameters ({format_bytes(needed)}), seed {seed}.")
    if vocabulary is None:
        say("It has no tokenizer, so it cannot read text; give --tokenizer to copy one in.")


def _save(folder: Path, model: GPTModel, vocabulary: Tokenizer | None) -> None:
    from clearhead.model_weights import ModelTensors
    from clearhead.weights import save_huggingface

    end = None if vocabulary is None else vocabulary.end_of_text
    save_huggingface(folder, model.config, ModelTensors(model), extra_config={"bos_token_id": end, "eos_token_id": end})
    if vocabulary is not None:
        vocabulary.save(folder)
