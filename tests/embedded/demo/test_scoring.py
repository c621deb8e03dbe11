"""embedded/demo/scoring.py: the numbers of summary.json."""

import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from embedded.demo import scoring
from pipelines import runtime
from pipelines.cases import load_fields
from pipelines.fields import Fields, Number, Numeric
from pipelines.settings import Settings

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
    assert table["per_month"][0] == {
        "month": "a",
        "n": 100,
        "positives": 10,
        "frozen": 0.5,
        "perennial": 0.6,
        "ungated": None,
    }


def test_metrics_of_one_window():
    """ROC-AUC and log-loss are scikit-learn's on the window's true labels; certainty is clipped, not infinite."""
    bank = load_fields("bank")
    found = scoring.metrics(bank, [0, 1, 1, 0], [0.0, 0.9, 0.8, 0.85])
    assert found["roc_auc"] == pytest.approx(0.75)
    assert found["log_loss"] == pytest.approx(0.5564, abs=1e-3)
    assert scoring.metrics(bank, [0, 1], None) == {"roc_auc": None, "log_loss": None}


def test_metrics_of_one_window_with_classes():
    """A case with classes is shown by macro-F1, log-loss and accuracy of all classes' probabilities."""
    triage = load_fields("triage")
    scores = np.full((3, len(triage.classes)), 0.01)
    scores[[0, 1, 2], [4, 5, 4]] = 0.9
    found = scoring.metrics(triage, [4, 5, 5], scores.tolist())
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["log_loss"] == pytest.approx(-(2 * np.log(0.9) + np.log(0.01)) / 3)


def test_numbers_are_shown_by_their_errors_and_compared_by_their_size(monkeypatch, tmp_path):
    """A number has RMSE and MAE in its unit; an answer may differ by float32's rounding of the largest, and no more."""
    trips = Fields("trips", (Numeric("km"),), "minutes", target=Number("min"))
    assert scoring.metrics(trips, [1.5, 4.0], [2.5, 1.0]) == {"rmse": pytest.approx(5**0.5), "mae": 2.0}
    assert scoring.metrics(trips, [1.5], None) == {"rmse": None, "mae": None}
    frame = pl.DataFrame({"id": ["a", "b"], "km": [1.0, 2.0]})
    monkeypatch.setattr("pipelines.cases.load_fields", lambda _case: trips)
    monkeypatch.setattr(runtime, "score_rows", lambda *_args, **_options: np.array([1000.0, 0.25]))
    told = {"a": (1, 1000.005, 1000.005), "b": (1, 0.25, 0.25)}
    assert scoring.unequal_answers("trips", frame, told, {1: tmp_path}, {}) == 0
    told["b"] = (1, 0.5, 0.5)
    found = scoring.unequal_answers("trips", frame, told, {1: tmp_path}, {})
    assert json.dumps({"answers_unequal": found}) == '{"answers_unequal": 1}'  # it stands in summary.json


def test_answers_are_compared_class_by_class(monkeypatch):
    """An answer is right if it names the likeliest class with its probability.

    Ties within the tolerance may fall either way.
    """
    triage = load_fields("triage")
    first, second, third = triage.classes[:3]
    expected = np.zeros((4, len(triage.classes)))
    expected[:, 0] = 0.6
    expected[:, 1] = 0.4
    expected[3, :2] = 0.5, 0.5 - 1e-7
    monkeypatch.setattr(scoring, "scores", lambda _case, _bundle, rows, *_: expected[[int(id_) for id_ in rows["id"]]])
    frame = pl.DataFrame({"id": ["0", "1", "2", "3"]})
    answers = {"0": (1, 0.6, first), "1": (1, 0.4, second), "2": (1, 0.61, first), "3": (1, 0.5, second)}
    assert scoring.unequal_answers("triage", frame, answers, {1: None}, {}) == 2
    assert scoring.unequal_answers("triage", frame, {"0": (1, 0.0, third)}, {1: None}, {}) == 1


def test_a_row_is_scored_once_by_a_model(monkeypatch, tmp_path):
    """The frozen and the newest model are compared row by row, a moment without a bundle is passed over.

    What is known is not computed again.
    """
    moments = [datetime(2015, month, 1, tzinfo=UTC) for month in (1, 4, 7)]
    bundles = [Settings(home=tmp_path).run_dir("triage", moment) / "export" for moment in moments[:2]]
    for bundle in bundles:
        bundle.mkdir(parents=True)
    asked = []

    def score_rows(bundle, _fields, columns, **_):
        asked.extend((bundle, text) for text in columns["text"])
        return [len(text) for text in columns["text"]]

    monkeypatch.setattr(runtime, "score_rows", score_rows)
    frame = pl.DataFrame({"id": ["a", "b"], "text": ["x", "xyz"]})
    known = scoring.compare("triage", tmp_path, moments[:1], frame.head(1))
    assert known == {bundles[0]: {"a": 1}}
    assert scoring.scores("triage", bundles[0], frame, known) == [1, 3]
    assert asked == [(bundles[0], "x"), (bundles[0], "xyz")]
    assert scoring.compare("triage", tmp_path, moments, frame) == {bundle: {"a": 1, "b": 3} for bundle in bundles}
