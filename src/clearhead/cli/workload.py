"""The options that say for which work costs are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from clearhead.cli.options import choices
from clearhead.errors import InputError
from clearhead.utils.arguments import Dtype


@dataclass(frozen=True)
class WorkloadOptions:
    """The work whose costs are computed."""

    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="The dtype for the costs: float32, bfloat16, float16, int8 or int4.", **choices(Dtype)
        ),
    ] = "float32"
    batch: Annotated[int, typer.Option("--batch", help="Sequences processed together, for the costs.")] = 1
    context: Annotated[
        int | None,
        typer.Option("--context", help="Tokens in each sequence, for the costs; the model's context if left out."),
    ] = None

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise InputError(f"--context is {self.context}; it must be at least 1 token.")
