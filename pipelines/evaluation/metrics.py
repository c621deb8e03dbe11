"""Metrics of probabilities against labels; None where a metric is not defined.

Scores are ``[n]`` (the positive class of a binary label) or ``[n, K]`` (one per class, labels being positions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipelines.measures import confusion, macro_f1, roc_auc, row_errors, row_log_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 10


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
