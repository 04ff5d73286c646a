"""A conversation with a model, with its history."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference.requests import Request
from clearhead.inference.results import TextStream
from clearhead.tokenizer.conversation import ChatMessage, ConversationFormat


class ChatSession:
    """A conversation: the messages so far, and answers that continue them.

    When the context is full, the model no longer sees the oldest turns. Room for `max_new_tokens` stays free, up to
    half of the context.

    Args:
        gpt: the model; its chat template decides how it reads the conversation.
        system: a message to begin with.
        turns: end each turn with the end-of-text token, as DialoGPT does, whatever the model's template.
        options: as `GPT.stream` takes them, for all answers.

    Attributes:
        messages: the conversation.
        forgotten: how many of the first messages the model did not see when it last answered.
        notices: what the user should know about the last answer.

    Raises:
        InputError: if the model has no tokenizer, or an option is unknown or out of range.
        TokenizerError: if the model's chat template is not valid.
    """

    def __init__(self, gpt: GPT, *, system: str | None = None, turns: bool = False, **options: Any) -> None:
        if gpt.tokenizer is None:
            raise InputError("the model has no tokenizer, so it cannot chat; put tokenizer.json next to the weights.")
        self.format = ConversationFormat(gpt.tokenizer, turns=turns)
        self.messages = [] if system is None else [ChatMessage("system", system)]
        self.forgotten = 0
        self.notices: list[str] = []
        self._gpt = gpt
        asked = gpt.request([0], **options)
        self._options = {**options, "stop": (*asked.stop_strings, *self.format.stop)}
        self._room = gpt.config.context_length - min(asked.max_new_tokens, gpt.config.context_length // 2)

    def request(self, text: str) -> Request:
        """Return the request for an answer to a text, without adding it to the conversation.

        Raises:
            InputError: if the model's chat template refuses the conversation.
            TokenizerError: if the text cannot be encoded.
        """
        messages = [*self.messages, ChatMessage("user", text)]
        ids, seen = self.format.encode_newest(messages, self._room)
        self.forgotten = len(messages) - len(seen)
        return self._gpt.request(ids, **self._options)

    def answer(self, text: str) -> Generator[str]:
        """Send a message and yield the model's answer piece by piece, as it is generated.

        The answer joins the conversation even if the caller stops early. If generation cannot start, the conversation
        is unchanged.

        Raises:
            InputError, TokenizerError: as `request`.
        """
        answer = ""
        with TextStream(self._gpt.runner, self._gpt.tokenizer, self.request(text)) as stream:
            try:
                for piece in stream:
                    shown = piece if answer else self.format.strip_beginning(piece)
                    answer += shown
                    yield shown
            finally:
                self.notices = list(stream.notices)
                self.messages += [ChatMessage("user", text), ChatMessage("assistant", answer)]
