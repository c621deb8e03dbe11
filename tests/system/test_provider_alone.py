"""The provider in an Airflow that has nothing else of the project: forms of connections, and a run that is once."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from embedded import postgres
from embedded.airflow import Airflow
from embedded.ports import Ports
from perennial.airflow.trigger import NOBODYS
from pipelines import ledger
from pipelines.errors import ConfigError, PerennialError
from tests.package import called, environment, install_wheel

pytestmark = [pytest.mark.slow, pytest.mark.long]
RUNS = 20
TYPES = {"perennial_triton", "perennial_mlflow", "perennial_ledger"}
DAGS = '''"""Runs of one dag that all ask airflow for the same run of another one."""

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from perennial.airflow import TriggerOnce

with DAG("asking", schedule=None, max_active_runs=20):
    TriggerOnce(
        task_id="ask",
        trigger_dag_id="asked",
        trigger_run_id="month__2026-11",
        conf={"month": "2026-11"},
        retries=3,
        retry_delay=timedelta(seconds=1),
    )
with DAG("asked", schedule=None):
    EmptyOperator(task_id="nothing")
'''


@pytest.fixture(scope="module")
def databases():
    """A PostgreSQL for Airflow and one for the ledger: Airflow's scheduler may end itself where SQLite is locked."""
    try:
        postgres.find()
    except ConfigError as error:
        pytest.skip(str(error))
    with postgres.server(("airflow", "ledger")) as urls:
        yield urls


@pytest.fixture(scope="module")
def alone(tmp_path_factory, databases):
    """A fresh Airflow into which the wheel was installed: its command, its environment, a client, its ledger."""
    home = tmp_path_factory.mktemp("airflow")
    programs = install_wheel(tmp_path_factory.mktemp("installed"))
    airflow = [programs / "python", "-m", "airflow"]
    port = Ports.free().airflow
    url = f"http://127.0.0.1:{port}"
    (home / "dags").mkdir()
    (home / "dags" / "months.py").write_text(DAGS)
    env = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": databases["airflow"],
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": databases["airflow"],
        "PERENNIAL_LEDGER_URL": databases["ledger"],
        "NO_PROXY": "127.0.0.1",
    }
    called([*airflow, "db", "migrate"], home, **env)
    parts = (["api-server"], ["scheduler", "--skip-serve-logs"], ["dag-processor"])
    running = []
    try:
        for part in parts:
            with (home / f"{part[0]}.log").open("w") as log:
                running.append(
                    subprocess.Popen(
                        list(map(str, [*airflow, *part])),
                        cwd=home,
                        env=environment(**env, AIRFLOW__PERENNIAL__GUARD_HOSTS="True"),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        found = Airflow(url)
        _until(lambda: {"asking", "asked"} <= {dag["dag_id"] for dag in found.dags()}, 180)
        yield SimpleNamespace(command=airflow, env=env, home=home, api=found, ledger=env["PERENNIAL_LEDGER_URL"])
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _until(true, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except PerennialError:  # it has not started yet
            pass
        assert time.monotonic() < give_up
        time.sleep(0.5)


def _listed(alone, *words: str):
    said = called([*alone.command, *words, "--output", "json"], alone.home, **alone.env)
    return json.loads(said[said.index("[") :])


def test_airflow_knows_the_provider_and_its_forms(alone):
    """Its commands list the provider with hooks, fields, links and configuration; its pages get the forms."""
    assert "perennial" in {one["package_name"] for one in alone.api.call("GET", "/providers")["providers"]}
    hooks = {one["connection_type"]: one["hook_name"] for one in _listed(alone, "providers", "hooks")}
    assert {hooks[kind] for kind in TYPES} == {
        "Triton (Perennial)",
        "MLflow (Perennial)",
        "Ledger (Perennial, PostgreSQL)",
    }
    fields = {one["connection_parameter_name"] for one in _listed(alone, "providers", "widgets")}
    assert {"extra__perennial_triton__private_key", "extra__perennial_ledger__sslmode"} <= fields
    assert "perennial.airflow.links.Link" in str(_listed(alone, "providers", "links"))
    value = called([*alone.command, "config", "get-value", "perennial", "guard_hosts"], alone.home, **alone.env)
    assert value.split()[-1] == "False"
    answer = alone.api._client.get("/ui/connections/hook_meta")  # the client has its token by now
    forms = {one["connection_type"]: one for one in answer.json()}
    assert forms.keys() >= TYPES
    assert forms["perennial_ledger"]["standard_fields"]["url_schema"]["title"] == "Database"
    assert "require" in forms["perennial_ledger"]["extra_fields"]["sslmode"]["schema"]["enum"]
    assert forms["perennial_triton"]["extra_fields"]["private_key"]["schema"]["format"] == "multiline"


def test_the_guard_of_hosts_can_be_asked_for(alone):
    """With one setting the installed plugin lets the api-server answer to its own names only."""
    for host, status in (("evil.example", 421), ("localhost", 200)):
        assert alone.api._client.get("/api/v2/version", headers={"Host": host}).status_code == status


def test_a_connection_is_kept_masked_and_tested(alone):
    """What a form sends is taken; the key is not shown again, and the button says what is wrong with the place."""
    body = {
        "connection_id": "triton_default",
        "conn_type": "perennial_triton",
        "host": "127.0.0.1",
        "port": 1,
        "extra": json.dumps({"private_key": "-----BEGIN PRIVATE KEY-----"}),
    }
    alone.api.call("POST", "/connections", json=body)
    assert json.loads(alone.api.call("GET", "/connections/triton_default")["extra"]) == {"private_key": "***"}
    body = {
        "connection_id": "elsewhere",
        "conn_type": "perennial_ledger",
        "host": "127.0.0.1",
        "port": 1,
        "schema": "l",
    }
    tested = alone.api.call("POST", "/connections/test", json=body)
    assert not tested["status"]
    assert "the ledger postgresql+psycopg://127.0.0.1:1/l does not answer" in tested["message"]


def _ended(alone, ids):
    """The states of the tasks of these runs, once all are over."""
    _until(lambda: all(alone.api.run("asking", run)["state"] in {"success", "failed"} for run in ids), 300)
    return [task["state"] for run in ids for task in alone.api.tasks("asking", run)]


def test_twenty_runs_at_once_start_one_and_it_stays_one(alone):
    """Of twenty runs one starts the run; cleared, they start none, nor when Airflow has forgotten it.

    The run is deleted by hand, then all runs are cleaned out of Airflow's database: what was started is remembered.
    """
    alone.api.pause("asking")
    ids = [alone.api.trigger_dag("asking", f"r{number}", {}) for number in range(RUNS)]
    alone.api.unpause("asking")
    states = _ended(alone, ids)
    assert (states.count("success"), states.count("skipped")) == (1, RUNS - 1)
    [made] = alone.api.runs("asked")
    assert (made["dag_run_id"], made["conf"]["month"]) == ("month__2026-11", "2026-11")
    for run in ids[:5]:
        alone.api.clear("asking", run)
    assert set(_ended(alone, ids)) <= {"success", "skipped"}
    assert len(alone.api.runs("asked")) == 1

    alone.api.call("DELETE", "/dags/asked/dagRuns/month__2026-11")
    for run in ids:
        alone.api.clear("asking", run)
    assert _ended(alone, ids) == ["skipped"] * RUNS
    clean = ["db", "clean", "--clean-before-timestamp", "2100-01-01", "--tables", "dag_run", "--skip-archive", "--yes"]
    called([*alone.command, *clean], alone.home, **alone.env)
    assert _ended(alone, [alone.api.trigger_dag("asking", "later", {})]) == ["skipped"]
    assert alone.api.runs("asked") == []
    assert ledger.started(alone.ledger, NOBODYS, "asked", "month__2026-11").asked_by.startswith("asking/r")
