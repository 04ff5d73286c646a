"""A recipe: everything that decides what a training run makes, in one TOML file.

Three tables: `[model]` (the fields of `GPTConfig`), `[corpus]` (the texts and their shares) and `[training]` (steps,
batch, optimizer, schedule); or two, where a model that is there learns more: `[finetune]` (the model and what it learns
from) and `[training]`. Two runs of one recipe on the same texts see the same batches.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from clearhead.config import GPTConfig
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.errors import ConfigError, TrainingError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Optimizer = Literal["adamw", "muon"]
Schedule = Literal["wsd", "cosine"]
OnSpike = Literal["report", "skip"]
Kind = Literal["text", "instructions", "classes"]
Parallel = Literal["replicate", "shard"]

_T = TypeVar("_T")
_INTEGERS = 2**63  # TOML's whole numbers are below it, and not below its negative


@dataclass(frozen=True, slots=True)
class _Range:
    """The numbers that a key may have.

    Attributes:
        low, high: the ends.
        open_low, open_high: whether the end itself is not among them.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = True

    def has(self, number: float) -> bool:
        """Whether a number is one of them; no infinite one is, and no NaN."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below and math.isfinite(number)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.open_low else f"at least {self.low}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high}"


_RANGES: Mapping[str, _Range] = {
    **dict.fromkeys(("steps", "batch_size", "sample_tokens", "keep_checkpoints", "tokenizer_bytes"), _Range(1)),
    **dict.fromkeys(("log_every", "evaluate_every", "evaluate_windows", "checkpoint_every"), _Range(1)),
    **dict.fromkeys(("micro_batch_size", "warmup_steps", "decay_steps", "head_chunk", "seed"), _Range(0)),
    **dict.fromkeys(("context_length", "lora_rank", "weight_decay"), _Range(0)),
    **dict.fromkeys(("learning_rate", "muon_learning_rate", "clip_norm"), _Range(0, open_low=True)),
    **dict.fromkeys(("lora_alpha", "weight"), _Range(0, open_low=True)),
    **dict.fromkeys(("beta_1", "beta_2", "lora_dropout"), _Range(0, 1)),
    "final_share": _Range(0, 1, open_high=False),
}
"""Of every number in `[[corpus.source]]`, `[corpus]`, `[finetune]` and `[training]`; `GPTConfig` checks `[model]`."""


@dataclass(frozen=True, slots=True)
class FineTuneRecipe:
    """What a model that is there learns.

    Attributes:
        start: the model: `bundled`, a folder, a file of weights (relative to the current folder), or a name on the
            hub.
        kind: `text` goes on as in pre-training, on a file of documents; `instructions` learns responses to prompts,
            with the loss on the responses only; `classes` gets a head that names one of several classes, read from
            the last token.
        train: the file to learn from, relative to the data folder. For `text` documents separated by a line
            `<|endoftext|>`; else JSON lines with `prompt` and `response` (or `instruction`, `input` and `output`), or
            with `text` and `label`.
        valid: a file of the same form that is held out; none where empty.
        template: how a prompt is put before the model; `{prompt}` stands for it.
        context_length: the most tokens of an example, or of a window of text; 0 for the model's own.
        lora_rank: the rank of the matrices that are learned beside the model's own, which then stay as they are (Hu et
            al. 2021); 0 to move all weights.
        lora_alpha: what the learned matrices' product is multiplied by, over lora_rank.
        lora_dropout: share of the values dropped before them.
    """

    start: str
    kind: Kind
    train: str
    valid: str = ""
    template: str = "{prompt}"
    context_length: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How the model is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: windows of context_length tokens in one step.
        micro_batch_size: windows computed at once; gradients are summed over batch_size / micro_batch_size of
            them. 0: the whole batch at once.
        seed: decides the initial weights, the order of the batches and the dropout.
        optimizer: `adamw` for every parameter, or `muon` for the blocks' matrices and AdamW for the rest.
        learning_rate: AdamW's, at its peak.
        muon_learning_rate: Muon's, at its peak.
        beta_1, beta_2: AdamW's averaging of gradients and of their squares.
        weight_decay: AdamW's and Muon's, on matrices only (norms and biases are left alone).
        clip_norm: gradients longer than this (all together) are shortened to it.
        warmup_steps: over which the learning rate rises from 0.
        schedule: what follows: `wsd` stays at the peak until the decay, `cosine` falls from there to the end.
        decay_steps: of `wsd`, the last steps, over which it falls linearly to `final_share` of its peak.
        final_share: what is left of the learning rate at the end.
        precision: `bfloat16` and `float16` autocast the matrix products, float16 with a scaled loss; `auto` takes
            bfloat16 where the machine has instructions for it.
        compile: whether torch.compile fuses the step; it needs a C++ compiler on a CPU.
        recompute: keep only what goes into each block, and compute the inside again on the way back (activation
            checkpointing): less memory for a third more time.
        head_chunk: tokens whose logits are in memory at a time; 0 for as many as make 64 MiB.
        on_spike: what becomes of a step whose loss or gradient norm jumps: `report` takes it, `skip` leaves it out.
            A loss that is no number is left out by `skip` and stops the run otherwise.
        parallel: with several processes, whether each has all of the model (`replicate`, DDP) or a part
            (`shard`, FSDP2, for a model that does not fit).
        log_every: steps between lines of metrics.
        evaluate_every: steps between validations.
        evaluate_windows: windows of each held-out text in such a validation; the end sees all of it.
        samples: prompts that the model continues at each validation.
        sample_tokens: how many tokens each continuation has.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of them stay; older ones are deleted.
    """

    steps: int
    batch_size: int
    micro_batch_size: int = 0
    seed: int = 1
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    beta_1: float = 0.9
    beta_2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    warmup_steps: int = 100
    schedule: Schedule = "wsd"
    decay_steps: int = 0
    final_share: float = 0.0
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    head_chunk: int = 0
    on_spike: OnSpike = "report"
    parallel: Parallel = "replicate"
    log_every: int = 10
    evaluate_every: int = 250
    evaluate_windows: int = 32
    samples: tuple[str, ...] = ()
    sample_tokens: int = 40
    checkpoint_every: int = 250
    keep_checkpoints: int = 2


NOT_OF_THE_PAST = (
    *("steps", "decay_steps", "final_share", "schedule", "warmup_steps"),  # the rates themselves are compared
    *("parallel", "log_every", "evaluate_every", "evaluate_windows", "samples", "sample_tokens"),
    *("checkpoint_every", "keep_checkpoints"),
    *("start", "train", "valid"),  # the weights and the text to learn from are compared themselves
)
"""Keys of `[training]` and `[finetune]` that may change between a checkpoint and what goes on from it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes:
        model: the shape; None in a recipe with `[finetune]` until its model was opened.
        corpus: the texts; empty in a recipe with `[finetune]`.
        training: how.
        finetune: what a model that is there learns; None where it is made from scratch.
        text: the TOML that it was read from, kept beside what it makes.
    """

    shape: GPTConfig | None
    corpus: CorpusRecipe
    training: TrainingRecipe
    finetune: FineTuneRecipe | None = None
    text: str = ""

    @property
    def model(self) -> GPTConfig:
        """The shape of the model."""
        assert self.shape is not None, "the model that the recipe starts from was not opened yet"
        return self.shape

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Reads and checks a recipe.

        Raises:
            TrainingError: where the file cannot be read, is not TOML, or a setting is unknown, missing or impossible.
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
            return cls.from_text(text)
        except TrainingError as error:
            raise TrainingError(f"{path}: {error}") from None

    @classmethod
    def from_text(cls, text: str) -> Recipe:
        """The same from the TOML itself."""
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
                raise TrainingError(
                    f"the recipe has [{name}] beside [finetune], whose model and texts it names itself."
                )
        if "finetune" in tables:
            recipe = cls(
                shape=None,
                corpus=CorpusRecipe(source=()),
                training=_table(TrainingRecipe, tables["training"], "[training]"),
                finetune=_table(FineTuneRecipe, tables["finetune"], "[finetune]"),
                text=text,
            )
            _check(recipe)
            return recipe
        for name, value in tables["model"].items():
            _refuse_large(name, value, "[model]")
        try:
            model = GPTConfig.from_dict(tables["model"])
        except ConfigError as error:
            raise TrainingError(f"in [model], {error}") from None
        corpus = dict(tables["corpus"])
        sources = corpus.get("source", [])
        tables_only = isinstance(sources, list) and all(isinstance(s, dict) for s in sources)
        if not tables_only or bool(sources) == bool(corpus.get("built")):
            raise TrainingError(
                "[corpus] must name texts, each in a [[corpus.source]] with name and train, or a corpus in built."
            )
        corpus["source"] = tuple(_table(SourceRecipe, s, "[[corpus.source]]") for s in sources)
        recipe = cls(
            shape=model,
            corpus=_table(CorpusRecipe, corpus, "[corpus]"),
            training=_table(TrainingRecipe, tables["training"], "[training]"),
            text=text,
        )
        _check(recipe)
        return recipe


def _table(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(values, list(fields), where)
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise TrainingError(f"{where} lacks {', '.join(missing)}.")
    types = get_type_hints(kind)
    checked = {}
    for name, value in values.items():
        checked[name] = _checked(name, value, types[name], where)
    return kind(**checked)


def _checked(name: str, value: Any, expected: Any, where: str) -> Any:
    """The value of a key as its field has it.

    Raises:
        TrainingError: where it is of another type, out of range, or none of the words that are known.
    """
    _refuse_large(name, value, where)
    if expected is float and type(value) is int:
        value = float(value)
    if expected == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TrainingError(f"{name} in {where} is {value!r}; it must be a list of texts.")
        return tuple(value)
    if expected in (int, float, str, bool) and type(value) is not expected:
        raise TrainingError(f"{name} in {where} is {value!r}; it must be of type {expected.__name__}.")
    if expected in (int, float) and not _RANGES[name].has(value):
        finite = "" if math.isfinite(value) else "finite and "
        raise TrainingError(f"{name} in {where} is {value}; it must be {finite}{_RANGES[name]}.")
    if expected is str and "\0" in value:
        raise TrainingError(f"{name} in {where} is {value!r}; no text, file or folder has a NUL in it, remove it.")
    choices = getattr(expected, "__args__", ())
    if choices and all(isinstance(c, str) for c in choices) and value not in choices:
        raise TrainingError(f"{name} in {where} is {value!r}; it must be one of {', '.join(choices)}.")
    return value


def _refuse_large(name: str, value: Any, where: str) -> None:
    if isinstance(value, int) and not -_INTEGERS <= value < _INTEGERS:
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
    _check_training(recipe.training)


def _check_finetune(f: FineTuneRecipe, t: TrainingRecipe) -> None:
    if f.template.count("{prompt}") != 1:
        raise TrainingError(f"the template {f.template!r} must hold {{prompt}} once, where the prompt stands.")
    if f.kind == "classes" and t.samples:
        raise TrainingError("samples are for models that write; leave them out where classes are learned.")
    if f.lora_rank and t.optimizer == "muon":
        raise TrainingError('lora_rank goes with optimizer = "adamw": Muon is for the matrices of a whole model.')


def _check_training(t: TrainingRecipe) -> None:
    if t.schedule == "cosine" and t.decay_steps:
        raise TrainingError(
            f"decay_steps is {t.decay_steps} and the schedule is cosine, which falls from the warm-up to the end; "
            'leave decay_steps out, or set schedule = "wsd".'
        )
    if t.warmup_steps + t.decay_steps > t.steps:
        raise TrainingError(
            f"warmup_steps {t.warmup_steps} and decay_steps {t.decay_steps} do not fit into steps {t.steps}."
        )
    if t.micro_batch_size and t.batch_size % t.micro_batch_size:
        raise TrainingError(
            f"micro_batch_size {t.micro_batch_size} does not divide batch_size {t.batch_size}; choose a divisor."
        )
