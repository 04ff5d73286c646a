"""`clearhead weights fetch`: a published model into a folder, every file checked before it takes its name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clearhead.config import HUB_NAMES, RELEASED
from clearhead.errors import ConfigError

EPILOG = """
Examples:

[bold]clearhead weights fetch 124M[/]                         OpenAI's own files, into ./124M

[bold]clearhead weights fetch 355M medium/ --from hub[/]      the same numbers as a Hugging Face folder

[bold]clearhead weights fetch 124M --mirror https://example.org/gpt-2/models[/]

What broke off goes on where it was when the command is given again. Proxies are taken from the environment
(https_proxy), a mirror of the hub from HF_ENDPOINT.
"""


class Origin(StrEnum):
    """Where a model may come from."""

    OPENAI = "openai"
    HUB = "hub"


def fetch_weights(
    size: Annotated[
        str,
        typer.Argument(metavar="SIZE", help=f"{', '.join(RELEASED)}; with --from hub also a name there: owner/name."),
    ],
    dest: Annotated[
        Path | None,
        typer.Argument(metavar="[DEST]", help="The folder; one with the size's name by default."),
    ] = None,
    origin: Annotated[
        Origin, typer.Option("--from", help="OpenAI's own files, or the model on the Hugging Face hub.")
    ] = Origin.OPENAI,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--mirror", help="An address under which there is a folder for each size; several are tried in turn."
        ),
    ] = None,
) -> None:
    """Fetch a published model into a folder.

    Each file is checked, by its size and by its checksum, before it takes its name; a download that was cut off
    never looks finished.
    """
    from clearhead import weights
    from clearhead.weights.hub.download import OPENAI

    if mirror and origin is Origin.HUB:
        raise typer.BadParameter("--mirror is for OpenAI's files; of the hub, set HF_ENDPOINT to a mirror's address.")
    official = HUB_NAMES.get(size.removeprefix("openai-community/"), size)
    if origin is Origin.OPENAI and official not in RELEASED:
        raise ConfigError(
            f"there is no GPT-2 size {size!r}; the sizes are {', '.join(RELEASED)}. "
            "A model of another name is on the hub, if anywhere: give --from hub."
        )
    folder = Path(size.rpartition("/")[2] if official not in RELEASED else official) if dest is None else dest
    if origin is Origin.OPENAI:
        weights.fetch_openai(official, folder, tuple(mirror or [OPENAI]))
    else:
        names = {released: name for name, released in HUB_NAMES.items()}
        weights.fetch_into(names.get(size, size), folder)
    _print_result(folder)


def _print_result(folder: Path) -> None:
    from clearhead import weights
    from clearhead.cli.console import notice, output

    console, source = output(), weights.open(folder.expanduser())
    for note in source.notes:
        notice(note)
    files = sorted(path for path in source.folder.iterdir() if path.is_file())
    nbytes = sum(path.stat().st_size for path in files)
    console.print(f"{folder}: {len(files)} files, {nbytes:,} bytes", style="bold", soft_wrap=True)
    console.print(str(weights.identify(source)), soft_wrap=True)
