"""The interval of a paired comparison: how much better is the challenger on the same rows, and how sure is that?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pipelines.contracts import Interval
from pipelines.gating.paired import Paired
from pipelines.measures import central, quantile

STRICTER: Mapping[str, float] = {"log_loss": 0.7, "pr_auc": 0.4, "rmse": 0.4, "mae": 0.6, "pinball": 0.6}
"""The share of the allowed error that is asked for, where an interval errs more often than it says.

Losses of heavy tails and average precision do. At 95% a lower bound may be wrong once in 40; that of a PR-AUC is asked
for as if once in 100. Measured by `make bench-metrics`.
"""


def level(metric: str, confidence: float) -> float:
    """The nominal confidence of an interval that is to hold ``confidence``.

    >>> level("roc_auc", 0.95), round(level("pr_auc", 0.95), 6)
    (0.95, 0.98)
    """
    return 1 - (1 - confidence) * STRICTER.get(metric, 1.0)


def fewest(confidence: float) -> int:
    """Rows that have to differ before anything can be sure: were all of fewer worse, it could be chance.

    The least n with ``2 (1/2)^n <= 1 - confidence``, as in a sign test.

    >>> fewest(0.95), fewest(0.98)
    (6, 7)
    """
    return math.ceil(math.log2(2 / (1 - confidence)))


def lift(pair: Paired, *, confidence: float, draws: int, seed: int) -> Interval:
    """The lift with an interval of two kinds, whichever reaches further on each side.

    The percentile interval is of ``draws`` resamples of the rows, with both models' answers together (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). The other one is the delta method's, ``lift +- z
    se`` (of AUC DeLong's). Each alone is too narrow where few rows differ. The interval depends on the rows and the
    seed, not on the order of rows. Rows that are all alike have an interval of no width.
    """
    if not pair.influence.any():
        return Interval(value=pair.lift, low=pair.lift, high=pair.lift)
    drawn = pair.resample(np.random.default_rng(seed), draws, len(pair.influence))
    drawn = drawn[np.isfinite(drawn)]
    half = quantile(0.5 + confidence / 2) * pair.se
    low, high = pair.lift - half, pair.lift + half
    if len(drawn):
        least, most = central(drawn, confidence)
        low, high = min(low, least), max(high, most)
    return Interval(value=pair.lift, low=low, high=high)
