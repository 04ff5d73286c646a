"""`verify_weights`: every check that needs the weights only, with NumPy."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clearhead.config import ConfigLike
from clearhead.errors import ConfigError, WeightsError
from clearhead.verification.attention_checks import check_attention
from clearhead.verification.checks import Check, CheckFunction, Context, Verification
from clearhead.verification.file_checks import FileFindings, check_checksums, check_sizes
from clearhead.weights.hub.official import Identity, Official, identify
from clearhead.weights.inspection import ANOMALIES, Inspection, TensorStatistics, inspect_source
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.location import locate
from clearhead.weights.opening import open as open_source
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.source import Source
from clearhead.weights.tensors import TensorInfo


def verify_weights(
    source: str | os.PathLike[str] | Source,
    *,
    layout: str | None = None,
    config: ConfigLike | None = None,
    revision: str | None = None,
    known: Mapping[str, Official] | None = None,
    more_checks: Sequence[CheckFunction] = (),
) -> Verification:
    """Check a model's files and weights. Every weight is read a few times.

    Args:
        source: a folder, a file, the name of a model on the hub, or an opened model.
        layout: the naming scheme, if it cannot be recognized from the files.
        config: the model's shape, or some of its settings, if the files do not record it or record it wrongly.
        revision: the branch, tag or commit of a model on the hub.
        known: the published models to compare with; OpenAI's by default.
        more_checks: further checks, which run in order at the end.

    Returns:
        The results. Broken files are a failed check, not an exception.

    Raises:
        WeightsError: if there is nothing of that name.
        HubError: if a model could not be downloaded.
    """
    if isinstance(source, Source):
        opened = source
    else:
        path = locate(source, revision)  # a missing model is an error, not a failed check
        try:
            opened = dataclasses.replace(open_source(path, layout, config=config), name=str(source))
        except (WeightsError, ConfigError) as error:
            return Verification(str(source), (Check("files", "failed", str(error)),))
    return Verification(opened.name, tuple(_run_checks(opened, known, more_checks)), opened)


def _run_checks(
    source: Source, known: Mapping[str, Official] | None, more_checks: Sequence[CheckFunction]
) -> Iterator[Check]:
    yield _check_files(source)
    yield _check_checksums(source)
    try:
        plan = source.plan()
    except WeightsError as error:
        yield Check("tensors", "failed", str(error))
        return
    yield _check_tensors(source, plan)
    inspection = inspect_source(source)
    numbers = _check_numbers(inspection)
    yield numbers
    yield _check_statistics(inspection, plan)
    broken, trained = numbers.verdict == "failed", not inspection.untrained
    yield from check_attention(plan, trained, broken)
    identity = identify(source, known)
    yield _check_identity(identity)
    context = Context(source, trained, identity, broken)
    for check in more_checks:
        yield check(context)


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


def _check_files(source: Source) -> Check:
    return _from_findings("files", check_sizes(source.file), "Every file is present and has the expected size.")


def _check_checksums(source: Source) -> Check:
    found = check_checksums(source.file)
    if not (found.errors or found.confirmed):
        text = found.warnings[0] if found.warnings else f"files of this format ({source.path.name}) carry no checksums"
        return Check("checksums", "not applicable", text[0].upper() + text[1:] + ".")
    return _from_findings("checksums", found, "Every checksum that the files carry matches.")


def _from_findings(name: str, found: FileFindings, text: str) -> Check:
    if found.errors:
        count = f" ({len(found.errors)} errors)" if len(found.errors) > 1 else ""
        return Check(name, "failed", found.errors[0] + count, found.errors[1:])
    return Check(name, "warning" if found.warnings else "passed", text, (*found.warnings, *found.confirmed))


# --------------------------------------------------------------------------------------------------------------
# Tensors and their numbers
# --------------------------------------------------------------------------------------------------------------


def _check_tensors(source: Source, plan: ConversionPlan) -> Check:
    sources = {part.source for step in plan.steps for part in step.slices}
    parameters = sum(TensorInfo(shape, "float32").size for shape in plan.targets.values())
    text = (
        f"{len(sources)} stored tensors ({LAYOUTS[source.layout].title} names) fill all {len(plan.targets)} tensors of "
        f"the model, {parameters:,} parameters, with matching shapes; "
        + (f"{len(plan.ignored)} more are ignored for a known reason." if plan.ignored else "none is left over.")
    )
    zeros = [step for step in plan.steps if not step.slices]
    details = [f"{len(zeros)} biases that the file omits are zero"] if zeros else []
    details += [f"{count} not used: {reason}" for reason, count in Counter(plan.ignored.values()).items()]
    return Check("tensors", "passed", text, tuple(details))


def _check_numbers(found: Inspection) -> Check:
    anomalies = found.anomalies()
    details = tuple(f"{ANOMALIES[kind]} {span.label}" for kind, spans in anomalies.items() for span in spans)
    if anomalies.keys() & {"nan", "infinite"}:
        n = sum(tensor.nan + tensor.infinite for tensor in found.tensors)
        return Check("numbers", "failed", f"{n:,} of the stored weights are NaN or infinite.", details)
    if anomalies:
        text = "Every weight is finite, but some tensors repeat a single value, which training does not produce."
        return Check("numbers", "warning", text, details)
    if found.untrained:
        text = "Untrained: all norm weights are one and all biases are zero, as in a new model."
        return Check("numbers", "warning", text)
    return Check("numbers", "passed", "Every weight is finite, and no tensor repeats a single value.")


@dataclass(frozen=True)
class _Range:
    """The range of mean and standard deviation that trained GPT-2s show for one kind of tensor, with a wide margin."""

    lowest_mean: float
    highest_mean: float
    lowest_std: float
    highest_std: float


# Every model that Clearhead was tried on lies inside these bounds by a factor of at least four. They catch weights that
# were decoded wrongly (another byte order, dtype or offset) or scaled, and nothing else.
_MATRIX = _Range(-0.5, 0.5, 1e-3, 3.0)
_NORM = _Range(1e-3, 100.0, 0.0, 50.0)
_BIAS = _Range(-20.0, 20.0, 0.0, 50.0)


def _expected_range(target: str) -> _Range:
    if target.endswith(".bias"):
        return _BIAS
    return _NORM if "norm" in target else _MATRIX


def _check_statistics(found: Inspection, plan: ConversionPlan) -> Check:
    by_name = {tensor.name: tensor for tensor in found.tensors}
    expected = {part.source: _expected_range(step.target) for step in plan.steps for part in step.slices}
    outside = tuple(
        words
        for name, bounds in expected.items()
        # In a new model the projections into the residual stream may be zero.
        if not (found.untrained and by_name[name].zero) and (words := _out_of_range(by_name[name], bounds))
    )
    if outside:
        text = f"{len(outside)} of {len(expected)} tensors are far outside the range of trained GPT-2s."
        return Check("statistics", "failed", text, outside)
    if found.untrained:
        text = "The mean and standard deviation of every tensor are those of a new model."
        return Check("statistics", "not applicable", text)
    text = f"The mean and standard deviation of all {len(expected)} tensors are in the range of trained GPT-2s."
    return Check("statistics", "passed", text)


def _out_of_range(tensor: TensorStatistics, expected: _Range) -> str:
    """Describe a mean or standard deviation outside the expected range; return "" if both are inside."""
    mean, std = tensor.mean, tensor.std
    if mean is None or std is None:  # the check of the numbers reports these
        return ""
    if tensor.zero and expected.lowest_std > 0:
        return f"{tensor.name}: only zeros"
    if not expected.lowest_mean <= mean <= expected.highest_mean:
        return f"{tensor.name}: mean {mean:.3g}, expected {expected.lowest_mean:g} to {expected.highest_mean:g}"
    if not expected.lowest_std <= std <= expected.highest_std:
        low, high = expected.lowest_std, expected.highest_std
        return f"{tensor.name}: standard deviation {std:.3g}, expected {low:g} to {high:g}"
    return ""


# --------------------------------------------------------------------------------------------------------------
# Identity
# --------------------------------------------------------------------------------------------------------------


def _check_identity(found: Identity) -> Check:
    if found.is_official:
        return Check("identity", "passed", str(found))
    if found.verdict == "unknown":
        return Check("identity", "not applicable", str(found))
    few = found.differing and 2 * len(found.differing) < found.n_tensors
    more = "" if few else " Further training, or storage at a lower precision, has this effect."
    return Check("identity", "failed" if few else "warning", str(found) + more, found.differing if few else ())
