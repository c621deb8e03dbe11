"""How many rows a decision needs."""

from __future__ import annotations

import math

import numpy as np

from pipelines.contracts import Interval
from pipelines.gating.paired import Paired
from pipelines.measures import central, quantile
from pipelines.params import DatasetParams

SIMULATED: frozenset[str] = frozenset({"roc_auc", "pr_auc", "macro_f1"})
"""Metrics that are no function of means of rows: how their interval narrows is seen by resampling."""
MOST = 1024
"""Resampling looks for at most so many times the rows that there are."""
_DRAWS, _STEPS = 200, 6


def rows_needed(lift: float, sd: float, n: int, *, min_lift: float, confidence: float) -> int | None:
    """Further holdout rows after which the interval would leave ``min_lift``, if lift and sd stay as they are.

    A two-sided interval at ``confidence`` has half-width z * sd / sqrt(N) with z the normal quantile at
    (1 + confidence) / 2; it excludes min_lift when that is below |lift - min_lift|, so

        N = ceil((z * sd / |lift - min_lift|) ** 2),   further rows = max(1, N - n).

    None if the estimate lies on min_lift: no number of rows would decide.
    """
    distance = abs(lift - min_lift)
    z = quantile((1 + confidence) / 2)
    if distance == 0 or not math.isfinite(z * sd / distance):
        return None
    return max(1, math.ceil((z * sd / distance) ** 2) - n)


def rows_by_width(lift: Interval, n: int, min_lift: float) -> int | None:
    """The same by the interval that there is, if its half-width towards ``min_lift`` falls as ``1 / sqrt(N)``."""
    distance = abs(lift.value - min_lift)
    half = lift.high - lift.value
    if lift.value > min_lift:
        half = lift.value - lift.low
    if distance == 0 or not math.isfinite(half / distance):
        return None
    return max(1, math.ceil(round(n * (half / distance) ** 2, 6)) - n)


def rows_by_resampling(pair: Paired, *, min_lift: float, confidence: float, seed: int) -> int | None:
    """The same by resampling the observed pairs at larger sizes: the first whose central lifts leave ``min_lift``.

    Sizes double, then the last step is halved ``6`` times. None if ``MOST`` times the rows would not do.
    """
    n = len(pair.influence)

    def leaves(rows: int) -> bool:
        drawn = pair.resample(np.random.default_rng(seed), _DRAWS, rows)
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return False
        low, high = central(drawn, confidence)
        return low > min_lift if pair.lift > min_lift else high < min_lift

    rows = n
    while not leaves(rows):
        rows *= 2
        if rows > MOST * n:
            return None
    few, enough = rows // 2, rows
    for _ in range(_STEPS if rows > n else 0):
        middle = (few + enough) // 2
        few, enough = (few, middle) if leaves(middle) else (middle, enough)
    return max(1, enough - n)


def largest_holdout(params: DatasetParams) -> int | None:
    """Rows that a holdout can have at most because of ``max_rows``; None without that limit."""
    if params.max_rows is None:
        return None
    return round(params.max_rows * params.holdout_share)


def max_rows_for(holdout: int, params: DatasetParams) -> int:
    """A ``max_rows`` that lets a holdout have so many rows."""
    return math.ceil(round(holdout / params.holdout_share, 6))
