"""`clearhead weights fetch`: download a published model into a folder and check every file."""

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

[bold]clearhead weights fetch 355M medium/ --from hub[/]      the same weights as a Hugging Face folder

[bold]clearhead weights fetch 124M --mirror https://example.org/gpt-2/models[/]

The same command resumes an interrupted download. Proxies are taken from the environment (https_proxy), a mirror of
the hub from HF_ENDPOINT.
"""


class Publisher(StrEnum):
    """Where a published model is downloaded from."""

    OPENAI = "openai"
    HUB = "hub"


def fetch_weights(
    size: Annotated[
        str,
        typer.Argument(metavar="SIZE", help=f"{', '.join(RELEASED)}; with --from hub also a name there: owner/name."),
    ],
    dest: Annotated[
        Path | None,
        typer.Argument(metavar="[DEST]", help="The folder to write; named after the size by default."),
    ] = None,
    publisher: Annotated[
        Publisher, typer.Option("--from", help="OpenAI's own files, or the model on the Hugging Face hub.")
    ] = Publisher.OPENAI,
    mirror: Annotated[
        list[str] | None,
        typer.Option("--mirror", help="A URL with a folder for each size; several are tried in turn."),
    ] = None,
) -> None:
    """Download a published model into a folder.

    Each file is checked by its size and its checksum before it gets its final name, so an interrupted download never
    looks finished.
    """
    from clearhead import weights
    from clearhead.weights.hub.download import OPENAI

    if mirror and publisher is Publisher.HUB:
        raise typer.BadParameter("--mirror is for OpenAI's files; for a mirror of the hub, set HF_ENDPOINT to its URL.")
    official = HUB_NAMES.get(size.removeprefix("openai-community/"), size)
    if publisher is Publisher.OPENAI and official not in RELEASED:
        raise ConfigError(
            f"there is no GPT-2 size {size!r}; the sizes are {', '.join(RELEASED)}. "
            "For a model on the hub, give --from hub."
        )
    folder = Path(size.rpartition("/")[2] if official not in RELEASED else official) if dest is None else dest
    if publisher is Publisher.OPENAI:
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
