"""Further distances between two histograms, each a pure function of counts.

People read them, the test of stats.py decides. Notation as there: reference counts ``m_b``, current counts ``n_b`` over
the same ``B`` bins, and their shares ``p_b``, ``q_b``, where it is said so smoothed: ``p_b = (m_b + s) / (m + s B)``.
Without rows on a side a distance is 0.
"""

from __future__ import annotations

import math

import numpy as np

from pipelines.drift.profile.bits import Floats, Ints
from pipelines.drift.stats import SMOOTHING


def jensen_shannon(reference: Ints, current: Ints) -> float:
    """Jensen-Shannon distance with base 2: the root of ``(KL(p|c) + KL(q|c)) / 2`` with ``c = (p + q) / 2``, in bits.

    A metric between 0 (equal shares) and 1 (nothing in common), finite without smoothing. Source: Lin, IEEE
    Transactions on Information Theory 37(1), 1991; Endres and Schindelin, ibid. 49(7), 2003.

    >>> jensen_shannon(np.array([5, 5]), np.array([50, 50])), jensen_shannon(np.array([5, 0]), np.array([0, 7]))
    (0.0, 1.0)
    >>> round(jensen_shannon(np.array([1, 1]), np.array([1, 0])) ** 2, 6)  # 1.5 - .75 * log2(3), by hand
    0.311278
    """
    if not reference.sum() or not current.sum():
        return 0.0
    p = reference / reference.sum()
    q = current / current.sum()
    middle = (p + q) / 2
    divergence = (
        sum(float((share[share > 0] * np.log2(share[share > 0] / middle[share > 0])).sum()) for share in (p, q)) / 2
    )
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def kullback_leibler(reference: Ints, current: Ints, smoothing: float = SMOOTHING) -> float:
    """``KL(q|p) = sum_b q_b ln(q_b / p_b)`` in nats, smoothed: the window's surprise to who expects the reference.

    Source: Kullback and Leibler, Annals of Mathematical Statistics 22(1), 1951. PSI is the sum of both directions.

    >>> round(kullback_leibler(np.array([50, 50]), np.array([20, 80]), smoothing=0.0), 6)  # .2 ln(.4) + .8 ln(1.6)
    0.192745
    """
    if not reference.sum() or not current.sum():
        return 0.0
    p, q = ((counts + smoothing) / (counts.sum() + smoothing * counts.size) for counts in (reference, current))
    some = (p > 0) & (q > 0)
    return max(0.0, float((q[some] * np.log(q[some] / p[some])).sum()))


def wasserstein(reference: Ints, current: Ints, low: Floats, high: Floats) -> tuple[float, float]:
    """Wasserstein-1 distance in the feature's units, ``int |P(x) - Q(x)| dx``, and the bound of its error.

    ``low`` and ``high`` ``[B]`` are the ends of ascending bins. All of a bin's values are put in its middle, which
    moves each by half a width at most: the exact distance is within ``sum_b (p_b + q_b) (high_b - low_b) / 2``.
    Source: Vallender, Theory of Probability and Its Applications 18(4), 1974.

    >>> wasserstein(np.array([1, 1, 0]), np.array([0, 1, 1]), np.array([0.0, 2.0, 5.0]), np.array([0.0, 2.0, 5.0]))
    (2.5, 0.0)
    >>> wasserstein(np.array([4, 0]), np.array([2, 2]), np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    (0.5, 1.0)
    """
    if not reference.sum() or not current.sum():
        return 0.0, 0.0
    p = reference / reference.sum()
    q = current / current.sum()
    middle = (low + high) / 2
    apart = np.abs(np.cumsum(p) - np.cumsum(q))[:-1]
    return float((apart * np.diff(middle)).sum()), float(((p + q) * (high - low)).sum() / 2)


def chi_square(reference: Ints, current: Ints, overdispersion: float = 1.0) -> tuple[float, float]:
    """Pearson's test that both samples have the same shares.

    ``sum (O - E)^2 / E / phi`` over both rows, and its p-value. ``E`` is what the pooled shares give each sample; ``B -
    1`` degrees of freedom over bins that hold anything. ``phi`` is the overdispersion. It asks for any difference at
    all, so with enough rows it always falls: shown, never decided on. Source: Pearson, Philosophical Magazine 50, 1900;
    McCullagh and Nelder, 1989, for phi.

    >>> [round(value, 6) for value in chi_square(np.array([10, 20]), np.array([20, 10]))]
    [6.666667, 0.009823]
    """
    from scipy.special import chdtrc

    table = np.stack([reference, current]).astype(np.float64)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 0.0, 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum()) / overdispersion
    return statistic, float(chdtrc(table.shape[1] - 1, statistic))
