"""Since when: days of profiles laid on the reference's groups.

And the day from which on they are another distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.drift import stats
from pipelines.drift.profile.counts import Column

Ints = NDArray[np.int64]


def coarse(before: Column, others: Sequence[Column], bins: int) -> tuple[Ints, Ints, Ints]:
    """Reference counts ``[B]``, those of the others ``[D, B]`` in its groups.

    With them the group of each reference bin ``[len(before.bins)]``. Groups are the reference's quantiles, or its
    categories; values that it never had are in further ones.
    """
    every = np.unique(np.concatenate([before.bins, *(other.bins for other in others)]))
    own = np.zeros(every.size, np.int64)
    own[np.searchsorted(every, before.bins)] = before.counts
    into = stats.groups(own, bins) if before.vocabulary is None else np.arange(every.size)
    days = np.zeros((len(others), int(into.max(initial=-1)) + 1), np.int64)
    for row, other in zip(days, others, strict=True):
        np.add.at(row, into[np.searchsorted(every, other.bins)], other.counts)
    return stats.fold(own, into), days, into[np.searchsorted(every, before.bins)]


def change_gains(before: Ints, days: Ints) -> NDArray[np.float64]:
    """For each day ``t`` the log-likelihood, in nats, that a change on that day gains.

    ``[D]`` from counts ``[B]`` and ``[D, B]``. Two multinomials, one of the reference and the days before ``t``, one of
    ``t`` and all days after it, against one for all. The best day is the maximum-likelihood change point. Source:
    Hinkley and Hinkley, Biometrika 57(3), 1970, for the binomial; Wolfe and Chen, Communications in Statistics B 19(2),
    1990, for the multinomial.

    >>> change_gains(np.array([500, 500]), np.array([[50, 50], [51, 49], [90, 10], [88, 12]])).argmax().item()
    2
    """
    after = np.cumsum(days[::-1], axis=0)[::-1]
    total = before + days.sum(axis=0)
    gains: NDArray[np.float64] = _entropy(total - after) + _entropy(after) - _entropy(total[None, :])
    return gains


def _entropy(counts: Ints) -> NDArray[np.float64]:
    """Largest log-likelihood of multinomial counts ``[T, B]``, without the coefficient: ``sum n ln(n / N)``."""
    n = counts.astype(np.float64)
    whole = n.sum(axis=1)
    logs: NDArray[np.float64] = (n * np.log(np.where(n > 0, n, 1.0))).sum(axis=1) - whole * np.log(
        np.where(whole > 0, whole, 1.0)
    )
    return logs


def outside(before: Ints, days: Ints, phi: float, delta0: float, q: float) -> NDArray[np.bool_]:
    """Which days ``[D]`` differ from the reference by more than a PSI of ``delta0``.

    Each is tested by the minimum-effect test at level ``q``.

    >>> outside(np.array([500, 500]), np.array([[52, 48], [95, 5]]), 1.0, 0.01, 0.01).tolist()
    [False, True]
    """
    effective = [stats.effective_rows(int(before.sum()), int(day.sum()), phi) for day in days]
    p = [
        stats.minimum_effect_p(stats.psi(before, day), before.size, ne, delta0)
        for day, ne in zip(days, effective, strict=True)
    ]
    return np.array(p, np.float64) <= q
