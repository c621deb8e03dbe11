"""Label shift without labels.

If only the classes' shares changed, every feature is a mixture of the reference's classes. Under label shift P(x | y)
stays and P(y) moves, so ``P(x) = sum_y w_y P(x | y)`` with new shares w: one set of shares must explain all features at
once. A covariate shift moves a feature in a way that no shares can explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.drift import stats
from pipelines.params import DriftParams

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

STEPS = 200
FREEDOM = 2
"""Groups of all features for each class: with fewer, shares could be found that explain anything."""


@dataclass(frozen=True)
class Mixture:
    """The shares ``[K]`` that fit best, whether they explain every feature, and the features that they do not."""

    shares: tuple[float, ...]
    explains: bool
    unexplained: tuple[str, ...]


def fit_shares(by_class: Mapping[str, Ints], now: Mapping[str, Ints], start: Floats) -> Floats:
    """The classes' shares ``[K]`` that make the counts ``now`` likeliest.

    ``now`` is by feature ``[B]``, ``by_class``, which is given, by feature ``[K, B]``. Expectation maximisation over
    all features as if they were independent: a composite likelihood, which has the right maximum all the same. Source:
    Saerens, Latinne and Decaestecker, Neural Computation 14(1), 2002.

    >>> by_class = {"x": np.array([[900, 100], [100, 900]])}
    >>> fit_shares(by_class, {"x": np.array([300, 700])}, np.array([0.5, 0.5])).round(2).tolist()
    [0.25, 0.75]
    """
    chance = np.concatenate([_smooth(by_class[name]) for name in now], axis=1)
    counts = np.concatenate(list(now.values())).astype(np.float64)
    shares: Floats = start / start.sum()
    for _ in range(STEPS):
        weight = shares[:, None] * chance
        shares = np.asarray((weight / weight.sum(axis=0) * counts).sum(axis=1) / counts.sum(), np.float64)
    return shares


def explain(
    by_class: Mapping[str, Ints], now: Mapping[str, Ints], phis: Mapping[str, float], params: DriftParams
) -> Mixture | None:
    """Whether other shares of the classes explain the counts ``now``: None where that cannot be told.

    Explained: no feature differs from the mixture by more than ``delta0`` (minimum-effect test, Benjamini-Hochberg at
    ``q``), and at least half of the PSI to the reference is gone. It cannot be told with one class, or with so few
    groups that shares could explain anything.
    """
    if not now:
        return None
    classes = next(iter(by_class.values())).shape[0]
    if classes < 2 or sum(counts.size - 1 for counts in now.values()) < FREEDOM * (classes - 1):
        return None
    rows = np.max([table.sum(axis=1) for table in by_class.values()], axis=0).astype(np.float64)
    if rows.min() <= 0:
        return None
    shares = fit_shares(by_class, now, rows)
    p = []
    left = 0.0
    moved = 0.0
    for name, counts in now.items():
        table = by_class[name]
        # Rows of a mixture that are worth as much as one sample: classes whose share grew are known less well.
        worth = 1.0 / float((shares**2 / np.maximum(table.sum(axis=1), 1)).sum())
        mixed = np.rint(worth * (shares @ _smooth(table))).astype(np.int64)
        ne = worth * counts.sum() / (worth + counts.sum()) / phis.get(name, 1.0)
        value = stats.psi(mixed, counts)
        p.append(stats.minimum_effect_p(value, counts.size, ne, params.delta0))
        left += max(0.0, stats.debiased_psi(value, counts.size, ne))
        moved += max(0.0, stats.debiased_psi(stats.psi(table.sum(axis=0), counts), counts.size, ne))
    fell = stats.benjamini_hochberg(np.array(p), params.q)
    odd = tuple(name for name, fallen in zip(now, fell, strict=True) if fallen)
    return Mixture(tuple(round(float(share), 4) for share in shares), not odd and left <= moved / 2, odd)


def _smooth(table: Ints) -> Floats:
    filled = table + stats.SMOOTHING
    chances: Floats = filled / filled.sum(axis=1, keepdims=True)
    return chances
