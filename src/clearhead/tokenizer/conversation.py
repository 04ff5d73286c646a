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

from clearhead.errors import TokenizerError
from clearhead.tokenizer.chat_template import ChatTemplate
from clearhead.tokenizer.settings import TURNS_TEMPLATE
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
    """Turn conversations into the tokens that a model continues with the assistant's answer.

    Args:
        tokenizer: the model's; its `chat_template` is used if it has one.
        turns: end each turn with the end-of-text token, as DialoGPT does, whatever the tokenizer's template.

    Attributes:
        has_template: whether the model has a chat template of its own; otherwise it reads plain text.
        stop: the strings that end an answer, besides the model's end of text.

    Raises:
        TokenizerError: if the model's chat template is not valid, or turns have no end of text to end with.
    """

    def __init__(self, tokenizer: Tokenizer, *, turns: bool = False) -> None:
        self._tokenizer = tokenizer
        named = dict(tokenizer.named_tokens)
        if tokenizer.end_of_text is not None:
            named.setdefault("eos_token", tokenizer.token_name(tokenizer.end_of_text))
        source = TURNS_TEMPLATE if turns else tokenizer.chat_template
        if source == TURNS_TEMPLATE and "eos_token" not in named:
            raise TokenizerError("the turns of a conversation end with the end of text, and the tokenizer has none.")
        self._template = None if source is None else ChatTemplate(source, named)
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

    def encode_newest(self, messages: Sequence[ChatMessage], most: int) -> tuple[list[int], list[ChatMessage]]:
        """Return the tokens of the newest part of a conversation, and the messages in it.

        The oldest turns of the user and their answers are left out until at most `most` tokens remain; a system message
        at the beginning and the newest turn stay.

        Raises:
            InputError, TokenizerError: as `encode`.
        """
        kept = list(messages)
        first = 1 if kept and kept[0].role == "system" else 0
        while True:
            ids = self.encode(kept)
            turns = [index for index in range(first, len(kept)) if kept[index].role == "user"]
            if len(ids) <= most or len(turns) < 2:
                return ids, kept
            del kept[first : turns[1]]

    def strip_beginning(self, answer: str) -> str:
        """Return the beginning of an answer without the space that follows `Assistant:` in plain text."""
        return answer if self.has_template else answer.lstrip(" ")


def _plain(message: ChatMessage) -> str:
    role = _ROLES.get(message.role)
    return f"{role}: {message.content}\n" if role else f"{message.content}\n\n"
