"""Steps soon after traffic: open segments are closed first.

What could not be read is said, and judged again once it can.
"""

import fcntl
import json

import pytest

from pipelines import ledger
from pipelines.settings import Settings
from tests.pipelines.drift.stream import FIELDS, Stream, midnight
from tests.pipelines.steps.test_drift import after, day, judge, release, report
from tests.pipelines.steps.test_labels import PARAMS, ROWS, answered, labelled, rows_of
from tests.pipelines.verbs import alert, profile
from tests.pipelines.verbs import report as page
from tests.serving.gateway import world

NO_ROWS = "no rows in the window"


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


@pytest.fixture
def settings(tmp_path, stream) -> Settings:
    """A state folder with a champion and a day that was judged; a step waits for a moment only."""
    settings = Settings(home=tmp_path / "state", log_close_seconds=0.2)
    release(settings, stream, midnight(day(0)))
    answered(settings, stream, 0)
    judge(settings, after(0), PARAMS)
    return settings


def opened(settings: Settings, stream: Stream, number: int):
    """A day's answers in a segment that is still open, its worker alive: the file that holds the lock."""
    answered(settings, stream, number, segment=f"open-{number:06d}")
    path = settings.prediction_log / "loans" / "predictions" / f"open-{number:06d}.jsonl"
    path = path.rename(path.with_name(f"{path.name}.open"))
    held = path.open("rb+")
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


def told(settings: Settings, number: int) -> tuple[dict, str]:
    """The alerts by key, and the words of the page."""
    run_dir = settings.run_dir("loans", after(number))
    alert.run(PARAMS, settings, run_dir, after(number))
    page.run(PARAMS, settings, run_dir, after(number))
    alerts = json.loads((run_dir / "alert" / "alerts.json").read_text())["alerts"]
    return {one["key"]: one["state"] for one in alerts}, (run_dir / "report" / "index.html").read_text()


def test_a_run_right_after_traffic_sees_every_row(tmp_path, stream):
    """Rows and labels that were answered a moment ago are in the window's profile.

    The gateway closes its segments when a step asks.
    """
    with world.fake_triton() as (_, port):
        settings = world.make_home(tmp_path / "state", port, log_segment_seconds=3600.0)
        world.release(settings, 1)
        rows = rows_of(stream, 0)
        asked = [{"prediction_id": row["id"], "event_time": row["event_time"].isoformat()} for row in rows.to_dicts()]
        asked = [one | row for one, row in zip(asked, rows.select(FIELDS.names).to_dicts(), strict=True)]
        with world.client(settings) as gateway:
            assert gateway.post(world.PREDICT, json={"rows": asked}).status_code == 200
            labels = [
                {"prediction_id": one["prediction_id"], "label": 1, "event_time": one["event_time"]} for one in asked
            ]
            assert gateway.post(world.LABELS, json={"labels": labels}).status_code == 200
            facts = profile.run(PARAMS, settings, settings.run_dir("loans", after(0)), after(0)).facts
            assert (facts["rows"], facts["unread"]) == (ROWS, 0)
            assert len(list((settings.lake_dir / "loans" / "labels" / "segments").glob("*.json"))) == 1
            # The gateway goes on with new segments.
            assert (
                gateway.post(
                    world.PREDICT,
                    json={"rows": [one | {"prediction_id": f"{one['prediction_id']}-2"} for one in asked]},
                ).status_code
                == 200
            )
            assert (
                profile.run(PARAMS, settings, settings.run_dir("loans", after(0)), after(0)).facts["rows"] == 2 * ROWS
            )


def test_segments_of_the_dead_are_taken_up(settings, stream):
    """The open segment of a worker that died is closed by the step itself, without its torn last line."""
    with opened(settings, stream, 1) as held:
        held.seek(0, 2)
        held.write(b'{"prediction_id": "torn')
    assert judge(settings, after(1), PARAMS).facts["state"] == "STABLE"
    assert report(settings, after(1)).current_rows == ROWS


def test_rows_that_cannot_be_read_are_no_missing_rows(settings, stream):
    """Where nobody closes a segment in time the window is judged as incomplete and says so.

    It is judged again, once, when its rows are there.
    """
    with opened(settings, stream, 1) as held:
        labelled(settings, rows_of(stream, 0), "labels")
        first = judge(settings, after(1), PARAMS)
        alerts, words = told(settings, 1)
        assert (first.facts["state"], first.facts["action"]) == ("STABLE", "none")
        assert f"{ROWS} rows cannot be read yet" in first.facts["reason"]
        assert NO_ROWS not in words
        assert "Nothing was served" not in words
        assert "quality_blocked:window" not in alerts
        assert judge(settings, after(1), PARAMS).key == first.key
        held.close()
    again = judge(settings, after(1), PARAMS)
    _, words = told(settings, 1)
    found = report(settings, after(1))
    assert (found.current_rows, found.labels.rows, again.facts["state"]) == (ROWS, ROWS, "STABLE")
    assert found.policy.judged_again.rows == 0
    assert [f"{mark.end:%Y-%m-%d}" for mark in found.policy.marks] == [str(day(1)), str(day(2))]
    assert "cannot be read" not in words
    answered(settings, stream, 2)
    judge(settings, after(2), PARAMS)
    assert report(settings, after(2)).labels.rows == 0
    before = (settings.run_dir("loans", after(1)) / "drift" / "report.json").read_bytes()
    judge(settings, after(1), PARAMS)
    assert (settings.run_dir("loans", after(1)) / "drift" / "report.json").read_bytes() == before


def test_an_empty_window_is_judged_again_when_rows_come(settings, stream):
    """Rows that come after their window was blocked for want of rows have it judged again.

    State, alert and page speak of the rows that are there.
    """
    assert judge(settings, after(1), PARAMS).facts["state"] == "BLOCKED_DATA_QUALITY"
    alerts, words = told(settings, 1)
    assert alerts["quality_blocked:window"] == "open"
    assert NO_ROWS in words
    answered(settings, stream, 1)
    assert judge(settings, after(1), PARAMS).facts["state"] == "STABLE"
    alerts, words = told(settings, 1)
    assert alerts["quality_blocked:window"] == "resolved"
    assert NO_ROWS not in words
    assert f"{ROWS} rows" in words
    assert len(ledger.alert_runs(settings.ledger, "loans")) == 2
    assert told(settings, 1) == (alerts, words)


def test_what_a_later_window_stands_on_is_not_judged_again(settings, stream):
    """Once a later window was judged, rows that come late change the report only.

    It says on how many rows was decided.
    """
    judge(settings, after(1), PARAMS)
    answered(settings, stream, 2)
    judge(settings, after(2), PARAMS)
    states = ledger.drift_states(settings.ledger, "loans")
    answered(settings, stream, 1)
    late = judge(settings, after(1), PARAMS)
    assert (late.facts["state"], ledger.drift_states(settings.ledger, "loans")) == ("BLOCKED_DATA_QUALITY", states)
    assert late.facts["reason"].endswith(f"(decided on 0 rows; {ROWS} are there now)")


def test_a_later_run_of_the_same_window_judges_it_again(settings, stream):
    """A run at another time of the same day finds the rows that the first one could not read, and takes its place.

    Labels count once.
    """
    labelled(settings, rows_of(stream, 0), "labels")
    with opened(settings, stream, 1):
        judge(settings, after(1), PARAMS)
    later = after(1, hours=5)
    judge(settings, later, PARAMS)
    answered(settings, stream, 2)
    judge(settings, after(2), PARAMS)
    assert [report(settings, moment).labels.rows for moment in (later, after(2))] == [ROWS, 0]
    assert report(settings, later).policy.judged_again.rows == 0
    marks = [f"{mark.end:%Y-%m-%d}" for mark in report(settings, after(2)).policy.marks]
    assert marks == [str(day(1)), str(day(2)), str(day(3))]
