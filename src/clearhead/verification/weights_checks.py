"""The proof that weights are whole and stand where they belong, point by point.

`verify` looks at what the weights alone can tell, with NumPy. What needs the model to run is handed in as
trials; `clearhead.verify` does that.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import ConfigError, WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.verification.arrangement import SURE, HeadWidth, LayerArrangement, arrangements, head_widths
from clearhead.verification.file_checks import Checked, check_sizes, check_sums
from clearhead.weights.hub.official import Identity, Official, identify
from clearhead.weights.inspection import Inspection, TensorStatistics, inspect_source
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.source import Source, locate
from clearhead.weights.source import open as open_source
from clearhead.weights.tensors import TensorInfo

Verdict = Literal["passed", "failed", "warning", "not applicable"]


@dataclass(frozen=True)
class Point:
    """One point of the proof.

    Attributes:
        name: one word.
        verdict: `failed` says that something is wrong, `warning` that something is unusual or could not be told,
            `not applicable` that there was nothing to look at.
        text: one or two sentences on what was found.
        details: more of it, a sentence or a part of one each.
    """

    name: str
    verdict: Verdict
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """All points, and what was looked at.

    Attributes:
        model: what the user called it.
        points: in the order in which they were looked at.
        source: the model, opened; None where it could not be.
    """

    model: str
    points: tuple[Point, ...]
    source: Source | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether no point failed."""
        return all(point.verdict != "failed" for point in self.points)

    def __getitem__(self, name: str) -> Point:
        """The point of this name."""
        return {point.name: point for point in self.points}[name]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        source = self.source
        return {
            "model": self.model,
            "ok": self.ok,
            "layout": source.layout if source else None,
            "file": str(source.path) if source else None,
            "config": dataclasses.asdict(source.config) if source else None,
            "notes": list(source.notes) if source else [],
            "points": [dataclasses.asdict(point) for point in self.points],
        }


@dataclass(frozen=True)
class Looked:
    """What is known of a model when its weights have been looked at, for the trials that follow.

    Attributes:
        source: the model, opened.
        trained: whether its norms and biases have moved from where training starts.
        identity: whether it is a published one.
        broken: whether numbers are missing or are no numbers, so that there is no sense in running it.
    """

    source: Source
    trained: bool
    identity: Identity
    broken: bool


Trial = Callable[[Looked], Point]
"""A point that needs more than the weights, such as a run of the model."""


def verify(
    source: str | os.PathLike[str] | Source,
    *,
    layout: str | None = None,
    config: GPTConfig | None = None,
    revision: str | None = None,
    known: Mapping[str, Official] | None = None,
    trials: Sequence[Trial] = (),
) -> Verification:
    """Looks at a model's files and numbers, point by point. Every number is read a few times.

    Args:
        source: a folder, a file, the name of a model on the hub, or a model that is open.
        layout: the naming scheme, where it is not to be told from the files' contents.
        config: the model's shape, where the files do not say it or say it wrongly.
        revision: of a model on the hub, its branch, tag or commit.
        known: the published models to compare with; OpenAI's where it is left out.
        trials: further points, asked for in turn at the end.

    Returns:
        A verification. Files that are broken are a failed point and no error.

    Raises:
        WeightsError: where there is nothing of that name.
        HubError: where a model could not be fetched.
    """
    if isinstance(source, Source):
        opened = source
    else:
        path = locate(source, revision)  # what is not there at all is an error
        try:
            opened = dataclasses.replace(open_source(path, layout, config=config), name=str(source))
        except (WeightsError, ConfigError) as error:
            return Verification(str(source), (Point("files", "failed", str(error)),))
    return Verification(opened.name, tuple(_points(opened, known, trials)), opened)


def _points(source: Source, known: Mapping[str, Official] | None, trials: Sequence[Trial]) -> Iterator[Point]:
    yield _files(source)
    yield _checksums(source)
    try:
        plan = source.plan()
    except WeightsError as error:
        yield Point("tensors", "failed", str(error))
        return
    yield _tensors(source, plan)
    found = inspect_source(source)
    numbers = _numbers(found)
    yield numbers
    yield _statistics(found, plan)
    broken = numbers.verdict == "failed"
    yield from _arrangement(plan, not found.untrained, broken)
    identity = identify(source, known)
    yield _identity(identity)
    looked = Looked(source, not found.untrained, identity, broken)
    for trial in trials:
        yield trial(looked)


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


def _files(source: Source) -> Point:
    found = check_sizes(source._file)
    text = "Every file is there and has the size that it must have."
    return _point("files", found, text)


def _checksums(source: Source) -> Point:
    found = check_sums(source._file)
    if not (found.wrong or found.said):
        text = found.odd[0] if found.odd else f"files of this format ({source.path.name}) carry no checksums"
        return Point("checksums", "not applicable", text[0].upper() + text[1:] + ".")
    return _point("checksums", found, "Every checksum that the files carry is right.")


def _point(name: str, found: Checked, text: str) -> Point:
    if found.wrong:
        more = f" ({len(found.wrong)} such)" if len(found.wrong) > 1 else ""
        return Point(name, "failed", found.wrong[0] + more, found.wrong[1:])
    return Point(name, "warning" if found.odd else "passed", text, (*found.odd, *found.said))


# --------------------------------------------------------------------------------------------------------------
# Tensors and their numbers
# --------------------------------------------------------------------------------------------------------------


def _tensors(source: Source, plan: ConversionPlan) -> Point:
    sources = {part.source for step in plan.steps for part in step.slices}
    parameters = sum(TensorInfo(shape, "float32").size for shape in plan.targets.values())
    text = (
        f"{len(sources)} stored tensors ({LAYOUTS[source.layout].title} names) fill all {len(plan.targets)} of the "
        f"model, {parameters:,} parameters, each in its shape"
        + (f"; {len(plan.ignored)} more are explained." if plan.ignored else "; none is left over.")
    )
    zeros = [step for step in plan.steps if not step.slices]
    details = [f"{len(zeros)} biases that the file leaves out are zeros"] if zeros else []
    details += [f"{count} not used: {reason}" for reason, count in Counter(plan.ignored.values()).items()]
    return Point("tensors", "passed", text, tuple(details))


_ODD = {
    "nan": "NaN in",
    "infinite": "an infinity in",
    "zero": "nothing but zeros in",
    "constant": "one number in all of",
}


def _numbers(found: Inspection) -> Point:
    odd = found.odd()
    details = tuple(f"{_ODD[kind]} {span.label}" for kind, spans in odd.items() for span in spans)
    if odd.keys() & {"nan", "infinite"}:
        n = sum(tensor.nan + tensor.infinite for tensor in found.tensors)
        return Point("numbers", "failed", f"{n:,} of the stored numbers are NaN or an infinity.", details)
    if odd:
        text = "Every number is finite, but some tensors hold one number throughout, as training leaves none."
        return Point("numbers", "warning", text, details)
    if found.untrained:
        return Point(
            "numbers",
            "warning",
            "Untrained: every norm's weights are one and every bias is zero, as a new model has them.",
        )
    return Point("numbers", "passed", "Every number is finite, and no tensor is one number throughout.")


@dataclass(frozen=True)
class _Usual:
    """What the tensors of one kind are like in a trained GPT-2, with room on all sides."""

    lowest_mean: float
    highest_mean: float
    lowest_std: float
    highest_std: float


# The models that Clearhead's authors could look at lie at least four times inside these bounds. They catch numbers
# that were read wrongly (another byte order, another format, a wrong place in the file) or scaled, and no others.
_MATRIX = _Usual(-0.5, 0.5, 1e-3, 3.0)
_NORM = _Usual(1e-3, 100.0, 0.0, 50.0)
_BIAS = _Usual(-20.0, 20.0, 0.0, 50.0)


def _usual(target: str) -> _Usual:
    if target.endswith(".bias"):
        return _BIAS
    return _NORM if "norm" in target else _MATRIX


def _statistics(found: Inspection, plan: ConversionPlan) -> Point:
    by_name = {tensor.name: tensor for tensor in found.tensors}
    usual = {part.source: _usual(step.target) for step in plan.steps for part in step.slices}
    outside = tuple(words for name, bounds in usual.items() if (words := _outside(by_name[name], bounds)))
    if outside:
        text = f"{len(outside)} of {len(usual)} tensors are far outside what trained GPT-2s show."
        return Point("statistics", "failed", text, outside)
    if found.untrained:
        text = "Size and spread of every tensor are as a new model has them."
        return Point("statistics", "not applicable", text)
    text = f"Mean and spread of all {len(usual)} tensors are inside what trained GPT-2s show."
    return Point("statistics", "passed", text)


def _outside(tensor: TensorStatistics, usual: _Usual) -> str:
    """What is unusual about a tensor's moments; empty where nothing is."""
    mean, std = tensor.mean, tensor.std
    if mean is None or std is None or tensor.constant:  # the point before names it
        return ""
    if not usual.lowest_mean <= mean <= usual.highest_mean:
        return f"{tensor.name}: mean {mean:.3g}, expected {usual.lowest_mean:g} to {usual.highest_mean:g}"
    if not usual.lowest_std <= std <= usual.highest_std:
        return f"{tensor.name}: deviation {std:.3g}, expected {usual.lowest_std:g} to {usual.highest_std:g}"
    return ""


# --------------------------------------------------------------------------------------------------------------
# How attention's matrices stand
# --------------------------------------------------------------------------------------------------------------


def _arrangement(plan: ConversionPlan, trained: bool, broken: bool) -> Iterator[Point]:
    if broken or not trained:
        why = "it holds what are no numbers" if broken else "the model is untrained, and training leaves the marks"
        for name in ("arrangement", "heads"):
            yield Point(name, "not applicable", f"Cannot be told: {why}.")
        return
    config = plan.config
    with ByteProgress("Comparing attention's matrices", 16 * config.emb_dim**2 * config.n_layers) as progress:
        layers = arrangements(plan.read, config, lambda done: progress.advance(done * 16 * config.emb_dim**2))
    yield _arrangement_point(layers, config)
    if all(layer.verdict == "right" for layer in layers):
        yield _heads_point(head_widths(_matrices(plan), config), config)
    else:
        yield Point("heads", "not applicable", "Cannot be told before the arrangement is right.")


def _matrices(plan: ConversionPlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for layer in range(plan.config.n_layers):
        prefix = f"blocks.{layer}.attention."
        yield plan.read(prefix + "qkv.weight"), plan.read(prefix + "out.weight")


def _arrangement_point(layers: tuple[LayerArrangement, ...], config: GPTConfig) -> Point:
    name = "arrangement"
    wrong = [layer for layer in layers if layer.verdict == "wrong"]
    if wrong:
        which = _layers([layer.layer for layer in wrong], len(layers))
        faults = " and ".join(wrong[0].best_other.faults())
        alike = all(layer.best_other == wrong[0].best_other for layer in wrong)
        text = f"{which[0].upper() + which[1:]}: {faults if alike else 'attention is not stored as it was trained'}."
        return Point(name, "failed", text, tuple(map(_wrong_words, wrong)))
    exchanged = [layer.layer for layer in layers if layer.verdict == "right" and layer.exchanged]
    if exchanged:
        text = (
            f"{_layers(exchanged, len(layers)).capitalize()}: q and k seem to stand in each other's place; "
            "a bias on the keys changes nothing and is not trained, and here it is the larger one."
        )
        ratios = (f"layer {n}: the bias of k is {1 / layers[n].bias_ratio:.1f} times that of q" for n in exchanged)  # type: ignore[operator]
        return Point(name, "failed", text, tuple(ratios))
    unsure = [layer for layer in layers if layer.verdict != "right"]
    if unsure:
        return _unsure_point(unsure, layers)
    return _right_point(layers, config)


def _wrong_words(layer: LayerArrangement) -> str:
    stored, other = layer.stored, layer.bonds[layer.best_other]
    return (
        f"layer {layer.layer}: {' and '.join(layer.best_other.faults())}; read so, the bonds are {other.query_key:.2f} "
        f"(q with k) and {other.value_out:.2f} (v with out), as stored {stored.query_key:.2f} and "
        f"{stored.value_out:.2f}; {layer.deviations(other.weaker):.0f} standard deviations"
    )


def _unsure_point(unsure: list[LayerArrangement], layers: tuple[LayerArrangement, ...]) -> Point:
    which = _layers([layer.layer for layer in unsure], len(layers))
    details = tuple(
        f"layer {layer.layer}: q with k {layer.stored.query_key:.2f}, v with out {layer.stored.value_out:.2f}, "
        f"no pair {layer.stored.common:.2f}"
        for layer in unsure
    )
    text = (
        f"{which[0].upper() + which[1:]}: attention's matrices do not show, in any order, the bonds that training "
        "leaves between them; they are little trained, or do not belong together."
    )
    return Point("arrangement", "warning", text, details)


def _right_point(layers: tuple[LayerArrangement, ...], config: GPTConfig) -> Point:
    weakest = min(layers, key=lambda layer: layer.stored.weaker)
    rival = max(layer.bonds[layer.best_other].weaker for layer in layers)
    text = (
        f"In every layer q, k, v and attention's output stand as they were trained: the bonds between them are "
        f"{weakest.stored.weaker:.2f} and more, {weakest.deviations(weakest.stored.weaker):.0f} standard deviations "
        f"from chance (from {SURE:.0f} on it counts); read in any other order or transposed, {max(rival, 0.0):.2f} at "
        "the most."
    )
    ratios = [layer.bias_ratio for layer in layers if layer.bias_ratio is not None]
    if not config.qkv_bias:
        about = "which of q and k is which, only a run can tell: there are no biases"
    elif all(layer.exchanged is False for layer in layers):
        about = f"q and k are told apart by their biases: that of q is {min(ratios):.0f} times as large or more"
    else:
        unclear = _layers([layer.layer for layer in layers if layer.exchanged is None], len(layers))
        about = f"which of q and k is which, the biases of {unclear} do not tell; a run can"
    return Point("arrangement", "passed", text, (about,))


def _layers(numbers: Sequence[int], total: int) -> str:
    if len(numbers) == total and total > 1:
        return "all layers"
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _heads_point(widths: tuple[HeadWidth, ...], config: GPTConfig) -> Point:
    if len(widths) < 2:
        return Point("heads", "not applicable", "The weights do not tell how many heads this model has.")
    own, best = widths[0], max(widths[1:], key=lambda width: width.contrast)
    measured = f"{own.inside:.2f} inside a head, {own.across:.2f} across the edge of two"
    if best.contrast > own.contrast + 0.1:
        text = (
            f"The config says {config.n_heads} heads of {own.width} numbers, but the bonds end at the edges of "
            f"{config.emb_dim // best.width} heads of {best.width}: {best.inside:.2f} inside, {best.across:.2f} across."
        )
        return Point("heads", "failed", text, (f"with {config.n_heads} heads: {measured}",))
    if own.contrast < best.contrast + 0.05:
        text = f"The weights do not tell whether there are {config.n_heads} heads: the bonds are {measured}."
        return Point("heads", "warning", text)
    text = f"{config.n_heads} heads of {own.width} numbers: the bonds end at their edges ({measured})."
    return Point("heads", "passed", text)


# --------------------------------------------------------------------------------------------------------------
# Identity
# --------------------------------------------------------------------------------------------------------------


def _identity(found: Identity) -> Point:
    if found.is_official:
        return Point("identity", "passed", str(found))
    if found.verdict == "unknown":
        return Point("identity", "not applicable", str(found))
    few = found.differing and 2 * len(found.differing) < found.n_tensors
    more = "" if few else " A model that was trained further, or stored with fewer digits, differs so."
    return Point("identity", "failed" if few else "warning", str(found) + more, found.differing if few else ())
