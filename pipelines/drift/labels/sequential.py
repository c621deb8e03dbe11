"""What delayed labels say about the champion: a sequential test of its error rate, and the drop of its metric."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts import Interval
from pipelines.measures import quantile

Floats = NDArray[np.float64]

BETS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Alternatives that are bet on, in equal parts: the error rate rose by this share of the room above it."""
BASELINE_CONFIDENCE = 0.999
MAX_LOG_E = 700.0
"""The process stops growing here: e to this power is still a float."""
MIN_DAYS = 5


def baseline_rate(errors: int, rows: int, confidence: float = BASELINE_CONFIDENCE) -> float:
    """Upper confidence bound of an error rate: the champion may be as bad as this and nothing has changed.

    The holdout's rate itself would be beaten by chance half of the time. Source: Clopper and Pearson,
    Biometrika 26(4), 1934.

    >>> round(baseline_rate(0, 1000), 5)
    0.00688
    """
    from scipy.stats import beta

    if errors >= rows:
        return 1.0
    return float(beta.ppf(confidence, errors + 1, rows - errors))


def log_e_value(errors: int, rows: int, baseline: float) -> float:
    """Log of the e-value of one batch.

    H0: "every row errs with probability at most ``baseline``, given its past". ``e = mean_j prod_i (1 + l_j (x_i -
    p0))``, a mixture of likelihood ratios of the error rates ``p0 + b_j (1 - p0)``; its expectation under H0 is at most
    1. Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86(1), 2024.

    >>> log_e_value(5, 100, 0.05) < 0 < log_e_value(15, 100, 0.05)
    True
    """
    p0 = min(max(baseline, 1e-6), 1 - 1e-6)
    p1 = p0 + np.array(BETS) * (1 - p0)
    logs = errors * np.log(p1 / p0) + (rows - errors) * np.log((1 - p1) / (1 - p0))
    return float(logs.max() + np.log(np.exp(logs - logs.max()).mean()))


def cusum(log_e: float, errors: int, rows: int, baseline: float) -> float:
    """One step of the e-CUSUM ``S_t = max(S_{t-1}, 1) e_t``, in logs: from ``log S_{t-1}`` to ``log S_t``.

    A step is one window's batch of labels. An alarm at ``S >= c`` has an average run length of at least
    ``c`` windows while the champion keeps its rate, whatever their sizes. Source: Shin, Ramdas and Rinaldo,
    E-detectors: a nonparametric framework for sequential change detection, NEJSDS 2(2), 2024.

    >>> cusum(0.0, 0, 0, 0.1), cusum(3.0, 30, 100, 0.1) > math.log(1e4)
    (0.0, True)
    """
    if rows == 0:
        return log_e
    return min(max(log_e, 0.0) + log_e_value(errors, rows, baseline), MAX_LOG_E)


def mean_loss(losses: Floats, days: NDArray[np.int64]) -> tuple[float, float, int]:
    """Mean of the losses, its standard error, and degrees of freedom (0: normal).

    Rows of one day are one cluster when there are at least five days (their losses are not independent), with
    D - 1 degrees of freedom; otherwise each row stands alone. Source: Cameron and Miller, Journal of Human
    Resources 50(2), 2015.

    >>> mean_loss(np.array([1.0, 3.0]), np.zeros(2, np.int64))
    (2.0, 1.0, 0)
    """
    mean = float(losses.mean())
    clusters = np.unique(days, return_inverse=True)[1]
    found = int(clusters.max()) + 1
    if found >= MIN_DAYS:
        sums = np.bincount(clusters, weights=losses - mean)
        return mean, math.sqrt(float((sums**2).sum()) * found / (found - 1)) / losses.size, found - 1
    return mean, float(losses.std(ddof=1)) / math.sqrt(losses.size) if losses.size > 1 else math.inf, 0


def metric_drop(
    losses: Floats, days: NDArray[np.int64], reference_mean: float, reference_se: float, confidence: float
) -> Interval:
    """Rise of the mean loss of new rows over the holdout's, with its confidence interval; positive is worse.

    Approximation for two independent means: normal, or with days as clusters Student's t (:func:`mean_loss`).

    >>> metric_drop(np.full(10, 0.5), np.zeros(10, np.int64), 0.2, 0.0, 0.99)
    Interval(value=0.3, low=0.3, high=0.3)
    """
    mean, se, freedom = mean_loss(losses, days)
    value = mean - reference_mean
    half = min(quantile(0.5 + confidence / 2, freedom) * math.hypot(se, reference_se), 1e9)
    return Interval(value=round(value, 12), low=round(value - half, 12), high=round(value + half, 12))
