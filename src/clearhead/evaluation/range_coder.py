"""An arithmetic coder over integer frequencies (Witten, Neal, Cleary 1987), with 32 bits of state."""

from __future__ import annotations

_BITS = 32
_WHOLE = 1 << _BITS
_HALF = _WHOLE >> 1
_QUARTER = _WHOLE >> 2
MAX_TOTAL = _QUARTER
"""The largest sum of frequencies that the state can tell apart."""


class RangeEncoder:
    """Write symbols, each as its interval among the frequencies, into bytes."""

    def __init__(self) -> None:
        self._low, self._high, self._pending = 0, _WHOLE - 1, 0
        self._byte, self._filled = 0, 0
        self._out = bytearray()

    def encode(self, start: int, size: int, total: int) -> None:
        """Add a symbol.

        Args:
            start: the sum of the frequencies before it.
            size: its frequency, at least 1.
            total: the sum of all frequencies, at most `MAX_TOTAL`.
        """
        span = self._high - self._low + 1
        self._high = self._low + span * (start + size) // total - 1
        self._low += span * start // total
        while True:
            if self._high < _HALF:
                self._write(0)
            elif self._low >= _HALF:
                self._write(1)
                self._low -= _HALF
                self._high -= _HALF
            elif self._low >= _QUARTER and self._high < _HALF + _QUARTER:
                self._pending += 1
                self._low -= _QUARTER
                self._high -= _QUARTER
            else:
                return
            self._low, self._high = 2 * self._low, 2 * self._high + 1

    def finish(self) -> bytes:
        """Return everything that was written."""
        self._pending += 1
        self._write(0 if self._low < _QUARTER else 1)
        while self._filled:
            self._put(0)
        return bytes(self._out)

    def _write(self, bit: int) -> None:
        self._put(bit)
        for _ in range(self._pending):
            self._put(1 - bit)
        self._pending = 0

    def _put(self, bit: int) -> None:
        self._byte = self._byte << 1 | bit
        self._filled += 1
        if self._filled == 8:
            self._out.append(self._byte)
            self._byte, self._filled = 0, 0


class RangeDecoder:
    """Read back what a `RangeEncoder` wrote.

    Args:
        data: its bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._low, self._high, self._value = 0, _WHOLE - 1, 0
        for _ in range(_BITS):
            self._value = self._value << 1 | self._bit()

    def target(self, total: int) -> int:
        """Return a number in the interval of the next symbol, from 0 to total - 1."""
        span = self._high - self._low + 1
        return ((self._value - self._low + 1) * total - 1) // span

    def consume(self, start: int, size: int, total: int) -> None:
        """Go on after the symbol with this interval."""
        span = self._high - self._low + 1
        self._high = self._low + span * (start + size) // total - 1
        self._low += span * start // total
        while True:
            if self._high < _HALF:
                pass
            elif self._low >= _HALF:
                self._low -= _HALF
                self._high -= _HALF
                self._value -= _HALF
            elif self._low >= _QUARTER and self._high < _HALF + _QUARTER:
                self._low -= _QUARTER
                self._high -= _QUARTER
                self._value -= _QUARTER
            else:
                return
            self._low, self._high = 2 * self._low, 2 * self._high + 1
            self._value = self._value << 1 | self._bit()

    def _bit(self) -> int:
        byte, bit = divmod(self._at, 8)
        self._at += 1
        return self._data[byte] >> (7 - bit) & 1 if byte < len(self._data) else 0
