"""The results of `clearhead bench`, as tables and as JSON."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.cli.console import output
from clearhead.cli.tables import TextTable
from clearhead.version import __version__

if TYPE_CHECKING:
    from clearhead.benchmark.run import Report
    from clearhead.cli.model_argument import ResolvedModel


def _machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"processor": name, "cores": os.cpu_count(), "system": platform.system()}


def report_as_json(source: ResolvedModel, report: Report, random: bool) -> dict[str, Any]:
    from clearhead.engine.variants import VARIANT, cpu_features

    return {
        "clearhead": __version__,
        "model": source.name,
        "random_weights": random,
        "config": asdict(report.config),
        "machine": _machine(),
        "threads": report.threads,
        "kernels": {**VARIANT._asdict(), "features": sorted(VARIANT.features)},
        "cpu_features": sorted(cpu_features()),
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


def print_report(source: ResolvedModel, report: Report, random: bool) -> None:
    from clearhead.engine.variants import VARIANT, runnable

    console, machine = output(), _machine()
    weights = "random weights" if random else "its own weights"
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    console.print(f"{source.name}, {weights}, {threads} on {machine['processor']}", style="bold", soft_wrap=True)
    read, best = [one.read_speed.median for one in report.formats], max(one.read_speed.best for one in report.formats)
    median = statistics.median(read) / 1e9
    others = ", ".join(one.name for one in runnable() if one != VARIANT)
    console.print(
        f"Kernels: {VARIANT.name}, vectors of {32 * VARIANT.lanes} bits, {VARIANT.activations} activations for int8 "
        f"and int4; tiles of {VARIANT.float_tokens} tokens (float32), {VARIANT.pair_tokens} (16bit), "
        f"{VARIANT.group_tokens} (8bit). CLEARHEAD_KERNELS can choose {others or 'no other'} here."
    )
    console.print(f"Memory is read at {median:.1f} GB/s (at best {best / 1e9:.1f}).", soft_wrap=True)
    for table in (_alone(report), _together(report), _needs(report)):
        console.print()
        console.print(table.title, style="bold", soft_wrap=True)
        console.print(table.for_terminal())
    if report.import_torch is not None:
        console.print()
        console.print(f"For comparison, `import torch` alone takes {report.import_torch.median:.2f} s.", soft_wrap=True)


def _alone(report: Report) -> TextTable:
    """Return the speeds of one sequence: prompts, and decoding with the share of the memory bandwidth."""
    first = [figure for figure in report.formats[0].figures if figure.batch == 1]
    header = [f"{'prompt' if f.kind == 'prompt' else 'after'}\n{f.context:,}" for f in first]
    table = TextTable(["weights", *header], title="One sequence: tokens a second (share of the memory's speed)")
    for one in report.formats:
        cells = [
            f"{figure.tokens_per_second:,.0f}"
            + (f" ({report.share(one, figure):.0%})" if figure.kind == "decode" else "")
            for figure in one.figures
            if figure.batch == 1
        ]
        table.add(one.dtype, *cells)
    return table


def _together(report: Report) -> TextTable:
    """Return the speeds of several sequences together: tokens per second of all."""
    batches = sorted({figure.batch for figure in report.formats[0].figures})
    table = TextTable(
        ["weights", "after", *map(str, batches)], title="Sequences decoded together: tokens a second of all"
    )
    for one in report.formats:
        decoded = {(figure.context, figure.batch): figure for figure in one.figures if figure.kind == "decode"}
        for context in sorted({context for context, batch in decoded if batch > 1}):
            speeds = (decoded[context, batch].tokens_per_second for batch in batches)
            table.add(one.dtype, f"{context:,}", *(f"{speed:,.0f}" for speed in speeds))
    return table


def _needs(report: Report) -> TextTable:
    """Return the memory and the start-up time of each dtype."""
    alone = [figure for figure in report.formats[0].figures if figure.kind == "decode" and figure.batch == 1]
    usual = min((figure.context for figure in alone), key=lambda context: abs(context - 128))
    reads = f"a token after\n{usual} reads, MB"
    table = TextTable(
        ["weights", "weights\nMB", "process\nat most, MB", reads, "first token\nafter, s"],
        title="Memory, and the start of a program",
    )
    for one in report.formats:
        peak = "" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:,.0f}"
        read = f"{report.step_bytes(one.dtype, usual, 1) / 1e6:,.1f}"
        table.add(one.dtype, f"{one.weight_bytes / 1e6:,.1f}", peak, read, f"{one.first_token.median:.2f}")
    return table
