"""`clearhead new`: a new model with random weights, to train or to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

# What a model has where neither --size nor --config says it: as the released ones.
_AS_RELEASED = {"vocab_size": 50257, "context_length": 1024, "qkv_bias": True, "tie_weights": True}

_SHAPE = "The shape (each overrides --size and --config)"


def new(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
    size: Annotated[str | None, typer.Option("--size", help=f"A released shape: {', '.join(RELEASED)}.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="A JSON file: Hugging Face's config.json, OpenAI's hparams.json, the book's keys."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", help="Token ids; the tokenizer's if one is given.", rich_help_panel=_SHAPE),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option("--context-length", help="Positions: the most tokens at once.", rich_help_panel=_SHAPE)
    ] = None,
    emb_dim: Annotated[
        int | None, typer.Option("--emb-dim", help="Numbers in a token's vector.", rich_help_panel=_SHAPE)
    ] = None,
    n_heads: Annotated[
        int | None, typer.Option("--n-heads", help="Attention heads; must divide --emb-dim.", rich_help_panel=_SHAPE)
    ] = None,
    n_layers: Annotated[int | None, typer.Option("--n-layers", help="Blocks.", rich_help_panel=_SHAPE)] = None,
    ff_dim: Annotated[
        int | None,
        typer.Option("--ff-dim", help="Width inside the feed-forward layer; 4 × emb-dim.", rich_help_panel=_SHAPE),
    ] = None,
    drop_rate: Annotated[
        float | None,
        typer.Option("--drop-rate", help="Share of values dropped in training.", rich_help_panel=_SHAPE),
    ] = None,
    qkv_bias: Annotated[
        bool | None,
        typer.Option("--qkv-bias/--no-qkv-bias", help="A bias on query, key and value.", rich_help_panel=_SHAPE),
    ] = None,
    tie_weights: Annotated[
        bool | None,
        typer.Option(
            "--tie-weights/--no-tie-weights",
            help="Whether the output head is the token embedding's own tensor.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", help="Whose vocabulary to copy in: a model's folder, a tokenizer.json, a hub name."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="One seed gives the same weights every time.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Put the model into a folder that is not empty, over a model there.")
    ] = False,
) -> None:
    """Make a new model with random weights.

    They are drawn as OpenAI drew GPT-2's: normal with standard deviation 0.02 (positions 0.01), smaller by the
    square root of twice the depth where a block adds to what passes through. Such a model writes noise until it
    is trained.
    """
    from clearhead.cli.source import open_tokenizer

    _refuse_occupied(folder, force)
    _refuse_seed(seed)
    vocabulary = None if tokenizer is None else open_tokenizer(tokenizer)
    if vocab_size is None and vocabulary is not None:
        vocab_size = vocabulary.vocab_size
    changes = {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "emb_dim": emb_dim,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "ff_dim": ff_dim,
        "drop_rate": drop_rate,
        "qkv_bias": qkv_bias,
        "tie_weights": tie_weights,
    }
    shape = make_config(size, config, {name: value for name, value in changes.items() if value is not None})
    if vocabulary is not None and vocabulary.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"vocab_size is {shape.vocab_size:,}, but the tokenizer has {vocabulary.vocab_size:,} ids; "
            f"give --vocab-size {vocabulary.vocab_size} or more."
        )
    _make(folder, shape, vocabulary, seed)


def make_config(size: str | None, file: Path | None, changes: dict[str, Any]) -> GPTConfig:
    """The shape from a size's name, a file, or neither, with single values changed.

    Raises:
        ConfigError: where both are given, a value cannot be, or with neither a number is missing.
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
        raise InputError(f"{folder} is a file; give the name of a folder to make.")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give another name, or --force to put the model there.")


def _refuse_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed is {seed}; give a whole number from 0 to 2^63 - 1.")


def _make(folder: Path, config: GPTConfig, vocabulary: Tokenizer | None, seed: int) -> None:
    import torch

    from clearhead.anatomy import bytes_of, count_parameters
    from clearhead.cli.console import working
    from clearhead.cli.params import binary
    from clearhead.model import GPTModel

    total = count_parameters(config).total
    with working(f"Drawing {total:,} random numbers ..."):
        torch.manual_seed(seed)
        model = GPTModel(config)
    _save(folder, model, vocabulary)
    print(f"{folder}: a GPT-2 with {total:,} parameters ({binary(bytes_of(total))}), seed {seed}.")
    if vocabulary is None:
        print("It has no tokenizer; give --tokenizer to copy one in, or it cannot read text.")


def _save(folder: Path, model: GPTModel, vocabulary: Tokenizer | None) -> None:
    from clearhead.model_weights import ModelTensors
    from clearhead.weights import save_huggingface

    end = None if vocabulary is None else vocabulary.end_of_text
    save_huggingface(folder, model.config, ModelTensors(model), extra_config={"bos_token_id": end, "eos_token_id": end})
    if vocabulary is not None:
        vocabulary.save(folder)
