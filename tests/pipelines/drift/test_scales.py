"""A number's unit and offset change nothing of what its drift profile says."""

import numpy as np
import polars as pl
import pytest

from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.counts import number_column, profile_frame
from pipelines.drift.profile.spec import UNIT, Spec, freeze
from pipelines.drift.reference import reference_profile
from pipelines.drift.why.describe import describe
from pipelines.feature_names import SCORE
from pipelines.fields import Fields, Numeric
from tests.pipelines.drift.stream import PARAMS
from tests.pipelines.drift.test_outlier import DAYS, FIRST, ROWS, timedelta

FIELDS = Fields("scaled", (Numeric("x"),), "label")
BEFORE, NOW = (np.random.default_rng(seed).normal(shift, 1.0, ROWS) for seed, shift in ((0, 0.0), (1, 0.5)))


def frame(values: np.ndarray) -> pl.DataFrame:
    """Rows of ten days."""
    return pl.DataFrame(
        {"event_time": [FIRST + timedelta(days=row * DAYS // ROWS) for row in range(ROWS)], "x": values}
    )


def measured(unit: float, offset: float):
    """The drift of a shift by half a deviation, for ``offset + unit * x``.

    The scale was frozen from the rows of before.
    """
    spec = Spec("scaled", {"x": freeze(offset + unit * BEFORE), SCORE: UNIT})
    reference = reference_profile(frame(offset + unit * BEFORE), np.array([0.5]), FIELDS, spec)
    (found,) = compare(reference, profile_frame(frame(offset + unit * NOW), FIELDS, spec), FIELDS, spec, PARAMS.drift)
    return found


@pytest.mark.parametrize(("unit", "offset"), [(1e-7, 0.0), (1e-13, 0.0), (30.0, 1.7e9), (3e10, 1.7e18)])
def test_drift_does_not_hang_on_unit_and_offset(unit, offset):
    """In any unit and from any offset a shift has the PSI that it has in its own unit.

    Its Wasserstein distance is that of the other one.
    """
    plain = measured(1.0, 0.0)
    found = measured(unit, offset)
    assert found.debiased_psi == pytest.approx(plain.debiased_psi, rel=0.02)
    assert found.ks == pytest.approx(plain.ks, abs=0.01)
    assert found.wasserstein / unit == pytest.approx(plain.wasserstein, rel=0.02)
    assert found.wasserstein_error / unit == pytest.approx(plain.wasserstein_error, rel=0.2)


@pytest.mark.parametrize("unit", [1e-7, 1e-14])
def test_small_numbers_are_shown_as_what_they_are(unit):
    """Quartiles of a number of a small scale are told within a hundredth, not as zeros."""
    values = unit * (5 + BEFORE)
    scale = freeze(values)
    told = describe("x", number_column(pl.Series(values), scale), number_column(pl.Series(values), scale), scale)
    assert told.before == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]), rel=0.01)


def test_what_rounding_leaves_of_a_constant_is_no_spread():
    """A constant that was computed two ways has the scale of a constant: its last digit is no drift."""
    assert freeze(np.array([0.3, 0.1 + 0.2] * 50)).scale == 1.0
