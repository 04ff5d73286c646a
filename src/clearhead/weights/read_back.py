"""Open what was written and compare it with its source: numbers, settings, tokenizer, head."""

from __future__ import annotations

from dataclasses import dataclass

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.companions import GENERATION_FILE
from clearhead.weights.comparison import WeightsDifference, compare
from clearhead.weights.fidelity import WEIGHTS_ONLY, WITH_SETTINGS, differences, head_tensors
from clearhead.weights.opening import open
from clearhead.weights.saving import SaveResult
from clearhead.weights.source import Source


@dataclass(frozen=True)
class ReadBack:
    """What was found by opening what was written and comparing it with the source.

    Attributes:
        weights: how the numbers differ.
        changed: what else differs, one clause for each part: settings, tokenizer, head.
        same: what else was compared and is the same.
    """

    weights: WeightsDifference
    changed: tuple[str, ...]
    same: tuple[str, ...]

    def __str__(self) -> str:
        """Return the result as sentences."""
        text = str(self.weights)
        if self.same:
            text += f" The same: {', '.join(self.same)}."
        return text + (f" Not the same: {'; '.join(self.changed)}." if self.changed else "")


def read_back(source: Source, saved: SaveResult) -> ReadBack:
    """Open what was written without help from the source, and compare everything that both hold.

    Raises:
        WeightsError: if what was written cannot be opened or read.
    """
    changed: list[str] = []
    same: list[str] = []
    try:
        written = open(saved.path, saved.layout)
        changed += _changed_settings(source.config, written.config)
        same += [] if changed else ["settings"]
    except WeightsError:
        # A state dict does not say the number of heads, as a note has said; everything else must come from the file.
        written = open(saved.path, saved.layout, config=source.config)
    difference = compare(source.stream(), written.stream(), saved.path.name)
    if saved.layout not in WEIGHTS_ONLY and (tokenizer := source.tokenizer()) is not None:
        found = list(differences(tokenizer, written.tokenizer()))
        changed += found
        if not found:
            same.append(f"tokenizer ({tokenizer.vocab_size:,} tokens, {len(tokenizer.special_tokens)} special)")
    if heads := head_tensors(source.file, source.layout):
        there = head_tensors(written.file, written.layout)
        lost = [name for name in heads if name not in there or there[name].shape != heads[name].shape]
        changed += [f"the head {name}" for name in lost]
        if not lost:
            same.append("head")
        if source.companions.head_settings() != written.companions.head_settings():
            changed.append("the head's labels")
    if saved.layout in WITH_SETTINGS and (values := source.companions.generation_config()):
        (same if written.companions.generation_config() == values else changed).append(GENERATION_FILE)
    return ReadBack(difference, tuple(changed), tuple(same))


def _changed_settings(before: GPTConfig, after: GPTConfig) -> list[str]:
    """Return the settings that matter for what the model computes and that differ."""
    names = ("n_heads", "norm_eps", "activation", "tie_weights", "context_length", "vocab_size", "ff_dim")
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    return [f"{name} {old} became {new}" for name, old, new in pairs if old != new]
