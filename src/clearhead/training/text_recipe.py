"""Recipes without writing one: those that come with Clearhead, and one for a text file that suits its size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clearhead.data.sources.find import find_sources
from clearhead.errors import TrainingError

_SMALLEST = 2_000  # bytes
_BYTES_PER_TOKEN = 2.5  # about what a small vocabulary learned from the text reaches
_BYTES_VOCABULARY = 257  # the bytes and the end of text
_EPOCHS = 8
_BATCH = 16
_FEWEST_STEPS, _MOST_STEPS = 200, 4000


@dataclass(frozen=True)
class _Shape:
    """The shape for texts of up to `largest` bytes."""

    largest: float
    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int


_SHAPES = (
    _Shape(100e3, _BYTES_VOCABULARY, 64, 96, 4, 3),  # too little text to learn merges from
    _Shape(1e6, 512, 128, 128, 4, 4),
    _Shape(10e6, 1024, 128, 192, 6, 6),
    _Shape(float("inf"), 4096, 256, 224, 7, 6),
)


def recipe_for_text(file: Path) -> str:
    """Return a recipe, as TOML, that trains a model from scratch on one text file; the last tenth is held out.

    Raises:
        TrainingError: if the file cannot be read, is a table or compressed, or is too short.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise TrainingError(f"{file} could not be read ({error.strerror}); give a text file or a recipe.") from None
    find_sources([str(file)])  # refuses tables and compressed files
    if size < _SMALLEST:
        raise TrainingError(
            f"{file} has {size:,} bytes, too few to learn from; give a text of at least {_SMALLEST:,} bytes."
        )
    return _recipe(file.name, file.stem, size, "tail:0.1")


def recipe_for_dataset(name: str, size: int | None) -> str:
    """Return a recipe, as TOML, that trains a model from scratch on a data set of the hub; a hundredth is held out.

    Args:
        name: `hf:NAME`, `hf:NAME:CONFIG` or `hf:NAME:CONFIG:SPLIT`.
        size: of its texts, in bytes; None if it is not known.
    """
    return _recipe(name, name.removeprefix("hf:").split(":")[0].split("/")[-1], size, "0.01")


def _recipe(source: str, label: str, size: int | None, validation: str) -> str:
    """Return a recipe for a source of this size in bytes.

    The shape grows with the text. The steps read the text about eight times, but at least 200 and at most 4,000 are
    made.
    """
    size, known = (size, f"{size:,} bytes") if size else (1 << 40, "unknown size")
    shape = next(shape for shape in _SHAPES if size <= shape.largest)
    of_bytes = shape.vocab_size == _BYTES_VOCABULARY
    tokens = size * 0.9 / (1 if of_bytes else _BYTES_PER_TOKEN)
    steps = round(_EPOCHS * tokens / (_BATCH * shape.context_length))
    steps = max(_FEWEST_STEPS, min(_MOST_STEPS, steps))
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in label) or "text"
    quoted = source.replace("\\", "\\\\").replace('"', '\\"')
    return f"""\
# Made by `clearhead train {source}`: defaults for texts of {known}. Change what you like.

[model]
vocab_size = {shape.vocab_size}
context_length = {shape.context_length}
emb_dim = {shape.emb_dim}
n_heads = {shape.n_heads}
n_layers = {shape.n_layers}
qkv_bias = true
tie_weights = true

[corpus]
{'tokenizer = "bytes"' if of_bytes else ""}
[[corpus.source]]
name = "{name}"
train = "{quoted}"
validation = "{validation}"

[training]
steps = {steps}
batch_size = {_BATCH}
optimizer = "muon"
learning_rate = 3e-3
muon_learning_rate = 0.02
warmup_steps = {min(100, steps // 10)}
decay_steps = {steps // 2}
seed = 1
evaluate_every = {max(50, steps // 8)}
evaluate_windows = 32
checkpoint_every = {max(50, steps // 4)}
"""


def bundled_recipe(name: str) -> Path | None:
    """Return the file of a recipe that comes with Clearhead, such as "storyteller"; None if there is none."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parents[2] / "recipes"):  # in a wheel, in a clone
        if (file := folder / f"{name}.toml").is_file():
            return file
    return None
