"""`clearhead tour`: eleven chapters about how a GPT-2 works, in a browser or as notebooks; a check of their code."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.console import say
from clearhead.cli.language import translate
from clearhead.cli.options import Lang
from clearhead.errors import InputError

EPILOG = """
Examples:

[bold]clearhead tour[/]                          read it in a browser

[bold]clearhead tour --lang zh --no-open[/]      in Chinese; print the address only

[bold]clearhead tour --notebook tour[/]          write the chapters as Jupyter notebooks

[bold]clearhead tour --check[/]                  run every cell and compare the outputs

[bold]clearhead tour docs/tour --write[/]        run every cell and update outputs and figures
"""

_SERVE = {"rich_help_panel": "Reading"}
_RUN = {"rich_help_panel": "Running the chapters"}

Folder = Annotated[
    Path | None, typer.Argument(help="A folder such as docs/tour. The chapters that come with Clearhead if left out.")
]
Port = Annotated[int, typer.Option(help="The port on this machine; 0 for any free one.", **_SERVE)]
NoOpen = Annotated[bool, typer.Option("--no-open", help="Do not open a browser; print the address only.", **_SERVE)]
Notebook = Annotated[
    Path | None,
    typer.Option(
        "--notebook", metavar="DIR", help="Write the chapters as Jupyter notebooks into this new folder.", **_SERVE
    ),
]
Check = Annotated[
    bool, typer.Option("--check", help="Run every chapter and compare; exit status 1 if one differs.", **_RUN)
]
Write = Annotated[
    bool, typer.Option("--write", help="Run every chapter of FOLDER and update its outputs and figures.", **_RUN)
]


def tour(
    folder: Folder = None,
    lang: Lang = "",
    port: Port = 0,
    no_open: NoOpen = False,
    notebook: Notebook = None,
    check: Check = False,
    write: Write = False,
) -> None:
    """Read eleven short chapters on how a GPT-2 works, each step shown by code that runs.

    They are served to a browser on this machine only, until Ctrl-C.
    """
    from clearhead.tour import chapters

    if check + write + (notebook is not None) > 1:
        raise typer.BadParameter("give one of --notebook, --check and --write.")
    if notebook is not None:
        from clearhead.tour.notebooks import write_notebooks

        written = write_notebooks(folder or chapters.folder(), lang, notebook)
        say(f"wrote {len(written)} notebooks to {notebook}; open one with: jupyter lab {written[0]}")
    elif write:
        if folder is None:
            raise InputError("--write needs the folder of the chapters, such as docs/tour.")
        _write(folder)
    elif check:
        _check(folder or chapters.folder())
    else:
        _serve(folder or chapters.folder(), lang, port, no_open)


def _serve(folder: Path, lang: str, port: int, no_open: bool) -> None:
    from clearhead.tour.server import open_server
    from clearhead.tour.site import Site

    with open_server(Site(folder), port) as server:
        address = f"http://127.0.0.1:{server.server_port}/{'' if lang == 'en' else f'{lang}/'}README.html"
        say(f"The tour is at {address}")
        say("Ctrl-C ends it.")
        if not no_open:
            webbrowser.open(address)
        server.serve_forever()


def _check(folder: Path) -> None:
    from clearhead import tour

    found = tour.find(folder)
    faults = 0
    for chapter in found:
        problems = tour.check(chapter.path)
        faults += len(problems)
        cells = len(tour.parse(chapter.path.read_text(encoding="utf-8")))
        result = translate("differs" if problems else f"{cells} cells, as written")
        print(f"{chapter.language} {chapter.path.stem}: {result}")
        for problem in problems:
            print(f"  {translate(str(problem))}")
    if faults:
        raise typer.Exit(1)


def _write(folder: Path) -> None:
    from clearhead import tour

    changed = [path for chapter in tour.find(folder) for path in tour.rewrite(chapter.path)]
    for path in changed:
        say(f"wrote {path}.")
    if not changed:
        say("every chapter is as it was.")
