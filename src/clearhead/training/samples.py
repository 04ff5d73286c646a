"""What the model writes on the way: the same prompts with the same seed at each validation."""

from __future__ import annotations

from collections.abc import Sequence

from clearhead.generation import Request, generate
from clearhead.model import GPTModel
from clearhead.sampling import SamplingParams
from clearhead.tokenizer import Tokenizer
from clearhead.torch_runner import TorchRunner


def continuations(model: GPTModel, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int) -> list[tuple[str, str]]:
    """Each prompt with what the model continues it by, at temperature 0.8 and top-p 0.95, with the seed 1."""
    if not prompts:
        return []
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=1)
    requests = [
        Request(prompt_ids=tokenizer.encode(prompt) or start, params=params, max_new_tokens=tokens)
        for prompt in prompts
    ]
    completions = generate(TorchRunner(model), tokenizer, requests)
    return [(prompt, found.samples[0].text or "") for prompt, found in zip(prompts, completions, strict=True)]
