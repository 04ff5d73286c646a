"""`clearhead bench`: measure how fast models run on this machine."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import write_json
from clearhead.cli.options import Config
from clearhead.config import HUB_NAMES, RELEASED
from clearhead.errors import HubError, InputError

if TYPE_CHECKING:
    from clearhead.cli.model_argument import ResolvedModel

EPILOG = """
Examples:

[bold]clearhead bench[/]                                  the bundled model, in every dtype

[bold]clearhead bench 124M --random[/]                    GPT-2's shape, without its weights

[bold]clearhead bench gpt2 --dtype int8 --quick --json[/]
"""

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A model's folder, or its name on the hub; the bundled model if left out. With --random also a size "
        "(124M, 355M, 774M, 1558M) or a config file.",
    ),
]
Dtype = Annotated[
    list[str] | None,
    typer.Option(
        help="float32, bfloat16, int8 or int4; may be given several times. All if left out.",
        autocompletion=lambda: ["float32", "bfloat16", "int8", "int4"],
    ),
]
Random = Annotated[
    bool, typer.Option("--random", help="Use random weights of the model's shape; they are as fast as trained ones.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; one for each core if left out.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Measure less: two contexts, one prompt length, batches of 1 and 8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, including the shortest times.")]


def bench(
    model: Model = None,
    config: Config = None,
    dtype: Dtype = None,
    random: Random = False,
    threads: Threads = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Measure how fast a model runs on this machine's CPU.

    For each dtype: tokens per second of prompts, and of decoding by context length and by the number of sequences
    decoded together; the memory; and the time from the start of a program to its first token. Decoding reads all
    weights, and the keys and values of the context, for each token, so memory bandwidth is its limit. The bandwidth is
    measured in the same run, and the speeds are also given as a share of it. Every figure is a median. Leave the
    machine alone while it runs.
    """
    from clearhead.benchmark.run import benchmark, random_model, steps
    from clearhead.cli.bench_report import print_report, report_as_json
    from clearhead.cli.model_argument import resolve_model
    from clearhead.engine.dtypes import DTYPES
    from clearhead.utils.progress import Progress
    from clearhead.utils.system import usable_cores

    dtypes = list(dict.fromkeys(dtype or DTYPES))
    for name in dtypes:
        if name not in DTYPES:
            raise InputError(f"--dtype is {name!r}; the dtypes are {', '.join(DTYPES)}.")
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; give a whole number of at least 1.")
    source = resolve_model(model or "bundled", config)
    if source.weights is None and not random and model in {*RELEASED, *HUB_NAMES}:
        source = _fetched(source, str(model), config)
    threads = threads or usable_cores()
    total = steps(source.config, dtypes, quick)
    weights = random_model(source.config, dtypes, threads) if random else contextlib.nullcontext(_weights_of(source))
    with weights as path, Progress(f"measuring {source.name}", total) as progress:
        report = benchmark(str(path), source.config, dtypes, threads, quick=quick, advance=progress.advance)
    if as_json:
        write_json(report_as_json(source, report, random), indent=2)
    else:
        print_report(source, report, random)


def _fetched(shape: ResolvedModel, name: str, config: str | None) -> ResolvedModel:
    """Return a released size with its weights, which are downloaded if they are not in the cache."""
    from clearhead.cli.model_argument import open_weights

    try:
        opened = open_weights(name, config=config)
    except HubError as error:
        raise HubError(f"{error} Or add --random to measure random weights of the shape of {name}.") from None
    return replace(shape, config=opened.config, weights=opened)


def _weights_of(source: ResolvedModel) -> Path:
    if source.weights is None:
        raise InputError(
            f"only the shape of {source.name} is known, not its weights; add --random to measure random weights of "
            "that shape, or give the folder of a model."
        )
    return source.weights.path
