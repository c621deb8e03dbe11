"""Colours of the daily page: how hot a debiased PSI is."""

from __future__ import annotations

import math
from itertools import pairwise

STOPS = (
    (0.0, (243, 246, 250)),
    (0.5, (214, 228, 243)),
    (1.0, (253, 224, 142)),
    (2.0, (240, 133, 68)),
    (3.0, (198, 40, 40)),
    (4.0, (96, 10, 32)),
)
"""Colours along :func:`_level`: blue below ``warn``, yellow at it, orange at ``severe``, red far above."""


def colour(value: float, warn: float, severe: float) -> str:
    """The heat of a debiased PSI, the same for equal multiples of the thresholds.

    >>> colour(0.0, 0.1, 0.25), colour(0.1, 0.1, 0.25), colour(99.0, 0.1, 0.25)
    ('#f3f6fa', '#fde08e', '#600a20')
    """
    at = _level(value, warn, severe)
    for (low, first), (high, second) in pairwise(STOPS):
        if at <= high:
            part = (at - low) / (high - low)
            return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(first, second, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*STOPS[-1][1])


def _level(value: float, warn: float, severe: float) -> float:
    """0 at nothing, 1 at ``warn``, 2 at ``severe``, then one more for every four times as much."""
    if value <= warn:
        return max(0.0, value) / warn
    if value <= severe:
        return 1 + math.log(value / warn) / math.log(severe / warn)
    return 2 + math.log(value / severe) / math.log(4)
