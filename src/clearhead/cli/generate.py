"""`clearhead generate`: write on from a prompt."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.gpt import GPT, Generation
    from clearhead.inference.logprobs import TokenLogprob
    from clearhead.inference.requests import Event, Request
    from clearhead.tokenizer import Tokenizer

EPILOG = """
Examples:

[bold]clearhead generate "Once upon a time"[/]

[bold]clearhead generate "The meaning of life is" --model gpt2 --temperature 0[/]

[bold]clearhead generate --file story.txt -n 300 --top-p 0.9 --seed 7[/]

[bold]echo "A joke:" | clearhead generate --stop "." --samples 3 --json[/]
"""

DEMO_PROMPT = "Once upon a time, there was a little"
DEMO_TOKENS = 220
DEMO_SEED = 16  # everybody reads the same story the first time
DEMO_NEXT = """
Try next:
  {clearhead} generate "The dragon opened one eye and" --temperature 1
  {clearhead} tokenize "The dragon opened one eye"
  {clearhead} params
"""

# --------------------------------------------------------------------------------------------------------------
# The options, each with what it means
# --------------------------------------------------------------------------------------------------------------

_MODEL = {"rich_help_panel": "The model"}
_CHOICE = {"rich_help_panel": "How the next token is chosen"}
_END = {"rich_help_panel": "Where the text ends"}
_OUTPUT = {"rich_help_panel": "What is printed"}

Prompt = Annotated[
    str | None,
    typer.Argument(help="The text to write on from. From --file or a pipe where it is left out, or '-'."),
]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model's folder, or its name on the hub, as gpt2 or gpt2-medium. The bundled one if left out.",
        **_MODEL,
    ),
]
Device = Annotated[str, typer.Option(help="Where it runs: cpu, cuda, mps.", **_MODEL)]
Dtype = Annotated[
    str,
    typer.Option(
        help="The number format of the weights in memory: float32; bfloat16, int8 or int4, which are faster on a CPU "
        "and less exact; float16 on a GPU.",
        **_MODEL,
    ),
]
Backend = Annotated[str, typer.Option(help="What runs it: engine (compiled, for the CPU), torch, or auto.", **_MODEL)]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the engine; as many as there are cores where it is left out.", **_MODEL)
]

Temperature = Annotated[
    float,
    typer.Option(
        help="Divides the logits: below 1 the likely tokens become likelier still, above 1 all come closer. "
        "0 always takes the most likely token.",
        **_CHOICE,
    ),
]
TopK = Annotated[int | None, typer.Option(help="Choose among the k most likely tokens only.", **_CHOICE)]
TopP = Annotated[
    float,
    typer.Option(
        help="Choose among the most likely tokens that together have this probability (nucleus sampling): few where "
        "the model is sure, many where it is not.",
        **_CHOICE,
    ),
]
MinP = Annotated[
    float, typer.Option(help="Leave out tokens less likely than this share of the most likely one.", **_CHOICE)
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, makes every token that prompt or text already holds less likely.", **_CHOICE)
]
PresencePenalty = Annotated[float, typer.Option(help="Taken from the logit of every token written so far.", **_CHOICE)]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Taken from a token's logit once for each time that it was written.", **_CHOICE)
]
Seed = Annotated[
    int | None, typer.Option(help="One seed gives one text; without it, each run gives another.", **_CHOICE)
]

MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", "-n", help="The most tokens to write; a token is about 4 letters.", **_END),
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End where this text would appear; may be given several times.", **_END)
]
StrictContext = Annotated[
    bool,
    typer.Option(
        "--strict-context",
        help="Refuse what does not fit the model's context; otherwise the oldest tokens go, and it says so.",
        **_END,
    ),
]

Samples = Annotated[int, typer.Option(help="How many texts to write from the prompt.", **_OUTPUT)]
Logprobs = Annotated[
    int | None,
    typer.Option(
        help="After the text, list its tokens, each with its log-probability and the N likeliest in its place.",
        metavar="N",
        **_OUTPUT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object when all is written.", **_OUTPUT)]
Demo = Annotated[bool, typer.Option("--demo", hidden=True)]


def generate(
    prompt: Prompt = None,
    file: File = None,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = 128,
    stop: Stop = None,
    strict_context: StrictContext = False,
    samples: Samples = 1,
    logprobs: Logprobs = None,
    as_json: Json = False,
    model: Model = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    backend: Backend = "auto",
    threads: Threads = None,
    demo: Demo = False,
) -> None:
    """Write on from a prompt.

    The text appears as it is made. A model gives a probability for every token of its vocabulary; the options
    below decide how one of them is chosen. One newline at the end of a file or a pipe is not part of the prompt.
    """
    text = (prompt or DEMO_PROMPT) if demo else _read_prompt(prompt, file)
    options: dict[str, Any] = {
        "max_new_tokens": DEMO_TOKENS if demo else max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": DEMO_SEED if demo and seed is None else seed,
        "stop": stop or (),
        "n": samples,
        "logprobs": logprobs,
        "strict_context": strict_context,
    }
    _check(text, options)
    gpt = _load(model, device=device, dtype=dtype, backend=backend, threads=threads)
    if as_json:
        print(json.dumps(_as_json(gpt, gpt.generate(text, **options)), ensure_ascii=False))
        return
    if demo:
        _introduce(gpt)
    _write(gpt, text, gpt.request(text, **options), show_prompt=demo or sys.stdout.isatty())
    if demo:
        print(DEMO_NEXT.format(clearhead=_as_called()), end="")


def _read_prompt(argument: str | None, file: Path | None) -> str:
    from clearhead.cli.console import read_text

    text = read_text(argument, file, "prompt")
    if argument in (None, "-"):
        # The newline that ends a file's last line would make the model begin a new one.
        text = text.removesuffix("\n").removesuffix("\r")
    return text


def _check(text: str, options: dict[str, Any]) -> None:
    """Refuses what cannot be before a model is loaded, which may take long."""
    from clearhead.inference.requests import Request

    if not text:
        raise InputError(
            "the prompt is empty; give some text to write on from, as an argument, with --file, or through a pipe."
        )
    if options["n"] < 1:  # the library calls it n, which here is short for --max-new-tokens
        raise InputError(f"samples is {options['n']}; give a whole number of at least 1.")
    Request((0,), **options)


def _load(model: str | None, **options: Any) -> GPT:
    from clearhead.cli.console import notice
    from clearhead.loading import load

    gpt = load(model, **options)
    for note in gpt.notes:
        notice(note)
    return gpt


# --------------------------------------------------------------------------------------------------------------
# As it is made
# --------------------------------------------------------------------------------------------------------------


def _write(gpt: GPT, prompt: str, request: Request, *, show_prompt: bool) -> None:
    """Writes the samples one below another; the first that is not finished appears as it is made."""
    from clearhead.cli.console import notice, output
    from clearhead.inference.generation import stream

    samples: list[list[Event]] = [[] for _ in range(request.n)]
    notices: dict[str, None] = {}  # each once, in order
    current = 0
    console = output()

    def begin() -> None:
        if request.n > 1:
            console.rule(f"{current + 1} of {request.n}", align="left", style="dim")
        if show_prompt:
            console.print(prompt, end="", style="dim", soft_wrap=True)

    try:
        for _, sample, event in stream(gpt.runner, gpt.tokenizer, [request]):
            if not any(samples):
                begin()  # not before: the first pass may have to say that it compiles
            samples[sample].append(event)
            notices |= dict.fromkeys(event.notices)
            if sample == current:
                print(event.text, end="", flush=True)
            while current < request.n and samples[current] and samples[current][-1].finish_reason is not None:
                print(flush=True)
                _list_logprobs(gpt.tokenizer, samples[current])
                current += 1
                if current < request.n:
                    begin()
                    print(*(made.text for made in samples[current]), sep="", end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    for text in notices:
        notice(text)


def _list_logprobs(tokenizer: Tokenizer | None, events: Sequence[Event]) -> None:
    """The tokens below each other, where log-probabilities were asked for: chosen, then the likeliest."""
    found = [event.logprob for event in events if event.logprob is not None]
    if not found or tokenizer is None:
        return
    print()
    for token in found:
        likeliest = ", ".join(f"{_piece(tokenizer, id)} {logprob:.2f}" for id, logprob in token.top)
        line = f"{token.logprob:8.3f}  {_piece(tokenizer, token.id)}"
        print(f"{line:<30}  {likeliest}".rstrip())


def _piece(tokenizer: Tokenizer, token: int) -> str:
    from clearhead.cli.tokenize import piece

    return piece(tokenizer.token_bytes(token))


# --------------------------------------------------------------------------------------------------------------
# As JSON
# --------------------------------------------------------------------------------------------------------------


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


def _as_called() -> str:
    """How this program can be called again: by its name where a shell finds it, else as it was called now."""
    found = shutil.which("clearhead")
    here = Path(sys.argv[0])
    if here.name == "__main__.py":
        return "python -m clearhead"
    return "clearhead" if found is not None and here.exists() and here.samefile(found) else sys.argv[0]


def _introduce(gpt: GPT) -> None:
    from clearhead.anatomy import count_parameters

    config = gpt.config
    total = count_parameters(config).total
    print(
        f"A GPT-2 with {total:,} parameters ({config.n_layers} blocks, {config.n_heads} heads, "
        f"{config.emb_dim} numbers a token) writes:\n"
    )
