"""Metrics of probabilities against binary labels; None where a metric is not defined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIP = 1e-6
"""Scores are float32 sigmoids and may saturate; clipped, one row costs at most 13.8 nats instead of infinity."""
_BINS = 10


def row_log_loss(label: NDArray[np.int8], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """The loss ``-log p(label)`` of each row in nats, ``[n]``, probabilities clipped to [1e-6, 1 - 1e-6]."""
    clipped = np.clip(np.asarray(score, np.float64), CLIP, 1 - CLIP)
    losses: NDArray[np.float64] = -np.where(np.asarray(label) == 1, np.log(clipped), np.log1p(-clipped))
    return losses


def calibration_error(label: NDArray[np.int8], score: NDArray[np.float64], bins: int = _BINS) -> float:
    """Expected calibration error over ``bins`` equal-width bins of the score.

    sum over bins of share * |mean label - mean score| (Naeini, Cooper and Hauskrecht, AAAI 2015, in its
    binary form).
    """
    bin_of = np.minimum((np.asarray(score) * bins).astype(int), bins - 1)
    excess = np.bincount(bin_of, weights=np.asarray(label, np.float64) - score, minlength=bins)
    return float(np.abs(excess).sum() / len(score))


def metrics(label: NDArray[np.int8], score: NDArray[np.float64]) -> dict[str, float | None]:
    """log_loss, roc_auc, pr_auc, brier, calibration_error of ``n`` rows (labels 0 and 1, scores in [0, 1]).

    Without rows all are None; roc_auc needs both classes, pr_auc (average precision) a positive one.
    """
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    if not len(label):
        return dict.fromkeys(("log_loss", "roc_auc", "pr_auc", "brier", "calibration_error"))
    positives = int(np.sum(label))
    return {
        "log_loss": float(row_log_loss(label, score).mean()),
        "roc_auc": float(roc_auc_score(label, score)) if 0 < positives < len(label) else None,
        "pr_auc": float(average_precision_score(label, score)) if positives else None,
        "brier": float(brier_score_loss(label, score, pos_label=1)),
        "calibration_error": calibration_error(label, score),
    }
