"""Metrics of answers against labels; None where a metric is not defined.

Scores are ``[n]`` (the positive class of a binary label), ``[n, K]`` (one per class, labels being positions), or
predicted numbers ``[n]``: :func:`metrics_of` says which of the functions a case is measured by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.fields import Fields
from pipelines.measures import confusion, macro_f1, roc_auc, row_errors, row_log_loss, row_squared_error

Metrics = Callable[[NDArray[Any], NDArray[np.float64]], dict[str, float | None]]
_BINS = 10


def metrics_of(fields: Fields) -> Metrics:
    """The metrics that fit what a case predicts."""
    return metrics if fields.number is None else number_metrics


def number_metrics(label: NDArray[Any], prediction: NDArray[np.float64]) -> dict[str, float | None]:
    """rmse, mae and bias (mean error) of ``n`` predicted numbers in their unit, and r2.

    r2 is the share of the labels' variance that the predictions explain. Without rows all are None; r2 needs labels
    that differ.
    """
    if not len(label):
        return dict.fromkeys(("rmse", "mae", "bias", "r2"))
    error = prediction - np.asarray(label, np.float64)
    squared, spread = float(row_squared_error(label, prediction).mean()), float(np.var(label))
    return {
        "rmse": squared**0.5,
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "r2": 1 - squared / spread if spread else None,
    }


def calibration_error(label: NDArray[np.int8], score: NDArray[np.float64], bins: int = _BINS) -> float:
    """Expected calibration error over ``bins`` equal-width bins of the score.

    sum over bins of share * |mean label - mean score| (Naeini, Cooper and Hauskrecht, AAAI 2015, in its
    binary form); with classes of the likeliest one's score, against whether it was right (Guo et al., ICML 2017).
    """
    if score.ndim == 2:
        label, score = np.asarray(score.argmax(1) == label, np.int8), score.max(1)
    bin_of = np.minimum((np.asarray(score) * bins).astype(int), bins - 1)
    excess = np.bincount(bin_of, weights=np.asarray(label, np.float64) - score, minlength=bins)
    return float(np.abs(excess).sum() / len(score))


def metrics(label: NDArray[np.int8], score: NDArray[np.float64]) -> dict[str, float | None]:
    """log_loss, roc_auc, pr_auc, brier, calibration_error of ``n`` rows (labels 0 and 1, scores in [0, 1]).

    Of classes: log_loss, macro_f1, accuracy, calibration_error. Without rows all are None; roc_auc needs both
    classes, pr_auc (average precision) a positive one.
    """
    if score.ndim == 2:
        return _class_metrics(label, score)
    from sklearn.metrics import average_precision_score, brier_score_loss

    if not len(label):
        return dict.fromkeys(("log_loss", "roc_auc", "pr_auc", "brier", "calibration_error"))
    positives = int(np.sum(label))
    return {
        "log_loss": float(row_log_loss(label, score).mean()),
        "roc_auc": roc_auc(label, score),
        "pr_auc": float(average_precision_score(label, score)) if positives else None,
        "brier": float(brier_score_loss(label, score, pos_label=1)),
        "calibration_error": calibration_error(label, score),
    }


def _class_metrics(label: NDArray[np.int8], score: NDArray[np.float64]) -> dict[str, float | None]:
    """Of ``n`` rows with scores ``[n, K]``; macro_f1 is the mean over the classes that the labels hold."""
    if not len(label):
        return dict.fromkeys(("log_loss", "macro_f1", "accuracy", "calibration_error"))
    return {
        "log_loss": float(row_log_loss(label, score).mean()),
        "macro_f1": macro_f1(confusion(label, score)),
        "accuracy": float((~row_errors(label, score)).mean()),
        "calibration_error": calibration_error(label, score),
    }
