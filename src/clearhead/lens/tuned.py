"""The tuned lens: an affine translator for each depth, trained so that the depth's prediction is the final one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.lens.cache import run_with_cache
from clearhead.lens.labelled import LabelledArray
from clearhead.lens.probing import split_examples
from clearhead.lens.reading import depth_names, read_residual
from clearhead.model import GPTModel
from clearhead.utils.progress import Progress

_TOKENS_PER_STEP = 512


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators from the residual stream at some depths to the one before the final norm.

    Attributes:
        translators: weight [C, C] and bias [C] by the name of the activation; the residual x becomes x + W x + b.
        kl: KL(final || depth) in nats on held-out texts, untranslated ("logit lens") and translated ("tuned lens"),
            [2, depths].
        n_train, n_held_out: the number of tokens for training and for measuring.
    """

    translators: Mapping[str, tuple[Tensor, Tensor]]
    kl: LabelledArray
    n_train: int
    n_held_out: int

    def translate(self, name: str, residual: Tensor) -> Tensor:
        """Return a residual [..., C] as the final norm expects it; unchanged at a depth without a translator."""
        if name not in self.translators:
            return residual
        weight, bias = self.translators[name]
        return residual + residual @ weight.T + bias

    def __repr__(self) -> str:
        rows = [f"TunedLens trained on {self.n_train:,} tokens; KL to the output on {self.n_held_out:,} held-out ones"]
        for label, plain, tuned in zip(self.kl.labels[1], *self.kl.values, strict=True):
            rows.append(f"{label:<18} {plain:6.3f} as it is, {tuned:6.3f} translated")
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        return self.kl._repr_html_()


def train_tuned_lens(
    model: GPTModel,
    texts: Sequence[Sequence[int]],
    *,
    sublayers: bool = False,
    steps: int = 150,
    learning_rate: float = 1e-3,
    held_out: float = 0.2,
    seed: int = 0,
) -> TunedLens:
    """Train a translator for each depth on the activations of texts, and measure it on held-out texts.

    Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens": each translator starts as
    the identity and learns to minimize KL(final || translated).

    Args:
        model: the model; its weights are not changed.
        texts: token ids of each text. All their residual streams are held in memory.
        sublayers: train translators for the depth after each attention too.
        steps: steps of Adam for each translator, of up to 512 tokens each; the learning rate falls to 0.
        learning_rate: at the first step.
        held_out: the share of the texts that is held out.
        seed: decides which texts are held out, and which tokens each step has.

    Raises:
        InputError: if the texts are too few to hold some out, or one cannot run.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; give at least 1.")
    depths = depth_names(model.config.n_layers, sublayers)
    *inner, last = depths
    train, test = split_examples(len(texts), None, held_out, seed)
    streams = _streams(model, [texts[i] for i in train.tolist()], list(depths))
    measured = _streams(model, [texts[i] for i in test.tolist()], list(depths))
    generator = torch.Generator().manual_seed(seed)
    translators: dict[str, tuple[Tensor, Tensor]] = {}
    kl = np.zeros((2, len(inner)))
    with Progress("Training the tuned lens", len(inner)) as progress:
        for column, name in enumerate(inner):
            batches = [
                torch.randint(len(streams[name]), (min(_TOKENS_PER_STEP, len(streams[name])),), generator=generator)
                for _ in range(steps)
            ]
            translators[name] = _train(model, streams[name], streams[last], batches, learning_rate)
            weight, bias = translators[name]
            x = measured[name]
            with torch.no_grad():
                kl[0, column] = float(_mean_kl(model, x, measured[last]))
                kl[1, column] = float(_mean_kl(model, x + x @ weight.T + bias, measured[last]))
            progress.advance(1, depths[name])
    labels = (("logit lens", "tuned lens"), tuple(depths[name] for name in inner))
    found = LabelledArray(kl, ("lens", "depth"), labels, "KL(final || depth) in nats on held-out texts")
    return TunedLens(translators, found, len(streams[last]), len(measured[last]))


def _streams(model: GPTModel, texts: Sequence[Sequence[int]], wanted: list[str]) -> dict[str, Tensor]:
    """Return the residual stream at each depth for every token of the texts, [N, C]."""
    cache = run_with_cache(model, texts, wanted)
    return {
        name: torch.cat([value[row, :length] for row, length in enumerate(cache.lengths)])
        for name, value in cache.items()
    }


def _train(
    model: GPTModel, x: Tensor, final: Tensor, batches: Sequence[Tensor], learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Return weight [C, C] and bias [C] of one translator.

    Args:
        model: the model.
        x, final: the residual stream at the depth and at the end, [N, C].
        batches: the indices of the tokens of each step.
        learning_rate: at the first step.
    """
    width = model.config.emb_dim
    weight = torch.zeros(width, width, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(width, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=learning_rate)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / len(batches))
        chosen = x[batch]
        with torch.enable_grad():
            loss = _mean_kl(model, chosen + chosen @ weight.T + bias, final[batch])
            weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
        optimizer.step()
    return weight.detach(), bias.detach()


def _mean_kl(model: GPTModel, x: Tensor, final: Tensor) -> Tensor:
    """Return the mean of KL(final || depth) over tokens in nats, for residual streams [N, C] that the head reads."""
    total = x.new_zeros(())
    for begin in range(0, len(x), _TOKENS_PER_STEP):
        rows = slice(begin, begin + _TOKENS_PER_STEP)
        with torch.no_grad():
            wanted = read_residual(model, final[rows]).log_softmax(-1)
        found = read_residual(model, x[rows]).log_softmax(-1)
        total = total + (wanted.exp() * (wanted - found)).sum()
    return total / len(x)
