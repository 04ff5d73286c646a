"""What `GPT.generate` and `GPT.stream` return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from clearhead.inference.generation import stream
from clearhead.inference.options import Prompt
from clearhead.inference.requests import Request, Sample
from clearhead.inference.runner import Runner
from clearhead.utils.html import html_table

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        text = str(self)
        more = f", n={len(self.samples)}" if len(self.samples) > 1 else ""
        return f"Generation({text if len(text) <= 60 else text[:59] + '…'!r}, {len(self.ids):,} tokens{more})"

    def _repr_html_(self) -> str:
        prompt = escape(self.prompt) if isinstance(self.prompt, str) else escape(" ".join(map(str, self.prompt_ids)))
        return "".join(self._sample_html(prompt, sample) for sample in self.samples)

    def _sample_html(self, prompt: str, sample: Sample) -> str:
        text = " ".join(map(str, sample.ids)) if sample.text is None else sample.text
        shown = f"<p style='white-space:pre-wrap'><span style='opacity:.55'>{prompt}</span>{escape(text)}</p>"
        if sample.logprobs is None:
            return shown
        rows = (
            (
                one.id,
                repr(one.text),
                one.logprob,
                ", ".join(
                    f"{text!r} {logprob:.2f}" for text, (_, logprob) in zip(one.top_texts, one.top, strict=False)
                ),
            )
            for one in sample.logprobs
        )
        return shown + html_table(["id", "token", "log-probability", "most likely"], rows)

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
