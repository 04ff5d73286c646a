"""The checks `arrangement` and `heads`: what `attention_order` measured, as verdicts in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clearhead.config import GPTConfig
from clearhead.utils.progress import ByteProgress
from clearhead.verification.attention_order import (
    SIGMA_THRESHOLD,
    HeadWidth,
    LayerOrder,
    measure_head_widths,
    measure_layers,
)
from clearhead.verification.checks import Check
from clearhead.weights.plan import ConversionPlan


def check_attention(plan: ConversionPlan, trained: bool, broken: bool) -> Iterator[Check]:
    """Yield the checks `arrangement` and `heads`.

    Args:
        plan: gives the weights by their canonical names.
        trained: whether the model was trained at all.
        broken: whether the weights contain NaN or infinity.
    """
    if broken or not trained:
        why = "the weights contain NaN or infinity" if broken else "an untrained model has no structure to compare"
        for name in ("arrangement", "heads"):
            yield Check(name, "not applicable", f"Not checked: {why}.")
        return
    config = plan.config
    with ByteProgress("Comparing attention's matrices", 16 * config.emb_dim**2 * config.n_layers) as progress:
        layers = measure_layers(plan.read, config, lambda done: progress.advance(done * 16 * config.emb_dim**2))
    yield _arrangement(layers, config)
    if all(layer.verdict == "right" for layer in layers):
        yield _heads(measure_head_widths(_matrices(plan), config), config)
    else:
        yield Check("heads", "not applicable", "Not checked: the arrangement must be right first.")


def _matrices(plan: ConversionPlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for layer in range(plan.config.n_layers):
        prefix = f"blocks.{layer}.attention."
        yield plan.read(prefix + "qkv.weight"), plan.read(prefix + "out.weight")


def _arrangement(layers: tuple[LayerOrder, ...], config: GPTConfig) -> Check:
    name = "arrangement"
    wrong = [layer for layer in layers if layer.verdict == "wrong"]
    if wrong:
        which = _layer_list([layer.layer for layer in wrong], len(layers))
        faults = " and ".join(wrong[0].best_alternative.faults())
        same = all(layer.best_alternative == wrong[0].best_alternative for layer in wrong)
        text = f"{which[0].upper() + which[1:]}: {faults if same else 'attention is not stored as it was trained'}."
        return Check(name, "failed", text, tuple(map(_describe_wrong, wrong)))
    exchanged = [layer.layer for layer in layers if layer.verdict == "right" and layer.exchanged]
    if exchanged:
        text = (
            f"{_layer_list(exchanged, len(layers)).capitalize()}: q and k seem to be exchanged; a bias on the keys "
            "has no effect and stays untrained, but here it is the larger one."
        )
        ratios = (f"layer {n}: the bias of k is {1 / layers[n].bias_ratio:.1f} times that of q" for n in exchanged)  # type: ignore[operator]
        return Check(name, "failed", text, tuple(ratios))
    unsure = [layer for layer in layers if layer.verdict != "right"]
    if unsure:
        return _unsure(unsure, layers)
    return _right(layers, config)


def _describe_wrong(layer: LayerOrder) -> str:
    stored, other = layer.stored, layer.correlations[layer.best_alternative]
    return (
        f"layer {layer.layer}: {' and '.join(layer.best_alternative.faults())}; interpreted so, the gram correlations "
        f"are {other.query_key:.2f} (q with k) and {other.value_out:.2f} (v with out), as stored "
        f"{stored.query_key:.2f} and {stored.value_out:.2f}; {layer.sigmas(other.weaker):.0f} standard deviations"
    )


def _unsure(unsure: list[LayerOrder], layers: tuple[LayerOrder, ...]) -> Check:
    which = _layer_list([layer.layer for layer in unsure], len(layers))
    details = tuple(
        f"layer {layer.layer}: q with k {layer.stored.query_key:.2f}, v with out {layer.stored.value_out:.2f}, "
        f"not a pair {layer.stored.unpaired:.2f}; needed: {layer.needed + layer.stored.unpaired:.2f}"
        for layer in unsure
    )
    text = (
        f"{which[0].upper() + which[1:]}: undecided. The gram correlations that training leaves between attention's "
        "matrices are too weak in every order, as in small or briefly trained models."
    )
    return Check("arrangement", "warning", text, details)


def _right(layers: tuple[LayerOrder, ...], config: GPTConfig) -> Check:
    weakest = min(layers, key=lambda layer: layer.stored.weaker)
    strongest_other = max(layer.correlations[layer.best_alternative].weaker for layer in layers)
    text = (
        "In every layer q, k, v and attention's output projection are stored as they were trained: their gram "
        f"correlations are at least {weakest.stored.weaker:.2f}, "
        f"{weakest.sigmas(weakest.stored.weaker):.0f} standard deviations from chance (the threshold is "
        f"{SIGMA_THRESHOLD:.0f}); in any other order or transposed, at most {max(strongest_other, 0.0):.2f}."
    )
    ratios = [layer.bias_ratio for layer in layers if layer.bias_ratio is not None]
    if not config.qkv_bias:
        about = "without biases, only a run can tell q from k"
    elif all(layer.exchanged is False for layer in layers):
        about = f"the biases tell q from k: the bias of q is at least {min(ratios):.0f} times as large"
    else:
        unclear = _layer_list([layer.layer for layer in layers if layer.exchanged is None], len(layers))
        about = f"the biases of {unclear} do not tell q from k; a run can"
    return Check("arrangement", "passed", text, (about,))


def _layer_list(numbers: Sequence[int], total: int) -> str:
    if len(numbers) == total and total > 1:
        return "all layers"
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _heads(widths: tuple[HeadWidth, ...], config: GPTConfig) -> Check:
    if len(widths) < 2:
        return Check("heads", "not applicable", "The weights do not show how many heads this model has.")
    own, best = widths[0], max(widths[1:], key=lambda width: width.contrast)
    measured = f"{own.within:.2f} within a head, {own.across:.2f} across two"
    if best.contrast > own.contrast + 0.1:
        text = (
            f"The config has {config.n_heads} heads of {own.width} dimensions, but the gram correlations end at the "
            f"edges of {config.emb_dim // best.width} heads of {best.width}: {best.within:.2f} within a head, "
            f"{best.across:.2f} across two."
        )
        return Check("heads", "failed", text, (f"with {config.n_heads} heads: {measured}",))
    if own.contrast < best.contrast + 0.05:
        text = f"The weights do not show whether there are {config.n_heads} heads: gram correlations {measured}."
        return Check("heads", "warning", text)
    text = f"{config.n_heads} heads of {own.width} dimensions: the gram correlations end at their edges ({measured})."
    return Check("heads", "passed", text)
