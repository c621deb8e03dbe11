"""embedded/demo/scoring.py: the numbers of summary.json."""

import pytest

from embedded.demo import scoring

MONTHS = [
    {"month": "a", "n": 100, "positives": 10, "frozen": {"m": 0.5}, "perennial": {"m": 0.6}, "ungated": {"m": None}},
    {"month": "b", "n": 300, "positives": 90, "frozen": {"m": 0.7}, "perennial": {"m": 0.8}, "ungated": {"m": 0.9}},
]


def test_means_leave_out_what_is_not_known():
    """Unweighted and row-weighted means run over the months that a model was scored in."""
    table = scoring.summarise(MONTHS, "m", higher_is_better=True)
    assert table["frozen_mean"] == pytest.approx(0.6)
    assert table["frozen_mean_weighted"] == pytest.approx(0.65)
    assert table["ungated_mean"] == pytest.approx(0.9)
    assert table["per_month"][0] == {"month": "a", "n": 100, "positives": 10, "frozen": 0.5, "perennial": 0.6, "ungated": None}


def test_metrics_of_one_window():
    """ROC-AUC and log-loss are scikit-learn's on the window's true labels; certainty is clipped, not infinite."""
    found = scoring.metrics([0, 1, 1, 0], [0.0, 0.9, 0.8, 0.85])
    assert found["roc_auc"] == pytest.approx(0.75)
    assert found["log_loss"] == pytest.approx(0.5564, abs=1e-3)
    assert scoring.metrics([0, 1], None) == {"roc_auc": None, "log_loss": None}
