"""embedded/airflow_metrics.py: what Airflow answers becomes series; an Airflow that is away becomes `up 0`."""

import json
import threading
import urllib.request
from queue import Queue

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedded.airflow import Airflow
from embedded.airflow_metrics import KEEP_SECONDS, PREFIX, SERIES, Watch
from pipelines.reports import exporter

START = "2026-03-01T02:00:00Z"
END = "2026-03-01T02:00:30Z"
RUN = {"dag_id": "loans_drift", "dag_run_id": "r1", "state": "failed", "start_date": START, "end_date": END}
TASKS = [
    {"task_id": "profile", "state": "success", "duration": 12.5, "try_number": 1, "map_index": -1, "queue": "default"},
    {"task_id": "drift", "state": "failed", "duration": None, "try_number": 4, "map_index": -1, "queue": "default"},
]
HEALTH = {
    name: {"status": "healthy", f"latest_{name}_heartbeat": START}
    for name in ("scheduler", "dag_processor", "triggerer")
}
ANSWERS = {
    "/monitor/health": {
        "metadatabase": {"status": "healthy"},
        **HEALTH,
        "triggerer": {"status": "unhealthy", "latest_triggerer_heartbeat": None},
    },
    "/importErrors": {"import_errors": [], "total_entries": 1},
    "/dags": {"dags": [{"dag_id": "loans_drift", "is_paused": False}], "total_entries": 1},
    "/dagStats": {"dags": [{"dag_id": "loans_drift", "stats": [{"state": "failed", "count": 2}]}]},
    "/dags/loans_drift/dagRuns": {"dag_runs": [RUN], "total_entries": 2},
    "/dags/loans_drift/dagRuns/r1/taskInstances": {"task_instances": TASKS, "total_entries": 2},
    "/dags/~/dagRuns": {"dag_runs": [{**RUN, "state": "running", "end_date": None}], "total_entries": 1},
    "/dags/~/dagRuns/~/taskInstances": {"task_instances": [{**TASKS[0], "queue": "gpu"}], "total_entries": 3},
    "/pools": {
        "pools": [
            {
                "name": "default_pool",
                **{f"{state}_slots": 1 for state in ("open", "running", "queued", "scheduled", "deferred")},
            }
        ]
    },
}


def watching(answers=ANSWERS, login=("watcher", "right")):
    """A watch on a pretended Airflow with a login, the paths that it was asked for, and a clock to turn."""
    asked = []
    clock = [0.0]

    def respond(request):
        if request.url.path == "/auth/token":
            right = request.method == "POST" and json.loads(request.content) == {
                "username": "watcher",
                "password": "right",
            }
            return httpx.Response(201, json={"access_token": "t"}) if right else httpx.Response(401)
        if request.headers.get("Authorization") != "Bearer t":
            return httpx.Response(401)
        path = request.url.path.removeprefix("/api/v2")
        asked.append(path)
        return httpx.Response(200, json=answers[path])

    airflow = Airflow("http://airflow", *login)
    airflow._client = httpx.Client(base_url=airflow.url, transport=httpx.MockTransport(respond))
    return Watch(airflow, clock=lambda: clock[0], now=lambda: 1772330460.0), asked, clock


def samples(text):
    """``{(name, labels): value}`` of a text in Prometheus' format."""
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def found():
    """What is exported of the pretended Airflow."""
    return samples(watching()[0].text())


def test_every_series_is_exported(found):
    """All series that are declared come out of an Airflow that has something to say, and no others."""
    assert {name for name, _labels in found} == set(SERIES)


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("up", {}, 1),
        ("component_healthy", {"component": "triggerer"}, 0),
        ("component_heartbeat_timestamp_seconds", {"component": "scheduler"}, 1772330400),
        ("import_errors", {}, 1),
        ("dag_runs", {"dag": "loans_drift", "state": "failed"}, 2),
        ("dag_run_seconds", {"dag": "loans_drift"}, 30),
        ("dag_run_failed", {"dag": "loans_drift"}, 1),
        ("dag_running_seconds", {"dag": "loans_drift"}, 60),
        ("task_seconds", {"dag": "loans_drift", "task": "profile"}, 12.5),
        ("task_tries", {"dag": "loans_drift", "task": "drift"}, 4),
        ("task_failed", {"dag": "loans_drift", "task": "drift"}, 1),
        ("tasks", {"state": "queued"}, 3),
        ("queued_tasks", {"queue": "gpu"}, 1),
        ("queued_tasks", {"queue": "default"}, 0),
        ("pool_slots", {"pool": "default_pool", "state": "running"}, 1),
    ],
)
def test_a_series_says_what_airflow_says(found, name, labels, value):
    """States, durations, queues and heartbeats are Airflow's own figures."""
    assert found[name, tuple(sorted(labels.items()))] == value


def test_airflow_is_spared():
    """Within ten seconds nothing is asked again, and the tasks of a finished run never."""
    watch, asked, clock = watching()
    watch.text()
    first = len(asked)
    clock[0] = KEEP_SECONDS - 1
    watch.text()
    assert len(asked) == first
    clock[0] = KEEP_SECONDS
    watch.text()
    assert len(asked) == 2 * first - 1
    assert asked.count("/dags/loans_drift/dagRuns/r1/taskInstances") == 1


@pytest.mark.parametrize("login", [("watcher", "wrong"), ()])
def test_a_refused_login_is_said(capsys, login):
    """With a wrong login, or none where one is needed, the exporter says `up 0`, and the settings to set in its log."""
    assert samples(watching(login=login)[0].text())[("up", ())] == 0
    assert "PERENNIAL_AIRFLOW_USERNAME" in capsys.readouterr().err


def test_it_is_served():
    """The exporter answers /metrics and /healthz over HTTP, and 404 elsewhere."""
    ports: Queue[int] = Queue()
    threading.Thread(target=exporter.serve, args=(watching()[0].text, "127.0.0.1", 0, ports.put), daemon=True).start()
    url = f"http://127.0.0.1:{ports.get(timeout=5)}"
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        assert samples(answer.read())[("up", ())] == 1
    with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
        assert answer.read() == b"ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/", timeout=5)
