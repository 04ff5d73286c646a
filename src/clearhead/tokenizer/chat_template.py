"""A model's own chat template: a program in Jinja that writes a conversation as the model was trained to read it.

The template comes with the model's files, so it runs in Jinja's sandbox, with the same filters and functions that
`transformers` gives it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clearhead.errors import InputError, TokenizerError

if TYPE_CHECKING:
    import jinja2
    from jinja2.nodes import Node
    from jinja2.parser import Parser


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template, in Jinja.
        named_tokens: the special tokens with a role, by role; the template sees them as variables such as `eos_token`.

    Raises:
        TokenizerError: if it is not valid Jinja.
    """

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        import jinja2

        self._named_tokens = dict(named_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TokenizerError(
                f"the model's chat template is not valid Jinja ({error}); correct it in the tokenizer's files."
            ) from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation as text that ends where the assistant's next turn begins.

        Args:
            messages: each with `role` and `content`.

        Raises:
            InputError: if the template refuses the conversation, for example because the roles do not alternate.
        """
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render(**variables, **self._named_tokens)
        except Exception as error:  # the template is foreign code and may raise anything
            raise InputError(f"the model's chat template cannot write this conversation: {error}.") from None


def _environment() -> jinja2.Environment:
    """Return an environment as `transformers` makes it."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks what an assistant wrote; for training only, so the text passes through."""

        tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def to_json(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment
