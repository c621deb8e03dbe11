"""E-processes: evidence that may be looked at as often as one likes.

An e-process starts at 1 and does not grow in expectation while nothing is wrong, so that it ever reaches 1 / alpha with
a chance of at most alpha (Ville's inequality; Ramdas, Grünwald, Vovk, Shafer, Statistical Science 38(4), 2023). A
weighted mean of e-processes is one, whatever their dependence. Each here is a mean over bets, given by their log
increments ``[T, bets]`` of T windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

OPENED, EVEN = 0.45, 0.45
"""The prior shares of faults that begin with a stage, the first stage half of them, and evenly in a declared window.

The rest is for later: each further block of as many windows has half of what is left.
"""
MOST = 1e12
"""E-values are told up to here."""
ODDS = np.array([1.5, 2.5, 5.0, 10.0, 40.0])
"""Bets on counts: the odds are so many times those of the null."""
STAKES = np.array([0.5, 0.95])
"""Bets on bad windows: the share of the stake that is lost if the window is not bad."""
BAD = 0.01
"""The chance that a window without a fault is bad."""
BURSTS, CREDIT = 0.05, 10.0
"""The share of windows in which both arms may have a fault that is nobody's, and what is lent against that."""
LAMBDAS = np.array([0.01, 0.03, 0.1, 0.2, 0.4, 0.8])
"""Bets on means, as shares of the largest that cannot lose all."""
SHARES = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
"""Bets on the shares of bins, likewise."""


def starts(weights: Sequence[int], windows: int) -> Floats:
    """The prior that a fault begins in each window, ``[T]``, of a rollout of ``windows`` that had these ``weights``.

    Most faults are there when a challenger meets its first traffic, or more of it. Source: Shin, Ramdas, Rinaldo,
    E-detectors, NEJSDS 2024, whose sum over starts is weighted here so that the chance of a false alarm is bounded, and
    not only how rarely one comes.

    >>> starts([500, 500, 5000], 2).round(4).tolist()
    [0.45, 0.225, 0.1375]
    """
    opened = np.diff(np.asarray(weights, np.int64), prepend=-1) != 0
    block = np.arange(len(opened)) // windows
    even = np.where(block == 0, EVEN, (1 - OPENED - EVEN) * 0.5**block) / windows
    return np.asarray(even + np.where(opened, OPENED * 0.5 ** np.cumsum(opened), 0.0), np.float64)


def e_values(increments: Floats, prior: Floats) -> Floats:
    """The e-process of each bet after each window, ``[T, bets]``, of log increments ``[T, bets]``: at most MOST.

    ``M <- exp(increment) (M + q_t)`` from 0 with the ``prior`` q ``[T]`` of :func:`starts`, and ``E = M + 1 - sum of
    the q so far``. An increment's exponential is 1 or less in expectation while nothing is wrong.
    """
    total = np.cumsum(increments, axis=0)
    log_mass = total + np.logaddexp.accumulate(np.log(prior)[:, None] - (total - increments), axis=0)
    mass = np.exp(np.minimum(log_mass, np.log(MOST)))
    return np.asarray(np.minimum(mass + (1 - np.cumsum(prior))[:, None], MOST), np.float64)


def counts(hits: Floats, n: Floats, share: Floats | float) -> Floats:
    """Log increments ``[T, bets]`` of the null "each of ``n`` is a hit with a chance of at most ``share``".

    Likelihood ratios against ODDS times the odds of ``share``; 0 where n is 0 or the share 1. Counts may be fractions:
    those of clusters, divided by their size.
    """
    p = np.broadcast_to(np.asarray(share, np.float64), hits.shape)
    told = (n > 0) & (p > 0) & (p < 1)
    p = np.where(told, p, 0.5)[:, None]
    odds = p / (1 - p) * ODDS
    other = odds / (1 + odds)
    found = hits[:, None] * np.log(other / p) + (n - hits)[:, None] * np.log((1 - other) / (1 - p))
    return np.asarray(np.where(told[:, None], found, 0.0), np.float64)


def tail(hits: Floats, n: Floats, share: Floats | float) -> Floats:
    """The chance of at least so many hits among ``n``, each with the chance ``share``: binomial, fractions too."""
    from scipy.special import betainc

    found = betainc(np.maximum(hits, 1e-9), np.maximum(n - hits, 0) + 1, share)
    return np.asarray(np.where(hits > 0, found, 1.0), np.float64)


def bad_windows(bad: Flags, judged: Flags) -> Floats:
    """Log increments ``[T, bets]`` of the null "a window is bad with a chance of at most BAD"; 0 where none is judged.

    A bad window multiplies a bet by ``1 + f (1 - BAD) / BAD``, another one by ``1 - f``: what a single window can do is
    bounded, however many rows of it are hit at once.
    """
    found = np.where(bad[:, None], np.log1p(STAKES * (1 - BAD) / BAD), np.log1p(-STAKES))
    return np.asarray(np.where(judged[:, None], found, 0.0), np.float64)


def unless_burst(calm: Floats, beside: Floats) -> Floats:
    """Log increments of a null that holds in calm windows, while in BURSTS of them only a weaker one holds.

    ``calm`` are those of the first null, ``beside`` those of the one that always holds. ``min(A, C B) / (1 - e + e C)``
    is a fair bet at best: in a calm window A is, in a burst no more than C B is lost, and bursts have the chance e (the
    idea is Huber's, a null with contamination: Annals of Mathematical Statistics 36(6), 1965).
    """
    lent = np.minimum(calm, beside + np.log(CREDIT)) - np.log(1 - BURSTS + BURSTS * CREDIT)
    return np.asarray(np.where((calm == 0) & (beside == 0), 0.0, lent), np.float64)


def mean_above(values: Sequence[float] | Floats, bound: float) -> Floats:
    """Log increments ``[bets]`` of the null "each value, at least -``bound``, has a mean of at most 0".

    ``sum ln(1 + lambda v / bound)``. Source: Waudby-Smith, Ramdas, JRSS B 86(1), 2024.
    """
    scaled = np.asarray(values, np.float64) / bound
    return np.asarray(np.log1p(np.multiply.outer(LAMBDAS, scaled)).sum(axis=1), np.float64)


def matched(champion: Floats, challenger: Floats) -> Floats:
    """Differences of two arms' losses: each row of the smaller arm minus the mean of its own block of the larger.

    Blocks are in order and of one size, what is over is left out; the differences have the arms' difference as mean.

    >>> matched(np.array([1.0, 2.0, 3.0, 5.0, 9.0]), np.array([4.0, 4.0])).tolist()
    [2.5, 0.0]
    """
    few = min(len(champion), len(challenger))
    if not few:
        return np.zeros(0)
    means = [arm[: len(arm) // few * few].reshape(few, -1).mean(axis=1) for arm in (challenger, champion)]
    return np.asarray(means[0] - means[1], np.float64)


def share_above(challenger: Floats, champion: Floats, n: Floats, m: Floats, margin: float) -> Floats:
    """Log increments ``[T, bins * bets]`` of "no bin's share is more than ``margin`` above the champion's", bin by bin.

    ``challenger`` and ``champion`` ``[T, bins]`` count rows of ``n`` and ``m`` ``[T]``. The champion's share is not
    known: rows are taken in pairs, one of each arm. With d = 1, 0 or -1 for a pair of which only the challenger's is in
    the bin, both or none, or only the champion's, ``1 + lambda (d - margin) / (1 + margin)`` is a fair bet at best. The
    counts do not tell who was paired; the mean of a product over all pairings is at least the exponential of its mean
    logarithm (Jensen), and this is it.
    """
    pairs = np.minimum(n, m)
    told = pairs > 0
    u, v = (arm / np.where(told, rows, 1.0)[:, None] for arm, rows in ((challenger, n), (champion, m)))
    kinds = (u * (1 - v), u * v + (1 - u) * (1 - v), (1 - u) * v)
    found = np.zeros((*u.shape, len(SHARES)))
    for kind, d in zip(kinds, (1.0, 0.0, -1.0), strict=True):
        found += kind[..., None] * np.log1p(SHARES * (d - margin) / (1 + margin))
    found *= np.where(told, pairs, 0.0)[:, None, None]
    return np.asarray(found.reshape(len(n), -1), np.float64)
