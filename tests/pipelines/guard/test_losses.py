"""Losses as the guard compares them: bounded, by the gate's metric."""

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.guard.losses import bound, row_losses
from pipelines.params import GateParams, Metric


def gate(metric: Metric) -> GateParams:
    """A gate that decides by this metric."""
    return GateParams(
        metric=metric, min_lift=0.0, seed=0, slices=(), min_slice_rows=1, costs=((0.0, 1.0), (5.0, 0.0)), quantile=0.9
    )


@pytest.mark.parametrize("metric", ["log_loss", "brier", "roc_auc", "pr_auc", "macro_f1", "accuracy", "cost"])
def test_losses_of_scores_are_within_their_bound(metric: Metric) -> None:
    """For sure and wrong scores too, two losses differ by no more, and a right row costs less than a wrong one."""
    scores = np.array([0.0, 0.2, 0.8, 1.0])
    for label in (0, 1):
        found = row_losses(np.full(4, label), scores, gate(metric))
        assert np.ptp(found) <= bound(gate(metric))
        assert found[3 * label] < found[3 * (1 - label)]


def test_classes_have_losses_too() -> None:
    """Of three classes the loss is that of the label's probability."""
    answers = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(row_losses(np.array([0, 2]), answers, gate("log_loss")), [-np.log(0.7), -np.log(0.01)])
    np.testing.assert_allclose(row_losses(np.array([1, 0]), answers, gate("accuracy")), [1, 0])


@pytest.mark.parametrize(("metric", "expected"), [("rmse", [4, 9]), ("mae", [2, 5]), ("pinball", [1.8, 0.5])])
def test_losses_of_numbers_are_capped(metric: Metric, expected: list[float]) -> None:
    """An error beyond the cap counts as the cap; without one there is an error that says what to give."""
    label, answers = np.array([3.0, 0.0]), np.array([1.0, 5.0])
    np.testing.assert_allclose(row_losses(label, answers, gate(metric), cap=9.0), expected)
    assert bound(gate(metric), 9.0) == 9
    with pytest.raises(DataError, match="give the 99% quantile of the champion's losses"):
        row_losses(label, answers, gate(metric))
