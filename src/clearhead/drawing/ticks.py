"""Where the ticks of an axis go, and what is written at them."""

from __future__ import annotations

import math
from fractions import Fraction

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return evenly spaced round numbers from at or below `low` to at or above `high`.

    Args:
        low, high: the range of the values; if they are equal, or differ by rounding alone, the range is widened.
        about: how many intervals to aim for.
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-300):
        margin = size / 10 if size > 1e-300 else 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / about
    power = Fraction(10) ** math.floor(math.log10(raw))
    distance = next(power * m for m in (1, 2, Fraction(5, 2), 5, 10) if power * m >= raw * 0.999)
    # The quotients are rounded, so they only locate the values roughly; each tick is the float nearest its fraction.
    first, last = (round(Fraction(value) / distance) for value in (low, high))
    first -= float(first * distance) > low
    last += float(last * distance) < high
    return [float(n * distance) for n in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return exponents of ten from at or below `low` to at or above `high`, which are exponents of ten too.

    They are whole exponents, or those of 1, 2, 5, 10, 20, ... if the range is under two factors of ten.
    """
    if high - low >= 2:
        first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
        step = next((step for step in (1, 2, 5, 10, 20, 50) if step * 5 >= last - first), 100)
        return [float(n * step) for n in range(first // step, max(-(-last // step), first // step + 1) + 1)]
    candidates = [power + math.log10(m) for power in range(math.floor(low) - 1, math.ceil(high) + 2) for m in (1, 2, 5)]
    first = max(n for n, exponent in enumerate(candidates) if exponent <= low + 1e-9)
    last = min(n for n, exponent in enumerate(candidates) if exponent >= high - 1e-9 and n > first)
    return candidates[first : last + 1]


def tick_text(value: float, distance: float) -> str:
    """Return a tick's number with as many decimals as the distance between two ticks needs."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.6g}k"
    digits = max(0, -math.floor(math.log10(distance) + 1e-9)) if distance < 1 else 0
    if distance < 1 and abs(distance * 10**digits - round(distance * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:.{digits}f}" if digits or float(value).is_integer() else f"{value:g}"


def power_text(exponent: float) -> str:
    """Return ten to a whole exponent, such as `10⁻⁵`."""
    return f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
