"""pipelines/steps/alert.py: one notification for what goes on for a week, once among runs that race.

And no error of a sink's.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr

from pipelines import ledger, storage
from pipelines.contracts import Alert
from pipelines.errors import ConfigError
from pipelines.settings import Settings
from tests.pipelines.alerts.found import NOW, PARAMS, report
from tests.pipelines.alerts.test_sinks import receiver
from tests.pipelines.verbs import alert

HOUR = timedelta(hours=1)
BROKEN = {"problems": ["age: 9.0% missing or undeclared values (0.0% in the reference)"], "volume": 1.0}
LOW = {"problems": [], "volume": 0.1}


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """An empty state folder, without sinks but the log."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pipelines.alerts.sinks.PAUSES", (0.0,))
    # Power cuts are no subject here, and 170 runs would wait for the disk.
    monkeypatch.setattr("pipelines.files.os.fsync", lambda _descriptor: None)
    return Settings(home=tmp_path / "state")


def hooked(settings: Settings, url: str) -> Settings:
    """The same with a webhook."""
    return settings.model_copy(update={"alert_webhook": SecretStr(url)})


def drifted(settings: Settings, as_of: datetime, *, page: bool = True, **given) -> None:
    """What the drift run leaves: a report and a page, and in the ledger the state and the episode."""
    found = report(**given)
    if page:
        storage.commit(
            settings.run_dir("loans", as_of) / "report",
            case="loans",
            as_of=as_of,
            key="page",
            inputs={},
            build=lambda _folder: {},
        )
    storage.commit(
        settings.run_dir("loans", as_of) / "drift",
        case="loans",
        as_of=as_of,
        key=storage.digest([as_of.isoformat(), found]),
        inputs={},
        build=lambda folder: {"page": (folder / "report.json").write_text(storage.canonical_json(found)) and None},
    )
    state = {"as_of": as_of.isoformat(), "policy": {"end": found.window.end.isoformat()}}
    ledger.record_drift_state(settings.ledger, case="loans", as_of=as_of, state=state, evidence_hash="h")
    if found.episode:
        ledger.open_episode(settings.ledger, case="loans", episode=found.episode, as_of=as_of, evidence={})


def told(settings: Settings, as_of: datetime):
    """The alert step's facts."""
    return alert.run(PARAMS, settings, settings.run_dir("loans", as_of), as_of).facts


def first_words(bodies) -> list[str]:
    """Of every message its first line."""
    return [body["text"].partition("\n")[0] for _, body in bodies]


def test_an_hourly_alert_is_one_alert_for_a_week(settings):
    """168 hourly runs that find the same are one message and one alert counted 168 times.

    Two quiet hours later one message says that it is over.
    """
    with receiver(200) as (url, bodies):
        for number in range(171):
            as_of = NOW + number * HOUR
            drifted(settings, as_of, **({"quality": BROKEN, "state": "BLOCKED_DATA_QUALITY"} if number < 168 else {}))
            told(hooked(settings, url), as_of)
            if number == 167:
                assert first_words(bodies) == ["*CRITICAL* loans: quality_blocked"]
                [now] = ledger.alerts(settings.ledger, "loans")
                assert (now.count, now.state, now.first_seen, now.last_seen) == (168, "open", NOW, as_of)
    assert first_words(bodies) == ["*CRITICAL* loans: quality_blocked", "*RESOLVED* loans: quality_blocked"]
    assert "found 168 times" in bodies[1][1]["text"]
    [over] = ledger.alerts(settings.ledger, "loans")
    assert (over.count, over.state) == (168, "resolved")
    about = {"rule": over.rule, "severity": over.severity, "owner": over.owner, "runbook": over.runbook}
    assert about == {
        "rule": "quality_blocked",
        "severity": "critical",
        "owner": "data-on-call",
        "runbook": "docs/runbooks.md#quality-blocked",
    }


def test_running_again_says_nothing_again(settings):
    """A run that is run again leaves the ledger and its folder as they are and sends nothing."""
    drifted(settings, NOW, quality=LOW)
    with receiver(200) as (url, bodies):
        first = told(hooked(settings, url), NOW)
        rows = ledger.alert_runs(settings.ledger, "loans")
        assert (
            told(hooked(settings, url), NOW)
            == first
            == {"critical": 0, "warning": 1, "info": 0, "notices": 1, "undelivered": 0}
        )
    assert len(bodies) == 1
    assert ledger.alert_runs(settings.ledger, "loans") == rows
    kept = json.loads((settings.run_dir("loans", NOW) / "alert" / "alerts.json").read_text())
    assert [Alert.model_validate_json(json.dumps(one)).key for one in kept["alerts"]] == ["volume_out_of_band:window"]


def test_runs_that_race_tell_once(settings):
    """Eight tries of one run, and runs of eight hours, at once.

    An unbroken row of the ledger for each run that was first, and one message.
    """
    hours = [NOW + number * HOUR for number in range(8)]
    for as_of in hours:
        drifted(settings, as_of, quality=LOW, episode="e1", state="CONFIRMED", policy={"trigger": "drift", "marks": []})
    with receiver(200) as (url, bodies), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda as_of: told(hooked(settings, url), as_of), [NOW] * 8 + hours))
    assert first_words(bodies) == ["*WARNING* loans: e1"]
    rows = ledger.alert_runs(settings.ledger, "loans")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["as_of"] for row in rows] == sorted({row["as_of"] for row in rows})
    assert {one.count for one in ledger.alerts(settings.ledger, "loans")} == {len(rows)}


def test_an_older_run_finds_nothing(settings):
    """A run for a time before the newest one that told changes no alert and sends nothing."""
    drifted(settings, NOW + HOUR, quality=LOW)
    told(settings, NOW + HOUR)
    drifted(settings, NOW, quality=BROKEN)
    assert told(settings, NOW)["notices"] == 0
    assert [one.rule for one in ledger.alerts(settings.ledger, "loans")] == ["volume_out_of_band"]


def test_a_broken_webhook_is_a_fact_and_an_alert(settings):
    """A webhook that does not answer fails no run.

    The run says so, the next one has an alert for it, and both notices arrive once it is back.
    """
    drifted(settings, NOW, quality=LOW)
    with receiver(500) as (url, _):
        assert told(hooked(settings, url), NOW)["undelivered"] == 1
    drifted(settings, NOW + HOUR, quality=LOW)
    with receiver(200) as (url, bodies):
        assert told(hooked(settings, url), NOW + HOUR)["undelivered"] == 0
    assert [one.rule for one in ledger.alerts(settings.ledger, "loans")] == ["volume_out_of_band", "sink_broken"]
    assert sorted(first_words(bodies)) == ["*WARNING* loans: sink_broken", "*WARNING* loans: volume_out_of_band"]


def test_a_silence_is_kept_and_ends(settings):
    """While a rule is silenced its alerts are counted and nobody is told; afterwards people are."""
    ledger.silence(
        settings.ledger, case="loans", rule="volume_out_of_band", until=NOW + 2 * HOUR, reason="campaign", actor="ada"
    )
    with receiver(200) as (url, bodies):
        for number in range(3):
            drifted(settings, NOW + number * HOUR, quality=LOW)
            told(hooked(settings, url), NOW + number * HOUR)
            assert len(bodies) == (number == 2)
    [one] = ledger.alerts(settings.ledger, "loans")
    assert (one.count, one.state) == (3, "open")


def test_a_page_that_was_not_drawn_is_an_alert(settings):
    """A run that left none is found by the next one; a run that never judged is none."""
    drifted(settings, NOW, page=False)
    assert told(settings, NOW)["info"] == 0
    drifted(settings, NOW + HOUR)
    assert told(settings, NOW + HOUR)["info"] == 1
    [one] = ledger.alerts(settings.ledger, "loans")
    assert (one.key, one.summary) == (
        "page_broken:report",
        "the run before left no page in 20200610T020000Z/report: see its report task",
    )
    drifted(settings, NOW + 2 * HOUR)
    assert told(settings, NOW + 2 * HOUR)["notices"] == 0


def test_without_a_drift_report_there_is_nothing_to_tell(settings):
    """The step needs the drift step's folder, and says so."""
    with pytest.raises(ConfigError, match="run the step 'drift' first"):
        told(settings, NOW)
