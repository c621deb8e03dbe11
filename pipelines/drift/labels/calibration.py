"""Performance without labels.

What a champion's own scores say about its errors, once they are calibrated on its holdout. Confidence-based performance
estimation: if a calibrated score c is the chance that the label is positive, the row's expected loss and error follow
from c alone. The assumption is that P(label | score) is what it was on the holdout. A shift of the inputs alone
(covariate shift) leaves it so; concept drift changes it, and the estimate is blind to that. Source: NannyML's CBPE;
Guillory et al., Predicting with Confidence on Unseen Distributions, ICCV 2021.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts import Interval
from pipelines.measures import CLIP, clipped, quantile, row_log_loss

Floats = NDArray[np.float64]

GROUP_ROWS = 50
MAX_GROUPS = 20


def fit_calibration(label: NDArray[Any], score: Floats) -> dict[str, Any]:
    """A calibration as JSON values, from a holdout's labels ``[H]`` and scores ``[H]`` or ``[H, K]``.

    ``{}`` of no rows. ``score`` and ``rate`` (both ascending): in groups of at least 50 rows of like score (of classes:
    the likeliest one's) the mean score, and how often the label was positive (the likeliest class right), made monotone
    by isotonic regression. ``temperature`` (with classes) minimises the log-loss of ``p^(1/T)``. ``gap_se``: the
    standard error of the mean of loss minus expected loss in the holdout. Sources: Zadrozny and Elkan, KDD 2002; Guo et
    al., On Calibration of Modern Neural Networks, ICML 2017.

    >>> coin = fit_calibration(np.arange(100) % 2, np.full(100, 0.9))
    >>> coin["score"], coin["rate"]
    ([0.9], [0.5])
    """
    from scipy.optimize import isotonic_regression, minimize_scalar

    if not len(label):
        return {}
    classes = score.ndim == 2
    top = score.max(1) if classes else score
    hit = (score.argmax(1) == label) if classes else (label > 0)
    order = np.argsort(top, kind="stable")
    parts = np.array_split(order, min(MAX_GROUPS, max(1, len(order) // GROUP_ROWS)))
    # Groups of one and the same score are one group: a calibration is a function of the score.
    centres, into = np.unique([round(float(top[part].mean()), 12) for part in parts], return_inverse=True)
    rows = np.bincount(into, weights=[len(part) for part in parts])
    hits = np.bincount(into, weights=[float(hit[part].sum()) for part in parts])
    rate = isotonic_regression((hits + 0.5) / (rows + 1), weights=rows).x
    found: dict[str, Any] = {"score": centres.tolist(), "rate": rate.tolist()}
    if classes:
        logs = np.log(np.clip(score, CLIP, 1.0))
        best = minimize_scalar(
            lambda t: float(row_log_loss(label, _softmax(logs / math.exp(t))).mean()),
            bounds=(-2.0, 2.0),
            method="bounded",
        )
        found["temperature"] = math.exp(float(best.x))
    gap = row_log_loss(label, score) - expected(found, score)[0]
    found["gap_se"] = float(gap.std(ddof=1)) / math.sqrt(gap.size) if gap.size > 1 else 1e9
    return found


def expected(calibration: dict[str, Any], score: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each row with score ``[n]`` or ``[n, K]``.

    Expected log-loss in nats, that loss's variance, chance of an error; each ``[n]``.

    >>> [part.round(3).tolist() for part in expected({"score": [0.9], "rate": [0.5]}, np.array([0.9]))]
    [[1.204], [1.207], [0.5]]
    """
    if score.ndim == 2:
        logs = np.log(clipped(score))
        chance = _softmax(logs / calibration["temperature"])
        loss = -(chance * logs).sum(1)
        right = np.interp(score.max(1), calibration["score"], calibration["rate"])
        return loss, (chance * logs**2).sum(1) - loss**2, 1 - right
    s = clipped(score)
    c = np.interp(score, calibration["score"], calibration["rate"])
    loss = -(c * np.log(s) + (1 - c) * np.log1p(-s))
    return loss, c * (1 - c) * (np.log(s) - np.log1p(-s)) ** 2, np.where(score >= 0.5, 1 - c, c)


def estimate(calibration: dict[str, Any], score: Floats, confidence: float) -> tuple[Interval, float]:
    """The mean log-loss that rows with these scores will turn out to have, with its prediction interval.

    With it their error rate. The interval holds what the labels of these very rows may still do by chance (normal
    approximation) and what the holdout left open about the calibration. It does not hold what concept drift does.

    >>> estimate({"score": [0.9], "rate": [0.9], "gap_se": 0.0}, np.full(400, 0.9), 0.95)[0].low > 0.25
    True
    """
    loss, variance, error = expected(calibration, score)
    half = quantile(0.5 + confidence / 2) * math.hypot(
        math.sqrt(float(variance.sum())) / loss.size, calibration["gap_se"]
    )
    value = float(loss.mean())
    return Interval(value=value, low=max(0.0, value - half), high=value + half), float(error.mean())


def _softmax(logits: Floats) -> Floats:
    grown = np.exp(logits - logits.max(1, keepdims=True))
    chances: Floats = grown / grown.sum(1, keepdims=True)
    return chances
