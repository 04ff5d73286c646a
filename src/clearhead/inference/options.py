"""Every option of sampling and generation, declared once.

A field of the dataclasses below is an option: its name, type and default are the field's own, and `option(...)`
adds the range, the help in English and Chinese, and the flags of the command line. Everything else follows from
that one line: the checks and their messages, the signatures of `GPT.generate`, `GPT.stream` and `GPT.request` (for
type checkers and for `help()`), the flags of `clearhead generate`, the keys that a recipe's samples may set, and the
ranges that the server accepts. `OPTIONS` is the whole table.

The classes build on one another:

- `SamplingParams`: how one token is chosen from the logits;
- `GenerationOptions`: also when the text ends, and what is returned with it;
- `PromptOptions`: also how a prompt given as text is read, with the defaults that suit a small model.
"""

from __future__ import annotations

import functools
import inspect
import math
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

from clearhead.errors import InputError
from clearhead.inference.declaration import Option, is_number, is_whole, option, with_default
from clearhead.utils.arguments import checks_fields, refuse_unknown
from clearhead.utils.text import type_of

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")
P = ParamSpec("P")

Prompt = str | Sequence[int]
"""Text, or the ids of its tokens."""

LARGEST_SEED = 2**63 - 1
_LOWEST_TEMPERATURE = 1e-6  # below it, logits divided by the temperature overflow float32
_HIGHEST_TEMPERATURE = 1e6  # far beyond any use: the distribution is uniform long before
_LARGEST_PENALTY = 1000.0  # far beyond any use, and far from overflowing float32
_LARGEST_BIAS = 1e30


@checks_fields(lambda given: refuse_unknown("SamplingParams", given, (one.name for one in fields(SamplingParams))))
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a token is chosen. The defaults draw from the model's own distribution.

    The order in which the options act is described in `clearhead.inference.sampling`.

    Raises:
        InputError: if a value has the wrong type or is out of range, or a keyword is unknown.
    """

    temperature: float = option(
        1.0,
        en="Divide the logits by this: below 1 the likely tokens become likelier still, above 1 the text becomes more "
        "varied. 0 always takes the most likely token.",
        zh="把 logits 除以此值：小于 1 时，概率大的词元更占优势；大于 1 时，文本更多变。0 表示总是取概率最大的词元。",
        group="sampling",
        flags=["--temperature"],
        minimum=_LOWEST_TEMPERATURE,
        maximum=_HIGHEST_TEMPERATURE,
        meanings={0: "always the most likely token"},
    )
    top_k: int | None = option(
        None,
        en="Choose among the k most likely tokens only.",
        zh="只在概率最大的 k 个词元中选择。",
        group="sampling",
        flags=["--top-k"],
        minimum=1,
        meanings={None: "no limit"},
    )
    top_p: float = option(
        1.0,
        en="Choose among the most likely tokens that together reach this probability (nucleus sampling): few if the "
        "model is sure, many if it is not.",
        zh="只在概率最大、累计概率达到此值的若干词元中选择（核采样）：模型有把握时候选少，没把握时候选多。",
        group="sampling",
        flags=["--top-p"],
        minimum=0,
        open_below=True,
        maximum=1,
        meanings={1: "no limit"},
    )
    min_p: float = option(
        0.0,
        en="Leave out tokens whose probability is below this share of the most likely token's.",
        zh="排除概率低于“此值 × 最大概率”的词元。",
        group="sampling",
        flags=["--min-p"],
        minimum=0,
        maximum=1,
        meanings={0: "no limit"},
    )
    repetition_penalty: float = option(
        1.0,
        en="Above 1, make tokens that the prompt or the text already contains less likely.",
        zh="大于 1 时，降低提示词或已生成文本中出现过的词元的概率。",
        group="sampling",
        flags=["--repetition-penalty"],
        minimum=1 / _LARGEST_PENALTY,
        maximum=_LARGEST_PENALTY,
        meanings={1: "none"},
    )
    presence_penalty: float = option(
        0.0,
        en="Subtract this from the logit of every token that was already generated.",
        zh="从每个已生成过的词元的 logit 中减去此值。",
        group="sampling",
        flags=["--presence-penalty"],
        minimum=-_LARGEST_PENALTY,
        maximum=_LARGEST_PENALTY,
        meanings={0: "none"},
    )
    frequency_penalty: float = option(
        0.0,
        en="Subtract this from a token's logit once for each time that it was generated.",
        zh="词元每生成过一次，就从它的 logit 中减去一次此值。",
        group="sampling",
        flags=["--frequency-penalty"],
        minimum=-_LARGEST_PENALTY,
        maximum=_LARGEST_PENALTY,
        meanings={0: "none"},
    )
    logit_bias: Mapping[int, float] | None = option(
        None,
        en="Add these numbers to the logits of these token ids; -inf forbids a token.",
        zh="给这些词元编号的 logit 加上对应的数；-inf 表示禁用该词元。",
        group="sampling",
    )
    seed: int | None = option(
        None,
        en="Seed of the random numbers: the same seed gives the same text. Without one, each run draws a fresh seed.",
        zh="随机种子：种子相同，文本就相同。不指定时，每次运行使用新的种子。",
        group="sampling",
        flags=["--seed"],
        minimum=0,
        maximum=LARGEST_SEED,
        meanings={None: "a fresh one"},
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            declared = one.metadata.get("option")
            if declared is not None and one.name not in _NORMALIZERS:
                OPTIONS[one.name].check(getattr(self, one.name))
        for name, normalize in _NORMALIZERS.items():
            if hasattr(self, name):
                object.__setattr__(self, name, normalize(getattr(self, name)))

    @property
    def bias(self) -> Mapping[int, float]:
        """`logit_bias`, empty if there is none."""
        return self.logit_bias or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions(SamplingParams):
    """How tokens are chosen, when the text ends, and what is returned with it.

    Raises:
        InputError: if a value has the wrong type or is out of range.
    """

    max_new_tokens: int = option(
        128,
        en="The most tokens to generate; a token is about four letters of English.",
        zh="最多生成的词元数；英文中一个词元约为四个字母。",
        group="ending",
        flags=["--max-new-tokens", "-n"],
        minimum=1,
    )
    stop: str | Sequence[str] | None = option(
        (),
        en="End the text before this string, or before the first of several.",
        zh="文本在此字符串之前结束；可以给出多个。",
        group="ending",
        flags=["--stop"],
        cli_type=list[str] | None,
    )
    stop_ids: Sequence[int] | None = option(
        (),
        en="End the text before any of these tokens.",
        zh="文本在这些词元中的任何一个之前结束。",
        group="ending",
    )
    stop_at_end_of_text: bool = option(
        True,
        en="End the text at the model's own end-of-text token.",
        zh="遇到模型自身的文本结束词元时结束。",
        group="ending",
    )
    strict_context: bool = option(
        False,
        en="Refuse a prompt and a length that do not fit the model's context together. Otherwise the oldest tokens "
        "are dropped, with a notice.",
        zh="提示词与生成长度之和超出模型上下文时拒绝运行；不设置时丢弃最早的词元，并给出提示。",
        group="ending",
        flags=["--strict-context"],
    )
    n: int = option(
        1,
        en="The number of texts to generate from the prompt.",
        zh="从同一提示词生成的文本数。",
        group="output",
        flags=["--samples"],
        minimum=1,
        maximum=10_000,
    )
    logprobs: int | None = option(
        None,
        en="Return the log-probability of each generated token, and of the N most likely tokens at its position.",
        zh="返回每个生成词元的对数概率，以及同一位置上概率最大的 N 个词元的对数概率。",
        group="output",
        flags=["--logprobs"],
        metavar="N",
        minimum=0,
        meanings={None: "none"},
    )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions(GenerationOptions):
    """The keyword arguments of `GPT.generate`, `GPT.stream` and `GPT.request`.

    Small models put much of their probability on tokens that hardly fit, and one such token spoils a text. So the
    defaults of `temperature` and `top_p` are a little below the model's own distribution and cut off its tail.
    """

    temperature: float = with_default(SamplingParams, "temperature", 0.8)
    top_p: float = with_default(SamplingParams, "top_p", 0.95)
    special: bool = option(
        False,
        en="Read special tokens such as <|endoftext|> in the prompt as the tokens that they name, not as plain text.",
        zh="把提示词中的特殊词元（如 <|endoftext|>）当作该词元本身，而不是普通文本。",
        group="sampling",
        flags=["--special"],
    )


@dataclass(frozen=True, slots=True)
class PromptedOptions(PromptOptions):
    """The arguments of `GPT.stream` and `GPT.request`, and of `GPT.generate` for one prompt."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class ManyPromptedOptions(PromptOptions):
    """The arguments of `GPT.generate` for several prompts."""

    prompt: Sequence[Prompt]


def token_ids(name: str, ids: object) -> tuple[int, ...]:
    """Return token ids as a tuple of Python integers.

    Args:
        name: what the ids are, for the error message.
        ids: a sequence of whole numbers.

    Raises:
        InputError: if it is something else, or an id is negative.
    """
    if isinstance(ids, (bytes, bytearray, str)) or not hasattr(ids, "__iter__"):
        remedy = (
            "decode it, or give a list of token ids"
            if isinstance(ids, (bytes, bytearray))
            else "give a list of token ids"
        )
        raise InputError(f"{name} is {type_of(ids)}; {remedy}.")
    found = []
    for token in typing.cast(Sequence[Any], ids):
        if not is_whole(token) or token < 0:
            raise InputError(f"{name} contains {token!r}; token ids are whole numbers from 0.")
        found.append(int(token))
    return tuple(found)


def _stop_ids(value: Any) -> tuple[int, ...]:
    return () if value is None else token_ids("stop_ids", value)


def _stop_strings(value: Any) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else None
    if value is None:
        return ()
    if given is None or not all(isinstance(text, str) and text for text in given):
        raise InputError(f"stop is {value!r}; give a string of at least one character, or a list of such strings.")
    return tuple(given)


def _logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"logit_bias is {value!r}; give a mapping from token ids to numbers.")
    for token, bias in value.items():
        if not is_whole(token) or token < 0:
            raise InputError(f"logit_bias has the key {token!r}; the keys are token ids, whole numbers from 0.")
        if not is_number(bias) or not (bias == -math.inf or abs(bias) <= _LARGEST_BIAS):
            raise InputError(
                f"logit_bias for token {token} is {bias!r}; give a number from {-_LARGEST_BIAS:g} to "
                f"{_LARGEST_BIAS:g}, or -inf to forbid the token."
            )
    return {int(token): float(bias) for token, bias in value.items()}


_NORMALIZERS: Mapping[str, Callable[[Any], object]] = {
    "logit_bias": _logit_bias,
    "stop": _stop_strings,
    "stop_ids": _stop_ids,
}
"""The options that are not a single number or truth value, with the function that checks each and returns it."""


def _table() -> dict[str, Option]:
    hints = typing.get_type_hints(PromptOptions)
    return {
        one.name: replace(
            one.metadata["option"],
            name=one.name,
            type=hints[one.name],
            cli_type=one.metadata["option"].cli_type or hints[one.name],
            default=one.default,
        )
        for one in fields(PromptOptions)
    }


OPTIONS: Mapping[str, Option] = MappingProxyType(_table())
"""Every option by name, in the order of declaration, with the defaults of `GPT.generate`."""


def check_names(given: Mapping[str, object], what: str = "generate") -> None:
    """Check that keyword arguments are names of options.

    Raises:
        InputError: if one is not; the message suggests the nearest name.
    """
    refuse_unknown(what, given, OPTIONS)


def takes(options: Callable[P, T]) -> Callable[[Callable[[S, T], R]], Callable[Concatenate[S, P], R]]:
    """Make a method of one structure take the structure's fields as arguments instead.

    A type checker sees each field with its type and default, and so does `help()`, which also lists what each option
    does. The one declaration of the options is enough for both.

    Args:
        options: the dataclass whose fields become arguments, `prompt` first.
    """

    def decorate(method: Callable[[S, T], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def wrapper(self: S, /, *args: P.args, **given: P.kwargs) -> R:
            if len(args) > 1:
                raise TypeError(f"{method.__name__} takes one positional argument, the prompt; give options by name.")
            check_names({name: value for name, value in given.items() if name != "prompt"}, method.__name__)
            if not args and "prompt" not in given:
                raise TypeError(f"{method.__name__} needs a prompt: text, or token ids.")
            return method(self, options(*args, **given))

        return shows(options)(wrapper)

    return decorate


def shows(options: Callable[..., object]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a method the signature of a dataclass of options, and its docstring a list of them."""
    return functools.partial(_document, options=options)


def _document(function: Callable[P, R], options: Callable[..., object]) -> Callable[P, R]:
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    declared = inspect.signature(options).parameters.values()
    returned = inspect.signature(function).return_annotation
    setattr(function, "__signature__", inspect.Signature([own, *declared], return_annotation=returned))  # noqa: B010
    listed = "\n".join(
        textwrap.fill(f"{one.name}: {one.help}", 96, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for one in OPTIONS.values()
    )
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{listed}\n"
    return function
