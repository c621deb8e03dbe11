"""Metrics and slices of a scored holdout."""

import math

import numpy as np
import polars as pl
import pytest

from pipelines.errors import ConfigError
from pipelines.evaluation.metrics import calibration_error, metrics
from pipelines.measures import CLIP, class_f1, confusion, cut, row_log_loss, slices

LABEL = np.array([0, 0, 1, 1], np.int8)
SCORE = np.array([0.1, 0.4, 0.35, 0.8])


def test_metrics_of_a_known_example():
    """ROC-AUC .75 is the textbook value of these four rows; log-loss and Brier score follow by hand."""
    found = metrics(LABEL, SCORE)
    assert found["roc_auc"] == pytest.approx(0.75)
    assert found["log_loss"] == pytest.approx(-np.mean([math.log(0.9), math.log(0.6), math.log(0.35), math.log(0.8)]))
    assert found["brier"] == pytest.approx(np.mean([0.01, 0.16, 0.65**2, 0.04]))
    assert found["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)


def test_undefined_metrics_are_none():
    """One class has no ROC-AUC, no positives no average precision, no rows nothing at all."""
    only_negative = metrics(np.zeros(3, np.int8), SCORE[:3])
    assert only_negative["roc_auc"] is None
    assert only_negative["pr_auc"] is None
    assert only_negative["log_loss"] is not None
    assert set(metrics(LABEL[:0], SCORE[:0]).values()) == {None}


def test_saturated_scores_cost_a_bounded_loss():
    """A score of exactly 0 on a positive row costs -log(1e-6), not infinity."""
    assert row_log_loss(np.array([1, 0]), np.array([0.0, 1.0])) == pytest.approx([-math.log(CLIP)] * 2, rel=1e-6)


def test_calibration_error_sees_overconfidence():
    """Scores that equal the bins' rates have error 0; a constant .9 on rows with rate .5 has error .4."""
    label = np.array([0, 1] * 50)
    assert calibration_error(label, np.full(100, 0.5)) == pytest.approx(0)
    assert calibration_error(label, np.full(100, 0.9)) == pytest.approx(0.4)
    assert calibration_error(np.ones(10), np.ones(10)) == pytest.approx(0)


def test_slices_cover_the_rows_once_per_column():
    """Each value of a declared column is a slice, a column's slices part the rows, and an unknown column is named."""
    frame = pl.DataFrame({"contact": ["b", "a", "b"], "x": [1, 2, 3]})
    masks = slices(frame, ("contact",), {})
    assert list(masks) == ["contact=a", "contact=b"]
    assert sum(mask.astype(int) for mask in masks.values()).tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="'colour'"):
        slices(frame, ("colour",), {})


def test_a_number_is_cut_by_its_bins():
    """Each bin that has a row is a slice, an edge is in the upper one, and a missing number in one of its own."""
    frame = pl.DataFrame({"age": [18.0, 30.0, 49.0, 64.0, None]})
    masks = slices(frame, ("age",), {"age": (30, 50, 90)})
    assert {name: mask.tolist().index(True) for name, mask in masks.items()} == {
        "age=below 30": 0,
        "age=30 to below 50": 1,
        "age=50 to below 90": 3,
        "age=missing": 4,
    }
    assert sum(mask.astype(int) for mask in masks.values()).tolist() == [1] * 5
    assert cut(frame, {"age": (40,), "size": (1,)})["age"].to_list() == ["below 40"] * 2 + ["40 or more"] * 2 + [
        "missing"
    ]


def test_a_number_that_is_not_whole_is_no_slice_without_bins():
    """Its values are hardly shared, so slices of them would check nothing; whole numbers are cut by their values."""
    assert list(slices(pl.DataFrame({"dependents": [0.0, 2.0]}), ("dependents",), {})) == [
        "dependents=0.0",
        "dependents=2.0",
    ]
    with pytest.raises(ConfigError, match="give bins"):
        slices(pl.DataFrame({"salary": [1.5, 2.0]}), ("salary",), {})


def test_rows_without_a_value_are_a_slice_and_flags_are_named_as_in_json():
    """What is missing is cut like a value, of text and of flags, so that a column's slices still part the rows."""
    frame = pl.DataFrame({"region": ["b", None, "b"], "member": [True, False, None]})
    masks = slices(frame, ("region", "member"), {})
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "region=b": [True, False, True],
        "region=missing": [False, True, False],
        "member=false": [False, True, False],
        "member=true": [True, False, False],
        "member=missing": [False, False, True],
    }


CLASS = np.array([0, 1, 2, 2], np.int8)
SCORES = np.array([[0.7, 0.2, 0.1, 0.0], [0.5, 0.4, 0.1, 0.0], [0.1, 0.1, 0.8, 0.0], [0.0, 0.0, 1.0, 0.0]])


def test_metrics_of_classes_by_hand():
    """The loss is of each row's own class, F1 the mean over those that occur, calibration of the likeliest class."""
    found = metrics(CLASS, SCORES)
    assert row_log_loss(CLASS, SCORES) == pytest.approx(-np.log([0.7, 0.4, 0.8, 1 - CLIP]))
    assert found["log_loss"] == pytest.approx(row_log_loss(CLASS, SCORES).mean())
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    # Bins of the likeliest class's score: .5 (wrong), .7, .8 and 1 (right).
    assert found["calibration_error"] == pytest.approx((0.5 + 0.3 + 0.2 + 0.0) / 4)
    assert metrics(CLASS[:0], SCORES[:0]) == dict.fromkeys(("log_loss", "macro_f1", "accuracy", "calibration_error"))


def test_a_class_that_is_ruled_out_costs_a_bounded_loss():
    """Probability 0 for the true class costs -log(1e-6), not infinity."""
    assert row_log_loss(np.array([3]), SCORES[:1]) == pytest.approx([-math.log(CLIP)])


def test_two_classes_lose_as_much_in_either_form():
    """A binary score and the same score as two classes have one loss per row, so the gate compares alike."""
    assert row_log_loss(LABEL, np.stack([1 - SCORE, SCORE], axis=1)) == pytest.approx(row_log_loss(LABEL, SCORE))


def test_the_confusion_matrix_counts_every_row_once():
    """Rows are the labels, columns the likeliest classes; F1 follows from them, and a class nowhere has none."""
    table = confusion(CLASS, SCORES)
    assert table.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert class_f1(table) == [pytest.approx(2 / 3), 0, 1, None]
    assert confusion(CLASS[:0], SCORES[:0]).tolist() == [[0] * 4] * 4
