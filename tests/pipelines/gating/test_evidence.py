"""What labels and both models' answers add to the evidence."""

import numpy as np
import pytest

from pipelines.contracts import Evidence
from pipelines.gating.decide import worst_harm
from pipelines.gating.evidence import compared
from pipelines.params_file import load_params

GENERATOR = np.random.default_rng(0)
LABEL = (GENERATOR.random(600) < 0.4).astype(np.int8)
CHALLENGER = np.clip(0.3 + 0.4 * LABEL + GENERATOR.normal(0, 0.2, 600), 0.01, 0.99)
OPPONENT = np.full(600, 0.4)
OLD = np.arange(600) >= 300
GATE = load_params("bank").gate.model_copy(
    update={"metric": "roc_auc", "draws": 200, "slices": ("age", "job"), "min_slice_rows": 200}
)


def seen(opponent=OPPONENT, challenger=CHALLENGER, **gate) -> Evidence:
    """The evidence of these answers, without a champion."""
    known = Evidence(metric="roc_auc", n=600, positives=int(LABEL.sum()), opponent="base_rate", lift=None)
    masks = {"age=young": ~OLD, "age=old": OLD, "job=rare": np.arange(600) < 20}
    return compared(known, GATE.model_copy(update=gate), LABEL, opponent, challenger, masks)


def test_the_lift_is_in_the_metrics_unit():
    """Against the base rate it is the area above a half, and both values stand in the evidence."""
    found = seen()
    assert found.lift is not None
    assert found.lift.value == pytest.approx(found.challenger["roc_auc"] - 0.5)
    assert found.champion["roc_auc"] == 0.5
    assert found.differ == 600


def test_large_slices_are_compared_and_the_others_named():
    """A field without a value that has rows enough is named as unchecked."""
    found = seen()
    assert [(one.name, one.n) for one in found.slices] == [("age=young", 300), ("age=old", 300)]
    assert found.unchecked == ("job",)


@pytest.mark.parametrize(("rows", "judged"), [(1, False), (5, False), (7, True)])
def test_a_slice_of_a_few_rows_is_not_surely_harmed(rows, judged):
    """One row has an interval of no width, five have a narrow one: neither is sure, whatever min_slice_rows allows."""
    label = np.ones(600, np.int8)
    worse = np.where(np.arange(600) < rows, 0.3, 0.8)
    gate = GATE.model_copy(update={"metric": "log_loss", "min_slice_rows": 1, "slices": ("age",)})
    known = Evidence(metric="log_loss", n=600, positives=600, opponent="champion", lift=None)
    masks = {"age=odd": np.arange(600) < rows}
    found = compared(known, gate, label, np.full(600, 0.7), worse, masks)
    assert [one.lift.high < 0 for one in found.slices] == [True] * judged
    assert (worst_harm(found, 1) is not None, found.unchecked) == (judged, () if judged else ("age",))


def test_a_slice_that_is_answered_alike_is_no_worse():
    """Where no row differs nothing is harmed, and the slice counts as checked."""
    masks = {"age=old": OLD}
    known = Evidence(metric="accuracy", n=600, positives=1, opponent="champion", lift=None)
    gate = GATE.model_copy(update={"metric": "accuracy", "slices": ("age",)})
    found = compared(known, gate, LABEL, CHALLENGER, CHALLENGER, masks)
    assert (found.unchecked, found.slices[0].lift.high, worst_harm(found, 1)) == ((), 0.0, None)


def test_floors_are_limits_from_below_or_above():
    """Where less is better a floor must not be exceeded; a limit that is just reached holds."""
    value = seen(floors={"roc_auc": 0.0}).floors[0].value
    held = seen(floors={"roc_auc": value, "log_loss": 0.01, "brier": 0.5}).floors
    assert [(one.metric, one.holds) for one in held] == [("roc_auc", True), ("log_loss", False), ("brier", True)]


def test_rows_are_looked_for_only_where_the_interval_decides_nothing():
    """A clear lift needs no further rows; one whose interval holds what is wanted says how many."""
    assert seen().more_rows is None
    value = seen().lift.value
    near, nearer = seen(first_lift=value - 0.015), seen(first_lift=value - 0.01)
    assert 0 < near.more_rows < nearer.more_rows


def test_rows_of_one_class_have_no_lift_by_ranks():
    """The metric is not defined on them, so nothing is added."""
    known = Evidence(metric="roc_auc", n=4, positives=0, opponent="base_rate", lift=None)
    assert compared(known, GATE, np.zeros(4, np.int8), OPPONENT[:4], CHALLENGER[:4], {}) == known
