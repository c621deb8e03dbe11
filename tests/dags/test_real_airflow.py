"""The DAGs in the real Airflow over the whole real stack: the scheduler's own tick, and one training run per episode."""

from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace

import polars as pl
import pytest

from embedded import stack
from embedded.airflow import Airflow
from embedded.demo import traffic
from embedded.ports import Ports
from pipelines import cases, ledger
from pipelines.config import Settings, load_params
from pipelines.contracts import Window
from pipelines.steps import DRIFT, TRAINING
from pipelines.storage import wall_time

pytestmark = pytest.mark.slow

CASE = "loans"
RUNS = 20
DAYS = 21
"""Predictions that are mostly wrong must ask for training within so many days, the delay of the labels included."""


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """A running stack whose `loans` DAGs are unpaused and follow their schedules."""
    home = tmp_path_factory.mktemp("loop")
    running = stack.start(home, Ports.free(), extra_env={"PERENNIAL_LOG_SEGMENT_SECONDS": "1", "PERENNIAL_SCHEDULES": "1"})
    try:
        where = {name.removeprefix("PERENNIAL_").lower(): value for name, value in running.env.items() if name.startswith("PERENNIAL_")}
        settings = Settings(**where)
        airflow = Airflow(settings.airflow_url)
        airflow.wait_for_dags(f"{CASE}_{kind}" for kind in ("training", "drift", "rollback"))
        yield SimpleNamespace(settings=settings, airflow=airflow, params=load_params(CASE))
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
    """Twenty concurrent drift runs of one episode, some cleared and run again, end in exactly one training run, to which all link."""
    as_of, episode = _drifted(loop)
    dag, airflow = f"{CASE}_drift", loop.airflow
    ids = [airflow.trigger_dag(dag, f"concurrent_{number}", {"as_of": as_of.isoformat()}) for number in range(RUNS)]
    for number in (0, 7):
        airflow.wait(dag, ids[number])
        airflow.clear(dag, ids[number])
    airflow.wait(dag, ids[3])
    airflow.clear(dag, ids[3], ["retrain"])
    airflow.wait_quiet([dag])

    asked = [(airflow.run(dag, run_id)["state"], _states(airflow, dag, run_id)["retrain"]) for run_id in ids]
    assert {state for state, _ in asked} == {"success"}
    assert {retrain for _, retrain in asked} <= {"success", "skipped"}
    trained = [run for run in airflow.runs(f"{CASE}_training") if run["run_type"] == "operator_triggered"]
    assert [run["dag_run_id"] for run in trained] == [f"drift__{episode}"]
    assert {name: trained[0]["conf"][name] for name in ("trigger", "episode")} == {"trigger": "drift", "episode": episode}
    assert datetime.fromisoformat(trained[0]["conf"]["as_of"]) == as_of
    assert (loop.settings.root / trained[0]["conf"]["evidence"]).is_file()
    for run_id in ids:
        links = airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances/retrain/links")["extra_links"]
        assert list(links.values()) == [f"{airflow.url}/dags/{CASE}_training/runs/drift__{episode}"]

    assert airflow.wait(f"{CASE}_training", f"drift__{episode}")["state"] == "success"
    verdicts = Counter(row["as_of"] for row in ledger.verdicts(loop.settings.ledger, CASE))
    assert set(verdicts.values()) == {1}
    assert [row["trigger"] for row in ledger.verdicts(loop.settings.ledger, CASE)] == ["initial", "drift"]


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
