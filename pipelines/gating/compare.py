"""The paired comparison: how much better is the challenger on the same rows, and how sure is that?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Interval
from pipelines.measures import central, row_log_loss, row_squared_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 2_000_000
"""Resampled values held at once (16 MB), so that memory does not grow with the holdout."""


def improvement(opponent_loss: NDArray[np.float64], challenger_loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The improvement d of each row ``[n]``: the opponent's loss minus the challenger's.

    It is positive where the challenger is better.
    """
    return np.asarray(opponent_loss, np.float64) - np.asarray(challenger_loss, np.float64)


def improvements(
    metric: str, label: NDArray[Any], opponent: NDArray[np.float64], challenger: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The :func:`improvement` of each row ``[n]`` whose mean is that of ``metric``, in its unit.

    ``rmse_a - rmse_b = (mse_a - mse_b) / (rmse_a + rmse_b)``: squared errors over that sum have the difference of both
    roots as their mean, and no row's part of it hangs on the unit.
    """
    if metric == "mae":
        truth = np.asarray(label, np.float64)
        return improvement(np.abs(truth - opponent), np.abs(truth - challenger))
    if metric == "rmse":
        theirs, ours = row_squared_error(label, opponent), row_squared_error(label, challenger)
        roots = float(np.sqrt(theirs.mean()) + np.sqrt(ours.mean())) if len(theirs) else 0.0
        return improvement(theirs, ours) / (roots or 1.0)
    return improvement(row_log_loss(label, opponent), row_log_loss(label, challenger))


def lift(d: NDArray[np.float64], *, confidence: float, draws: int, seed: int) -> Interval:
    """Mean of the paired improvements ``d [n]`` with its percentile bootstrap interval.

    Rows are resampled with replacement ``draws`` times; the interval is the central ``confidence`` share
    of the resampled means (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3).
    ``d`` is sorted first, so the interval depends on the values and the seed, not on the order of rows.
    """
    values = np.sort(np.asarray(d, np.float64))
    # Losses that are all alike have one mean in every draw.
    if values[0] == values[-1]:
        return Interval(value=float(values[0]), low=float(values[0]), high=float(values[0]))
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    chunk = max(1, _CHUNK // len(values))
    for start in range(0, draws, chunk):
        stop = min(start + chunk, draws)
        means[start:stop] = values[generator.integers(0, len(values), (stop - start, len(values)))].mean(axis=1)
    low, high = central(means, confidence)
    return Interval(value=float(values.mean()), low=low, high=high)
