"""Metrics of probabilities against labels; None where a metric is not defined.

Scores are ``[n]`` (the positive class of a binary label) or ``[n, K]`` (one per class, labels being positions).
"""

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
    if clipped.ndim == 2:
        own: NDArray[np.float64] = -np.log(clipped[np.arange(len(clipped)), np.asarray(label, np.intp)])
        return own
    losses: NDArray[np.float64] = -np.where(np.asarray(label) == 1, np.log(clipped), np.log1p(-clipped))
    return losses


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


def _class_metrics(label: NDArray[np.int8], score: NDArray[np.float64]) -> dict[str, float | None]:
    """Of ``n`` rows with scores ``[n, K]``; macro_f1 is the mean over the classes that the labels hold."""
    from sklearn.metrics import f1_score

    if not len(label):
        return dict.fromkeys(("log_loss", "macro_f1", "accuracy", "calibration_error"))
    predicted = score.argmax(1)
    return {
        "log_loss": float(row_log_loss(label, score).mean()),
        "macro_f1": float(f1_score(label, predicted, labels=np.unique(label), average="macro", zero_division=0)),
        "accuracy": float((predicted == label).mean()),
        "calibration_error": calibration_error(label, score),
    }


def confusion(label: NDArray[np.int8], score: NDArray[np.float64]) -> list[list[int]]:
    """Counts ``[K][K]`` of rows by their class (first axis) and the likeliest one of scores ``[n, K]`` (second)."""
    classes = score.shape[1]
    cells = np.bincount(np.asarray(label, np.intp) * classes + score.argmax(1), minlength=classes * classes)
    table: list[list[int]] = cells.reshape(classes, classes).tolist()
    return table


def class_f1(table: list[list[int]]) -> list[float | None]:
    """F1 of each class from a :func:`confusion`; None for a class that is neither in the labels nor predicted.

    >>> class_f1([[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    [0.8, 0.6666666666666666, None]
    """
    counts = np.array(table)
    hit, size = np.diag(counts), counts.sum(0) + counts.sum(1)
    return [2 * int(right) / int(both) if both else None for right, both in zip(hit, size, strict=True)]
