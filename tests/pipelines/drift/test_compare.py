"""pipelines/drift/inputs/compare.py and windows.py: what is compared with what."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from pipelines.contracts import Window
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.windows import drift_window
from pipelines.drift.reference import reference_profile
from tests.pipelines.drift.stream import PARAMS
from tests.pipelines.drift.test_profile import FIELDS, SPEC

WINDOW = Window(start=datetime(2020, 2, 1, tzinfo=UTC), end=datetime(2020, 2, 2, tzinfo=UTC))


def rows(count: int, *, size: float, version: int = 1, score: float = 0.3, seed: int = 0) -> pl.DataFrame:
    """Rows of the mock case around ``size`` and ``score``."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "event_time": [datetime(2020, 1, 1 + n * 10 // count, tzinfo=UTC) for n in range(count)],
            "colour": rng.choice(["red", "green"], count),
            "size": rng.normal(size, 1.0, count),
            "count": rng.integers(0, 9, count).astype(float),
            "bought": rng.integers(0, 2, count).astype(np.int8),
            "version": np.full(count, version),
            "score": np.clip(rng.normal(score, 0.05, count), 0, 1),
        }
    )


TRAIN = rows(4000, size=5.0)
REFERENCE = reference_profile(TRAIN, TRAIN["score"].to_numpy(), FIELDS, SPEC, TRAIN)


def found(frame: pl.DataFrame, *, version: int | None = 1, ignore: tuple[str, ...] = ()) -> dict:
    """The features of a window by name."""
    params = PARAMS.drift.model_copy(update={"ignore": ignore})
    return {
        one.feature: one
        for one in compare(REFERENCE, profile_frame(frame, FIELDS, SPEC), FIELDS, SPEC, params, version)
    }


def test_what_moved_is_found_and_nothing_else():
    """A number that moved by one deviation is severe; its neighbours and the score stay where they are."""
    moved = found(rows(1000, size=6.0, seed=1))
    assert {name for name, one in moved.items() if one.drifted} == {"size"}
    assert moved["size"].severity == "severe"
    assert next(iter(moved)) == "size"
    assert moved["size"].ks == pytest.approx(0.38, abs=0.05)
    assert (moved["colour"].ks, moved["count"].ks_error) == (None, 0.0)
    assert 1.0 <= moved["size"].overdispersion < 1.5


def test_only_the_champions_scores_count():
    """Scores that another version gave in the window are not held against the champion."""
    mixed = pl.concat([rows(500, size=5.0, seed=1), rows(500, size=5.0, version=2, score=0.9, seed=2)])
    assert not found(mixed)["score"].drifted
    assert found(mixed, version=2)["score"].drifted
    assert "score" not in found(mixed, version=3)


def test_what_is_shown_only_never_drifts_and_changes_nothing_else():
    """The entropy that moved far is measured and ignored; every other feature is what it is without it."""
    window = rows(1000, size=6.0, score=0.9, seed=1)
    moved = found(window)
    assert (moved["entropy"].ignored, moved["entropy"].drifted, moved["entropy"].severity) == (True, False, "severe")
    assert moved["entropy"].wasserstein > 0.1
    bare, current = (
        replace(one, columns={name: column for name, column in one.columns.items() if "entropy" not in name})
        for one in (REFERENCE, profile_frame(window, FIELDS, SPEC))
    )
    without = compare(bare, current, FIELDS, SPEC, PARAMS.drift, 1)
    assert {one.feature: one for one in without} == {name: one for name, one in moved.items() if name != "entropy"}


def test_an_ignored_field_never_drifts():
    """A declared field that is ignored is measured, shown, and out of the decision."""
    moved = found(rows(1000, size=9.0, seed=1), ignore=("size",))["size"]
    assert (moved.ignored, moved.drifted, moved.severity) == (True, False, "severe")


def test_undeclared_categories_and_volume_are_told():
    """Undeclared categories above the declared share are a problem; an odd volume is a warning."""
    odd = rows(1000, size=5.0).with_columns(
        colour=pl.when(pl.int_range(pl.len()) < 30).then(pl.lit("blue")).otherwise("colour")
    )
    told = quality(REFERENCE, profile_frame(odd, FIELDS, SPEC), WINDOW, PARAMS.drift)
    assert [(one.code, one.field, one.message) for one in told.problems] == [
        ("missing_values", "colour", "colour: 3.0% missing or undeclared values (0.0% in the reference)")
    ]
    assert told.warnings == ()
    few = quality(REFERENCE, profile_frame(odd.tail(60), FIELDS, SPEC), WINDOW, PARAMS.drift)
    assert few.problems == ()
    assert [(one.code, str(one)) for one in few.warnings] == [
        ("volume", "60 rows are 0.15 times the reference's volume (band 0.2 to 5)")
    ]


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        ("day", "2020-02-29", "2020-03-01"),
        ("week", "2020-02-23", "2020-03-01"),
        ("month", "2020-02-01", "2020-03-01"),
        ("quarter", "2019-10-01", "2020-01-01"),
    ],
)
def test_windows_are_whole_and_over(kind: str, start: str, end: str):
    """A run on the first of March looks at whole days that have ended, at midnight and at noon alike."""
    for hour in (0, 12):
        window = drift_window(datetime(2020, 3, 1, hour, tzinfo=UTC), kind)
        assert (str(window.start.date()), str(window.end.date())) == (start, end)
    assert drift_window(datetime(2010, 1, 1, tzinfo=UTC), "month").start == datetime(2009, 12, 1, tzinfo=UTC)
    assert drift_window(datetime(2010, 1, 1, tzinfo=UTC), "quarter") == drift_window(
        datetime(2010, 3, 31, tzinfo=UTC), "quarter"
    )


def test_further_distances_stand_beside_the_psi():
    """A shift of one unit is a Wasserstein distance of one.

    Of whole numbers it is exact, of categories there is none.
    """
    moved = found(rows(4000, size=6.0).with_columns(count=pl.col("count") + 2))
    assert moved["size"].wasserstein == pytest.approx(1.0, abs=moved["size"].wasserstein_error)
    assert moved["size"].wasserstein_error < 0.03
    assert (moved["count"].wasserstein, moved["count"].wasserstein_error) == (pytest.approx(2.0), 0.0)
    assert (moved["colour"].wasserstein, moved["colour"].wasserstein_error) == (None, None)
    assert 4 * moved["colour"].js < moved["size"].js < 1
    assert moved["size"].chi2_p < 1e-9
    assert moved["colour"].chi2_p > 0.1
    assert 0 < moved["size"].kl < moved["size"].psi
