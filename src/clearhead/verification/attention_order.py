"""Infer from the weights alone whether attention's matrices are stored in the order and orientation of training.

A check of shapes does not notice that a square matrix is transposed, or that queries, keys and values are stored in
another order. Training leaves a mark that does. What a head attends to depends on W_q and W_k only through W_q^T W_k,
and what it writes depends on W_v and W_out only through W_out W_v. For two matrices that act only through their
product, gradient descent conserves W_q W_q^T - W_k W_k^T and W_v W_v^T - W_out^T W_out (Du, Hu, Lee 2018, "Algorithmic
Regularization in Learning Deep Homogeneous Models", section 2), and weight decay shrinks the difference, while the
products themselves grow. After training, the D x D Gram matrices W_q W_q^T and W_k W_k^T of a head are therefore
similar, and so are W_v W_v^T and W_out^T W_out. Matrices from different pairs are not, because nothing in the model
relates the numbering of their rows.

Similarity is measured as the correlation of the off-diagonal entries over all heads of a layer: the *gram correlation*.
It is near 0 in an untrained model, and whenever the weights are interpreted in another way than they were trained in.
Similarity that all four matrices share is no evidence: interpreted as transposed, all of them describe the same
embedding. A gram correlation therefore counts only as far as it exceeds the correlations between matrices that are
not a pair.

Exchanging queries and keys leaves no trace in this test. Models with biases carry another mark: a bias on the keys adds
the same amount to all scores of a query, softmax ignores it, and so it is never trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clearhead.config import GPTConfig

SIGMA_THRESHOLD = 6.0
"""Standard deviations from which a gram correlation is significant: chance exceeds 6 once in a billion."""

_RIGHT_RATIO = 3.0  # q bias over k bias, from which q and k are considered to be in order
_EXCHANGED_RATIO = 1 / 8  # and up to which they are considered exchanged: an accusation needs more than an agreement
_ORDERS = {
    (0, 1, 2): "",
    (0, 2, 1): "q, k, v are stored with v in the middle",
    (1, 2, 0): "q, k, v are stored with v first",
}
_INTERLEAVINGS = {
    "": "",
    "interleaved": "q, k and v are interleaved head by head",
    "deinterleaved": "q, k and v were de-interleaved head by head although they were stored one after another",
}


@dataclass(frozen=True, slots=True)
class Interpretation:
    """One way to interpret the attention matrices that a layer stores.

    Attributes:
        interleaving: "" if q, k and v are stored one after another, as they should be; "interleaved" if head by head,
            as [H, 3, D, C]; "deinterleaved" if somebody undid an interleaving that was not there.
        order: which stored third is q, which k, which v, up to an exchange of q and k.
        transposed: whether q, k and v are each stored transposed.
        out_transposed: whether the output projection is stored transposed.
    """

    interleaving: str = ""
    order: tuple[int, int, int] = (0, 1, 2)
    transposed: bool = False
    out_transposed: bool = False

    def faults(self) -> tuple[str, ...]:
        """Return what is wrong with the stored weights under this interpretation, one phrase each."""
        found = (
            _INTERLEAVINGS[self.interleaving],
            _ORDERS[self.order],
            "q, k and v are transposed" if self.transposed else "",
            "attention.out is transposed" if self.out_transposed else "",
        )
        return tuple(fault for fault in found if fault)

    def heads(self, qkv: np.ndarray, config: GPTConfig) -> np.ndarray:
        """Return the stored [3 * C, C] as q, k, v by head, [3, H, D, C]."""
        heads, width = config.n_heads, config.head_dim
        if self.interleaving:
            shape = (heads, 3, width, -1) if self.interleaving == "interleaved" else (3, heads, width, -1)
            qkv = qkv.reshape(shape).swapaxes(0, 1)
        parts = qkv.reshape(3, config.emb_dim, -1)
        if self.transposed:
            parts = parts.swapaxes(1, 2)
        return parts[list(self.order)].reshape(3, heads, width, -1)

    def out_heads(self, out: np.ndarray, config: GPTConfig) -> np.ndarray:
        """Return the stored output projection [C, C] by the head that it reads, [H, D, C]."""
        return (out if self.out_transposed else out.T).reshape(config.n_heads, config.head_dim, -1)


AS_STORED = Interpretation()
"""The interpretation under which the weights are right."""


@dataclass(frozen=True, slots=True)
class GramCorrelations:
    """How similar the two pairs of matrices of a layer are, as correlations from -1 to 1.

    Attributes:
        query_key: between W_q W_q^T and W_k W_k^T.
        value_out: between W_v W_v^T and W_out^T W_out.
        unpaired: the largest correlation between two matrices that are not a pair, at least 0.
    """

    query_key: float
    value_out: float
    unpaired: float

    @property
    def weaker(self) -> float:
        """The smaller of the two pairs' correlations, minus `unpaired`."""
        return min(self.query_key, self.value_out) - self.unpaired

    @property
    def mean(self) -> float:
        """The mean of the two pairs' correlations, minus `unpaired`; interpretations are compared by it."""
        return (self.query_key + self.value_out) / 2 - self.unpaired


@dataclass(frozen=True)
class LayerOrder:
    """The evidence on how the attention weights of one layer are stored.

    Attributes:
        layer: the layer's index.
        correlations: by interpretation.
        entries: the number of entries from which each correlation is computed.
        bias_ratio: the root mean square of the query bias over that of the key bias; None if the model has no such
            bias, or both are zero.
    """

    layer: int
    correlations: Mapping[Interpretation, GramCorrelations]
    entries: int
    bias_ratio: float | None

    @property
    def stored(self) -> GramCorrelations:
        """The correlations of the weights as they are stored."""
        return self.correlations[AS_STORED]

    @cached_property
    def best_alternative(self) -> Interpretation:
        """The other interpretation with the highest correlations; among equals the one with the fewest faults."""
        others = [reading for reading in self.correlations if reading != AS_STORED]
        return max(others, key=lambda reading: (round(self.correlations[reading].mean, 9), -len(reading.faults())))

    def sigmas(self, correlation: float) -> float:
        """Return how many standard deviations a correlation is from 0, by Fisher's transformation."""
        if self.entries < 4:
            return 0.0
        return math.atanh(max(-0.999999, min(0.999999, correlation))) * math.sqrt(self.entries - 3)

    @property
    def needed(self) -> float:
        """The smallest correlation that counts, with this number of entries."""
        return math.tanh(SIGMA_THRESHOLD / math.sqrt(self.entries - 3)) if self.entries > 3 else 1.0

    @property
    def verdict(self) -> str:
        """`right`; `wrong` if another interpretation has both correlations and this one does not; `undecided` if no
        interpretation has both."""
        stored, other = self.stored, self.correlations[self.best_alternative]
        if self.sigmas(other.weaker) >= SIGMA_THRESHOLD and other.mean - stored.mean > 0.25 * other.mean:
            return "wrong"
        if self.sigmas(stored.weaker) >= SIGMA_THRESHOLD:
            return "right"
        return "undecided"

    @property
    def exchanged(self) -> bool | None:
        """Whether q and k are exchanged, judged by their biases; None if the biases do not say."""
        if self.bias_ratio is None or _EXCHANGED_RATIO < self.bias_ratio < _RIGHT_RATIO:
            return None
        return self.bias_ratio <= _EXCHANGED_RATIO


def measure_layer(
    layer: int, qkv: np.ndarray, out: np.ndarray, qkv_bias: np.ndarray | None, config: GPTConfig
) -> LayerOrder:
    """Compute the gram correlations of one layer under every interpretation.

    Args:
        layer: the layer's index.
        qkv: [3 * C, C], the canonical `blocks.{i}.attention.qkv.weight`.
        out: [C, C], `blocks.{i}.attention.out.weight`.
        qkv_bias: [3 * C], or None.
        config: the model's shape.
    """
    width = config.head_dim
    off_diagonal = np.triu_indices(width, 1)
    out_grams = {
        transposed: _grams(Interpretation(out_transposed=transposed).out_heads(out, config), off_diagonal)
        for transposed in (False, True)
    }
    correlations = {}
    for interleaving, transposed in itertools.product(_INTERLEAVINGS, (False, True)):
        heads = Interpretation(interleaving=interleaving, transposed=transposed).heads(qkv, config)
        grams = [_grams(part, off_diagonal) for part in heads]
        among = {frozenset(pair): _correlation(grams[pair[0]], grams[pair[1]]) for pair in ((0, 1), (0, 2), (1, 2))}
        for out_transposed, out_gram in out_grams.items():
            with_out = [_correlation(gram, out_gram) for gram in grams]
            for order in _ORDERS:
                reading = Interpretation(interleaving, order, transposed, out_transposed)
                correlations[reading] = _pair_correlations(order, among, with_out)
    entries = config.n_heads * width * (width - 1) // 2
    return LayerOrder(layer, correlations, entries, _bias_ratio(qkv_bias))


def measure_layers(
    read: Callable[[str], np.ndarray], config: GPTConfig, advance: Callable[[int], None] = lambda layers: None
) -> tuple[LayerOrder, ...]:
    """Measure every layer of a model, with one layer in memory at a time.

    Args:
        read: returns a tensor by its canonical name.
        config: the model's shape.
        advance: is called with 1 after each layer.
    """
    found = []
    for layer in range(config.n_layers):
        prefix = f"blocks.{layer}.attention."
        bias = read(prefix + "qkv.bias") if config.qkv_bias else None
        found.append(measure_layer(layer, read(prefix + "qkv.weight"), read(prefix + "out.weight"), bias, config))
        advance(1)
    return tuple(found)


def _pair_correlations(
    order: tuple[int, int, int], among: Mapping[frozenset[int], float], with_out: list[float]
) -> GramCorrelations:
    """Pick the pairs' correlations for one order of q, k, v.

    Args:
        order: which stored third is q, which k, which v.
        among: the correlation of every two thirds.
        with_out: the correlation of each third with the output projection.
    """
    query, key, value = order
    unpaired = (
        among[frozenset((query, value))],
        among[frozenset((key, value))],
        with_out[query],
        with_out[key],
    )
    return GramCorrelations(among[frozenset((query, key))], with_out[value], max(0.0, *unpaired))


def _grams(heads: np.ndarray, entries: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the chosen entries of W W^T for each head's W: [H, D, C] to [H * n]."""
    products: np.ndarray = heads @ heads.swapaxes(1, 2)  # [H, D, D]
    return products[:, *entries].ravel()


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Pearson's correlation in float64; 0 if an array is empty, constant, or contains NaN or infinity."""
    if not one.size:
        return 0.0
    with np.errstate(all="ignore"):
        one = one.astype(np.float64) - one.mean(dtype=np.float64)
        other = other.astype(np.float64) - other.mean(dtype=np.float64)
        scale = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
        found = float(one @ other) / scale if scale else 0.0
    return found if math.isfinite(found) else 0.0


def _bias_ratio(bias: np.ndarray | None) -> float | None:
    if bias is None:
        return None
    query, key, _ = (math.sqrt(float(np.mean(np.square(part, dtype=np.float64)))) for part in np.split(bias, 3))
    if not (math.isfinite(query) and math.isfinite(key)) or not (query or key):
        return None
    return query / key if key else math.inf


@dataclass(frozen=True, slots=True)
class HeadWidth:
    """How well one head width agrees with the gram correlations.

    Attributes:
        width: the head dimension D.
        within: the mean correlation over layers of Gram entries between the two halves of such a head.
        across: the same for Gram entries between neighbouring heads.
    """

    width: int
    within: float
    across: float

    @property
    def contrast(self) -> float:
        """How far the correlation drops at the edge of a head; largest at the width the model was trained with."""
        return self.within - self.across


def measure_head_widths(layers: Iterator[tuple[np.ndarray, np.ndarray]], config: GPTConfig) -> tuple[HeadWidth, ...]:
    """Measure how well each possible head width agrees with the weights.

    State dicts do not record the number of heads, and no shape depends on it.

    Args:
        layers: qkv [3 * C, C] and out [C, C] of each layer.
        config: the model's shape.

    Returns:
        The config's own width first, then the others from narrow to wide; empty if the widths cannot be compared.
    """
    size = config.emb_dim
    # One head of the whole width has no edge inside, and a head of odd width has no halves: neither can be compared.
    widths = [width for width in range(4, size, 2) if size % width == 0]
    candidates = sorted(widths, key=lambda width: width != config.head_dim) if config.head_dim in widths else []
    found: dict[int, list[tuple[float, float]]] = {width: [] for width in candidates}
    for qkv, out in layers:
        query, key, value = np.split(qkv, 3)
        for one, other in ((query, key), (value, out.T)):
            grams = one @ one.T, other @ other.T
            for width in candidates:
                found[width].append(_within_and_across(grams, width))
    return tuple(HeadWidth(width, *np.mean(pairs, axis=0).tolist()) for width, pairs in found.items() if pairs)


def _within_and_across(grams: tuple[np.ndarray, np.ndarray], width: int) -> tuple[float, float]:
    """Return the correlation between the halves of heads of this width, and between adjacent halves of two heads."""
    half = width // 2

    def entries(first: int) -> list[np.ndarray]:
        starts = range(first, len(grams[0]) - width + 1, width)
        return [np.concatenate([gram[s : s + half, s + half : s + width].ravel() for s in starts]) for gram in grams]

    return _correlation(*entries(0)), _correlation(*entries(half))
