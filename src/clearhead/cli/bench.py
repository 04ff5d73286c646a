"""`clearhead bench`: how fast models run on this machine."""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clearhead.benchmark.run import Report
    from clearhead.cli.sheets import Sheet
    from clearhead.cli.source import Source

EPILOG = """
Examples:

[bold]clearhead bench[/]                                  the bundled model, in every weight format

[bold]clearhead bench 124M --random[/]                    GPT-2's shape, without having its weights

[bold]clearhead bench gpt2 --dtype int8 --quick --json[/]
"""

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A model's folder, or its name on the hub; the bundled one if left out. With --random also a size (124M, "
        "355M, 774M, 1558M) or a config file.",
    ),
]
Dtype = Annotated[
    list[str] | None,
    typer.Option(help="A weight format: float32, bfloat16, int8, int4; may be given several times. All if left out."),
]
Random = Annotated[
    bool, typer.Option("--random", help="Take random weights of the model's shape: speed does not depend on them.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; as many as there are cores where it is left out.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Measure less: two contexts, one length of prompt, batches of 1 and 8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, with the shortest times too.")]


def bench(
    model: Model = None,
    dtype: Dtype = None,
    random: Random = False,
    threads: Threads = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Measure how fast a model runs on this machine's CPU.

    For each weight format: tokens a second of prompts, and of decoding by the length of the context and by how many
    sequences run together; the memory; and the time from the start of a program until its first token. Decoding reads
    all weights, and the keys and values of the context, for each token, so the speed at which memory can be read is
    its limit: it is measured in the same run, and the share of it that was reached stands beside the speeds. Every
    figure is a median. Leave the machine alone meanwhile.
    """
    from clearhead.benchmark.run import benchmark, random_model, steps
    from clearhead.cli.source import find_source
    from clearhead.engine.dtypes import DTYPES
    from clearhead.errors import InputError
    from clearhead.loading import bundled
    from clearhead.utils.progress import Progress
    from clearhead.utils.system import usable_cores

    dtypes = list(dict.fromkeys(dtype or DTYPES))
    for name in dtypes:
        if name not in DTYPES:
            raise InputError(f"there is no weight format {name!r}; the formats are {', '.join(DTYPES)}.")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give a whole number of at least 1.")
    source = find_source(str(bundled()) if model is None else model)
    threads = threads or usable_cores()
    total = steps(source.config, dtypes, quick)
    place = random_model(source.config, dtypes, threads) if random else contextlib.nullcontext(_weights_of(source))
    with place as path, Progress(f"measuring {source.name}", total) as progress:
        report = benchmark(str(path), source.config, dtypes, threads, quick=quick, advance=progress.advance)
    if as_json:
        typer.echo(json.dumps(_as_json(source, report, random), indent=2))
    else:
        _print(source, report, random)


def _weights_of(source: Source) -> Path:
    from clearhead.errors import InputError

    if source.weights is None:
        raise InputError(
            f"there are no weights of {source.name} here, only its shape; add --random to measure random weights of "
            "that shape, or give the folder of a model."
        )
    return source.weights.path


def _machine() -> dict[str, Any]:
    import os
    import platform

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"processor": name, "cores": os.cpu_count(), "system": platform.system()}


def _as_json(source: Source, report: Report, random: bool) -> dict[str, Any]:
    from clearhead.version import __version__

    return {
        "clearhead": __version__,
        "model": source.name,
        "random_weights": random,
        "config": asdict(report.config),
        "machine": _machine(),
        "threads": report.threads,
        "import_torch_seconds": None if report.import_torch is None else asdict(report.import_torch),
        "formats": [
            {
                "dtype": one.dtype,
                "weight_bytes": one.weight_bytes,
                "peak_bytes": one.peak_bytes,
                "first_token_seconds": asdict(one.first_token),
                "memory_bytes_per_second": asdict(one.read_speed),
                "figures": [
                    {
                        **asdict(figure),
                        "tokens_per_second": figure.tokens_per_second,
                        "most_tokens_per_second": figure.most_tokens_per_second,
                        **(
                            {
                                "bytes_a_step": report.step_bytes(one.dtype, figure.context, figure.batch),
                                "share_of_memory_speed": report.share(one, figure),
                            }
                            if figure.kind == "decode"
                            else {}
                        ),
                    }
                    for figure in one.figures
                ],
            }
            for one in report.formats
        ],
    }


def _print(source: Source, report: Report, random: bool) -> None:
    from clearhead.cli.console import output

    console, machine = output(), _machine()
    weights = "random weights" if random else "its own weights"
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    console.print(f"{source.name}, {weights}, {threads} on {machine['processor']}", style="bold", soft_wrap=True)
    read, best = [one.read_speed.median for one in report.formats], max(one.read_speed.best for one in report.formats)
    median = statistics.median(read) / 1e9
    console.print(f"Memory is read at {median:.1f} GB/s (at best {best / 1e9:.1f}).", soft_wrap=True)
    for sheet in (_alone(report), _together(report), _needs(report)):
        console.print()
        console.print(sheet.title, style="bold", soft_wrap=True)
        console.print(sheet.table())
    if report.import_torch is not None:
        console.print()
        console.print(f"For comparison, `import torch` alone takes {report.import_torch.median:.2f} s.", soft_wrap=True)


def _alone(report: Report) -> Sheet:
    """One sequence: prompts, and decoding with the share of the memory's speed."""
    from clearhead.cli.sheets import Sheet

    first = [figure for figure in report.formats[0].figures if figure.batch == 1]
    header = [f"{'prompt' if f.kind == 'prompt' else 'after'}\n{f.context:,}" for f in first]
    sheet = Sheet(["weights", *header], title="One sequence: tokens a second (share of the memory's speed)")
    for one in report.formats:
        cells = [
            f"{figure.tokens_per_second:,.0f}"
            + (f" ({report.share(one, figure):.0%})" if figure.kind == "decode" else "")
            for figure in one.figures
            if figure.batch == 1
        ]
        sheet.add(one.dtype, *cells)
    return sheet


def _together(report: Report) -> Sheet:
    """Several sequences: tokens a second of all, a line for each format and context."""
    from clearhead.cli.sheets import Sheet

    batches = sorted({figure.batch for figure in report.formats[0].figures})
    sheet = Sheet(["weights", "after", *map(str, batches)], title="Sequences decoded together: tokens a second of all")
    for one in report.formats:
        decoded = {(figure.context, figure.batch): figure for figure in one.figures if figure.kind == "decode"}
        for context in sorted({context for context, batch in decoded if batch > 1}):
            speeds = (decoded[context, batch].tokens_per_second for batch in batches)
            sheet.add(one.dtype, f"{context:,}", *(f"{speed:,.0f}" for speed in speeds))
    return sheet


def _needs(report: Report) -> Sheet:
    """Memory and start of each format."""
    from clearhead.cli.sheets import Sheet

    alone = [figure for figure in report.formats[0].figures if figure.kind == "decode" and figure.batch == 1]
    usual = min((figure.context for figure in alone), key=lambda context: abs(context - 128))
    reads = f"a token after\n{usual} reads, MB"
    sheet = Sheet(
        ["weights", "weights\nMB", "process\nat most, MB", reads, "first token\nafter, s"],
        title="Memory, and the start of a program",
    )
    for one in report.formats:
        peak = "" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:,.0f}"
        read = f"{report.step_bytes(one.dtype, usual, 1) / 1e6:,.1f}"
        sheet.add(one.dtype, f"{one.weight_bytes / 1e6:,.1f}", peak, read, f"{one.first_token.median:.2f}")
    return sheet
