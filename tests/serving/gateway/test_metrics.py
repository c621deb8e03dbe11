"""serving/gateway/metrics.py: several workers behind one port tell the same."""

import json
import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.gateway.metrics import Metrics

WORKER = """
import sys, time
from serving.gateway.metrics import Metrics
metrics = Metrics()
rows, age, champion = map(float, sys.argv[1:4])
metrics.watch_poll(lambda: time.monotonic() - age)
metrics.rows.labels("loans", 1).inc(rows)
metrics.seconds.labels("predict").observe(0.02)
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


def test_any_worker_tells_for_all(workers):
    """Counts of all workers are summed, and of gauges the worst is told, whichever worker is asked."""
    _first = workers(3, 40, 7)
    second = workers(4, 1, 7)
    found = told(second)
    assert found["rows_total", '{"case": "loans", "version": "1"}'] == 7
    assert found["request_seconds_count", '{"route": "predict"}'] == 2
    assert found["champion_version", '{"case": "loans"}'] == 7
    assert 40 <= found["ledger_poll_age_seconds", "{}"] < 60


def test_a_killed_worker_leaves_its_counts_and_no_gauges(workers):
    """After a worker was killed, the next one sums its counts and forgets what it thought to be so."""
    first = workers(3, 500, 9)
    first.kill()
    first.wait()
    found = told(workers(4, 1, 8))
    assert found["rows_total", '{"case": "loans", "version": "1"}'] == 7
    assert found["champion_version", '{"case": "loans"}'] == 8
    assert found["ledger_poll_age_seconds", "{}"] < 100


def test_one_process_needs_no_folder(monkeypatch):
    """Without the folder every application counts for itself, as tests and a single worker want it."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    one = Metrics()
    other = Metrics()
    one.labels.labels("loans").inc(2)
    assert b'perennial_gateway_labels_total{case="loans"} 2.0' in one.text()
    assert b"perennial_gateway_labels_total{" not in other.text()
