"""How a verb answers options and arguments that it does not have."""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperCommand


class VerbCommand(TyperCommand):
    """A command that suggests the option that was meant, and explains a prompt without quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the verb; usage errors get a better hint."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None)
            if option is not None and hasattr(error, "possibilities"):
                error.possibilities = self._suggest(option)
            elif str(getattr(error, "message", "")).startswith("Got unexpected extra argument"):
                words = [word for word in given if not word.startswith("-")]
                error.message = (  # type: ignore[attr-defined]
                    f"{error.message} - text with spaces needs quotes: "  # type: ignore[attr-defined]
                    f'clearhead {ctx.info_name} "{" ".join(words)}"'
                )
            raise

    def _suggest(self, option: str) -> list[str]:
        """Return the visible options that begin like this one, or else resemble it."""
        known = [
            name
            for parameter in self.params
            if not getattr(parameter, "hidden", False)
            for name in parameter.opts
            if name.startswith("--")
        ]
        beginning = [name for name in known if name.startswith(option)]
        return beginning or difflib.get_close_matches(option, known, n=2, cutoff=0.6)
