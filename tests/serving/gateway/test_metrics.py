"""serving/gateway/metrics.py: several workers behind one port tell the same, and of each case and version its own."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.params import Slo
from serving.gateway import metrics as module
from serving.gateway.metrics import Metrics
from serving.gateway.tracing import Course

WORKER = """
import sys, time
from serving.gateway.metrics import Metrics
from serving.gateway.tracing import Course
metrics = Metrics()
rows, age, champion = map(float, sys.argv[1:4])
if sys.argv[4:]:
    metrics.routed("loans", map(int, sys.argv[4:]))
metrics.watch_poll(lambda: time.monotonic() - age)
metrics.rows.labels("loans", 1).inc(rows)
metrics.answered("loans", "predict", 200, Course(version=1), 0.02)
metrics.champion.labels("loans").set(champion)
metrics.refresh()
print("ready", flush=True)
if sys.stdin.readline() == "tell\\n":
    print(metrics.text().decode())
"""


@pytest.fixture
def workers(tmp_path):
    """Starts workers that count into one folder; each waits for a line."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, arguments)],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def told(worker):
    """What a worker answers Prometheus: ``{(series, labels): value}``."""
    text = worker.communicate("tell\n", timeout=20)[0]
    return {
        (sample.name.removeprefix("perennial_gateway_"), json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics(monkeypatch):
    """The metrics of one application."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return Metrics()


def test_any_worker_tells_for_all(workers):
    """Counts of all workers are summed, and of gauges the worst is told, whichever worker is asked."""
    _first = workers(3, 40, 7)
    second = workers(4, 1, 7)
    found = told(second)
    assert found["rows_total", '{"case": "loans", "version": "1"}'] == 7
    assert found["request_seconds_count", '{"route": "predict"}'] == 2
    assert found["answer_seconds_count", '{"case": "loans", "version": "1"}'] == 2
    assert found["champion_version", '{"case": "loans"}'] == 7
    assert 40 <= found["ledger_poll_age_seconds", "{}"] < 60


def test_no_worker_tells_of_versions_of_before(workers):
    """What other workers have counted of a version that has stopped answering long ago is left out by all."""
    first = workers(3, 1, 7, 2, 3)
    found = told(first)
    assert {json.loads(labels).get("version") for name, labels in found if name == "answer_seconds_count"} == set()


def test_a_killed_worker_leaves_its_counts_and_no_gauges(workers):
    """After a worker was killed, the next one sums its counts and forgets what it thought to be so."""
    first = workers(3, 500, 9)
    first.kill()
    first.wait()
    found = told(workers(4, 1, 8))
    assert found["rows_total", '{"case": "loans", "version": "1"}'] == 7
    assert found["champion_version", '{"case": "loans"}'] == 8
    assert found["ledger_poll_age_seconds", "{}"] < 100


def test_workers_that_start_at_once_forget_the_same_killed_ones(tmp_path):
    """What several killed workers left is removed by all that start in their place, and stands in no one's way."""
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text())  # numbers that no process has
    for pid in range(beyond + 1, beyond + 300):
        for kind in ("livemax", "livesum"):
            (tmp_path / f"gauge_{kind}_{pid}.db").touch()
    kept = tmp_path / f"counter_{beyond + 1}.db"
    kept.touch()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(module._forget_dead_workers, [tmp_path] * 8))
    assert list(tmp_path.iterdir()) == [kept]


def test_one_process_needs_no_folder(monkeypatch):
    """Without the folder every application counts for itself, as tests and a single worker want it."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    one = Metrics()
    other = Metrics()
    one.labels.labels("loans").inc(2)
    assert b'perennial_gateway_labels_total{case="loans"} 2.0' in one.text()
    assert b"perennial_gateway_labels_total{" not in other.text()


def samples(metrics):
    """What an application tells, as ``{(series, labels): value}``."""
    return {
        (sample.name.removeprefix("perennial_gateway_"), json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def told_of(metrics, version):
    """The series that are told of a version."""
    return {name for name, labels in samples(metrics) if json.loads(labels).get("version") == version}


def test_answers_are_timed_by_case_and_version_and_refusals_are_not(metrics):
    """Whole requests with scores are in their version's histogram, with their phases; errors are only counted."""
    fast = Course(version=3)
    fast.phases |= {"queue": 0.002, "triton": 0.003}
    metrics.answered("loans", "predict", 200, fast, 0.022)
    metrics.answered("loans", "infer", 200, fast, 0.045)
    metrics.answered("loans", "predict", 200, Course(), 0.001)
    metrics.answered("loans", "predict", 503, Course(version=3), 5.0)
    metrics.answered("loans", "predict", 422, Course(), 0.001)
    metrics.answered("loans", "labels", 200, Course(), 0.001)
    metrics.answered("", "predict", 404, Course(), 0.001)

    found = samples(metrics)
    of = '{"case": "loans", "version": "3"}'
    assert found["answer_seconds_count", of] == 2
    assert found["answer_seconds_sum", of] == pytest.approx(0.067)
    assert found["answer_seconds_bucket", '{"case": "loans", "le": "0.025", "version": "3"}'] == 1
    assert found["answer_seconds_count", '{"case": "loans", "version": ""}'] == 1
    assert {json.loads(labels)["case"] for name, labels in found if name == "answer_seconds_count"} == {"loans"}
    assert found["phase_seconds_total", '{"case": "loans", "phase": "queue"}'] == pytest.approx(0.004)
    errors = {
        labels: value for (name, labels), value in found.items() if name == "requests_total" and '"20' not in labels
    }
    assert {(one["version"], one["status"]) for one in map(json.loads, errors)} == {
        ("3", "503"),
        ("", "422"),
        ("", "404"),
    }


def test_a_version_that_answers_no_more_is_forgotten(metrics, monkeypatch):
    """Series of a version end an hour after it has stopped answering, so that releases do not pile up; others stay."""
    for version in (1, 2, 3):
        metrics.routed("loans", {version, version - 1} - {0})
        metrics.answered("loans", "predict", 200, Course(version=version), 0.02)
        metrics.rows.labels("loans", version).inc()
    assert "answer_seconds_count" in told_of(metrics, "1")

    monkeypatch.setattr(module, "KEPT_SECONDS", -1.0)
    assert told_of(metrics, "1") == set()
    for version in ("2", "3"):
        assert {"answer_seconds_count", "requests_total", "rows_total"} <= told_of(metrics, version)
    assert {version for _, _, version, _ in metrics._bound} == {2, 3}

    metrics.routed("loans", {1, 3})
    metrics.answered("loans", "predict", 200, Course(version=1), 0.02)
    assert "answer_seconds_count" in told_of(metrics, "1")


def test_what_is_promised_is_told_and_nothing_else(metrics):
    """A case's SLO is a series for each percentile that it names; a promise that is taken back has none any more."""
    metrics.promise({"loans": Slo(p99_ms=60), "bank": Slo(p95_ms=20, p99_ms=50, errors=0.001), "shop": Slo()})

    found = samples(metrics)
    assert {
        json.dumps(json.loads(labels)): value for (name, labels), value in found.items() if name == "slo_seconds"
    } == {
        '{"case": "loans", "quantile": "0.99"}': 0.06,
        '{"case": "bank", "quantile": "0.95"}': 0.02,
        '{"case": "bank", "quantile": "0.99"}': 0.05,
    }
    assert found["slo_errors", '{"case": "bank"}'] == 0.001
    assert found["slo_errors", '{"case": "shop"}'] == 0.01

    metrics.promise({"shop": Slo()})
    assert {labels for name, labels in samples(metrics) if name.startswith("slo")} == {'{"case": "shop"}'}


def test_what_waits_is_told_by_case(metrics):
    """Calls that wait are counted when somebody asks; a case of which none waits has zero."""
    metrics.routed("loans", {1})
    metrics.watch_waiting(lambda: {"bank": 3})
    assert samples(metrics)["calls_waiting", '{"case": "bank"}'] == 3
    metrics.watch_waiting(dict)
    found = samples(metrics)
    assert found["calls_waiting", '{"case": "loans"}'] == 0
