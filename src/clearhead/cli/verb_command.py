"""Usage errors of verbs, with suggestions for unknown options and in the user's language."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from clearhead.cli.language import translate, translation


class VerbCommand(TyperCommand):
    """A command that suggests the option that was meant, and explains a prompt without quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the verb; usage errors get a better hint."""
        given = list(args)
        with _in_the_users_language():
            try:
                return super().parse_args(ctx, args)
            except Exception as error:
                option = getattr(error, "option_name", None)
                if option is not None and hasattr(error, "possibilities"):
                    error.possibilities = self._suggest(option)
                elif str(getattr(error, "message", "")).startswith("Got unexpected extra argument"):
                    words = " ".join(word for word in given if not word.startswith("-"))
                    error.message = (  # type: ignore[attr-defined]
                        f"{error.message} - text with spaces needs quotes: "  # type: ignore[attr-defined]
                        f'clearhead {ctx.info_name} "{words}"'
                    )
                raise

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with _in_the_users_language():
            return super().invoke(ctx)

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option `--help`."""
        return _localized(super().get_help_option(ctx))

    def get_usage(self, ctx: Any) -> str:
        """Return the line that names the arguments."""
        return super().get_usage(ctx).replace("Usage:", translation("Usage:"), 1)

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


class VerbGroup(TyperGroup):
    """The command itself, and a group of verbs below it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the verb."""
        with _in_the_users_language():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with _in_the_users_language():
            return super().invoke(ctx)

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`."""
        return _localized(super().get_help_option(ctx))

    def get_usage(self, ctx: Any) -> str:
        """Return the line that names the arguments."""
        return super().get_usage(ctx).replace("Usage:", translation("Usage:"), 1)


def _localized(option: Any) -> Any:
    if option is not None:
        option.help = translation("Show this message and exit.")
    return option


@contextlib.contextmanager
def _in_the_users_language() -> Iterator[None]:
    """Translate usage errors, which are worded when they are shown; each once, by the innermost command."""
    try:
        yield
    except Exception as error:
        if callable(getattr(error, "format_message", None)) and "format_message" not in vars(error):
            sentence = translate(error.format_message())  # type: ignore[attr-defined]
            error.format_message = lambda: sentence  # type: ignore[attr-defined]
        raise
