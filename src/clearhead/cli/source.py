"""What `MODEL` may be for a verb that needs no running model: a size, a config file, a folder, a name on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.config import HUB_NAMES, RELEASED, GPTConfig
from clearhead.errors import WeightsError

if TYPE_CHECKING:
    from clearhead import weights
    from clearhead.anatomy import ParameterTree
    from clearhead.tokenizer import Tokenizer

_CONFIG_FILES = ("config.json", "hparams.json")


@dataclass(frozen=True, slots=True)
class Source:
    """A model's shape, and its weights where they are at hand.

    Attributes:
        name: how to call it.
        config: its shape.
        weights: its weights, opened but not read; None where only the shape is known.
    """

    name: str
    config: GPTConfig
    weights: weights.Source | None = None

    def check(self, account: ParameterTree) -> str:
        """Counts the stored tensors, demands that they agree with the account, and says so; empty without weights.

        Raises:
            WeightsError: where the weights are broken or do not agree.
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
        formats = " and ".join(sorted({plan.sources[name].dtype for name in used}))
        return (
            f"Counted in the weights too: {len(used)} tensors with {numbers:,} numbers in {self.weights.path.name}, "
            f"{stored:,} bytes as stored ({formats})"
            + (f", and {filled:,} zeros for biases that it leaves out" if filled else "")
            + "; every part agrees."
        )


def find_source(model: str) -> Source:
    """The shape of what a user calls a model; what exists on disk wins over a size's name, and over `bundled`.

    Raises:
        ConfigError: where a config describes no GPT-2.
        WeightsError: where there is nothing of that name, or the weights are broken.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".json" and not path.name.endswith(".index.json"):
        return Source(path.resolve().name if path.exists() else model, GPTConfig.from_file(path))
    size = HUB_NAMES.get(model.removeprefix("openai-community/"), model)
    if size in RELEASED and not path.exists():
        return Source(f"GPT-2 {size}", RELEASED[size])
    if model == "bundled" and not path.exists():
        from clearhead.loading import bundled

        return _open(str(bundled()), bundled())
    return _open(model, path)


def _open(model: str, path: Path) -> Source:
    from clearhead import weights
    from clearhead.cli.console import notice
    from clearhead.weights.schemes.huggingface import weights_in

    try:
        opened = weights.open(model)
    except WeightsError as error:
        configs = [path / name for name in _CONFIG_FILES if (path / name).is_file()]
        if configs and weights_in(path) is None:
            return Source(path.resolve().name if path.exists() else model, GPTConfig.from_file(configs[0]))
        if not path.exists():
            raise WeightsError(f"{error} The sizes that are known by name are {', '.join(RELEASED)}.") from None
        raise
    for note in opened.notes:
        notice(note)
    return Source(path.resolve().name if path.exists() else model, opened.config, opened)


def open_tokenizer(model: str | None) -> Tokenizer:
    """The tokenizer of what a user calls a model: its folder, a `tokenizer.json`, a name on the hub; None: the bundled.

    Raises:
        TokenizerError: where there is none, or it is broken.
        WeightsError: where there is nothing of that name.
    """
    from clearhead import weights
    from clearhead.cli.console import notice
    from clearhead.loading import bundled
    from clearhead.tokenizer import Tokenizer
    from clearhead.tokenizer.files import has_tokenizer_files
    from clearhead.tokenizer.gpt2 import is_gpt2_name
    from clearhead.weights.formats.tensorflow import index_in
    from clearhead.weights.schemes.huggingface import weights_in

    path = bundled() if model is None else Path(model).expanduser()
    if model is not None and not path.exists():
        if is_gpt2_name(model):
            return Tokenizer.gpt2()
        if not weights.looks_like_path(model) and index_in(path) is None:
            return Tokenizer.from_folder(weights.fetch_tokenizer(model))
        path = weights.locate(model)
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
