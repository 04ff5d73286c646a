"""How a model reads a conversation: by its own chat template or, as a base model, as plain text.

A base model continues text and was not trained to follow instructions. A conversation is written for it like this:

    The system message.

    User: the first question
    Assistant: the first answer
    User: the second question
    Assistant:

The answer ends where the model begins a new turn of the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from clearhead.tokenizer.chat_template import ChatTemplate
from clearhead.tokenizer.tokenizer import Tokenizer

_ROLES = {"user": "User", "assistant": "Assistant"}
_NEXT_TURN = "\nUser:"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: its text.
    """

    role: str
    content: str


class ConversationFormat:
    """Turns conversations into the tokens that a model continues with the assistant's answer.

    Args:
        tokenizer: of the model; its `chat_template` decides, if it has one.

    Attributes:
        has_template: whether the model has a chat template of its own; otherwise it reads plain text.
        stop: the strings that end an answer, besides the model's end of text.

    Raises:
        TokenizerError: if the model's chat template is not valid.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        source = tokenizer.chat_template
        self._template = None if source is None else ChatTemplate(source, tokenizer.named_tokens)
        self.has_template = self._template is not None
        self.stop: tuple[str, ...] = () if self.has_template else (_NEXT_TURN,)

    def text(self, messages: Sequence[ChatMessage]) -> str:
        """Return a conversation as the text that the model continues.

        Raises:
            InputError: if the model's chat template refuses it.
        """
        if self._template is not None:
            return self._template.render([asdict(message) for message in messages])
        return "".join(map(_plain, messages)) + "Assistant:"

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the tokens of a conversation; special tokens have their meaning in a chat template only.

        Raises:
            InputError: if the model's chat template refuses it.
            TokenizerError: if it cannot be encoded.
        """
        return self._tokenizer.encode(self.text(messages), special=self.has_template)

    def strip_beginning(self, answer: str) -> str:
        """Return the beginning of an answer without the space that follows `Assistant:` in plain text."""
        return answer if self.has_template else answer.lstrip(" ")


def _plain(message: ChatMessage) -> str:
    role = _ROLES.get(message.role)
    return f"{role}: {message.content}\n" if role else f"{message.content}\n\n"
