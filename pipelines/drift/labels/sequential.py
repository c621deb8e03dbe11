"""What delayed labels say about the champion: a sequential test of its error rate, and the drop of its metric."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts import Interval, Mean
from pipelines.measures import around, clustered_mean

Floats = NDArray[np.float64]

BETS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Alternatives that are bet on, in equal parts: the error rate rose by this share of the room above it."""
BOUND_BETS = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
"""Bets of a confidence bound: what is missing to 1 is near 1 in most rows, so that large ones risk little."""
BASELINE_CONFIDENCE = 0.999
MAX_LOG_E = 700.0
"""The process stops growing here: e to this power is still a float."""


def baseline_rate(errors: float, rows: float, confidence: float = BASELINE_CONFIDENCE) -> float:
    """Upper confidence bound of an error rate: the champion may be as bad as this and nothing has changed.

    The holdout's rate itself would be beaten by chance half of the time. Of rows of which several say as much as one
    (measures.design_effect) both counts are given divided by that. Source: Clopper and Pearson,
    Biometrika 26(4), 1934.

    >>> round(baseline_rate(0, 1000), 5)
    0.00688
    """
    from scipy.stats import beta

    if errors >= rows:
        return 1.0
    return float(beta.ppf(confidence, errors + 1, rows - errors))


def capped(losses: Floats, cap: float) -> Floats:
    """Losses as shares of ``cap``, what is above it as 1: bounded, as bets and bounds on a mean need it.

    Squared errors have heavy tails, and one row must be no proof of anything.

    >>> capped(np.array([0.0, 2.0, 90.0]), 4.0).tolist()
    [0.0, 0.5, 1.0]
    """
    shares: Floats = np.minimum(losses / max(cap, float(np.finfo(np.float64).tiny)), 1.0)
    return shares


def baseline_share(shares: Floats, spread: float = 1.0, confidence: float = BASELINE_CONFIDENCE) -> float:
    """Upper confidence bound of the mean of ``shares`` ``[n]`` in 0 to 1: :func:`baseline_rate` of what is no count.

    The least m that "the mean is m or more" is rejected for by a bet on what is missing to 1, ``y = 1 - x``; of the
    rows ``spread`` say as much as one. Source:
    Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86(1), 2024.

    >>> shares = np.tile([0.0, 0.2], 500)
    >>> 0.1 < baseline_share(shares) < 0.12
    True
    """
    low, high = float(shares.mean()), 1.0
    for _ in range(30):
        middle = (low + high) / 2
        rejected = log_e_of_shares(1 - shares, 1 - middle, BOUND_BETS) >= -math.log(1 - confidence) * spread
        low, high = (low, middle) if rejected else (middle, high)
    return high


def log_e_of_shares(shares: Floats, baseline: float, bets: tuple[float, ...] = BETS) -> float:
    """Log of the e-value of one batch of ``shares`` ``[n]`` in 0 to 1.

    H0: "every row's share is at most ``baseline`` in expectation, given its past". ``e = mean_j prod_i (1 + b_j (x_i /
    p0 - 1))``: of zeros and ones it is :func:`log_e_value`. Source: Waudby-Smith and Ramdas, Estimating means of
    bounded random variables by betting, JRSS B 86(1), 2024.

    >>> one = np.repeat([1.0, 0.0], [15, 85])
    >>> math.isclose(log_e_of_shares(one, 0.05), log_e_value(15, 100, 0.05))
    True
    """
    p0 = min(max(baseline, 1e-6), 1 - 1e-6)
    logs = np.array([np.log1p(bet * (shares / p0 - 1)).sum() for bet in bets])
    return float(logs.max() + np.log(np.exp(logs - logs.max()).mean()))


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


def grown(log_e: float, batch: float) -> float:
    """One step of the e-CUSUM ``S_t = max(S_{t-1}, 1) e_t``, in logs: from ``log S_{t-1}`` to ``log S_t``.

    ``batch`` is the log of a window's e-value. An alarm at ``S >= c`` has an average run length of at least ``c``
    windows while nothing is wrong, whatever their sizes. Source: Shin, Ramdas and Rinaldo, E-detectors: a nonparametric
    framework for sequential change detection, NEJSDS 2(2), 2024.

    >>> grown(-2.0, 1.5), grown(699.0, 30.0), grown(3.0, log_e_value(30, 100, 0.1)) > math.log(1e4)
    (1.5, 700.0, True)
    """
    return min(max(log_e, 0.0) + batch, MAX_LOG_E)


def metric_drop(
    losses: Floats, days: NDArray[np.int64], reference_mean: float, reference_se: float, confidence: float
) -> Interval:
    """Rise of the mean loss of new rows over the holdout's, with its confidence interval; positive is worse.

    Approximation for two independent means: normal, or with days as clusters Student's t
    (:func:`~pipelines.measures.clustered_mean`).

    >>> metric_drop(np.full(10, 0.5), np.zeros(10, np.int64), 0.2, 0.0, 0.99)
    Interval(value=0.3, low=0.3, high=0.3)
    """
    new = clustered_mean(losses, days)
    rise = Mean(value=new.value - reference_mean, se=math.hypot(new.se, reference_se), freedom=new.freedom)
    return around(rise, confidence)
