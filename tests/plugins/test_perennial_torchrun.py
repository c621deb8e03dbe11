"""perennial/airflow/torchrun.py and pipelines/processes.py: nothing that a training has started outlives it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from perennial.airflow import torchrun as perennial_torchrun
from perennial.airflow.torchrun import TAG, TorchrunOperator, tagged
from pipelines.processes import end_all

SLEEP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
DEAF = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]
IDENTITY = "bank_training/drift__e/train#"


def started(argv=SLEEP, **environment):
    """A process in a session of its own, as a rank is, that has begun to sleep."""
    child = subprocess.Popen(argv, env={**os.environ, **environment}, stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    return child


@pytest.fixture
def ti():
    """The second try of a train task."""
    return SimpleNamespace(dag_id="bank_training", run_id="drift__e", task_id="train", try_number=2)


@pytest.fixture(autouse=True)
def _loose(monkeypatch):
    """This process shall not die with its parent, nor take the servers of other tests for its task's processes."""
    monkeypatch.setattr(perennial_torchrun, "die_with_parent", lambda _number: None)
    monkeypatch.setattr(perennial_torchrun, "descendants", list)


def execute(monkeypatch, ti, body):
    """The operator's execute with ``body`` in the place of the step."""
    monkeypatch.setattr(perennial_torchrun.StepOperator, "execute", lambda _self, _context: body())
    task = TorchrunOperator(task_id="train", case="bank")
    return task, task.execute({"ti": ti})


def test_what_another_try_left_is_swept_before_the_step(monkeypatch, ti):
    """A rank of the first try is gone before the second one trains; that of another run is none of its business."""
    stale, other = started(**{TAG: f"{IDENTITY}1"}), started(**{TAG: "bank_training/drift__f/train#1"})
    try:
        seen = []
        execute(monkeypatch, ti, lambda: seen.append((stale.poll() is not None, other.poll(), os.environ[TAG])))
        assert seen == [(True, None, f"{IDENTITY}2")]
        assert TAG not in os.environ
    finally:
        other.kill()
        stale.wait()
        other.wait()


def test_a_kill_reaches_sessions_of_their_own_and_the_deaf(monkeypatch, ti):
    """on_kill ends tagged processes that lead sessions of their own within Airflow's five seconds.

    It ends those that ignore TERM too.
    """
    ranks = []

    def train():
        ranks.extend((started(), started(DEAF)))

    task, _ = execute(monkeypatch, ti, train)
    assert set(tagged(IDENTITY)) == {rank.pid for rank in ranks}
    task.on_kill()
    assert tagged(IDENTITY) == []
    assert [rank.poll() is None for rank in ranks] == [False, False]


def test_a_task_dies_with_its_supervisor():
    """A killed parent takes the task along: the kernel sends it a signal."""
    task = (
        "from pipelines.processes import die_with_parent as d; import time; d(15); print('up', flush=True); "
        "time.sleep(60)"
    )
    argv = [sys.executable, "-c", task]
    parent = (
        f"import subprocess, sys, time; c = subprocess.Popen({argv!r}, stdout=subprocess.PIPE); "
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(60)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), TAG: "dies"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    child = int(supervisor.stdout.readline())
    assert child in tagged("dies")
    supervisor.kill()
    supervisor.wait()
    until = time.monotonic() + 5
    while tagged("dies") and time.monotonic() < until:
        time.sleep(0.05)
    assert tagged("dies") == []


def test_ending_nobody_is_fine():
    """A pid that is gone already is no error."""
    gone = started()
    gone.kill()
    gone.wait()
    assert end_all([gone.pid], grace=1.0) == []
