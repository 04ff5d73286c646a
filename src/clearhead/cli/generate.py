"""`clearhead generate`: continue a prompt."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import read_prompt, write_json
from clearhead.cli.model_argument import load_model
from clearhead.cli.options import MODEL_PANEL, Config, Device, Json, Model, PromptFile, choices, flatten, named_as_flags
from clearhead.errors import InputError
from clearhead.inference.options import Prompt, PromptOptions
from clearhead.utils.arguments import Backend, Dtype

if TYPE_CHECKING:
    from clearhead.gpt import GPT
    from clearhead.inference.logprobs import TokenLogprob
    from clearhead.inference.results import Generation
    from clearhead.tokenizer import Tokenizer

EPILOG = """
Examples:

[bold]clearhead generate "Once upon a time"[/]

[bold]clearhead generate "The meaning of life is" --model gpt2 --temperature 0[/]

[bold]clearhead generate --file story.txt -n 300 --top-p 0.9 --seed 7[/]

[bold]clearhead generate "Hello, how are you?" --chat --model microsoft/DialoGPT-small[/]

[bold]echo "A joke:" | clearhead generate --stop "." --samples 3 --json[/]
"""

DEMO_PROMPT = "Once upon a time, there was a little"
DEMO_TOKENS = 220
DEMO_SEED = 16  # so that everybody reads the same story the first time

PromptText = Annotated[
    str | None,
    typer.Argument(help="The text to continue. Read from --file or standard input if it is left out or '-'."),
]


@dataclass(frozen=True)
class LoadOptions:
    """Which model is loaded, and how."""

    model: Model = None
    config: Config = None
    device: Device = "cpu"
    dtype: Annotated[
        str,
        typer.Option(
            help="How the weights are stored in memory: bfloat16, int8 and int4 are faster on a CPU and less exact; "
            "float16 is for GPUs.",
            rich_help_panel=MODEL_PANEL,
            **choices(Dtype),
        ),
    ] = "float32"
    backend: Annotated[
        str,
        typer.Option(
            help="What runs it; the engine is compiled, for the CPU.", rich_help_panel=MODEL_PANEL, **choices(Backend)
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of the engine; one for each core if left out.", rich_help_panel=MODEL_PANEL),
    ] = None

    def load(self, cache_tokens: int | None = None) -> GPT:
        """Load the model; `cache_tokens` limits the engine's key/value cache."""
        return load_model(
            self.model,
            device=self.device,
            dtype=self.dtype,
            backend=self.backend,
            threads=self.threads,
            config=self.config,
            cache_tokens=cache_tokens,
        )


@flatten
def generate(
    options: PromptOptions,
    loading: LoadOptions,
    prompt: PromptText = None,
    file: PromptFile = None,
    as_json: Json = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Answer the prompt as the first turn of a conversation, in the model's own format."
        ),
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", hidden=True)] = False,
) -> None:
    """Continue a prompt.

    The text appears while it is generated. A model gives a probability for every token of its vocabulary; the options
    below decide how one of them is chosen. One newline at the end of a file or a pipe is not part of the prompt.
    """
    from clearhead.chat import ChatSession
    from clearhead.cli.generate_text import introduce, suggest, write_samples

    text = (prompt or DEMO_PROMPT) if demo else read_prompt(prompt, file)
    if not text:
        raise InputError(
            "the prompt is empty; give a text to continue, as an argument, with --file, or through a pipe."
        )
    if demo:
        options = replace(options, max_new_tokens=DEMO_TOKENS, seed=DEMO_SEED if options.seed is None else options.seed)
    gpt = loading.load()
    chosen = _as_keywords(options)
    begun: Prompt = text
    if chat:
        with named_as_flags():
            asked = ChatSession(gpt, **chosen).request(text)
        begun, chosen = list(asked.prompt_ids), {**chosen, "stop": asked.stop}
    if as_json:
        with named_as_flags():
            generation = gpt.generate(begun, **chosen)
        write_json({**_as_json(gpt, generation), "prompt": text})
        return
    if demo:
        introduce(gpt)
    show_prompt = demo or (sys.stdout.isatty() and not chat)
    with named_as_flags():
        write_samples(gpt, text, gpt.request(begun, **chosen), show_prompt=show_prompt)
    if demo:
        suggest()


def _as_keywords(options: PromptOptions) -> dict[str, Any]:
    from dataclasses import fields

    given = {field.name: getattr(options, field.name) for field in fields(options)}
    return given if options.special else {name: value for name, value in given.items() if name != "special"}


def _as_json(gpt: GPT, generation: Generation) -> dict[str, Any]:
    return {
        "prompt": generation.prompt,
        "prompt_tokens": len(generation.prompt_ids),
        "seed": generation.seed,
        "samples": [
            {
                "text": sample.text,
                "ids": sample.ids,
                "finish_reason": sample.finish_reason,
                "stop_reason": sample.stop_reason,
                "logprobs": None
                if sample.logprobs is None
                else [_logprob_as_json(gpt.tokenizer, token) for token in sample.logprobs],
            }
            for sample in generation.samples
        ],
        "notices": generation.notices,
    }


def _logprob_as_json(tokenizer: Tokenizer | None, token: TokenLogprob) -> dict[str, Any]:
    def one(id: int, logprob: float) -> dict[str, Any]:
        text = None if tokenizer is None else tokenizer.token_bytes(id).decode("utf-8", "replace")
        return {"token": text, "id": id, "logprob": logprob}

    return {**one(token.id, token.logprob), "top": [one(*likely) for likely in token.top]}
