"""The DAGs in the real Airflow over the whole real stack: the scheduler's own tick, and one training run and one message per episode."""

import os
import shutil
import tempfile
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.episode import forget, provoke
from embedded import stack
from embedded.airflow import client
from embedded.airflow_metrics import SERIES, Watch
from embedded.ports import Ports
from embedded.services import PARAMS, settings_of
from pipelines import ledger
from pipelines.config import CASES_ROOT, load_params
from pipelines.steps import DRIFT, TRAINING
from pipelines.storage import wall_time
from tests.embedded.test_airflow_metrics import samples
from tests.pipelines.alerts.test_sinks import receiver

pytestmark = pytest.mark.slow

PROFILE = os.environ.get("PERENNIAL_TEST_PROFILE", "embedded")
"""full (`make test-full`): the same tests on PostgreSQL, Celery and all that docker-compose.yaml starts."""
CASE = "loans"
RUNS = 20
FAULTS = ("drift:decided.1", "drift:opened.1", "drift:publish.1", "drift:published.1", "alert:files.1")
"""Where a task is killed: the state without its episode, the episode without its report, and on the way to the commits."""


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """A running stack whose `loans` DAGs are unpaused and follow their schedules."""
    home, faults = _home(tmp_path_factory), tmp_path_factory.mktemp("faults")
    with receiver(200) as (webhook, messages):
        extra = {"PERENNIAL_LOG_SEGMENT_SECONDS": "1", "PERENNIAL_SCHEDULES": "1", "PERENNIAL_ALERT_WEBHOOK": webhook, "PERENNIAL_FAILPOINT": f"@{faults}"}
        running = stack.start(home, Ports.free(), profile=PROFILE, extra_env=extra)
        yield from _running(home, running, faults, messages)


def _home(tmp_path_factory):
    """A state folder; PostgreSQL's own user must be able to pass through to its part of it, where the trainings are sent to the GPU queue."""
    if PROFILE == "embedded":
        return tmp_path_factory.mktemp("loop")
    home = Path(tempfile.mkdtemp(prefix="perennial-full-"))
    home.chmod(0o711)
    own = yaml.safe_load((CASES_ROOT / CASE / "params.yaml").read_text()) | {"resources": {"queue": "gpu"}}
    (home / PARAMS).mkdir()
    (home / PARAMS / f"{CASE}.yaml").write_text(yaml.safe_dump(own))
    return home


def _running(home, running, faults, messages):
    try:
        settings = settings_of(home, running.env)
        airflow = client(settings)
        airflow.wait_for_dags(f"{CASE}_{kind}" for kind in ("training", "drift", "rollback"))
        yield SimpleNamespace(settings=settings, airflow=airflow, params=load_params(CASE), faults=faults, messages=messages)
    finally:
        assert stack.stop(home) == 0
        if PROFILE == "full":
            shutil.rmtree(home)


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
    executes = {"embedded": "scheduler.log", "full": "worker-default.log"}[PROFILE]
    assert "is not preloaded" not in (loop.settings.root / "logs" / executes).read_text()
    champion = ledger.head(loop.settings.ledger, CASE)
    assert champion.trigger == "initial"
    assert champion.as_of == datetime.fromisoformat(training["data_interval_end"])

    ticked = _own_tick(loop.airflow, f"{CASE}_drift")
    assert (ticked["run_type"], ticked["state"]) == ("scheduled", "success")
    assert _states(loop.airflow, f"{CASE}_drift", ticked["dag_run_id"]) == {**dict.fromkeys(DRIFT, "success"), "retrain": "skipped"}


def test_an_episode_trains_once(loop):
    """Twenty concurrent drift runs of one episode, some killed and retried, some cleared, end in one training run, to which all link, and one message."""
    tomorrow = wall_time().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    as_of, episode = provoke(loop.settings, loop.params, tomorrow)
    forget(loop.settings, CASE, as_of)
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


def test_what_prometheus_is_told_of_a_real_airflow(loop):
    """The exporter finds all components healthy, and the durations and tries of the newest runs' tasks, in the answers of a real REST API."""
    found = samples(Watch(client(loop.settings)).text())
    assert found["up", ()] == 1
    assert {labels[0][1] for (name, labels), value in found.items() if name == "component_healthy" and value} >= {"metadatabase", "scheduler"}
    timed = {dict(labels)["task"] for name, labels in found if name == "task_seconds" and ("dag", f"{CASE}_training") in labels}
    assert timed == set(TRAINING)
    assert {name for name, _labels in found} >= set(SERIES) - {"dag_running_seconds"}
