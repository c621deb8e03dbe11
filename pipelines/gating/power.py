"""How many rows a decision needs."""

from __future__ import annotations

import math

from pipelines.measures import quantile
from pipelines.params import DatasetParams


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


def largest_holdout(params: DatasetParams) -> int | None:
    """Rows that a holdout can have at most because of ``max_rows``; None without that limit."""
    if params.max_rows is None:
        return None
    return round(params.max_rows * params.holdout_share)


def max_rows_for(holdout: int, params: DatasetParams) -> int:
    """A ``max_rows`` that lets a holdout have so many rows."""
    return math.ceil(round(holdout / params.holdout_share, 6))
