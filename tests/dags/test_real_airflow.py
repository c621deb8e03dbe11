"""The DAGs in the real Airflow over the whole real stack: the scheduler's own tick, and one training run and one message per episode."""

import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import polars as pl
import pytest
from sqlalchemy import create_engine, text

from embedded import stack
from embedded.airflow import Airflow, client
from embedded.airflow_metrics import SERIES, Watch
from embedded.demo import traffic
from embedded.ports import Ports
from pipelines import cases, ledger
from pipelines.config import CASES_ROOT, Settings, load_params
from pipelines.contracts import Window
from pipelines.fields import Categorical
from pipelines.steps import DRIFT, TRAINING
from pipelines.storage import read_manifest, wall_time
from tests.embedded.test_airflow_metrics import samples
from tests.pipelines.alerts.test_sinks import receiver
from tests.pipelines.data import loglines

pytestmark = pytest.mark.slow

CASE, MAPPED = "loans", "bank"
RUNS = 20
FAULTS = ("drift:decided.1", "drift:opened.1", "drift:publish.1", "drift:published.1", "alert:files.1")
"""Where a task is killed: the state without its episode, the episode without its report, and on the way to the commits."""
DAYS = 21
"""Predictions that are mostly wrong must ask for training within so many days, the delay of the labels included."""


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """A running stack whose `loans` DAGs are unpaused and follow their schedules, and whose `bank` maps profiles over days."""
    home, faults, params = (tmp_path_factory.mktemp(name) for name in ("loop", "faults", "params"))
    mapped = (CASES_ROOT / MAPPED / "params.yaml").read_text().replace("\ndrift:\n", "\ndrift:\n  mapped: true\n")
    (params / f"{MAPPED}.yaml").write_text(mapped)
    with receiver(200) as (webhook, messages):
        extra = {"PERENNIAL_LOG_SEGMENT_SECONDS": "1", "PERENNIAL_SCHEDULES": "1", "PERENNIAL_ALERT_WEBHOOK": webhook, "PERENNIAL_FAILPOINT": f"@{faults}"}
        extra["PERENNIAL_PARAMS_DIR"] = str(params)
        running = stack.start(home, Ports.free(), extra_env=extra)
        yield from _running(home, running, faults, messages)


def _running(home, running, faults, messages):
    try:
        where = {name.removeprefix("PERENNIAL_").lower(): value for name, value in running.env.items() if name.startswith("PERENNIAL_")}
        settings = Settings(**where)
        airflow = Airflow(settings.airflow_url)
        airflow.wait_for_dags(f"{CASE}_{kind}" for kind in ("training", "drift", "rollback"))
        yield SimpleNamespace(settings=settings, airflow=airflow, params=load_params(CASE), faults=faults, messages=messages)
    finally:
        assert stack.stop(home) == 0


def _own_tick(airflow, dag):
    """The run that the scheduler makes by itself once the DAG is unpaused."""
    airflow.unpause(dag)
    airflow.wait_quiet([dag])
    found = []
    while not found:
        found = airflow.runs(dag)
    return airflow.wait(dag, found[0]["dag_run_id"])


def _states(airflow, dag, run_id):
    return {task["task_id"]: task["state"] for task in airflow.tasks(dag, run_id)}


def test_the_schedulers_own_ticks_go_green(loop):
    """A training run that the scheduler made by itself ends green with a first champion at its interval's end; so does a drift run."""
    training = _own_tick(loop.airflow, f"{CASE}_training")
    assert (training["run_type"], training["triggered_by"], training["state"]) == ("scheduled", "timetable", "success")
    assert _states(loop.airflow, f"{CASE}_training", training["dag_run_id"]) == dict.fromkeys(TRAINING, "success")
    assert "is not preloaded" not in (loop.settings.root / "logs" / "scheduler.log").read_text()
    champion = ledger.head(loop.settings.ledger, CASE)
    assert champion.trigger == "initial"
    assert champion.as_of == datetime.fromisoformat(training["data_interval_end"])

    ticked = _own_tick(loop.airflow, f"{CASE}_drift")
    assert (ticked["run_type"], ticked["state"]) == ("scheduled", "success")
    assert _states(loop.airflow, f"{CASE}_drift", ticked["dag_run_id"]) == {**dict.fromkeys(DRIFT, "success"), "retrain": "skipped"}


def test_an_episode_trains_once(loop):
    """Twenty concurrent drift runs of one episode, some killed and retried, some cleared, end in one training run, to which all link, and one message."""
    as_of, episode = _drifted(loop)
    _forget(loop.settings, as_of)
    for fault in FAULTS:
        (loop.faults / fault).touch()
    dag, airflow = f"{CASE}_drift", loop.airflow
    ids = [airflow.trigger_dag(dag, f"concurrent_{number}", {"as_of": as_of.isoformat()}) for number in range(RUNS)]
    for number in (0, 7):
        airflow.wait(dag, ids[number])
        airflow.clear(dag, ids[number])
    airflow.wait(dag, ids[3])
    airflow.clear(dag, ids[3], ["retrain"])
    airflow.wait_quiet([dag])

    assert list(loop.faults.iterdir()) == []
    retried = [task for run_id in ids for task in airflow.tasks(dag, run_id) if task["try_number"] > 1]
    assert len([task for task in retried if task["task_id"] in {"drift", "alert"}]) >= len(FAULTS) - 2  # one run may meet two faults
    assert [row["episode"] for row in ledger.episodes(loop.settings.ledger, CASE)] == [episode]
    asked = [(airflow.run(dag, run_id)["state"], _states(airflow, dag, run_id)["retrain"]) for run_id in ids]
    assert {state for state, _ in asked} == {"success"}
    assert {retrain for _, retrain in asked} <= {"success", "skipped"}
    trained = [run for run in airflow.runs(f"{CASE}_training") if run["run_type"] == "operator_triggered"]
    assert [run["dag_run_id"] for run in trained] == [f"drift__{episode}"]
    assert {name: trained[0]["conf"][name] for name in ("trigger", "episode")} == {"trigger": "performance", "episode": episode}
    assert datetime.fromisoformat(trained[0]["conf"]["as_of"]) == as_of
    assert (loop.settings.root / trained[0]["conf"]["evidence"]).is_file()
    for run_id in ids:
        links = airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances/retrain/links")["extra_links"]
        assert list(links.values()) == [f"{airflow.url}/dags/{CASE}_training/runs/drift__{episode}"]

    assert airflow.wait(f"{CASE}_training", f"drift__{episode}")["state"] == "success"
    verdicts = Counter(row["as_of"] for row in ledger.verdicts(loop.settings.ledger, CASE))
    assert set(verdicts.values()) == {1}
    assert [row["trigger"] for row in ledger.verdicts(loop.settings.ledger, CASE)] == ["initial", "performance"]
    assert [body["text"].partition("\n")[0] for _, body in loop.messages if episode in body["text"]] == [f"*CRITICAL* {CASE}: {episode}"]


def _forget(settings, as_of):
    """Takes the decision of ``as_of`` back, so that the runs to come race for it: its state, its episode, its report."""
    with create_engine(settings.ledger).begin() as connection:
        connection.execute(text("DELETE FROM drift_episodes"))
        for table in ("drift_states", "drift_chain"):
            connection.execute(text(f"DELETE FROM {table} WHERE as_of = (SELECT max(as_of) FROM {table})"))
    shutil.rmtree(settings.run_dir(CASE, as_of) / "drift")


def _drifted(loop):
    """Sends days of rows whose labels contradict the champion through the gateway until the drift step asks for training."""
    from pipelines.steps import drift, profile

    settings, part, fields = loop.settings, cases.part(CASE, "source"), cases.load_fields(CASE)
    start = wall_time().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    rows = part.rows(part.resolve(settings, loop.params), Window(start=start, end=start + timedelta(days=DAYS)), loop.params)
    rows = rows.with_columns((1 - pl.col(fields.label)).alias(fields.label))
    tally = traffic.Tally()
    with traffic.client(settings.gateway_url, settings.key_file) as gateway:
        traffic.send_rows(gateway, fields, rows, tally)
        traffic.send_labels(gateway, fields, rows, tally)
    traffic.wait_for_closed_segments(settings.prediction_log, CASE)
    assert (tally.errors, len(tally.answers)) == (0, rows.height)
    for number in range(1, DAYS + 1):
        as_of = start + timedelta(days=number)
        run_dir = settings.run_dir(CASE, as_of)
        profile.run(loop.params, settings, run_dir, as_of)
        facts = drift.run(loop.params, settings, run_dir, as_of).facts
        if facts["action"] == "retrain":
            return as_of, facts["episode"]
    raise AssertionError(f"no training was asked for within {DAYS} days of wrong predictions; the last day: {facts}")


def test_every_day_of_a_mapped_case_has_a_task(loop):
    """Where profiles are mapped, a drift run has a task for each day of the window that has rows, and `profile` takes what they made."""
    settings, as_of = loop.settings, datetime(2009, 6, 1, tzinfo=UTC)
    row = {field.name: field.values[0] if isinstance(field, Categorical) else 1.0 for field in cases.load_fields(MAPPED).fields}
    given = {"request_id": "r", "version": 1, "score": 0.25, "prediction": 0, "row": row}
    times = [as_of - timedelta(days=days, hours=hours) for days, hours in ((20, 1), (20, 4), (3, 5))]
    lines = [{**given, "prediction_id": str(at), "event_time": at.isoformat(), "received_at": at.isoformat()} for at in times]
    loglines.write(settings, MAPPED, "predictions", "made", lines)
    dag, airflow = f"{MAPPED}_drift", loop.airflow
    airflow.unpause(dag)
    run_id = airflow.trigger_dag(dag, "mapped", {"as_of": as_of.isoformat()})
    assert airflow.wait(dag, run_id)["state"] == "success"
    assert Counter(task["state"] for task in airflow.tasks(dag, run_id) if task["task_id"] == "profile_day") == {"success": 2}
    run_dir = settings.run_dir(MAPPED, as_of)
    days = read_manifest(run_dir / "profile").facts["days"]
    assert [(day["date"], day["rows"]) for day in days] == [("2009-05-11", 2), ("2009-05-28", 1)]
    assert [read_manifest(run_dir / "profile_parts" / day["date"]).facts for day in days] == days


def test_what_prometheus_is_told_of_a_real_airflow(loop):
    """The exporter finds all components healthy, and the durations and tries of the newest runs' tasks, in the answers of a real REST API."""
    found = samples(Watch(client(loop.settings)).text())
    assert found["up", ()] == 1
    assert {labels[0][1] for (name, labels), value in found.items() if name == "component_healthy" and value} >= {"metadatabase", "scheduler"}
    timed = {dict(labels)["task"] for name, labels in found if name == "task_seconds" and ("dag", f"{CASE}_training") in labels}
    assert timed == set(TRAINING)
    assert {name for name, _labels in found} >= set(SERIES) - {"dag_running_seconds"}
