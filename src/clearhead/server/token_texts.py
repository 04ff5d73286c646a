"""Tokens and their log-probabilities as OpenAI's API writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clearhead.inference.logprobs import TokenLogprob
from clearhead.inference.runner import TokenScores
from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenNames:
    """How tokens are written.

    Attributes:
        tokenizer: gives them their text.
        as_ids: write `token_id:N` instead of the text, so that no two tokens are written alike.
    """

    tokenizer: Tokenizer
    as_ids: bool = False

    def name(self, token: int) -> str:
        """Return a token's text; bytes that are not a whole character as `bytes:\\xf0\\x9f`."""
        if self.as_ids:
            return f"token_id:{token}"
        data = self.raw(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def raw(self, token: int) -> bytes:
        """Return a token's bytes; none for a row of the model without a token."""
        return self.tokenizer.token_bytes(token) if token < self.tokenizer.vocab_size else b""


@dataclass(slots=True)
class CompletionLogprobs:
    """The `logprobs` of a choice of `/v1/completions`, as it grows.

    Attributes:
        names: how tokens are written.
        offset: where the next token begins in the choice's text, in characters.
    """

    names: TokenNames
    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]], length: int) -> None:
        """Add a token.

        Args:
            token: its id.
            logprob: its log-probability; None for the first token of a prompt.
            top: the most likely tokens at its position.
            length: how many characters it adds to the text.
        """
        self.tokens.append(self.names.name(token))
        self.token_logprobs.append(logprob)
        self.text_offset.append(self.offset)
        self.offset += length
        if logprob is None:
            self.top_logprobs.append(None)
            return
        listed: dict[str, float] = {}
        for other, value in [*top, (token, logprob)]:
            listed.setdefault(self.names.name(other), value)  # of tokens written alike, the most likely one
        self.top_logprobs.append(listed)

    def add_generated(self, found: TokenLogprob, length: int) -> None:
        """Add a generated token."""
        self.add(found.id, found.logprob, found.top, length)

    def add_prompt(self, ids: Sequence[int], scores: Sequence[TokenScores]) -> None:
        """Add the tokens of an echoed prompt, the first of which has no log-probability."""
        decoder = self.names.tokenizer.stream()
        pieces = [decoder.push(token) for token in ids]
        pieces[-1] += decoder.finish()
        self.add(ids[0], None, (), len(pieces[0]))
        following = iter(zip(ids[1:], pieces[1:], strict=True))
        for part in scores:
            for row, logprob in enumerate(part.logprobs.tolist()):
                token, piece = next(following)
                top = list(zip(part.top_ids[row].tolist(), part.top_logprobs[row].tolist(), strict=True))
                self.add(token, logprob, top, len(piece))

    def take(self) -> dict[str, object]:
        """Return what was added since the last call."""
        found = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return dict(found)


def chat_logprob(names: TokenNames, found: TokenLogprob) -> dict[str, object]:
    """Return an entry of the `logprobs.content` of a choice of `/v1/chat/completions`."""

    def one(token: int, logprob: float) -> dict[str, object]:
        return {"token": names.name(token), "logprob": logprob, "bytes": list(names.raw(token))}

    return {**one(found.id, found.logprob), "top_logprobs": [one(*other) for other in found.top]}
