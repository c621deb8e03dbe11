"""pipelines/drift/labels/calibration.py: performance without labels."""

import numpy as np
import pytest

from pipelines.drift.labels.calibration import estimate, expected, fit_calibration
from pipelines.measures import row_errors, row_log_loss


def overconfident(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores whose log-odds are twice what they should be."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, rows)
    return (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int8), 1 / (1 + np.exp(-2 * odds))


def test_a_calibration_learns_what_scores_are_worth():
    """Of an overconfident model the calibrated scores are the true chances, within what 20,000 rows tell.

    They ascend.
    """
    found = fit_calibration(*overconfident(20_000, seed=0))
    score = np.array(found["score"])
    rate = np.array(found["rate"])
    odds = np.log(score / (1 - score)) / 2
    assert np.abs(rate - 1 / (1 + np.exp(-odds))).max() < 0.03
    assert (np.diff(score) > 0).all()
    assert (np.diff(rate) >= 0).all()


def test_the_estimate_holds_what_comes_true():
    """Over 200 windows the realised loss is inside the 95% interval in at least nine of ten.

    The error rate is right on average.
    """
    calibration = fit_calibration(*overconfident(4_000, seed=0))
    inside = []
    errors = []
    for seed in range(1, 201):
        label, score = overconfident(400, seed)
        loss, error = estimate(calibration, score, 0.95)
        realised = row_log_loss(label, score).mean()
        inside.append(loss.low <= realised <= loss.high)
        errors.append(row_errors(label, score).mean() - error)
    assert np.mean(inside) >= 0.9
    assert abs(np.mean(errors)) < 0.01


def test_classes_are_calibrated_by_a_temperature():
    """Scores sharpened by a factor of two are found to be, and the expected loss of each row's classes follows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20_000, 4))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (true.cumsum(1) < rng.random((20_000, 1))).sum(1)
    sharp = true**2 / (true**2).sum(1, keepdims=True)
    found = fit_calibration(label, sharp)
    assert found["temperature"] == pytest.approx(2.0, rel=0.05)
    loss, _, error = expected(found, sharp)
    assert loss.mean() == pytest.approx(row_log_loss(label, sharp).mean(), rel=0.03)
    assert error.mean() == pytest.approx(row_errors(label, sharp).mean(), abs=0.01)


def test_no_rows_give_no_calibration():
    """An empty holdout leaves nothing to calibrate on."""
    assert fit_calibration(np.empty(0), np.empty(0)) == {}
