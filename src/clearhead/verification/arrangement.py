"""Whether attention's matrices stand as they were trained: a test that needs the weights alone.

No check of shapes sees that a square matrix is transposed, or that queries, keys and values stand in another order.
Training leaves a mark that does. What a head attends to depends on W_q and W_k only through W_q^T W_k, and what it
writes depends on W_v and W_out only through W_out W_v. For two matrices that act only through their product, gradient
descent leaves W_q W_q^T - W_k W_k^T and W_v W_v^T - W_out^T W_out as they were at the start (Du, Hu, Lee 2018,
"Algorithmic Regularization in Learning Deep Homogeneous Models", section 2), and weight decay takes the difference
away, while the products themselves grow. So after training the D x D matrices W_q W_q^T and W_k W_k^T of a head are
alike, and so are W_v W_v^T and W_out^T W_out; and no matrix is like one outside its pair, because
nothing in the model relates the numbering of their rows.

The likeness is measured as the correlation of the entries off the diagonal, over all heads of a layer: the `bond`.
It is near 0 in an untrained model and wherever the numbers are read in another way than they were trained in. What the
four matrices have in common all together is no bond: read transposed, all of them speak of the same embedding. So
a bond counts as far as it exceeds the likeness of the matrices that are no pair.

Query and key change places in this test without a trace. For models with biases there is another mark: a bias on
the keys adds the same to all scores of a query, which softmax does not see, so it is never trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clearhead.config import GPTConfig

SURE = 6.0
"""From how many standard deviations on a bond counts: 6 are met once in a thousand million by chance."""

_RIGHT_RATIO = 3.0  # of the size of the queries' bias to the keys', from which on the two are told apart
_EXCHANGED_RATIO = 1 / 8  # and up to which they stand in each other's place: more is needed to accuse than to agree
_ORDERS = {(0, 1, 2): "", (0, 2, 1): "v stands in the middle of q, k, v", (1, 2, 0): "v stands first of q, k, v"}
_WEAVES = {
    "": "",
    "woven": "q, k and v are woven together head by head",
    "unwoven": "q, k and v were taken apart head by head though they stand one after another",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One way in which a layer's stored attention matrices may be meant.

    Attributes:
        weave: how q, k and v lie in the stored [3 * C, C]: "" one after another, as they should; "woven" head by head,
            as [H, 3, D, C]; "unwoven" as what is left when that is undone where it was not done.
        order: which stored third is q, which k, which v; q and k may be exchanged.
        turned: whether q, k and v are each stored transposed.
        out_turned: whether the output projection is stored transposed.
    """

    weave: str = ""
    order: tuple[int, int, int] = (0, 1, 2)
    turned: bool = False
    out_turned: bool = False

    def faults(self) -> tuple[str, ...]:
        """What is wrong with the stored weights if they are meant so; nothing where they are meant as they stand."""
        found = (
            _WEAVES[self.weave],
            _ORDERS[self.order],
            "q, k and v are transposed" if self.turned else "",
            "attention.out is transposed" if self.out_turned else "",
        )
        return tuple(fault for fault in found if fault)

    def heads(self, qkv: np.ndarray, config: GPTConfig) -> np.ndarray:
        """The stored [3 * C, C] as q, k, v by head, [3, H, D, C]."""
        heads, width = config.n_heads, config.head_dim
        if self.weave:
            shape = (heads, 3, width, -1) if self.weave == "woven" else (3, heads, width, -1)
            qkv = qkv.reshape(shape).swapaxes(0, 1)
        parts = qkv.reshape(3, config.emb_dim, -1)
        if self.turned:
            parts = parts.swapaxes(1, 2)
        return parts[list(self.order)].reshape(3, heads, width, -1)

    def out_heads(self, out: np.ndarray, config: GPTConfig) -> np.ndarray:
        """The stored output projection [C, C] by the head that it reads, [H, D, C]."""
        return (out if self.out_turned else out.T).reshape(config.n_heads, config.head_dim, -1)


AS_STORED = Reading()
"""The way in which the numbers should be meant."""


@dataclass(frozen=True, slots=True)
class Bonds:
    """How alike the two pairs of matrices of a layer are, as correlations from -1 to 1.

    Attributes:
        query_key: of W_q W_q^T and W_k W_k^T.
        value_out: of W_v W_v^T and W_out^T W_out.
        common: the greatest of the same of two that are no pair; 0 where none is above.
    """

    query_key: float
    value_out: float
    common: float

    @property
    def weaker(self) -> float:
        """The smaller of the two, beyond what is common."""
        return min(self.query_key, self.value_out) - self.common

    @property
    def stronger(self) -> float:
        """The greater of the two, beyond what is common."""
        return max(self.query_key, self.value_out) - self.common

    @property
    def mean(self) -> float:
        """The mean of the two, beyond what is common; readings are compared by it."""
        return (self.query_key + self.value_out) / 2 - self.common


@dataclass(frozen=True)
class LayerArrangement:
    """What the weights of one layer say of their arrangement.

    Attributes:
        layer: its number, from 0.
        bonds: by reading.
        entries: how many entries a bond is the correlation of.
        bias_ratio: the size (root of the mean square) of the queries' bias over that of the keys'; None where the
            model has no such bias, or both are zero.
    """

    layer: int
    bonds: Mapping[Reading, Bonds]
    entries: int
    bias_ratio: float | None

    @property
    def stored(self) -> Bonds:
        """The bonds of the weights as they stand."""
        return self.bonds[AS_STORED]

    @cached_property
    def best_other(self) -> Reading:
        """The other reading with the strongest bonds; of equals the one with the fewest faults."""
        others = [reading for reading in self.bonds if reading != AS_STORED]
        return max(others, key=lambda reading: (round(self.bonds[reading].mean, 9), -len(reading.faults())))

    def deviations(self, bond: float) -> float:
        """How many standard deviations a bond lies from 0, by Fisher's transformation."""
        if self.entries < 4:
            return 0.0
        return math.atanh(max(-0.999999, min(0.999999, bond))) * math.sqrt(self.entries - 3)

    @property
    def verdict(self) -> str:
        """`right`; `wrong`, where another reading has both bonds and this one has not; `half`, where one bond of this
        reading is there and the other in none; `unknown` where there are no bonds."""
        stored, other = self.stored, self.bonds[self.best_other]
        if self.deviations(other.weaker) >= SURE and other.mean - stored.mean > 0.25 * other.mean:
            return "wrong"
        if self.deviations(stored.weaker) >= SURE:
            return "right"
        return "half" if self.deviations(stored.stronger) >= 2 * SURE else "unknown"

    @property
    def exchanged(self) -> bool | None:
        """Whether q and k stand in each other's place, by their biases; None where these do not say."""
        if self.bias_ratio is None or _EXCHANGED_RATIO < self.bias_ratio < _RIGHT_RATIO:
            return None
        return self.bias_ratio <= _EXCHANGED_RATIO


def look_at_layer(
    layer: int, qkv: np.ndarray, out: np.ndarray, qkv_bias: np.ndarray | None, config: GPTConfig
) -> LayerArrangement:
    """Measures the bonds of one layer in every reading.

    Args:
        layer: its number.
        qkv: [3 * C, C], as the canonical `blocks.{i}.attention.qkv.weight`.
        out: [C, C], as `blocks.{i}.attention.out.weight`.
        qkv_bias: [3 * C], or None.
        config: the model's shape.
    """
    width = config.head_dim
    off_diagonal = np.triu_indices(width, 1)
    outs = {turned: _grams(Reading(out_turned=turned).out_heads(out, config), off_diagonal) for turned in (False, True)}
    bonds = {}
    for weave, turned in itertools.product(_WEAVES, (False, True)):
        heads = Reading(weave=weave, turned=turned).heads(qkv, config)
        grams = [_grams(part, off_diagonal) for part in heads]
        among = {frozenset(pair): _correlation(grams[pair[0]], grams[pair[1]]) for pair in ((0, 1), (0, 2), (1, 2))}
        for out_turned, out_gram in outs.items():
            with_out = [_correlation(gram, out_gram) for gram in grams]
            for order in _ORDERS:
                bonds[Reading(weave, order, turned, out_turned)] = _bonds(order, among, with_out)
    entries = config.n_heads * width * (width - 1) // 2
    return LayerArrangement(layer, bonds, entries, _bias_ratio(qkv_bias))


def _bonds(order: tuple[int, int, int], among: Mapping[frozenset[int], float], with_out: list[float]) -> Bonds:
    """The bonds where q, k and v are these thirds, from the likeness of every two and of each with the output."""
    query, key, value = order
    strangers = (
        among[frozenset((query, value))],
        among[frozenset((key, value))],
        with_out[query],
        with_out[key],
    )
    return Bonds(among[frozenset((query, key))], with_out[value], max(0.0, *strangers))


def _grams(heads: np.ndarray, entries: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The chosen entries of W W^T for each head's W, one after another: [H, D, C] to [H * n]."""
    return (heads @ heads.swapaxes(1, 2))[:, *entries].ravel()


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, in float64; 0 where one of the two is empty, does not vary, or holds what is no number."""
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
    """How well one width of a head fits the bonds.

    Attributes:
        width: numbers per head (D).
        inside: the mean bond over layers of entries between the two halves of such a head.
        across: and of entries between neighbouring heads.
    """

    width: int
    inside: float
    across: float

    @property
    def contrast(self) -> float:
        """How far the bond falls at the edge of a head; greatest at the width that the model was trained with."""
        return self.inside - self.across


def head_widths(layers: Iterator[tuple[np.ndarray, np.ndarray]], config: GPTConfig) -> tuple[HeadWidth, ...]:
    """How well each width of a head fits; state dicts do not say it, and no shape depends on it.

    Args:
        layers: qkv [3 * C, C] and out [C, C] of each layer.
        config: the model's shape.

    Returns:
        The config's own width first, then the others from narrow to wide; nothing where it cannot be told.
    """
    size = config.emb_dim
    # One head of the whole width has no edge inside, and a head of an odd width no halves: neither can be compared.
    widths = [width for width in range(4, size, 2) if size % width == 0]
    candidates = sorted(widths, key=lambda width: width != config.head_dim) if config.head_dim in widths else []
    found: dict[int, list[tuple[float, float]]] = {width: [] for width in candidates}
    for qkv, out in layers:
        query, key, value = np.split(qkv, 3)
        for one, other in ((query, key), (value, out.T)):
            grams = one @ one.T, other @ other.T
            for width in candidates:
                found[width].append(_inside_and_across(grams, width))
    return tuple(HeadWidth(width, *np.mean(pairs, axis=0).tolist()) for width, pairs in found.items() if pairs)


def _inside_and_across(grams: tuple[np.ndarray, np.ndarray], width: int) -> tuple[float, float]:
    """The bond between the halves of heads of this width, and between the neighbouring halves of two heads."""
    half = width // 2

    def entries(first: int) -> list[np.ndarray]:
        starts = range(first, len(grams[0]) - width + 1, width)
        return [np.concatenate([gram[s : s + half, s + half : s + width].ravel() for s in starts]) for gram in grams]

    return _correlation(*entries(0)), _correlation(*entries(half))


def arrangements(
    read: Callable[[str], np.ndarray], config: GPTConfig, advance: Callable[[int], None] = lambda layers: None
) -> tuple[LayerArrangement, ...]:
    """Looks at every layer of a model, one in memory at a time.

    Args:
        read: gives a tensor by its canonical name.
        config: the model's shape.
        advance: is told after each layer.
    """
    found = []
    for layer in range(config.n_layers):
        prefix = f"blocks.{layer}.attention."
        bias = read(prefix + "qkv.bias") if config.qkv_bias else None
        found.append(look_at_layer(layer, read(prefix + "qkv.weight"), read(prefix + "out.weight"), bias, config))
        advance(1)
    return tuple(found)
