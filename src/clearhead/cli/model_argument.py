"""What `MODEL` may be for a verb that does not run a model: a size, a config file, a folder, a name on the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.cli.options import named_as_flags
from clearhead.config import HUB_NAMES, RELEASED, GPTConfig, parse_config
from clearhead.errors import WeightsError

if TYPE_CHECKING:
    from clearhead import weights
    from clearhead.anatomy import ParameterTree
    from clearhead.gpt import GPT
    from clearhead.tokenizer import Tokenizer

_CONFIG_FILES = ("config.json", "hparams.json")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model's shape, and its weights if there are any.

    Attributes:
        name: the name to show.
        config: its shape.
        weights: its weights, opened but not read; None if only the shape is known.
    """

    name: str
    config: GPTConfig
    weights: weights.Source | None = None

    def check(self, account: ParameterTree) -> str:
        """Count the stored tensors, demand that they agree with the account, and say so; "" without weights.

        Raises:
            WeightsError: if the weights are broken or do not agree.
        """
        if self.weights is None:
            return ""
        from clearhead.anatomy import check_parameters

        plan = self.weights.plan()
        check_parameters(account, plan.targets)
        used = {part.source for step in plan.steps for part in step.slices}
        numbers = sum(plan.sources[name].size for name in used)
        filled = account.total - numbers
        stored = sum(plan.sources[name].nbytes for name in used)
        dtypes = " and ".join(sorted({plan.sources[name].dtype for name in used}))
        return (
            f"Counted in the weights too: {len(used)} tensors with {numbers:,} numbers in {self.weights.path.name}, "
            f"{stored:,} bytes as stored ({dtypes})"
            + (f", and {filled:,} zeros for biases that it leaves out" if filled else "")
            + "; every part agrees."
        )


def resolve_model(argument: str, config: str | None = None) -> ResolvedModel:
    """Find the model that a user names. A path that exists wins over the name of a size, and over `bundled`.

    Args:
        argument: the name.
        config: what `--config` says about the shape of the weights.

    Raises:
        ConfigError: if a config does not describe a GPT-2.
        WeightsError: if nothing has that name, or the weights are broken.
    """
    path = Path(argument).expanduser()
    if path.is_file() and path.suffix == ".json" and not path.name.endswith(".index.json"):
        return _changed(ResolvedModel(path.resolve().name, GPTConfig.from_file(path)), config)
    size = HUB_NAMES.get(argument.removeprefix("openai-community/"), argument)
    if size in RELEASED and not path.exists():
        return _changed(ResolvedModel(f"GPT-2 {size}", RELEASED[size]), config)
    return _open(argument, path, config)


def _changed(model: ResolvedModel, config: str | None) -> ResolvedModel:
    """Return a model of which only the shape is known, with the settings of `--config` in it."""
    if config is None:
        return model
    given = parse_config(config)
    return replace(model, config=given if isinstance(given, GPTConfig) else model.config.replace(**given))


def _open(argument: str, path: Path, config: str | None) -> ResolvedModel:
    from clearhead import weights
    from clearhead.cli.console import notice
    from clearhead.weights.schemes.huggingface import weights_in

    try:
        opened = weights.open(argument, config=config)
    except WeightsError as error:
        configs = [path / name for name in _CONFIG_FILES if (path / name).is_file()]
        if configs and weights_in(path) is None:
            return _changed(ResolvedModel(path.resolve().name, GPTConfig.from_file(configs[0])), config)
        if not path.exists():
            raise WeightsError(f"{error} The sizes that are known by name are {', '.join(RELEASED)}.") from None
        raise
    for note in opened.notes:
        notice(note)
    return ResolvedModel(path.resolve().name if path.exists() else argument, opened.config, opened)


def open_weights(argument: str, names_only: bool = False, config: str | None = None) -> weights.Source:
    """Open a model's weights and print the notes about how they were read on standard error.

    With `names_only`, an index is enough; its tensors cannot be read then.
    """
    from clearhead import weights
    from clearhead.cli.console import notice

    opened = (weights.open_names if names_only else weights.open)(argument, config=config)
    for note in opened.notes:
        notice(note)
    return opened


def load_model(argument: str | None, **options: Any) -> GPT:
    """Load the model that a user names, and print the notes about how it was read on standard error.

    Args:
        argument: the name; None for the bundled model.
        options: the keyword arguments of `clearhead.load`.
    """
    from clearhead.cli.console import notice
    from clearhead.loading import load

    with named_as_flags(cache_tokens="--memory-tokens"):
        gpt = load(argument, **options)
    for note in gpt.notes:
        notice(note)
    return gpt


def short_name(source: weights.Source) -> str:
    """Return a model's name for a heading: the last part of its path, or its name on the hub."""
    path = Path(source.name).expanduser()
    return path.resolve().name if path.exists() else source.name


def open_tokenizer(argument: str | None) -> Tokenizer:
    """Open the tokenizer of a folder, a `tokenizer.json`, or a name on the hub; None: the bundled model's.

    Raises:
        TokenizerError: if there is none, or it is broken.
        WeightsError: if nothing has that name.
    """
    from clearhead import weights
    from clearhead.cli.console import notice
    from clearhead.tokenizer import Tokenizer
    from clearhead.tokenizer.files import has_tokenizer_files
    from clearhead.tokenizer.gpt2 import is_gpt2_name
    from clearhead.weights.formats.tensorflow import index_in
    from clearhead.weights.location import bundled, is_on_disk
    from clearhead.weights.schemes.huggingface import weights_in

    if argument == "bundled" and not is_on_disk(argument):
        argument = None
    path = bundled() if argument is None else Path(argument).expanduser()
    if argument is not None and not is_on_disk(argument):
        if is_gpt2_name(argument):
            return Tokenizer.gpt2()
        if not weights.looks_like_path(argument) and index_in(path) is None:
            return Tokenizer.from_folder(weights.fetch_tokenizer(argument))
        path = weights.locate(argument)
    if path.is_file() and path.suffix == ".json":
        return Tokenizer.from_json(path)
    folder = path if path.is_dir() else path.parent
    if not has_tokenizer_files(folder) and (path.is_file() or weights_in(path)):
        opened = weights.open(path)
        if (own := opened.tokenizer()) is not None:
            for note in opened.notes:
                notice(note)
            return own
    return Tokenizer.from_folder(folder)
