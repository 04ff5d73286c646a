"""`clearhead runs`: compare training runs and draw their curves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clearhead.cli.console import curves_language, output, say, write_json
from clearhead.cli.language import tr, translate

EPILOG = """
Examples:

[bold]clearhead runs[/]                                      the runs in the folder runs/

[bold]clearhead runs runs/a runs/b --curves both.svg[/]      their curves in one chart

[bold]clearhead runs export runs/a models/a --step 500[/]    the model of a checkpoint, in a folder of its own

[bold]clearhead runs revisions runs/a hub --name me/a[/]     its milestones in words, as revisions of one model
"""

Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Folders of runs, or folders that contain some. runs/ if left out. Or: export RUN DIR, to copy the "
        "model of a checkpoint into a folder; or revisions RUN DIR, for its milestones in words as revisions."
    ),
]
Curves = Annotated[
    Path | None, typer.Option(help="Draw the curves of these runs into one chart: a file ending in .svg or .png.")
]
Step = Annotated[int | None, typer.Option(help="With export: the checkpoint of this step. The newest if left out.")]
Name = Annotated[str, typer.Option(help="With revisions: the model's name, such as me/babylm.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for each run.")]


def runs(
    folders: Folders = None,
    curves: Curves = None,
    step: Step = None,
    name: Name = "local/model",
    as_json: Json = False,
) -> None:
    """List training runs, and compare them.

    For each run: its state, its last training loss, its newest score on held-out texts (bits per byte; for a
    classifier, the accuracy), and its speed. Runs in progress are listed too.
    """
    from clearhead.drawing.png import save_picture
    from clearhead.training.curves import curves_svg
    from clearhead.training.overview import list_runs
    from clearhead.training.run_folder import read_metrics

    if folders and str(folders[0]) == "export":
        _export(folders[1:], step)
        return
    if folders and str(folders[0]) == "revisions":
        _revisions(folders[1:], name)
        return
    found = list_runs(folders or [Path("runs")])
    if as_json:
        for run in found:
            write_json({**asdict(run), "folder": str(run.folder)})
    else:
        _table(found)
    if curves is not None:
        names = _names([run.folder for run in found])
        metrics = {names[run.folder]: read_metrics(run.folder) for run in found}
        save_picture(curves_svg(metrics, curves_language(curves)), curves)
        if not as_json:
            say(f"The curves are in {curves}.")


def _export(folders: list[Path], step: int | None) -> None:
    from clearhead.training.export import export_checkpoint

    if len(folders) != 2:
        raise typer.BadParameter(f"export needs a run and a folder for its model; {len(folders)} folders were given.")
    checkpoint = export_checkpoint(folders[0], folders[1], step)
    say(f"The model of {checkpoint} is in {folders[1]}.")


def _revisions(folders: list[Path], name: str) -> None:
    from clearhead.training.revisions import write_revisions

    if len(folders) != 2:
        raise typer.BadParameter(f"revisions needs a run and a folder; {len(folders)} folders were given.")
    names = ", ".join(revision.name for revision in write_revisions(folders[0], folders[1], name))
    say(f"{folders[1]} has the revisions {names} of {name}.")


def _names(folders: list[Path]) -> dict[Path, str]:
    """Return a name for each run: its folder's name, or its path if others have that name too."""
    names = {folder: folder.resolve().name for folder in folders}
    every = list(names.values())
    return {folder: name if every.count(name) == 1 else str(folder) for folder, name in names.items()}


def _table(found: list[Any]) -> None:
    from rich.table import Table

    from clearhead.utils.progress import duration

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "state", "steps", "loss", "held out", "tokens/s", "time"):
        numbers = heading in ("steps", "loss", "tokens/s", "time")
        table.add_column(translate(heading), justify="right" if numbers else "left")
    names = _names([run.folder for run in found])
    for run in found:
        scores = ", ".join(f"{text} {value:.4f}" for text, value in run.scores.items())
        table.add_row(
            names[run.folder],
            translate(run.state),
            tr("{done:,} of {steps:,}", done=run.step, steps=run.steps) if run.steps else f"{run.step:,}",
            "" if run.loss is None else f"{run.loss:.3f}",
            scores,
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,}",
            "" if run.seconds is None else translate(duration(run.seconds)),
        )
    output().print(table)
