"""Usage errors of verbs, with suggestions for unknown options and in the user's language."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from clearhead.cli.help_page import print_help
from clearhead.cli.language import translate, translation

_ALIKE = 0.6


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
                elif (
                    str(getattr(error, "message", "")).startswith("Got unexpected extra argument")
                    and self._reads_text()
                ):
                    error.message = (  # type: ignore[attr-defined]
                        f"{error.message} - text with spaces needs quotes: "  # type: ignore[attr-defined]
                        f'{ctx.command_path} "{" ".join(self._words(ctx, given))}"'
                    )
                raise

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with _in_the_users_language():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, with its examples in our form."""
        epilog, self.epilog = self.epilog, None
        try:
            print_help(epilog, lambda: super(VerbCommand, self).format_help(ctx, formatter))
        finally:
            self.epilog = epilog

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option `--help`."""
        return _localized(super().get_help_option(ctx))

    def get_usage(self, ctx: Any) -> str:
        """Return the line that names the arguments."""
        return super().get_usage(ctx).replace("Usage:", translation("Usage:"), 1)

    def _words(self, ctx: Any, given: list[str]) -> list[str]:
        """Return the arguments that are neither options nor values of options."""
        takes_value = {
            name
            for parameter in self.get_params(ctx)
            if not getattr(parameter, "is_flag", False) and not getattr(parameter, "count", False)
            for name in parameter.opts
            if name.startswith("-")
        }
        pairs = zip(["", *given], given, strict=False)
        return [word for before, word in pairs if not word.startswith("-") and before not in takes_value]

    def _reads_text(self) -> bool:
        """Return whether the argument of the verb is a text, which may have spaces."""
        return any(parameter.name in ("prompt", "text") for parameter in self.params if parameter.opts[0][:1] != "-")

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
        return beginning or _nearest(option, known)


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

    def get_params(self, ctx: Any) -> Any:
        """Return the options before the verb; typer words those of completion itself."""
        found: list[Any] = list(super().get_params(ctx))
        for parameter in found:
            if parameter.name in ("install_completion", "show_completion"):
                parameter.help = translation(parameter.help)
                parameter.metavar = ""  # a switch has no value
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, with its examples in our form."""
        epilog, self.epilog = self.epilog, None
        try:
            print_help(epilog, lambda: super(VerbGroup, self).format_help(ctx, formatter))
        finally:
            self.epilog = epilog

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`."""
        return _localized(super().get_help_option(ctx))

    def get_usage(self, ctx: Any) -> str:
        """Return the line that names the arguments."""
        return super().get_usage(ctx).replace("Usage:", translation("Usage:"), 1)


def _nearest(option: str, known: list[str]) -> list[str]:
    """Return up to two options that resemble this one, or begin with something that does."""

    def likeness(name: str) -> float:
        wanted, whole = option.lstrip("-"), name.lstrip("-")
        return max(difflib.SequenceMatcher(None, wanted, end).ratio() for end in (whole, whole[: len(wanted)]))

    return sorted((name for name in known if likeness(name) >= _ALIKE), key=likeness, reverse=True)[:2]


def _localized(option: Any) -> Any:
    if option is not None:
        option.help = translation("Show this message and exit.")
        option.metavar = ""  # a switch has no value
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
