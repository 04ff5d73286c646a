"""Read a recipe and check every setting in it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from clearhead.config import GPTConfig
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.data.templates import PromptTemplate
from clearhead.errors import ConfigError, InputError, TrainingError
from clearhead.inference.options import SamplingParams
from clearhead.training.recipe import DEFAULTS, FineTuneKind, FineTuneRecipe, Recipe, TrackerName, TrainingRecipe

_T = TypeVar("_T")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_AMOUNT = r"\s*(\d+(?:\.\d+)?)\s*([kMB]?)\s*"
_COUNTS = ("steps", "tokens", "words")
"""The lengths of a run that may be texts with a unit, as milestones are."""
_KEYS_OF_KINDS: Mapping[str, tuple[FineTuneKind, ...]] = {
    **dict.fromkeys(("template", "response_tokens"), ("instructions", "preferences")),
    "loss": ("instructions",),
    "beta": ("preferences",),
}
"""The keys of `[finetune]` that only some kinds use."""
_INTEGER_LIMIT = 2**63  # TOML's whole numbers are below it, and not below its negative


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The numbers that a key accepts.

    Attributes:
        low, high: the ends.
        open_low, open_high: whether the end itself is excluded.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = True

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below and math.isfinite(number)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.open_low else f"at least {self.low}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high}"


_KINDS = {int: "a whole number", float: "a number", str: "a text in quotation marks", bool: "true or false"}
"""What a value of each type is called."""

RANGES: Mapping[str, NumberRange] = {
    **dict.fromkeys(
        ("batch_size", "sample_tokens", "response_tokens", "keep_checkpoints", "tokenizer_bytes"), NumberRange(1)
    ),
    **dict.fromkeys(("log_every", "evaluate_every", "evaluate_windows", "checkpoint_every"), NumberRange(1)),
    **dict.fromkeys(("steps", "micro_batch_size", "warmup_steps", "decay_steps", "head_chunk", "seed"), NumberRange(0)),
    "shard_processes": NumberRange(0),
    **dict.fromkeys(("context_length", "lora_rank", "weight_decay", "epochs", "tokens", "words"), NumberRange(0)),
    **dict.fromkeys(("learning_rate", "muon_learning_rate", "clip_norm"), NumberRange(0, open_low=True)),
    **dict.fromkeys(("lora_alpha", "weight", "beta"), NumberRange(0, open_low=True)),
    **dict.fromkeys(("beta_1", "beta_2", "lora_dropout", "valid_share", "test_share"), NumberRange(0, 1)),
    "final_share": NumberRange(0, 1, open_high=False),
}
"""The range of every number in `[[corpus.source]]`, `[corpus]`, `[finetune]` and `[training]`; `GPTConfig` checks
`[model]`."""


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        TrainingError: if the file cannot be read, is not TOML, or a setting is unknown, missing or out of range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"the recipe {path} could not be read ({error.strerror}); give a TOML file.") from None
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"the recipe {path} is not UTF-8 text ({error.reason} at byte {error.start:,}); give a TOML file."
        ) from None
    try:
        return parse_recipe(text)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """Parse and check the TOML of a recipe.

    Raises:
        TrainingError: if it is not TOML, or a setting is unknown, missing or out of range.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError; too many digits; too many brackets
        raise TrainingError(f"this is not TOML: {error}.") from None
    _refuse_unknown(tables, ["model", "corpus", "finetune", "training"], "the recipe")
    needed = ("finetune", "training") if "finetune" in tables else ("model", "corpus", "training")
    for name in needed:
        if not isinstance(tables.get(name), dict):
            raise TrainingError(
                f"the table [{name}] is missing; a recipe has [model], [corpus] and [training], or "
                "[finetune] and [training]."
            )
    for name in tables:
        if name not in needed:
            raise TrainingError(f"the recipe has both [{name}] and [finetune], which names its model and texts itself.")
    training = _read_table(TrainingRecipe, tables["training"], "[training]")
    if "finetune" in tables:
        finetune = _read_table(FineTuneRecipe, tables["finetune"], "[finetune]")
        recipe = Recipe(None, CorpusRecipe(), training, finetune, text)
    else:
        recipe = Recipe(_read_model(tables["model"]), _read_corpus(tables["corpus"]), training, None, text)
    _check(recipe)
    return recipe


def _read_model(values: dict[str, Any]) -> GPTConfig:
    for name, value in values.items():
        _refuse_large(name, value, "[model]")
    try:
        return GPTConfig.from_dict(values)
    except ConfigError as error:
        raise TrainingError(f"in [model], {error}") from None


def _read_corpus(values: dict[str, Any]) -> CorpusRecipe:
    sources = values.get("source", [])
    tables_only = isinstance(sources, list) and all(isinstance(s, dict) for s in sources)
    if not tables_only or bool(sources) == bool(values.get("built")):
        raise TrainingError(
            "[corpus] must name texts, each in a [[corpus.source]] with name and train, or a corpus in built."
        )
    read = tuple(_read_table(SourceRecipe, s, "[[corpus.source]]") for s in sources)
    return _read_table(CorpusRecipe, {**values, "source": read}, "[corpus]")


def _read_table(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(values, list(fields), where)
    missing = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in values
    ]
    if missing:
        raise TrainingError(f"{where} lacks {', '.join(missing)}.")
    types = get_type_hints(kind)
    return kind(**{name: _checked(name, value, types[name], where) for name, value in values.items()})


def _checked(name: str, value: Any, expected: Any, where: str) -> Any:
    """Return the value of a key in its field's type.

    Raises:
        TrainingError: if it has another type, is out of range, or is not one of the known words.
    """
    _refuse_large(name, value, where)
    if name in _COUNTS and isinstance(value, str):
        value = _parse_count(name, value, where, _KINDS[expected])
    if expected is float and type(value) is int:
        value = float(value)
    if expected == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TrainingError(f"{name} in {where} is {value!r}; it must be a list of texts.")
        return tuple(value)
    if name == "sampling":
        return _check_sampling(value)
    if expected in (int, float, str, bool) and type(value) is not expected:
        raise TrainingError(f"{name} in {where} is {value!r}; it must be {_KINDS[expected]}.")
    if expected in (int, float) and value not in RANGES[name]:
        finite = "" if math.isfinite(value) else "finite and "
        raise TrainingError(f"{name} in {where} is {value}; it must be {finite}{RANGES[name]}.")
    if expected is str and "\0" in value:
        raise TrainingError(f"{name} in {where} is {value!r}; no text, file or folder contains NUL, remove it.")
    choices = getattr(expected, "__args__", ())
    if choices and all(isinstance(c, str) for c in choices) and value not in choices:
        raise TrainingError(f"{name} in {where} is {value!r}; it must be one of {', '.join(choices)}.")
    return value


def _parse_count(name: str, text: str, where: str, kind: str) -> float:
    """Return a number of steps, tokens or words that is written with a unit, such as `10k` or `1.5M`.

    Raises:
        TrainingError: if it has another form.
    """
    match = re.fullmatch(_AMOUNT, text)
    if match is None or not match[2]:
        raise TrainingError(
            f'{name} in {where} is {text!r}; it must be {kind}, or a text such as "10k", "1.5M" or "2B".'
        )
    amount = float(match[1]) * _UNITS[match[2]]
    return int(amount) if amount.is_integer() else amount


def _check_sampling(values: Any) -> dict[str, Any]:
    """Check the sampling options of the samples, as `inference.options` declares them."""
    if not isinstance(values, dict):
        raise TrainingError(f"sampling in [training] is {values!r}; it must be a table like {{ temperature = 0.8 }}.")
    known = [f.name for f in dataclasses.fields(SamplingParams) if f.name != "logit_bias"]
    _refuse_unknown(values, known, "sampling in [training]")
    try:
        SamplingParams(**values)
    except InputError as error:
        raise TrainingError(f"in sampling of [training], {error}") from None
    return values


def _refuse_large(name: str, value: Any, where: str) -> None:
    if isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        raise TrainingError(f"{name} in {where} does not fit into 64 bits; it must be below 2 to the power of 63.")


def _refuse_unknown(values: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."
            raise TrainingError(f"{where} has the unknown key {key!r}{hint}")


def _check(recipe: Recipe) -> None:
    names = [source.name for source in recipe.corpus.source]
    for source in recipe.corpus.source:
        if names.count(source.name) > 1:
            raise TrainingError(f"two sources are named {source.name!r}; each needs a name of its own.")
        if not source.name.replace("_", "").replace("-", "").isalnum():
            raise TrainingError(f"a source is named {source.name!r}; use letters, digits, '-' and '_' only.")
        if source.valid and source.validation:
            raise TrainingError(f"the source {source.name!r} has both valid and validation; give one of them.")
    if recipe.finetune is not None:
        _check_finetune(recipe.finetune, recipe.training)
    check_training(recipe.training)


def _check_finetune(f: FineTuneRecipe, t: TrainingRecipe) -> None:
    PromptTemplate.from_recipe(f.template)
    for key, kinds in _KEYS_OF_KINDS.items():
        if f.kind not in kinds and getattr(f, key) != DEFAULTS[key]:
            raise TrainingError(f'{key} is for the kind {" or ".join(kinds)}, and kind is "{f.kind}"; leave {key} out.')
    for key in ("lora_alpha", "lora_dropout"):
        if not f.lora_rank and getattr(f, key) != DEFAULTS[key]:
            raise TrainingError(f"{key} is for LoRA, and lora_rank is 0; set lora_rank, or leave {key} out.")
    for key in ("valid", "test"):
        if not getattr(f, f"{key}_share"):
            continue
        if f.kind == "text":
            raise TrainingError(f'{key}_share draws examples, and kind is "text"; hold out a text with valid.')
        if getattr(f, key):
            raise TrainingError(f"{key} and {key}_share both hold out examples; leave one of them out.")
    if f.valid_share + f.test_share >= 1:
        raise TrainingError("valid_share and test_share leave nothing to train on; their sum must be below 1.")
    if f.test and f.kind == "text":
        raise TrainingError("test is for examples; hold out a text with valid.")
    if f.freeze != "none" and f.lora_rank:
        raise TrainingError("freeze and lora_rank both say what is trained; leave one out.")
    if f.save_adapter and not (f.lora_rank and f.kind != "classes"):
        raise TrainingError("save_adapter needs lora_rank, and a model that generates text.")
    if f.kind == "classes" and t.samples:
        raise TrainingError("samples are for models that generate text; leave them out if classes are learned.")
    if f.kind == "preferences" and t.parallel != "replicate":
        raise TrainingError("preferences compare with a second model, which is not sharded; leave parallel out.")
    if f.lora_rank and t.optimizer != "adamw":
        raise TrainingError('lora_rank needs optimizer = "adamw": Muon is for the matrices of a whole model.')


def check_training(t: TrainingRecipe, *, resolved: bool = False) -> None:
    """Check that the settings of `[training]` fit together.

    Args:
        t: the settings.
        resolved: whether the steps were computed from the epochs or tokens.

    Raises:
        TrainingError: if they do not.
    """
    lengths = [key for key in ("steps", "epochs", "tokens", "words") if getattr(t, key)]
    if not lengths:
        raise TrainingError("[training] lacks steps; it gives the length of the run as steps, epochs, tokens or words.")
    if len(lengths) > 1 and not resolved:
        raise TrainingError(f"[training] has both {' and '.join(lengths)}; give the length of the run once.")
    for name in t.log_to:
        if name not in get_args(TrackerName):
            known = ", ".join(get_args(TrackerName))
            raise TrainingError(f"log_to in [training] has {name!r}; it must be a list of {known}.")
    for name in t.milestones:
        parse_milestone(name)
    if t.schedule == "cosine" and t.decay_steps:
        raise TrainingError(
            f"decay_steps is {t.decay_steps} and the schedule is cosine, which falls from the warm-up to the end; "
            'leave decay_steps out, or set schedule = "wsd".'
        )
    if t.steps and t.warmup_steps + t.decay_steps > t.steps:
        raise TrainingError(
            f"warmup_steps {t.warmup_steps} and decay_steps {t.decay_steps} do not fit into steps {t.steps}; lower "
            "them, or train longer."
        )
    if t.shard_processes and t.parallel != "hybrid":
        raise TrainingError(f'shard_processes is for parallel = "hybrid", and the recipe has "{t.parallel}".')
    if t.micro_batch_size and t.batch_size % t.micro_batch_size:
        raise TrainingError(
            f"micro_batch_size {t.micro_batch_size} does not divide batch_size {t.batch_size}; choose a divisor."
        )


def parse_milestone(name: str) -> tuple[float, str]:
    """Parse a milestone such as `1000 steps`, `2 epochs`, `10M tokens` or `1M words`.

    Returns:
        the amount and the unit.

    Raises:
        TrainingError: if it has another form.
    """
    match = re.fullmatch(rf"{_AMOUNT}(steps|epochs|tokens|words)\s*", name)
    if match is None or float(match[1]) == 0:
        raise TrainingError(
            f"the milestone {name!r} is not of the form 1000 steps, 2 epochs, 10M tokens or 1M words; correct it."
        )
    return float(match[1]) * _UNITS[match[2]], match[3]
