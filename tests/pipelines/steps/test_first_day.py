"""The days before a case serves anything: its drift runs judge nothing, tell nobody, and say why."""

import json
from datetime import timedelta

import polars as pl
import pytest

from pipelines import ledger, moments
from pipelines.reports import metrics
from pipelines.settings import Settings
from tests.pipelines.conftest import free_port
from tests.pipelines.drift.stream import Stream, midnight
from tests.pipelines.steps.test_drift import PARAMS, after, day, judge, release, report, serve
from tests.pipelines.verbs import alert
from tests.pipelines.verbs import report as page

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


@pytest.fixture
def settings(tmp_path) -> Settings:
    """An empty state folder."""
    return Settings(home=tmp_path / "state", mlflow_url=f"http://127.0.0.1:{free_port()}")


def told(settings: Settings, as_of) -> list[str]:
    """The alerts that the run's alert step leaves; its page is drawn too."""
    folder = settings.run_dir("loans", as_of)
    # The champion's folders hold no model that could score rows again.
    silenced = PARAMS.alerts.model_copy(update={"off": ("scores_differ",)})
    params = PARAMS.model_copy(update={"alerts": silenced})
    alert.run(params, settings, folder, as_of)
    page.run(PARAMS, settings, folder, as_of)
    return [one["key"] for one in json.loads((folder / "alert" / "alerts.json").read_text())["alerts"]]


def test_a_case_that_never_served_is_greeted_without_an_alert(settings, stream):
    """A champion that has been trained for days and a log without a row.

    No window is judged, nobody is told, and page and metrics say nothing wrong.
    """
    release(settings, stream, midnight(day(0)))
    for number in (4, 5):
        manifest = judge(settings, after(number))
        assert (manifest.facts["state"], manifest.facts["action"]) == ("NOT_SERVED", "none")
        assert manifest.facts["reason"] == "nothing has been served yet: there is nothing to judge"
        assert told(settings, after(number)) == []
        text = (settings.run_dir("loans", after(number)) / "report" / "index.html").read_text()
        assert "Nothing was served yet" in text
        assert "The data are wrong" not in text
    assert report(settings, after(5)).quality.problems == ()
    assert ledger.drift_state_before(settings.ledger, "loans", after(99)) is None
    assert not [
        line
        for line in metrics.render(settings, [PARAMS]).splitlines()
        if line.startswith(("perennial_quality", "perennial_window", "perennial_volume"))
    ]


def test_windows_before_the_first_served_row_are_not_judged(settings, stream):
    """Windows that ended before the case's first row enter no history.

    The first one with rows is judged as the first, and an empty one after it alarms.
    """
    release(settings, stream, midnight(day(0)))
    serve(settings, stream, 2)
    for number in (0, 1):
        manifest = judge(settings, after(number))
        assert manifest.facts["state"] == "NOT_SERVED"
        assert f"the first row was served on {moments.day(day(2))}" in manifest.facts["reason"]
        assert told(settings, after(number)) == []
    assert ledger.drift_state_before(settings.ledger, "loans", after(99)) is None
    assert judge(settings, after(2)).facts["state"] == "STABLE"
    assert told(settings, after(2)) == []
    assert [mark.end.date() for mark in report(settings, after(2)).policy.marks] == [day(3)]
    assert judge(settings, after(3)).facts["state"] == "BLOCKED_DATA_QUALITY"
    assert told(settings, after(3)) == ["quality_blocked:window"]


def test_windows_before_the_first_champion_are_not_judged(settings, stream):
    """A window that ended before the first champion was made is not held against it.

    That holds although a run after its promotion looks at it.
    """
    release(settings, stream, midnight(day(1)) + 3 * HOUR)
    serve(settings, stream, 0)
    as_of = midnight(day(1)) + 5 * HOUR
    manifest = judge(settings, as_of)
    assert (manifest.facts["state"], manifest.facts["action"]) == ("NOT_SERVED", "none")
    assert f"the first champion is of {moments.day(day(1))}" in manifest.facts["reason"]
    assert ledger.drift_state_before(settings.ledger, "loans", after(99)) is None
    serve(settings, stream, 1)
    assert judge(settings, after(1)).facts["state"] == "STABLE"


def test_the_first_day_is_compared_from_its_first_row_on(settings, stream):
    """A case that begins to serve in the evening has that evening's volume.

    It is neither too little of a day nor a reason to tell anybody.
    """
    release(settings, stream, midnight(day(0)))
    serve(settings, stream, 0, change=lambda rows: rows.tail(60))
    assert judge(settings, after(0)).facts["state"] == "STABLE"
    found = report(settings, after(0))
    assert found.current_rows == 60
    assert found.quality.volume == pytest.approx(1, abs=0.3)
    assert told(settings, after(0)) == []
    serve(settings, stream, 1, change=lambda rows: rows.tail(60))
    judge(settings, after(1))
    assert told(settings, after(1)) == ["volume_out_of_band:window"]


def test_unjudged_windows_count_from_the_first_row_on(settings, stream):
    """That no window could be compared is told of windows since the first row.

    It is not told of those since a champion that was trained long before.
    """
    release(settings, stream, midnight(day(0)))
    found = {}
    for number in (6, 7, 8, 9):
        serve(settings, stream, number, change=lambda rows: rows.filter(pl.int_range(pl.len()) % 10 == 0))
        judge(settings, after(number))
        found[number] = "windows_unjudged:rows" in told(settings, after(number))
    assert found == {6: False, 7: False, 8: False, 9: True}
    [one] = [one for one in ledger.alerts(settings.ledger, "loans") if one.rule == "windows_unjudged"]
    assert f"no window since {moments.day(day(6))} could be compared (4 windows)" in one.summary
