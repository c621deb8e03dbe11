"""The drift rule is neither blind nor jumpy.

The policy on profiles and labels of the loans stream, three seeds, and twenty in full.
"""

import polars as pl
import pytest

from tests.pipelines.drift.stream import PARAMS, Stream

pytestmark = pytest.mark.slow
T0 = 25
"""Window in which drift starts; by then more labels than a retraining needs have arrived."""
FIRST_LABELS = T0 + int(PARAMS.label_delay_days)


@pytest.fixture(scope="module", params=[3, pytest.param(20, marks=pytest.mark.long)])
def streams(request: pytest.FixtureRequest) -> list[Stream]:
    """The champions of all seeds."""
    return [Stream(seed) for seed in range(request.param)]


def needed(streams: list[Stream]) -> int:
    """Of how many seeds the rule must hold: one of twenty may behave otherwise, of three none."""
    return len(streams) - len(streams) // 20


def test_no_drift_no_trigger(streams: list[Stream]):
    """Sixty windows without drift ask for no retraining, in no seed."""
    assert [stream.triggers(60) for stream in streams] == [[]] * len(streams)


def test_covariate_drift_triggers_without_labels(streams: list[Stream]):
    """Drifted inputs ask for no retraining before they drift, and for one within three windows, labels or not."""
    first = [min(stream.triggers(T0 + 3, "covariate", T0), default=None) for stream in streams]
    assert sum(number is not None and T0 <= number < T0 + 3 for number in first) >= needed(streams), first


def test_concept_drift_triggers_on_its_first_labels(streams: list[Stream]):
    """Another rule behind the same inputs asks for a retraining within three windows after its first labels.

    It does not ask before.
    """
    first = [min(stream.triggers(FIRST_LABELS + 3, "concept", T0), default=None) for stream in streams]
    assert sum(number is not None and FIRST_LABELS <= number < FIRST_LABELS + 3 for number in first) >= needed(
        streams
    ), first


def test_one_outlier_changes_no_decision(streams: list[Stream]):
    """A salary of a million in every window neither makes a drift nor hides one."""

    def spoil(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(salary=pl.when(pl.int_range(pl.len()) == 0).then(1e6).otherwise("salary"))

    for stream in streams[:3]:
        for drift in ("none", "covariate"):
            assert stream.triggers(T0 + 3, drift, T0, spoil) == stream.triggers(T0 + 3, drift, T0)
