"""The statistics of drift, each a pure function of counts.

Notation: reference counts ``m_b``, current counts ``n_b`` over the same ``B`` bins; ``m``, ``n`` their sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SMOOTHING = 0.5
"""Added to every bin before PSI (Jeffreys' prior). Without it one empty bin in a window of 50 rows is infinite,
or with a floor of 1e-4 worth .7 nats, which would be the noise of small windows and not drift."""


def groups(counts: Ints, bins: int) -> Ints:
    """Frozen reference edges: the group ``[K]`` of each of K ascending fine bins, from the reference's counts ``[K]``.

    Groups are cut at the unique ``bins``-quantiles of the reference, snapped to fine bins, so that a group is
    a run of fine bins and PSI on it is exact. A fine bin with more than ``1/bins`` of the mass is a group of
    its own; the outer groups are open. Fine bins where the reference has nothing at all between, below or
    above single values share one group, the last: values never seen. A constant reference so has two groups
    (equal, different). Source: the population stability index on quantile bins, as in Siddiqi, Credit Risk
    Scorecards, 2006, made well defined for tied values.

    >>> groups(np.array([25, 25, 25, 25]), 4).tolist()
    [0, 1, 2, 3]
    >>> groups(np.array([0, 100, 0]), 10).tolist()
    [1, 0, 1]
    >>> groups(np.array([0, 4, 4, 4, 88, 0, 0]), 10).tolist()
    [0, 0, 0, 0, 1, 2, 2]
    """
    total = int(counts.sum())
    heavy = counts * bins > total
    # Segments: runs of light bins, and every heavy bin alone.
    segment = np.cumsum(np.concatenate([[False], heavy[1:] | heavy[:-1]]))
    mass = np.bincount(segment, weights=counts)[segment]
    quantile = np.minimum((np.cumsum(counts) - counts) * bins // max(total, 1), bins - 1)
    # Below its first value a segment is open: it belongs to that value's quantile, above to its last one's.
    seen = counts > 0
    first = np.full(int(segment[-1]) + 1, bins)
    last = np.zeros(int(segment[-1]) + 1, np.int64)
    np.minimum.at(first, segment[seen], quantile[seen])
    np.maximum.at(last, segment[seen], quantile[seen])
    quantile = np.clip(quantile, first[segment], last[segment].clip(min=0))
    unseen = mass == 0
    label = np.where(unseen, (segment[-1] + 1) * (bins + 1), segment * (bins + 1) + quantile)
    # Numbered without gaps, as np.unique would, without its sorting.
    used = np.zeros(int(label.max()) + 1, np.int64)
    used[label] = 1
    found: Ints = (np.cumsum(used) - 1)[label]
    return found


def fold(counts: Ints, into: Ints) -> Ints:
    """Sum fine counts ``[K]`` into groups: ``[into.max() + 1]``.

    >>> fold(np.array([1, 2, 3]), np.array([0, 1, 0])).tolist()
    [4, 2]
    """
    folded: Ints = np.zeros(int(into.max()) + 1, np.int64)
    np.add.at(folded, into, counts)
    return folded


def psi(reference: Ints, current: Ints, smoothing: float = SMOOTHING) -> float:
    """Population stability index in nats: ``sum_b (q_b - p_b) ln(q_b / p_b)``, with ``p_b = (m_b + s) / (m + s B)``.

    It is Jeffreys' divergence, symmetric and >= 0; ``s`` is ``smoothing``. Source: Kullback and Leibler,
    Annals of Mathematical Statistics 22(1), 1951; Siddiqi 2006.

    >>> round(psi(np.array([50, 50]), np.array([20, 80]), smoothing=0.0), 6)  # .3 * ln(.8 / .5) + .3 * ln(.5 / .2)
    0.415888
    """
    if reference.sum() == 0 or current.sum() == 0:
        return 0.0
    p = (reference + smoothing) / (reference.sum() + smoothing * reference.size)
    q = (current + smoothing) / (current.sum() + smoothing * current.size)
    some = (p > 0) & (q > 0)
    return float(((q - p)[some] * np.log(q[some] / p[some])).sum())


def pearson(reference: Ints, current: Ints) -> float:
    """Pearson's divergence ``sum_b (q_b - p_b)^2 / r_b`` with ``r_b = (m_b + n_b) / (m + n)``.

    Times ``n m / (n + m)`` it is the chi-squared of the table. Near 0 it equals PSI. With few rows they err in opposite
    ways: every empty bin adds to PSI, every rare value to this. Source: Pearson, Philosophical Magazine 50(302), 1900.

    >>> round(pearson(np.array([50, 50]), np.array([20, 80])), 6)  # .3^2 / .35 + .3^2 / .65
    0.395604
    """
    if reference.sum() == 0 or current.sum() == 0:
        return 0.0
    some = (reference + current) > 0
    p, q = (counts[some] / counts.sum() for counts in (reference, current))
    return float(((q - p) ** 2 / (reference + current)[some]).sum() * (reference.sum() + current.sum()))


def effective_rows(reference: int, current: int, overdispersion: float = 1.0) -> float:
    """``ne = n m / (n + m) / phi``: rows of two samples that are worth as much as one against a known truth.

    >>> effective_rows(1000, 1000)
    500.0
    """
    if not reference or not current:
        return 0.0
    return reference * current / (reference + current) / overdispersion


def debiased_psi(value: float, bins: int, ne: float) -> float:
    """``psi - (B - 1) / ne``: without what sampling alone gives, as ``ne psi ~ chi2_{B-1}`` under no drift.

    Source: Yurdakul and Naranjo, Statistical properties of the population stability index, J. Risk Model
    Validation 14(4), 2020.

    >>> round(debiased_psi(0.05, 10, 900.0), 3)
    0.04
    """
    if ne:
        return value - (bins - 1) / ne
    return 0.0


def minimum_effect_p(value: float, bins: int, ne: float, delta0: float) -> float:
    """p-value of H0 "the true PSI is at most ``delta0``": ``P(ncx2(B - 1, delta0 ne) >= psi ne)``.

    Under a true PSI of delta, ``psi ne`` is about non-central chi-squared with noncentrality ``delta ne``. A
    test of "no drift at all" would, with enough rows, reject in every window. Source: Murphy and Myors,
    Journal of Applied Psychology 84(2), 1999 (minimum-effect tests).

    >>> minimum_effect_p(0.0, 10, 1000.0, 0.01)
    1.0
    >>> minimum_effect_p(0.3, 10, 1000.0, 0.01) < 1e-30
    True
    """
    return float(minimum_effect_ps(np.array([value]), np.array([bins]), np.array([ne]), delta0)[0])


def minimum_effect_ps(values: Floats, bins: Ints, ne: Floats, delta0: float) -> Floats:
    """:func:`minimum_effect_p` of ``F`` features at once, each ``[F]``: scipy's checks cost more than its answers.

    >>> rows = np.array([1000.0, 1000.0])
    >>> minimum_effect_ps(np.array([0.0, 0.005]), np.array([10, 10]), rows, 0.01).round(3).tolist()
    [1.0, 0.993]
    """
    from scipy.stats import ncx2

    p_values: Floats = np.ones(values.size)
    some = (ne > 0) & (bins >= 2) & (values > 0)
    if some.any():
        p_values[some] = ncx2.sf(values[some] * ne[some], bins[some] - 1, delta0 * ne[some])
    return p_values


def benjamini_hochberg(p_values: Floats, q: float) -> NDArray[np.bool_]:
    """Which of the hypotheses ``[F]`` fall at false discovery rate ``q``: all up to the largest ``p_(k) <= q k / F``.

    Source: Benjamini and Hochberg, Journal of the Royal Statistical Society B 57(1), 1995.

    >>> benjamini_hochberg(np.array([0.001, 0.2, 0.015, 0.03]), 0.05).tolist()
    [True, False, True, True]
    """
    if not p_values.size:
        return np.zeros(0, np.bool_)
    ordered = np.sort(p_values)
    below = np.flatnonzero(ordered <= q * np.arange(1, ordered.size + 1) / ordered.size)
    return p_values <= (ordered[below[-1]] if below.size else -1.0)


def ks(reference: Ints, current: Ints, *, single: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two histograms over the same ascending bins, and the bound of its error.

    Within a bin the two distributions may part by no more than the larger of its two masses, so the exact
    distance lies in ``[D, D + error]``. Bins marked ``single`` hold one value at most and add no error.
    Source: Kolmogorov, Giornale dell'Istituto Italiano degli Attuari 4, 1933.

    >>> ks(np.array([10, 10]), np.array([20, 0]), single=np.array([True, True]))
    (0.5, 0.0)
    """
    if reference.sum() == 0 or current.sum() == 0:
        return 0.0, 1.0
    p = reference / reference.sum()
    q = current / current.sum()
    inner = np.maximum(p, q)
    if single is not None:
        inner = np.where(single, 0.0, inner)
    return float(np.abs(np.cumsum(p) - np.cumsum(q)).max()), float(inner.max())


def overdispersion(days: Ints) -> float:
    """How much more the counts of days ``[D, B]`` vary than independent rows would.

    Pearson's chi-squared by its freedom. ``phi = sum_db (n_db - n_d p_b)^2 / (n_d p_b) / ((D - 1)(B - 1))``, at least
    1; it divides ``ne``, as rows of one day resemble each other (bank's Euribor is one number a day). Source: McCullagh
    and Nelder, Generalized Linear Models, 1989, section 4.5.

    >>> overdispersion(np.array([[10, 10], [10, 10]]))
    1.0
    >>> overdispersion(np.array([[20, 0], [0, 20]]))
    40.0
    """
    filled: Any = days[days.sum(axis=1) > 0][:, days.sum(axis=0) > 0]
    if min(filled.shape) < 2:
        return 1.0
    expected = filled.sum(axis=1, keepdims=True) * (filled.sum(axis=0) / filled.sum())
    freedom = (filled.shape[0] - 1) * (filled.shape[1] - 1)
    return max(1.0, float(((filled - expected) ** 2 / expected).sum() / freedom))
