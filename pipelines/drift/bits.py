"""Numbers on the bit histogram: the upper 16 bits of the scaled float32 (sign, exponent, 7 bits of mantissa) are the bin.

Bins depend on no reference, are narrow near the frozen median, and hold 1e30 as well as 1e-30. :func:`histogram`
is the definition; :func:`count` is the same in fewer passes, for millions of values.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray

from pipelines.drift.spec import Scale

BINS = 1 << 16
BATCH = 1 << 18
"""Values counted at once: many enough that 65,536 counters are soon paid for."""
CHUNK = 1 << 15
"""Values scaled at once, in buffers that stay in the processor's cache."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Missing = tuple[int, int, int, int]
"""``null, nan, above (+inf), below (-inf)``: values that are in no bin."""

_LARGEST = float(np.finfo(np.float32).max)
_SIGN, _INFINITY = 0x8000, 0x7F80
_UPPER = slice(1, None, 2) if sys.byteorder == "little" else slice(0, None, 2)


def histogram(values: Floats, scale: Scale) -> Ints:
    """Bin of every value ``[n]``, none of them NaN or infinite: 0..65535, ascending with the value.

    >>> histogram(np.array([-1e300, 0.0, 1.0, 1.004, 1e300]), Scale(0.0, 1.0)).tolist()
    [128, 32768, 49024, 49024, 65407]
    """
    with np.errstate(over="ignore"):
        scaled = (values - scale.loc) * scale.scale
    # Beyond float32 is the outermost bin; adding zero turns -0.0 into 0.0.
    bits: Ints = (np.clip(scaled, -_LARGEST, _LARGEST).astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.int64) >> 16
    return np.where(bits < _SIGN, bits + _SIGN, BINS - 1 - bits)


def bounds(bins: Ints, scale: Scale) -> tuple[Floats, Floats]:
    """Smallest and largest value that each bin can hold, in the field's units."""
    bits = np.where(bins >= _SIGN, bins - _SIGN, BINS - 1 - bins).astype(np.uint32) << 16
    near, far = (bits.view(np.float32).astype(np.float64), (bits | 0xFFFF).view(np.float32).astype(np.float64))
    return np.minimum(near, far) / scale.scale + scale.loc, np.maximum(near, far) / scale.scale + scale.loc


class Scratch(threading.local):
    """Buffers of one thread, made once: 2.5 MB."""

    def __init__(self) -> None:
        self.scaled = np.empty(CHUNK)
        self.short = np.empty(CHUNK, np.float32)
        self.codes = np.empty(BATCH, np.int64)


_scratch = Scratch()


def count(values: Floats, scale: Scale, into: Ints) -> Missing:
    """Add the values ``[n]`` to the counts ``[65536]`` by ascending bin; returns how many are NaN or infinite, and so in no bin.

    >>> counts = np.zeros(BINS, np.int64)
    >>> count(np.array([1.0, 1.0, -2.0, np.nan, np.inf]), Scale(0.0, 1.0), counts)
    (0, 1, 1, 0)
    >>> np.flatnonzero(counts).tolist(), counts[counts > 0].tolist()
    ([16383, 49024], [1, 2])
    """
    nan, above, below = 0, 0, 0
    for start in range(0, values.size, BATCH):
        part = values[start : start + BATCH]
        raw = _raw(part, scale)
        if raw[_SIGN] or raw[_INFINITY] or raw[_INFINITY | _SIGN]:
            # Signed zeros, infinities, and what is beyond float32: rare, so counted by the definition.
            finite = part[np.isfinite(part)]
            into += np.bincount(histogram(finite, scale), minlength=BINS)
            above += int(np.isposinf(part).sum())
            below += int(np.isneginf(part).sum())
            nan += int(np.isnan(part).sum())
        else:
            nan += int(raw[_INFINITY:_SIGN].sum() + raw[_INFINITY | _SIGN :].sum())
            raw[_INFINITY:_SIGN] = raw[_INFINITY | _SIGN :] = 0
            into[_SIGN:] += raw[:_SIGN]
            into[:_SIGN] += raw[: _SIGN - 1 : -1]
    return 0, nan, above, below


def _raw(values: Floats, scale: Scale) -> Ints:
    """Counts ``[65536]`` of the upper 16 bits of at most ``BATCH`` values, in the order of the bits."""
    codes = _scratch.codes[: values.size]
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, values.size, CHUNK):
            part = values[start : start + CHUNK]
            scaled, short = _scratch.scaled[: part.size], _scratch.short[: part.size]
            np.subtract(part, scale.loc, out=scaled)
            np.multiply(scaled, scale.scale, out=scaled)
            np.copyto(short, scaled, casting="same_kind")
            codes[start : start + CHUNK] = short.view(np.uint16)[_UPPER]
    return np.bincount(codes, minlength=BINS)
