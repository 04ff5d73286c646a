"""What the model writes on the way: the same prompts with the same seed at each validation."""

from __future__ import annotations

from collections.abc import Sequence

from clearhead.errors import TokenizerError, TrainingError
from clearhead.inference.generation import generate
from clearhead.inference.requests import Request
from clearhead.inference.torch_runner import TorchRunner
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer


def continuations(model: GPTModel, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int) -> list[tuple[str, str]]:
    """Each prompt with what the model continues it by, at temperature 0.8 and top-p 0.95, with the seed 1."""
    if not prompts:
        return []
    requests = [
        Request(ids, temperature=0.8, top_p=0.95, seed=1, max_new_tokens=tokens)
        for ids in encoded_prompts(tokenizer, prompts)
    ]
    completions = generate(TorchRunner(model), tokenizer, requests)
    return [(prompt, found.samples[0].text or "") for prompt, found in zip(prompts, completions, strict=True)]


def encoded_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The prompts as tokens; an empty one begins as a document does, with the end-of-text token.

    Raises:
        TrainingError: where the vocabulary cannot write one, or one is empty and there is no such token.
    """
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    encoded = []
    for prompt in prompts:
        try:
            encoded.append(tokenizer.encode(prompt) or start)
        except TokenizerError as error:
            raise TrainingError(f"the prompt {prompt!r} in samples cannot be continued: {error}") from None
        if not encoded[-1]:
            raise TrainingError(
                "samples has an empty prompt, and this vocabulary has no end-of-text token to begin it with; give the "
                "prompt a character, or leave it out."
            )
    return encoded
