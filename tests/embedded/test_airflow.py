"""Tests of Airflow's environment and of its REST client, against answers written down here."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from embedded.airflow import Airflow, components, environment, healthy
from embedded.ports import Ports
from pipelines.case_files import case_names
from pipelines.errors import ConflictError, PerennialError, Unavailable


def test_secrets_are_made_once_and_kept_private(tmp_path):
    """Two environments of one state folder share long secrets that only the owner may read.

    Another state folder has others.
    """
    first, again, other = (environment(tmp_path / home, Ports()) for home in ("a", "a", "b"))
    names = ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY")
    for name in names:
        assert first[name] == again[name] != other[name]
    assert len(first["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64
    assert (tmp_path / "a" / "airflow" / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_the_callers_airflow_does_not_leak_in(tmp_path, monkeypatch):
    """AIRFLOW* settings of the caller and its ban on byte-code are left out, PERENNIAL_* is handed on.

    ``extra`` wins.
    """
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__CORE__DAG_CONCURRENCY", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PERENNIAL_DATA_DIR", "/data")
    env = environment(tmp_path, Ports(), {"AIRFLOW__CORE__PARALLELISM": "2"})
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "AIRFLOW__CORE__DAG_CONCURRENCY" not in env
    assert "PYTHONDONTWRITEBYTECODE" not in env
    assert (env["PERENNIAL_DATA_DIR"], env["PERENNIAL_HOME"], env["AIRFLOW__CORE__PARALLELISM"]) == (
        "/data",
        str(tmp_path),
        "2",
    )


def test_everybody_is_admin_on_the_loopback_address_only(tmp_path):
    """Without log-in, the api-server binds 127.0.0.1, and no other component opens a port."""
    env = environment(tmp_path, Ports(airflow=18080))
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "True"
    assert (env["AIRFLOW__API__HOST"], env["AIRFLOW__API__PORT"], env["AIRFLOW__API__BASE_URL"]) == (
        "127.0.0.1",
        "18080",
        "http://127.0.0.1:18080",
    )
    assert all("--skip-serve-logs" in components()[name] for name in ("scheduler", "triggerer"))


@pytest.mark.parametrize(
    ("part", "loaded", "looked_at"),
    [
        ("dag-processor", ["perennial.airflow.operators"], list(case_names())),
        ("triggerer", [], []),
        ("api-server", [], []),
    ],
)
def test_what_is_preloaded_outside_of_the_scheduler(part, loaded, looked_at, tmp_path):
    """The settings module that Airflow imports in every process loads nothing heavy outside the scheduler.

    The dag-processor has what DAG files import, and has looked at the cases; the others have nothing.
    """
    code = (
        "import json, sys, airflow_local_settings; cases = sys.modules.get('pipelines.cases.surveying'); "
        "names = ('torch', 'mlflow', 'polars', 'perennial.airflow.operators'); "
        "print(json.dumps([[name for name in names if name in sys.modules], "
        "sorted(case for case, _ in cases._seen) if cases else []]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, part],
        env=environment(tmp_path, Ports()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [loaded, looked_at]
    assert "not preloaded" not in done.stdout + done.stderr


def test_the_preload_list_can_be_imported():
    """Every module that the scheduler loads before it forks is installed.

    A missing one would only be slow, and nobody would see it.
    """
    folder = Path(__file__).parents[2] / "embedded" / "airflow_config"
    code = f"""
import importlib.util, json, sys; sys.path.insert(0, {str(folder)!r}); import airflow_local_settings as a
roots = sorted({{name.split('.')[0] for name in (*a.HEAVY, *a.DAGS)}})
print(json.dumps([name for name in roots if importlib.util.find_spec(name) is None]))"""
    assert (
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        == []
    )


def test_nobody_there_is_unhealthy():
    """Without an api-server every component counts as not healthy, and a call says what to look at."""
    nowhere = f"http://127.0.0.1:{Ports.free().airflow}"
    assert healthy(nowhere) == dict.fromkeys(("metadatabase", "scheduler", "dag_processor", "triggerer"), False)
    with pytest.raises(Unavailable, match="make status"):
        Airflow(nowhere).dags()


def test_who_speaks_no_http_is_unhealthy():
    """Whatever else listens at the api-server's port counts as not healthy, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with listener.accept()[0] as taken:
                taken.recv(1000)
                taken.sendall(b"220 mail\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        assert not any(healthy(f"http://127.0.0.1:{listener.getsockname()[1]}").values())
        answering.join()


def _client(answer):
    """A client whose requests are answered by ``answer`` once they carry a token, and the log of requests."""
    seen = []

    def respond(request):
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "t"})
        if request.headers.get("Authorization") != "Bearer t":
            return httpx.Response(401)
        seen.append((request.method, request.url.path, json.loads(request.content or b"null")))
        return answer(request)

    airflow = Airflow("http://airflow")
    airflow._client = httpx.Client(base_url=airflow.url, transport=httpx.MockTransport(respond))
    return airflow, seen


def test_a_trigger_carries_its_name_and_no_logical_date():
    """A run is asked for by id with its conf and without a logical date, after fetching a token."""
    airflow, seen = _client(lambda _request: httpx.Response(200, json={"dag_run_id": "r1"}))
    assert airflow.trigger_dag("bank_training", "r1", {"as_of": "2009-05-01"}) == "r1"
    body = {"dag_run_id": "r1", "logical_date": None, "conf": {"as_of": "2009-05-01"}, "note": None}
    assert seen == [("POST", "/api/v2/dags/bank_training/dagRuns", body)]


@pytest.mark.parametrize(("status", "kind"), [(409, ConflictError), (400, PerennialError), (500, PerennialError)])
def test_refusals_keep_airflows_words(status, kind, monkeypatch):
    """A refusal is one of our errors with Airflow's own message; an id that exists is a conflict."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    airflow, _seen = _client(lambda _request: httpx.Response(status, json={"detail": "the run exists"}))
    with pytest.raises(kind, match="the run exists"):
        airflow.trigger_dag("bank_training", "r1")


@pytest.mark.parametrize(("method", "asked"), [("PATCH", 2), ("POST", 1)])
def test_a_late_answer_is_asked_for_again_where_that_is_harmless(method, asked):
    """A late answer of a busy machine is asked for again, but not to a call that could then begin a run twice."""
    answers = iter([httpx.ReadTimeout("timed out"), httpx.Response(200, json={"dag_run_id": "r1"})])

    def answer(_request):
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    airflow, seen = _client(answer)
    if method == "PATCH":
        airflow.unpause("bank_training")
    else:
        with pytest.raises(Unavailable, match="timed out"):
            airflow.trigger_dag("bank_training", "r1")
    assert [entry[0] for entry in seen] == [method] * asked


def test_dags_that_come_one_by_one_are_waited_for():
    """As long as further DAGs come nobody gives up; once none comes for the given time, the missing ones are named."""
    there = iter(range(1, 9))

    def answer(request):
        if request.url.path.endswith("importErrors"):
            return httpx.Response(200, json={"import_errors": []})
        time.sleep(0.02)
        return httpx.Response(200, json={"dags": [{"dag_id": f"dag_{number}"} for number in range(next(there, 8))]})

    airflow, _seen = _client(answer)
    airflow.wait_for_dags([f"dag_{number}" for number in range(8)], timeout=0.06, interval=0.01)
    with pytest.raises(PerennialError, match="dag_8 are not there"):
        airflow.wait_for_dags([f"dag_{number}" for number in range(9)], timeout=0.06, interval=0.01)


def test_a_locked_database_is_asked_again():
    """A 5xx, which is Airflow's SQLite being locked for a moment, is asked again and does not reach the caller."""
    answers = iter(
        [httpx.Response(500, json={"detail": "database is locked"}), httpx.Response(200, json={"dag_run_id": "r1"})]
    )
    airflow, seen = _client(lambda _request: next(answers))
    assert airflow.trigger_dag("bank_training", "r1") == "r1"
    assert len(seen) == 2


def test_a_run_that_does_not_end_names_its_tasks():
    """Waiting too long says which task hangs."""
    answers = {
        "taskInstances": {"task_instances": [{"task_id": "train", "state": "running"}]},
        "r1": {"state": "running"},
    }
    airflow, _seen = _client(lambda request: httpx.Response(200, json=answers[request.url.path.rsplit("/", 1)[1]]))
    with pytest.raises(Unavailable, match=r"'train': 'running'"):
        airflow.wait("bank_training", "r1", timeout=0.05, interval=0.01)


def test_runs_are_read_page_by_page():
    """All runs come back although Airflow hands out a hundred at a time."""

    def page(request):
        offset = int(request.url.params["offset"])
        return httpx.Response(
            200,
            json={"dag_runs": [{"dag_run_id": n} for n in range(offset, min(offset + 100, 150))], "total_entries": 150},
        )

    airflow, _seen = _client(page)
    assert [run["dag_run_id"] for run in airflow.runs("bank_drift")] == list(range(150))
