"""`clearhead walk`: follow one prompt through a model, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import output, read_prompt, say, write_json
from clearhead.cli.model_argument import load_model, open_weights
from clearhead.cli.options import Config, Device, Lang, Model, PromptFile, flatten
from clearhead.errors import InputError
from clearhead.utils.progress import busy

if TYPE_CHECKING:
    from clearhead.inference.options import SamplingParams
    from clearhead.model import GPTModel
    from clearhead.numpy_model import NumpyModel
    from clearhead.tokenizer import Tokenizer

EPILOG = """
Examples:

[bold]clearhead walk "Every effort moves you"[/]

[bold]clearhead walk "Every effort moves you" --block 3 --head 1[/]       another head

[bold]clearhead walk "Every effort moves you" --html walk.html[/]         a page with every block and head

[bold]clearhead walk "The cat sat on the" --model gpt2 --top-k 5 --json[/]
"""

_SHOW = {"rich_help_panel": "What is shown"}
_SAMPLING = {"rich_help_panel": "How the next token is chosen"}

Prompt = Annotated[
    str | None,
    typer.Argument(help="The text to follow. Read from --file or standard input if it is left out or '-'."),
]


@dataclass(frozen=True)
class ViewOptions:
    """What of a walk is shown, and how."""

    block: Annotated[int, typer.Option(help="Show this block, counted from 0.", **_SHOW)] = 0
    head: Annotated[int, typer.Option(help="Show this attention head, counted from 0.", **_SHOW)] = 0
    html: Annotated[
        Path | None,
        typer.Option(help="Write an interactive page with all blocks and heads to this file.", **_SHOW),
    ] = None
    lang: Lang = ""
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with all blocks and heads.", **_SHOW)
    ] = False

    def __post_init__(self) -> None:
        if self.html is not None and self.as_json:
            raise typer.BadParameter("give --html or --json, not both.")
        if self.html is not None and not self.html.name:
            raise InputError("--html is empty; give the name of a file to write.")


@dataclass(frozen=True)
class NextTokenOptions:
    """How the walk chooses the next token."""

    temperature: Annotated[
        float, typer.Option(help="Divide the logits by this; 0 takes the most likely token.", **_SAMPLING)
    ] = 0.8
    top_k: Annotated[int, typer.Option(help="Choose among the k most likely tokens.", **_SAMPLING)] = 10
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.", **_SAMPLING)] = 1

    def params(self) -> SamplingParams:
        """Return the options in the form that the sampler takes."""
        from clearhead.inference.options import SamplingParams

        return SamplingParams(temperature=self.temperature, top_k=self.top_k, seed=self.seed)


@flatten
def walk(
    view: ViewOptions,
    sampling: NextTokenOptions,
    prompt: Prompt = None,
    file: PromptFile = None,
    model: Model = None,
    config: Config = None,
    device: Device = "cpu",
) -> None:
    """Follow one prompt through a model.

    From the ids to the next token: embeddings, norms, attention scores, mask and weights, GELU, the residual stream,
    what each depth would predict, temperature and top-k. In the terminal for one block and head, or as a page to
    explore.
    """
    params = sampling.params()
    text = read_prompt(prompt, file)
    if not text:
        raise InputError("the prompt is empty; give some text to follow.")
    network, tokenizer = _open(model, config, device)
    with busy("walking through the model"):
        found = _walk(network, tokenizer, text, view, params)
    found = {"name": model, "prompt": text, **found}
    if view.as_json:
        write_json(found)
    elif view.html is not None:
        from clearhead.lens.page import write_page

        write_page(view.html, found, view.lang)
        say(f"{view.html} ({view.html.stat().st_size / 1e6:.1f} MB): open it in a browser.")
    else:
        from clearhead.cli.walk_text import WalkPrinter

        WalkPrinter(found, view.lang, output()).print()


def _open(model: str | None, config: str | None, device: str) -> tuple[GPTModel | NumpyModel, Tokenizer]:
    """Return a network that can be watched, in NumPy on the CPU and in PyTorch elsewhere, and its tokenizer."""
    from clearhead.numpy_model import load_numpy_model
    from clearhead.tokenizer.model_vocabulary import check_model_vocabulary

    network: GPTModel | NumpyModel
    if device == "cpu":
        source = open_weights(model or "bundled", config=config)
        tokenizer = source.tokenizer()
        check_model_vocabulary(source.config, tokenizer)
        network = load_numpy_model(source.config, source.lazy())
    else:
        gpt = load_model(model, backend="torch", device=device, config=config)
        network, tokenizer = gpt.model, gpt.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer; put its files (tokenizer.json) next to the weights.")
    return network, tokenizer


def _walk(
    network: GPTModel | NumpyModel, tokenizer: Tokenizer, text: str, view: ViewOptions, params: SamplingParams
) -> dict[str, Any]:
    from clearhead.lens.activations import check_indices
    from clearhead.lens.walk import walk as walk_through

    check_indices("block", view.block, network.config.n_layers, "model")
    check_indices("head", view.head, network.config.n_heads, "model")
    return {
        "block": view.block,
        "head": view.head,
        **walk_through(network, tokenizer.encode(text), tokenizer, params),
    }
