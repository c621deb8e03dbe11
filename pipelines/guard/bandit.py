"""A weight by Thompson sampling: the challenger gets as many keys as it is likely to be the better one.

Source: Thompson, Biometrika 25, 1933; its share of draws is the chance that its mean is the higher one, which is worked
out here and not drawn, so that the same evidence gives the same weight. It answers another question than an
experiment: fewer units meet the worse arm while one learns, but how sure one is cannot be read from it. Unlike the
steps of a rollout the weight also falls, and then keys go back to the champion: arms by one salt keep the keys that
stay below the weight, the others change. Only mature units count (experiment.mature).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from pipelines.arms import WHOLE
from pipelines.errors import DataError
from pipelines.guard.experiment import Sums

_POINTS = 4_000


def chance_better(
    champion: Sums,
    challenger: Sums,
    *,
    outcome: Literal["binary", "number"] = "binary",
    better: Literal["higher", "lower"] = "higher",
) -> float:
    """The posterior chance that the challenger's mean is better, from mature units of both arms.

    Binary: Beta posteriors with a uniform prior. Numbers: normal posteriors of the means with a flat prior; one half
    until both arms have two units. Raises DataError for more positives than units.
    """
    from scipy.special import betainc, betaincinv, ndtr

    if outcome == "binary":
        for one in (champion, challenger):
            if not 0 <= one.total <= one.n:
                raise DataError(f"{one.total:g} positives of {one.n} units: count each unit once, as 0 or 1")
        middle = (np.arange(_POINTS) + 0.5) / _POINTS
        drawn = betaincinv(1 + challenger.total, 1 + challenger.n - challenger.total, middle)
        higher = float(betainc(1 + champion.total, 1 + champion.n - champion.total, drawn).mean())
    else:
        if min(champion.n, challenger.n) < 2:
            return 0.5
        variance = champion.variance / champion.n + challenger.variance / challenger.n
        gap = challenger.mean - champion.mean
        higher = float(ndtr(gap / math.sqrt(variance))) if variance else 0.5 + 0.5 * float(np.sign(gap))
    return higher if better == "higher" else 1 - higher


def weight(chance: float, *, least: float = 0.05, most: float = 0.95) -> int:
    """The challenger's share of keys, of 10,000, within ``least`` and ``most``: both arms go on being learned about.

    >>> weight(0.5), weight(0.999)
    (5000, 9500)
    """
    if not 0 <= least <= most <= 1:
        raise DataError(f"a share from {least:g} to {most:g}: give two from 0 to 1, the lower one first")
    return round(WHOLE * min(max(chance, least), most))
