"""Which of many rows are looked at: evenly spread, and never in step with a pattern that the rows themselves have."""

from __future__ import annotations

from math import gcd

GOLDEN = 0.6180339887498949


def stride(rows: int) -> int:
    """A step ``s`` such that ``n * s % rows < most`` holds for ``most`` of the positions ``n`` below ``rows``.

    It is the one next to the golden section of ``rows`` that shares no factor with it: positions that are chosen lie
    evenly, and of every period of a pattern (days, classes in turn) about as many as of all (Knuth, The Art of Computer
    Programming 3, section 6.4).

    >>> [n for n in range(20) if n * stride(20) % 20 < 5]
    [0, 8, 11, 14, 17]
    """
    step = max(1, round(rows * GOLDEN))
    while gcd(step, rows) > 1:
        step += 1
    return step
