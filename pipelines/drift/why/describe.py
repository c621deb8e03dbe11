"""What moved, in the field's own terms: medians and shares of two columns of counts, for people to read."""

from __future__ import annotations

import math

import numpy as np

from pipelines.drift.profile.bits import bounds
from pipelines.drift.profile.counts import Column
from pipelines.drift_report import CategoryChange, NumberChange
from pipelines.fields import Scale


def describe(feature: str, before: Column, now: Column, scale: Scale | None) -> NumberChange | CategoryChange | None:
    """The two sides of one feature; None if one of them has no values.

    Quartiles of a number are each the roundest number in its bin (bins are at most 0.8% of a scaled value wide).

    >>> day = Column(np.array([0, 1]), np.array([30, 10]), vocabulary=("web", "shop"))
    >>> describe("channel", day, Column(np.array([0, 1]), np.array([10, 30]), vocabulary=("web", "shop")), None)
    CategoryChange(feature='channel', kind='category', value='web', before=0.75, now=0.25)
    """
    if not before.n or not now.n:
        return None
    if before.vocabulary is not None:
        return _category(feature, before, now, before.vocabulary)
    if scale is None:
        return None
    return NumberChange(feature=feature, before=_quartiles(before, scale), now=_quartiles(now, scale))


def _category(feature: str, before: Column, now: Column, words: tuple[str, ...]) -> CategoryChange:
    was, became = (
        np.bincount(column.bins, weights=column.counts, minlength=len(words) + 1) / column.n for column in (before, now)
    )
    # Of values that changed by the same, rounding aside, the first: of a share of missing values the missing ones.
    most = int(np.argmax(np.abs(became - was).round(12)))
    value = words[most] if most < len(words) else None
    return CategoryChange(feature=feature, value=value, before=float(was[most]), now=float(became[most]))


def _quartiles(column: Column, scale: Scale) -> tuple[float, float, float]:
    at = np.searchsorted(np.cumsum(column.counts), np.array([0.25, 0.5, 0.75]) * column.n)
    bins = zip(*bounds(column.bins[at], scale), strict=True)
    low, middle, high = (roundest(float(first), float(last), 1 / scale.scale) for first, last in bins)
    return low, middle, high


def roundest(low: float, high: float, spread: float = 1.0) -> float:
    """The number with the fewest decimals (powers of ten count as well) within ``[low, high]``.

    The bounds are taken give or take a millionth of a millionth. ``spread`` is that of the field: numbers of a small
    scale need more decimals.

    >>> roundest(49.8, 50.3), roundest(83190.0, 83260.0), roundest(-1e-36, 3e-36), roundest(0.4961, 0.4989)
    (50.0, 83200.0, 0.0, 0.497)
    >>> roundest(4.961e-15, 4.989e-15, 1e-15)
    4.97e-15
    """
    middle = (low + high) / 2
    unit = min(1.0, spread)
    slack = 1e-12 * max(unit, abs(middle))
    tried = (round(middle, digits) for digits in range(-6, 13 - math.floor(math.log10(unit))))
    return next((value for value in tried if low - slack <= value <= high + slack), middle)
