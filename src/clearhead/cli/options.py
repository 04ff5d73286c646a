"""Options that several verbs share, and structures of options.

A verb takes its options in dataclasses. `flatten` turns each field into an option of the command line, so that a verb
has a few parameters, however many options it has. The options of sampling come from `clearhead.inference.options`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.models import OptionInfo

from clearhead.cli.help_page import metavar
from clearhead.cli.language import check_language, language, translation
from clearhead.errors import ClearheadError, InputError
from clearhead.inference.declaration import Option
from clearhead.utils.arguments import Language

MODEL_PANEL = "The model"
_LONGEST_LIST = 20
"""More characters of choices would leave too little room for the help beside them."""
_PANELS = {
    "sampling": "How the next token is chosen",
    "ending": "When the text ends",
    "output": "What is printed",
}

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model's folder, or its name on the hub, such as gpt2 or gpt2-medium. The bundled model if left out.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE|SIZE|JSON",
        help="The shape, if the weights do not say all of it: a JSON file, a size such as 124M, or settings: "
        "'{\"n_heads\": 3}'.",
        rich_help_panel=MODEL_PANEL,
    ),
]


def choices(kind: object) -> dict[str, Any]:
    """Return the settings of an option with the values of a `Literal`, which help shows and shells complete.

    The value itself stays a `str`, so that a wrong one gets our own sentence with the known values.
    """
    names = list(typing.get_args(kind))
    listed = "|".join(names)
    return {"metavar": listed if len(listed) <= _LONGEST_LIST else "DTYPE", "autocompletion": lambda: names}


Device = Annotated[
    str,
    typer.Option(
        help="Run on this device; also cuda:1.", rich_help_panel=MODEL_PANEL, **choices(Literal["cpu", "cuda", "mps"])
    ),
]
Lang = Annotated[
    str, typer.Option("--lang", help="The language; otherwise the system's.", show_default=False, **choices(Language))
]
Theme = Annotated[
    str,
    typer.Option(
        "--theme", help="Colours; auto follows the reader's screen.", **choices(Literal["auto", "light", "dark"])
    ),
]
PageLayout = Annotated[
    str,
    typer.Option(
        "--layout",
        help="Two columns, three, or one for a narrow screen.",
        **choices(Literal["page", "slide", "column"]),
    ),
]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file.")]
PromptFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Use a Ray cluster: the address of its head node, or local to start one here.", metavar="ADDRESS"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WeightsSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A model's folder, a weights file, or a name on the hub.")
]
ShapeSource = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A size (124M, 355M, 774M, 1558M), a config file, a model's folder, its name on the hub, or 'bundled'.",
    ),
]
Book = Annotated[
    bool,
    typer.Option("--book", help="Use chapter 4's variant from the book: no bias on q, k and v, and a head of its own."),
]


def flatten(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn every parameter of a verb that is a dataclass into one parameter for each field of it.

    Every verb also gets `--lang`, and the words of its options in the language that was chosen.

    The fields keep their annotations, so `typer` reads them as options. A field that `clearhead.inference.options`
    declares becomes the option of that declaration; it is left out if the declaration has no flag.
    """
    verb = getattr(verb, "_unflattened", verb)  # a decorated one may have the words of another language
    hints = typing.get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    structures: dict[str, tuple[type[Any], list[str]]] = {}
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            own = _field_parameters(hint)
            structures[parameter.name] = hint, [one.name for one in own]
            parameters += own
        else:
            parameters.append(parameter.replace(annotation=hint))
    wants_language = any(one.name == "lang" for one in parameters)
    if not wants_language:
        parameters.append(inspect.Parameter("lang", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Lang))

    @functools.wraps(verb)
    def wrapper(**given: Any) -> None:
        lang = check_language(given.pop("lang"))
        if wants_language:
            given["lang"] = lang
        for name, (structure, own) in structures.items():
            fields = {one: given.pop(one) for one in own}
            with named_as_flags():
                given[name] = structure(**fields)
        with named_as_flags(stride="--stride"):
            verb(**given)

    parameters = [one.replace(annotation=_for_command_line(one)) for one in parameters]
    signature = inspect.Signature([one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters])
    setattr(wrapper, "__signature__", signature)  # noqa: B010
    wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
    setattr(wrapper, "_unflattened", verb)  # noqa: B010
    return wrapper


def _for_command_line(parameter: inspect.Parameter) -> Any:
    """Return an option's annotation with its help and its panel in the language that was chosen.

    The default follows the help on the same line; typer would put it on one of its own.
    """
    annotation, default = parameter.annotation, parameter.default
    kind, *metadata = typing.get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    if not metadata:
        return annotation
    info = copy.copy(metadata[0])
    info.help = _help_in_language(info.help)
    if isinstance(info, OptionInfo):
        info.metavar = metavar(kind) if info.metavar is None else info.metavar
        if info.parser is None:
            given = [str(info.default), *(info.param_decls or ())]  # typer takes the first one for a default
            flag = next((one for one in given if one.startswith("--")), f"--{parameter.name.replace('_', '-')}")
            own = Option("", "", "output", minimum=info.min, maximum=info.max, name=flag, type=kind)
            info.parser = _number_reader(own, kind)
        shown = str(getattr(default, "value", default))
        if (
            info.help
            and info.show_default is True
            and isinstance(default, (int, float, str))
            and not isinstance(default, bool)
        ):
            info.help += f" [dim]\\{translation('[default: {}]').format(shown)}[/dim]"
            info.show_default = False
    if info.rich_help_panel:
        info.rich_help_panel = translation(info.rich_help_panel)
    return Annotated[kind, info]


def _number_reader(option: Option, kind: Any) -> Callable[[Any], Any] | None:
    """Return what reads the number of an option and refuses others in our own words; None if its value is no number."""
    number = next((one for one in (int, float) if kind in (one, one | None)), None)
    if number is None:
        return None

    def read(text: Any) -> Any:
        if not isinstance(text, str):  # the default
            return text
        try:
            value: Any = number(text)
        except ValueError:
            value = text
        try:
            option.check(value)
        except InputError as error:  # a `ValueError`, which a library would reword
            raise ClearheadError(_in_flags(str(error), {})) from None
        return value

    return read


def _help_in_language(text: str | None) -> str | None:
    if not text or language() == "en":
        return text
    from clearhead.inference.options import OPTIONS

    declared = {option.help: option.help_zh for option in OPTIONS.values()}  # sampling options have their own Chinese
    return declared.get(text) or translation(text)


def _field_parameters(structure: type[Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(structure, include_extras=True)
    found = []
    for field in dataclasses.fields(structure):
        declared: Option | None = field.metadata.get("option")
        if declared is None:
            annotation, default = hints[field.name], field.default
        elif declared.flags:
            annotation, default = _option_annotation(field.name), field.default
            default = None if default == () else default  # as typer has it for lists
        else:
            continue
        if default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        found.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    return found


def _option_annotation(name: str) -> Any:
    from clearhead.inference.options import OPTIONS

    declared = OPTIONS[name]
    option = typer.Option(
        *declared.flags,
        help=declared.help,
        metavar=declared.metavar,
        rich_help_panel=_PANELS[declared.group],
        parser=_number_reader(declared, declared.cli_type),
    )
    return Annotated[declared.cli_type, option]


_LOADING = {"backend": "--backend", "device": "--device", "dtype": "--dtype", "threads": "--threads"}
"""The flags of the arguments of `clearhead.load` whose errors name them."""


@contextlib.contextmanager
def named_as_flags(**flags: str) -> Iterator[None]:
    """Let errors name options as the command line does, not as Python does.

    Args:
        flags: the flags of further arguments, by their Python names.
    """
    try:
        yield
    except InputError as error:
        sentence = _in_flags(str(error), flags)
        if sentence == str(error):
            raise
        raise InputError(sentence) from None


def _in_flags(sentence: str, more: Mapping[str, str]) -> str:
    """Replace the Python name of an option, at the start of an error message or in its advice, by its flag."""
    from clearhead.inference.options import OPTIONS

    flags = {name: option.flags[0] for name, option in OPTIONS.items() if option.flags} | _LOADING | dict(more)
    name, space, rest = sentence.partition(" ")
    sentence = flags.get(name, name) + space + rest
    sentence = sentence.replace("(None for ", "(leave it out for ")
    return re.sub(r"(leave out|raise) (\w+)", lambda found: f"{found[1]} {flags.get(found[2], found[2])}", sentence)
