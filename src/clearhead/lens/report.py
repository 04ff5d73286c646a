"""What a model's heads and depths do, measured on random tokens: the data of `clearhead lens report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.lens.cache import run_with_cache
from clearhead.lens.editing import Edit
from clearhead.lens.labelled import LabelledArray
from clearhead.lens.predictions import LayerPredictions, layer_predictions
from clearhead.lens.reading import pieces
from clearhead.lens.scored_heads import KINDS, head_scores, repeated_tokens
from clearhead.model import GPTModel
from clearhead.utils.progress import Progress

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

_SHOWN = 8
"""Random tokens of the example whose patterns are shown; they are repeated once."""
_MOST_REPEATED = 25
"""Random tokens that the loss is measured on; they are repeated once."""


@dataclass(frozen=True, eq=False)
class Strongest:
    """The head with the highest score of one kind.

    Attributes:
        kind: one of `head_scores.KINDS`.
        layer, head: which one.
        score: its score.
        pattern: its pattern on the example, [T, T].
    """

    kind: str
    layer: int
    head: int
    score: float
    pattern: LabelledArray


@dataclass(frozen=True, eq=False)
class LensReport:
    """What `model_report` finds.

    Attributes:
        config: the model's shape.
        scores: `head_scores`, [kind, layer, head].
        strongest: for each kind the strongest head.
        first_loss, second_loss: mean loss in nats on random tokens, and on their repetition.
        removal: how much `second_loss` rises if a head's output is replaced by its mean, [layer, head].
        predictions: what each depth predicts for the sample text; None without a text.
    """

    config: GPTConfig
    scores: LabelledArray
    strongest: tuple[Strongest, ...]
    first_loss: float
    second_loss: float
    removal: LabelledArray
    predictions: LayerPredictions | None

    def to_json(self) -> dict[str, object]:
        """Return the numbers as values for `json.dumps`."""
        found: dict[str, object] = {
            "n_layers": self.config.n_layers,
            "n_heads": self.config.n_heads,
            "scores": dict(zip(self.scores.labels[0], np.round(self.scores.values, 4).tolist(), strict=True)),
            "strongest": [
                {"kind": one.kind, "layer": one.layer, "head": one.head, "score": round(one.score, 4)}
                for one in self.strongest
            ],
            "repeated_tokens": {"first_loss": round(self.first_loss, 4), "second_loss": round(self.second_loss, 4)},
            "removal": np.round(self.removal.values, 4).tolist(),
        }
        if self.predictions is not None:
            kl = self.predictions.kl.values.mean(1)
            found["kl_by_depth"] = {
                depth: round(float(value), 4) for depth, value in zip(self.predictions.depths, kl, strict=True)
            }
        return found


def model_report(
    model: GPTModel, tokenizer: Tokenizer | None = None, text: Sequence[int] | None = None, *, seed: int = 0
) -> LensReport:
    """Measure what heads do, what removing each costs on repeated tokens, and what each depth predicts.

    Args:
        model: the model.
        tokenizer: turns token ids into text.
        text: a sample text, as token ids, for the predictions by depth.
        seed: for the random tokens.

    Raises:
        InputError: if the context is too short for repeated tokens, or the text cannot run.
    """
    config = model.config
    if config.context_length < 4:
        raise InputError(f"the model reads {config.context_length} tokens; a report needs a context of 4 or more.")
    scores = head_scores(model, seed=seed)
    first, second, removal = _removal(model, seed)
    predictions = None if text is None else layer_predictions(model, text, tokenizer=tokenizer)
    return LensReport(config, scores, _strongest(model, scores, tokenizer, seed), first, second, removal, predictions)


def _strongest(model: GPTModel, scores: LabelledArray, tokenizer: Tokenizer | None, seed: int) -> tuple[Strongest, ...]:
    (ids,) = repeated_tokens(model.config, min(_SHOWN, model.config.context_length // 2), 1, seed)
    texts = [str(id) for id in ids] if tokenizer is None else pieces(tokenizer, ids)
    labels = (tuple(texts), tuple(texts))
    found = []
    for kind, by_head in zip(KINDS, scores.values, strict=True):
        layer, head = (int(one) for one in np.unravel_index(by_head.argmax(), by_head.shape))
        name = f"blocks.{layer}.attention.pattern"
        pattern = run_with_cache(model, [ids], name)[name][0, head].double().cpu().numpy()
        title = f"{kind}: layer {layer} head {head}"
        shown = LabelledArray(pattern, ("query", "key"), labels, title)
        found.append(Strongest(kind, layer, head, float(by_head[layer, head]), shown))
    return tuple(found)


def _removal(model: GPTModel, seed: int) -> tuple[float, float, LabelledArray]:
    """Return the loss on random tokens and on their repetition, and how much each head's removal adds to the latter."""
    config = model.config
    n = min(_MOST_REPEATED, config.context_length // 2)
    (ids,) = repeated_tokens(config, n, 1, seed + 1)
    targets = torch.tensor(ids[1:])
    whole = run_with_cache(model, [ids], ["logits", "*.attention.mixed"])
    losses = _losses(whole["logits"][:, :-1], targets)[0]
    first, second = float(losses[: n - 1].mean()), float(losses[n:].mean())
    removal = np.empty((config.n_layers, config.n_heads))
    with Progress("Removing each head", config.n_layers) as progress:
        for layer in range(config.n_layers):
            name = f"blocks.{layer}.attention.mixed"
            means = whole[name][0].mean(1)  # [H, D]
            edits = [Edit(name, mean.view(1, 1, -1), heads=head) for head, mean in enumerate(means)]
            rows = run_with_cache(
                model, [ids] * config.n_heads, "logits", edits=edits, positions=list(range(n, 2 * n - 1))
            )
            removal[layer] = _losses(rows["logits"], targets[n:]).mean(1).cpu().numpy() - second
            progress.advance(1)
    labels = (
        tuple(f"layer {layer}" for layer in range(config.n_layers)),
        tuple(f"head {head}" for head in range(config.n_heads)),
    )
    return first, second, LabelledArray(removal, ("layer", "head"), labels, "loss that removing a head adds, in nats")


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of each token, [B, T], for logits [B, T, V] and targets [T]."""
    wanted = targets.to(logits.device).expand(logits.shape[:2])
    return torch.nn.functional.cross_entropy(logits.double().transpose(1, 2), wanted, reduction="none")
