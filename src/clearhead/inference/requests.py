"""What is asked of generation, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.logprobs import TokenLogprob
from clearhead.inference.options import GenerationOptions, token_ids
from clearhead.inference.output_format import OutputFormat
from clearhead.inference.runner import check_token_ids
from clearhead.inference.sampling import fresh_seed

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request(GenerationOptions):
    """What to generate from one prompt: its tokens and the options of generation.

    A request without a seed draws one when it is made.

    Attributes:
        prompt_ids: the tokens to continue, at least one.
        output_format: what the text must match; None for any text.

    Raises:
        InputError: if a value has the wrong type or is out of range.
    """

    prompt_ids: Sequence[int]
    output_format: OutputFormat | None = None

    def __post_init__(self) -> None:
        GenerationOptions.__post_init__(self)
        object.__setattr__(self, "prompt_ids", token_ids("the prompt", self.prompt_ids))
        if not self.prompt_ids:
            raise InputError(
                "the prompt is empty, and a GPT-2 needs a token to continue; "
                "give some text, or the end-of-text token to start a new one."
            )
        if self.seed is None:
            object.__setattr__(self, "seed", fresh_seed())

    def check_fit(self, config: GPTConfig, has_tokenizer: bool) -> None:
        """Check that a model can serve the request.

        Args:
            config: the model's shape.
            has_tokenizer: whether there is a tokenizer, without which there are no stop strings.

        Raises:
            InputError: if it cannot.
        """
        check_token_ids(self.prompt_ids, config.vocab_size, "the prompt")
        check_token_ids(self.stop_ids or (), config.vocab_size, "stop_ids")
        if self.logprobs is not None and self.logprobs > config.vocab_size:
            raise InputError(
                f"logprobs is {self.logprobs}, but the vocabulary has {config.vocab_size:,} tokens; ask for fewer."
            )
        if self.output_format is not None and not has_tokenizer:
            raise InputError("an output format needs a tokenizer; give one.")
        if self.stop and not has_tokenizer:
            raise InputError("stop strings need a tokenizer; give one, or use stop_ids.")
        # The last new token is not run again, so it needs no position of its own.
        if self.strict_context and len(self.prompt_ids) + self.max_new_tokens - 1 > config.context_length:
            raise InputError(
                f"the prompt has {len(self.prompt_ids):,} tokens and up to {self.max_new_tokens:,} new ones are "
                f"asked for, but the model reads {config.context_length:,}; shorten one, or leave out strict_context."
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished continuation of a prompt.

    Attributes:
        index: which of the request's samples it is.
        text: what was generated, without the prompt and without what ended it; None without a tokenizer.
        ids: the tokens generated. A stop token is not among them; the tokens of a stop string are.
        finish_reason: "stop" after a stop string, a stop token or end-of-text; "length" at max_new_tokens.
        stop_reason: the stop string, or the id of the token, that ended it; None at max_new_tokens.
        logprobs: one for each of `ids`; None if none were asked for.
        seed: with this seed and index the same text comes again.
        notices: sentences about what the user did not ask for: a shortened prompt, a moved context.
    """

    index: int
    text: str | None
    ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None
    seed: int
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one request: its prompt as given, and its samples in order."""

    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """The result of one step of one continuation.

    Attributes:
        text: characters that can now be shown; often "", since half a character or the possible beginning of a stop
            string is held back. The texts of all events, joined, are the sample's text.
        token: the id generated; None if it was a stop token.
        logprob: of that token, if log-probabilities were asked for.
        notices: new sentences for the user.
        finish_reason: None until generation ends.
    """

    text: str
    token: int | None
    logprob: TokenLogprob | None = None
    notices: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None
