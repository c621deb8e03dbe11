"""One row with a value of a million: it changes no decision of ours, and it hides a drift from Evidently's PSI."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest

from pipelines.contracts import FeatureDrift
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.spec import Scale, Spec
from pipelines.drift.reference import reference_profile
from pipelines.feature_names import SCORE
from pipelines.fields import Fields, Numeric
from tests.pipelines.drift.stream import PARAMS

FIELDS = Fields("outlier", (Numeric("x"), Numeric("y")), "label")
SPEC = Spec("outlier", {"x": Scale(0.0, 0.74), "y": Scale(0.0, 0.74), SCORE: Scale(0.0, 1.0)})
FIRST = datetime(2020, 1, 1, tzinfo=UTC)
ROWS = 5_000
DAYS = 10


def values(shift: float, seed: int, *, spoilt: bool = False) -> np.ndarray:
    """Normal values, the last of them a million if ``spoilt``."""
    found = np.random.default_rng(seed).normal(shift, 1.0, ROWS)
    found[-1] = 1e6 if spoilt else found[-1]
    return found


def frame(shift: float, seed: int, *, spoilt: bool = False) -> pl.DataFrame:
    """Rows of ten days: ``x`` as asked for, ``y`` never moves."""
    days = [FIRST + timedelta(days=row * DAYS // ROWS) for row in range(ROWS)]
    return pl.DataFrame({"event_time": days, "x": values(shift, seed, spoilt=spoilt), "y": values(0.0, 1000 + seed)})


REFERENCE = reference_profile(frame(0.0, 0), np.array([0.5]), FIELDS, SPEC)


def measured(shift: float, seed: int, *, spoilt: bool) -> tuple[FeatureDrift, ...]:
    """A window through profile and compare()."""
    return compare(
        REFERENCE, profile_frame(frame(shift, seed, spoilt=spoilt), FIELDS, SPEC), FIELDS, SPEC, PARAMS.drift
    )


def decisions(shift: float, *, spoilt: bool) -> list[tuple]:
    """What the policy decides and says in four windows, without labels."""
    state = None
    found = []
    for number in range(4):
        end = FIRST + timedelta(days=30 + number)
        evidence = DriftEvidence(
            champion=1, training_rows=ROWS, features=measured(shift, 1 + number, spoilt=spoilt), fresh_labels=10_000
        )
        state, action = policy.step(state, evidence, PARAMS.drift, end, "outlier", end)
        found.append((state.name, action, state.reason, state.marks, state.path))
    return found


@pytest.mark.parametrize(("shift", "actions"), [(0.0, {"none"}), (0.1, {"none"}), (1.0, {"none", "retrain"})])
def test_one_outlier_changes_no_decision(shift: float, actions: set[str]):
    """With a million in every window compare() flags the same features as severely.

    The policy takes the same path to the same action.
    """
    for number in range(4):
        plain, spoilt = (measured(shift, 1 + number, spoilt=with_it) for with_it in (False, True))
        assert [(one.feature, one.drifted, one.severity) for one in spoilt] == [
            (one.feature, one.drifted, one.severity) for one in plain
        ]
        assert [one.psi for one in spoilt] == pytest.approx([one.psi for one in plain], abs=0.01)
    found = decisions(shift, spoilt=True)
    assert found == decisions(shift, spoilt=False)
    assert {action for _, action, *_ in found} == actions


def evidently_psi(current: np.ndarray, reference: np.ndarray) -> float:
    """PSI as the real Evidently computes it."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    now, before = (
        Dataset.from_pandas(pd.DataFrame({"x": column}), DataDefinition(numerical_columns=["x"]))
        for column in (current, reference)
    )
    found = Report([ValueDrift(column="x", method="psi")]).run(now, before).dict()
    return float(found["metrics"][0]["value"])


def test_the_same_outlier_hides_the_drift_from_evidently():
    """Evidently's PSI of a shift by one deviation falls from about 1 to below its own threshold of 0.1 by one outlier.

    Ours stays severe.
    """
    assert evidently_psi(values(1.0, 1), values(0.0, 0)) == pytest.approx(0.994, abs=0.06)
    assert evidently_psi(values(1.0, 1, spoilt=True), values(0.0, 0)) < 0.1
    ours = {one.feature: one for one in measured(1.0, 1, spoilt=True)}["x"]
    assert ours.drifted
    assert ours.psi > 0.8
