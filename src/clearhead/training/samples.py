"""Sample continuations of the recipe's prompts, with the same seed at each validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clearhead.errors import TokenizerError, TrainingError
from clearhead.inference.generation import generate
from clearhead.inference.options import OPTIONS
from clearhead.inference.requests import Request
from clearhead.inference.torch_runner import TorchRunner
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer


def sample_continuations(
    model: GPTModel, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int, sampling: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return each prompt with a continuation.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: the prompts.
        tokens: the maximum length of each continuation.
        sampling: sampling options; the others have the defaults of `GPT.generate`, and the seed 1.
    """
    if not prompts:
        return []
    defaults = {name: OPTIONS[name].default for name in ("temperature", "top_p")}
    options = {**defaults, "seed": 1, **sampling}
    requests = [Request(ids, **options, max_new_tokens=tokens) for ids in encode_prompts(tokenizer, prompts)]
    completions = generate(TorchRunner(model), tokenizer, requests)
    return [(prompt, found.samples[0].text or "") for prompt, found in zip(prompts, completions, strict=True)]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Encode the prompts; an empty one becomes the end-of-text token, with which a document begins.

    Raises:
        TrainingError: if the vocabulary cannot encode a prompt, or one is empty and there is no such token.
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
