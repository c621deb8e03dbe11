"""What a row costs, as the guard compares it: the gate's metric row by row, bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.measures import (
    cheapest,
    row_absolute,
    row_brier,
    row_errors,
    row_log_loss,
    row_pinball,
    row_squared_error,
)
from pipelines.params import METRICS, GateParams

Floats = NDArray[np.float64]

CLIP = 0.01
"""Scores are taken to be within [CLIP, 1 - CLIP]: with 1e-7 harm takes three times as many labels to be seen."""
NUMBERS = METRICS["number"]


def row_losses(label: NDArray[Any], answers: NDArray[Any], gate: GateParams, cap: float | None = None) -> Floats:
    """The loss of each row ``[n]`` by ``gate.metric``; two differ by at most :func:`bound`.

    Of AUC and PR-AUC, which no single row has, it is log-loss; of macro-F1 and accuracy 1 for a wrong row; of RMSE the
    squared error. Losses of numbers are capped at ``cap``, in their own unit. Raises DataError if it is missing.
    """
    metric = gate.metric
    if metric in NUMBERS:
        found = _of_numbers(label, answers, gate)
        return np.asarray(np.minimum(found, bound(gate, cap)), np.float64)
    if metric == "brier":
        return row_brier(label, answers)
    if metric in {"macro_f1", "accuracy"}:
        return np.asarray(row_errors(label, answers), np.float64)
    if metric == "cost":
        costs = np.array(gate.costs, np.float64)
        return np.asarray(costs[np.asarray(label, np.intp), cheapest(answers, costs)], np.float64)
    return row_log_loss(label, np.clip(np.asarray(answers, np.float64), CLIP, 1 - CLIP))


def _of_numbers(label: NDArray[Any], answers: NDArray[Any], gate: GateParams) -> Floats:
    if gate.metric == "rmse":
        return row_squared_error(label, answers)
    if gate.metric == "mae":
        return row_absolute(label, answers)
    return row_pinball(label, answers, gate.quantile or 0.5)


def bound(gate: GateParams, cap: float | None = None) -> float:
    """The largest difference of two rows' losses: ``cap`` for numbers.

    A good cap is the 99% quantile of the champion's losses before the rollout. Raises DataError if it is missing.
    """
    if gate.metric in NUMBERS:
        if cap is None or not cap > 0:
            raise DataError(
                f"losses by {gate.metric} have no bound of their own, and the cap is {cap}: give the 99% quantile of "
                "the champion's losses before the rollout"
            )
        return cap
    if gate.metric == "brier":
        return 2.0
    if gate.metric in {"macro_f1", "accuracy"}:
        return 1.0
    if gate.metric == "cost":
        return float(np.ptp(np.array(gate.costs, np.float64)))
    return 4.6
