"""What `GPT.generate` and `GPT.stream` return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clearhead.inference.generation import stream
from clearhead.inference.options import Prompt
from clearhead.inference.requests import Request, Sample
from clearhead.inference.runner import Runner

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Generation:
    """The result for one prompt; `str` of it is the text of the first sample.

    Attributes:
        prompt: as given.
        prompt_ids: its tokens.
        samples: one, or the `n` that were asked for.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]

    def __str__(self) -> str:
        sample = self.samples[0]
        return " ".join(map(str, sample.ids)) if sample.text is None else sample.text

    @property
    def text(self) -> str | None:
        """The first sample's text, without the prompt; None without a tokenizer."""
        return self.samples[0].text

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The text of each sample."""
        return tuple(sample.text for sample in self.samples)

    @property
    def ids(self) -> tuple[int, ...]:
        """The first sample's tokens."""
        return self.samples[0].ids

    @property
    def seed(self) -> int:
        """With this seed and the same arguments, generation gives the same texts."""
        return self.samples[0].seed

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, such as that the prompt was shortened; each sentence once."""
        return tuple(dict.fromkeys(notice for sample in self.samples for notice in sample.notices))


class TextStream(Iterator[str]):
    """Pieces of text as they are generated, never half a character and never part of a stop string.

    Closing it early, by `close`, `with` or dropping it, frees the memory that generation uses.

    Attributes:
        notices: what the user should know, added as it happens.
        finish_reason: "stop" or "length" at the end; None before.
        seed: with this seed and the same arguments, generation gives the same text.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer | None, request: Request) -> None:
        assert request.seed is not None  # a request draws one
        self.seed: int = request.seed
        self.notices: list[str] = []
        self.finish_reason: str | None = None
        self._events = stream(runner, tokenizer, [request])

    def __next__(self) -> str:
        for _, _, event in self._events:
            self.notices.extend(event.notices)
            self.finish_reason = event.finish_reason
            if event.text:
                return event.text
        raise StopIteration

    def close(self) -> None:
        """End generation now; nothing more is yielded."""
        self._events.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
