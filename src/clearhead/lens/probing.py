"""Linear probes: can a property of a token be read from an activation by a linear function?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import InputError


@dataclass(frozen=True)
class Probe:
    """A trained linear probe.

    Attributes:
        weight, bias: of the logits of each class, [K, C] and [K].
        classes: the labels, in the order of the rows.
        train_accuracy, accuracy: on the examples it learned from, and on those that were held out.
        baseline: the accuracy of always naming the most frequent class of the training examples.
        n_held_out: how many examples were held out.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[object, ...]
    train_accuracy: float
    accuracy: float
    baseline: float
    n_held_out: int

    def predict(self, activations: Tensor) -> list[object]:
        """Return the most likely class of each activation [..., C], flattened."""
        logits = activations.flatten(0, -2).double() @ self.weight.T + self.bias
        return [self.classes[index] for index in logits.argmax(-1).tolist()]

    def __repr__(self) -> str:
        return (
            f"Probe of {len(self.classes)} classes: {self.accuracy:.1%} on {self.n_held_out:,} held-out examples "
            f"({self.baseline:.1%} for the most frequent class, {self.train_accuracy:.1%} in training)"
        )


def train_probe(
    activations: Tensor,
    labels: Sequence[object],
    *,
    groups: Sequence[object] | None = None,
    held_out: float = 0.2,
    penalty: float = 1e-3,
    seed: int = 0,
) -> Probe:
    """Train a multinomial logistic regression and measure it on examples that it has not seen.

    Args:
        activations: [N, C].
        labels: the class of each example; any hashable values.
        groups: what an example belongs to, such as its text; a group is held out as a whole, so that a probe cannot
            recognize a text again. Each example is its own group by default.
        held_out: the share of groups that is held out.
        penalty: on the squared weights, relative to the mean loss.
        seed: decides which groups are held out.

    Raises:
        InputError: if the numbers of examples differ, there are fewer than two classes, or nothing is left to learn
            from or to measure on.
    """
    if activations.ndim != 2 or len(labels) != len(activations):
        raise InputError(
            f"there are activations of shape {list(activations.shape)} and {len(labels)} labels; [N, C] and N were "
            "expected."
        )
    classes = tuple(sorted(set(labels), key=repr))
    if len(classes) < 2:
        raise InputError(
            f"all examples have the class {classes[0] if classes else 'none'!r}; a probe needs two or more."
        )
    train, test = split_examples(len(labels), groups, held_out, seed)
    x = activations.double()
    y = torch.tensor([classes.index(label) for label in labels])
    mean, scale = x[train].mean(0), x[train].std(0).clamp_min(1e-8)
    weight, bias = _fit((x[train] - mean) / scale, y[train], len(classes), penalty)
    weight = weight / scale
    bias = bias - weight @ mean
    predicted = (x @ weight.T + bias).argmax(-1)
    frequent = torch.bincount(y[train], minlength=len(classes)).argmax()
    return Probe(
        weight,
        bias,
        classes,
        train_accuracy=float((predicted[train] == y[train]).double().mean()),
        accuracy=float((predicted[test] == y[test]).double().mean()),
        baseline=float((y[test] == frequent).double().mean()),
        n_held_out=len(test),
    )


def split_examples(n: int, groups: Sequence[object] | None, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the examples to learn from and of those held out.

    Raises:
        InputError: if one of the two is empty.
    """
    of = list(range(n)) if groups is None else list(groups)
    if len(of) != n:
        raise InputError(f"there are {len(of)} groups for {n} examples; give one for each.")
    distinct = list(dict.fromkeys(of))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {distinct[i] for i in order[: round(held_out * len(distinct))]}
    test = [i for i, group in enumerate(of) if group in chosen]
    train = [i for i, group in enumerate(of) if group not in chosen]
    if not test or not train:
        raise InputError(
            f"{len(distinct)} groups cannot be divided into a share of {held_out:g} to hold out and a rest to learn "
            "from; give more examples."
        )
    return torch.tensor(train), torch.tensor(test)


def _fit(x: Tensor, y: Tensor, n_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weight [K, C] and bias [K] of the penalized logistic regression, by L-BFGS."""
    weight = torch.zeros(n_classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()
