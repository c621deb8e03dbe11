"""A schema break upstream: rows that the gateway refuses are seen, and nothing is retrained on those that are left."""

import json
import shutil
from collections import Counter
from datetime import timedelta

import httpx
import pytest

from pipelines import ledger
from pipelines.cases.loans.source import generate
from pipelines.settings import Settings
from tests.pipelines.drift.stream import FIELDS, Stream
from tests.pipelines.steps.test_drift import DRIFT_AT, PARAMS, after, day, judge, midnight, release, report, serve
from tests.pipelines.verbs import alert
from tests.pipelines.verbs import report as page
from tests.serving.gateway import world

BROKEN = DRIFT_AT + 1
"""The day on which a retraining would be asked for (test_drift.py), were it not for an hour of refusals."""
NOON = midnight(day(BROKEN)) + timedelta(hours=12)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


def told(settings: Settings, number: int) -> tuple[dict[str, dict], str]:
    """The alerts by key after a day's drift run, and its page."""
    folder = settings.run_dir("loans", after(number))
    alert.run(PARAMS, settings, folder, after(number))
    page.run(PARAMS, settings, folder, after(number))
    alerts = json.loads((folder / "alert" / "alerts.json").read_text())["alerts"]
    return {one["key"]: one for one in alerts}, (folder / "report" / "index.html").read_text()


def send(http: httpx.Client) -> Counter[int]:
    """A day of traffic; upstream, from noon to one, half of the requests name a value otherwise. Rows by status."""
    frame = generate(day(BROKEN), rows_per_day=1600, seed=0, drift="covariate", drift_at=day(DRIFT_AT))
    found: Counter[int] = Counter()
    rows = [
        row | {"event_time": moment.isoformat()}
        for row, moment in zip(frame.select(FIELDS.names).to_dicts(), frame["event_time"], strict=True)
    ]
    noon = [row for row in rows if row["event_time"][:13] == NOON.isoformat()[:13]]
    others = [row for row in rows if row not in noon]
    for row in noon[::2]:
        row["education"] = "bachelor's degree"
    many = [others[at : at + 200] for at in range(0, len(others), 200)]
    for request in [*many, *([row] for row in noon)]:
        found[http.post(world.PREDICT, json={"rows": request}).status_code] += len(request)
    return found


def test_an_hour_of_refused_requests_blocks_its_window_and_no_other(tmp_path, stream):
    """Half of an hour's requests are refused: an alert names field and reason, and no training is asked for.

    The inputs drifted, and were it not for that hour a retraining would be asked for. The next day is sound, and it is,
    without anybody's help; the alert ends.
    """
    with world.fake_triton() as (_, port):
        settings = world.make_home(tmp_path / "state", port)
        release(settings, stream, midnight(day(0)))
        for number in range(BROKEN):
            serve(settings, stream, number)
            judge(settings, after(number))
        assert report(settings, after(BROKEN - 1)).state == "WATCH"
        with world.client(settings) as http:
            sent = send(http)
            shutil.copytree(settings.root, tmp_path / "other")
            blocked = judge(settings, after(BROKEN))
    other = world.make_home(tmp_path / "other")
    lenient = PARAMS.model_copy(update={"drift": PARAMS.drift.model_copy(update={"block_refused_share": 1.0})})
    assert judge(other, after(BROKEN), lenient).facts["action"] == "retrain"
    assert [one.code for one in report(other, after(BROKEN)).quality.warnings] == ["refused"]
    assert sent[422] > 20
    assert sent[200] + sent[422] == 1600
    found = report(settings, after(BROKEN))
    assert (found.current_rows, found.quality.refused.rows) == (sent[200], sent[422])
    assert found.quality.refused.share < 0.03
    assert found.quality.refused.worst.start == NOON
    assert found.quality.refused.worst.share == pytest.approx(0.5, abs=0.02)
    assert [(one.field, one.reason, one.arm, one.version) for one in found.quality.refused.reasons] == [
        ("education", "category", "champion", 1)
    ]
    assert (blocked.facts["state"], blocked.facts["action"]) == ("BLOCKED_DATA_QUALITY", "alert")
    assert "education: category" in blocked.facts["reason"]
    alerts, words = told(settings, BROKEN)
    seen = alerts["rows_refused:education"]
    assert (seen["state"], seen["severity"]) == ("open", "critical")
    assert "education: category" in seen["summary"]
    assert "quality_blocked:education" not in alerts
    assert seen["summary"] in words
    assert ledger.episodes(settings.ledger, "loans") == []
    # Decided once: the same run finds the same again.
    assert judge(settings, after(BROKEN)).key == blocked.key

    serve(settings, stream, BROKEN + 1)
    healed = judge(settings, after(BROKEN + 1))
    assert (healed.facts["state"], healed.facts["action"]) == ("RETRAINING", "retrain")
    assert report(settings, after(BROKEN + 1)).quality.refused.rows == 0
    told(settings, BROKEN + 1)
    serve(settings, stream, BROKEN + 2)
    judge(settings, after(BROKEN + 2))
    alerts, _ = told(settings, BROKEN + 2)
    assert alerts["rows_refused:education"]["state"] == "resolved"


def test_a_case_whose_first_rows_are_all_refused_is_no_quiet_case(tmp_path, stream):
    """Where nothing was answered yet no window is judged, but people are told what was refused, and of which field."""
    with world.fake_triton() as (_, port):
        settings = world.make_home(tmp_path / "state", port)
        release(settings, stream, midnight(day(0)))
        rows = generate(day(1), rows_per_day=48, seed=0)
        sent = [
            row | {"event_time": moment.isoformat(), "age": "old"}
            for row, moment in zip(rows.select(FIELDS.names).to_dicts(), rows["event_time"], strict=True)
        ]
        with world.client(settings) as http:
            assert http.post(world.PREDICT, json={"rows": sent}).status_code == 422
            world.until(lambda: world.lines(settings, "refusals"))
            found = judge(settings, after(1))
    assert (found.facts["state"], found.facts["action"]) == ("NOT_SERVED", "none")
    alerts, words = told(settings, 1)
    assert {key: one["severity"] for key, one in alerts.items()} == {"rows_refused:age": "critical"}
    assert "100.0% of the rows" in alerts["rows_refused:age"]["summary"]
    assert alerts["rows_refused:age"]["summary"] in words
    assert ledger.drift_state_before(settings.ledger, "loans", after(99)) is None
