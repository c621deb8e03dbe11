"""pipelines/drift/why/shown.py: what a window's counts say beside its report."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from pipelines.contracts import Window
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.counts import Profile, profile_frame
from pipelines.drift.why import shown
from pipelines.drift_report import CategoryChange, Counted, DriftReport, NumberChange
from tests.pipelines.alerts.found import report
from tests.pipelines.drift.stream import PARAMS
from tests.pipelines.drift.test_compare import REFERENCE, rows
from tests.pipelines.drift.test_profile import FIELDS, SPEC

END = date(2020, 3, 1)
MOVED = profile_frame(rows(1000, size=6.0, seed=1), FIELDS, SPEC)
FEW = profile_frame(rows(20, size=6.0, seed=2), FIELDS, SPEC)


def before(days: int) -> date:
    """So many days before the window's end."""
    return END - timedelta(days=days)


def judged() -> DriftReport:
    """The report of a window in which one number moved, compared with version 1."""
    end = datetime.combine(END, datetime.min.time(), UTC)
    features = compare(REFERENCE, MOVED, FIELDS, SPEC, PARAMS.drift, 1)
    return report(window=Window(start=end - timedelta(days=1), end=end), model_version=1, features=features)


def counted(days: dict[date, Profile], *, window: str = "day", reference: Profile | None = REFERENCE) -> Counted:
    """What is said of these days and a window with the rows of ``MOVED``."""
    params = PARAMS.drift.model_copy(update={"window": window})
    return shown.counted(judged(), MOVED, reference, days, FIELDS, SPEC, params)


def test_who_answered_and_what_changed_is_told():
    """Rows are told by version, and the strongest features in their own units."""
    found = counted({})
    assert found.served == {1: 1000}
    size = next(one for one in found.changes if one.feature == "size")
    assert isinstance(size, NumberChange)
    assert (size.before[1], size.now[1]) == (pytest.approx(5.0, abs=0.1), pytest.approx(6.0, abs=0.1))
    assert any(isinstance(one, CategoryChange) and one.feature == "colour" for one in found.changes)


def test_days_without_rows_stand_between_those_that_have_some():
    """Days follow one on another from the first with rows to the window's end; one with too few rows has no PSI."""
    found = counted({before(4): MOVED, before(2): FEW, before(1): MOVED})
    assert found.days is not None
    assert [(one.day, one.rows) for one in found.days] == [
        (before(4), 1000),
        (before(3), 0),
        (before(2), 20),
        (before(1), 1000),
    ]
    assert [one.psi.get("size", 0) > PARAMS.drift.warn_psi for one in found.days] == [True, False, False, True]
    assert found.features[0] == "size"


def test_longer_windows_are_told_by_day_only_where_most_days_can_be_compared():
    """Of a month whose days have too few rows no day is told, of one whose days have enough each is."""
    assert counted({before(2): FEW, before(1): MOVED}, window="month").days is None
    assert counted({before(2): MOVED, before(1): MOVED}, window="month").days is not None


def test_without_a_reference_of_the_same_counts_nothing_is_compared():
    """Without a champion, or with one that was counted by another spec, only who answered is told."""
    for reference in (None, replace(REFERENCE, spec="another")):
        assert counted({before(1): MOVED}, reference=reference) == Counted(served={1: 1000})
