"""Trainings that something happens to: each ends where the undisturbed one ends, dropout on, and leaves no process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.job import holders
from pipelines.errors import Unavailable
from pipelines.training.fit import fit
from pipelines.training.weights import weights_sha256
from tests.pipelines.training.models import TEXT, Troubled, texts

REPOSITORY = Path(__file__).parents[3]
VICTIMS = ("wait-task", "wait-agent", "wait-term")


def start(folder: Path, *troubles: str) -> subprocess.Popen:
    """A task that goes through troubles (task.py)."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.pipelines.training.task", str(folder), *troubles], cwd=REPOSITORY
    )


def gone(folder: Path) -> bool:
    """Whether all of a training's processes end within seconds."""
    until = time.monotonic() + 10
    while holders(folder) and time.monotonic() < until:
        time.sleep(0.05)
    return not holders(folder)


def end(folder: Path, victim: str) -> None:
    """Start a training in a task, and once it has come to its seventh step, end one of its processes."""
    task = start(folder, victim)
    until = time.monotonic() + 60
    while not (folder / victim / "happened").exists() and task.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    agents = [
        int(pid) for path in Path(f"/proc/{task.pid}/task").glob("*/children") for pid in path.read_text().split()
    ]
    os.kill(
        agents[0] if victim == "wait-agent" else task.pid, signal.SIGTERM if victim == "wait-term" else signal.SIGKILL
    )
    task.wait(timeout=60)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What came of every trouble: the tries of a task each.

    The last of them ends well, but for a rank that sleeps.
    """
    folder = tmp_path_factory.mktemp("faults")
    assert start(folder, "none", "kill-0", "kill-1", "term", "sleep").wait(timeout=240) == 0
    assert gone(folder)
    first: dict[str, list[dict]] = {}
    for victim in VICTIMS:
        end(folder, victim)
        assert gone(folder), f"{victim} leaves processes"
        answer = folder / f"{victim}.json"
        first[victim] = json.loads(answer.read_text()) if answer.exists() else [{}, {"error": "none was told"}]
    assert start(folder, *VICTIMS).wait(timeout=240) == 0
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {**found, **{victim: [*first[victim], found[victim][1]] for victim in VICTIMS}}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["kill-0", "kill-1"])
def test_a_killed_rank(trouble, seen):
    """SIGKILL of a rank is tried again: the next try goes on at the newest checkpoint, to the same bits."""
    _, first, second = seen[trouble]
    assert first["error"].startswith("Unavailable: a training rank failed: rank ")
    assert first["checkpoints"] == ["step-4", "step-6"]
    assert second == {"sha256": seen["none"][1]["sha256"], "resumed_from": 6}


@pytest.mark.slow
def test_a_rank_that_is_asked_to_leave_and_a_damaged_checkpoint(seen):
    """SIGTERM of one rank has both save their step and leave; a damaged checkpoint gives way to the one before."""
    _, first, second = seen["term"]
    assert first["error"].startswith("Preempted: training was asked to leave at step 7: run it again")
    assert first["checkpoints"] == ["step-6", "step-7"]
    assert second == {"sha256": seen["none"][1]["sha256"], "resumed_from": 6}


@pytest.mark.slow
def test_a_rank_that_hangs(seen):
    """A rank that sleeps ends the training within the limit, with an error that says what was waited for."""
    assert seen["sleep"][1]["error"].startswith("Unavailable: rank-0 waited 2 s for the others in vain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "told", "at"),
    [
        ("wait-task", "none was told", 6),
        ("wait-agent", "Unavailable: a training rank failed: the agent ended with code -9", 6),
        ("wait-term", "Preempted: training was asked to leave at step 7", 7),
    ],
)
def test_a_killed_task_or_agent(victim, told, at, seen):
    """SIGKILL of task or launcher ends every rank, SIGTERM lets them save; the next try ends in the same bits."""
    before, first, second = seen[victim]
    assert first["error"].startswith(told)
    assert before.get("forks", True)
    assert second == {"sha256": seen["none"][1]["sha256"], "resumed_from": at}


def test_a_finished_training_is_not_run_again(tmp_path):
    """A try that finds the result of one that finished, but was killed before its commit, returns it."""

    def build():
        return Troubled("none", 7, tmp_path / "happened")

    first = fit(build, texts(), TEXT, tmp_path / "work")
    written = (tmp_path / "work" / "result.pt").stat().st_mtime_ns
    again = fit(build, texts(), TEXT, tmp_path / "work")
    assert (tmp_path / "work" / "result.pt").stat().st_mtime_ns == written
    assert again.facts == first.facts
    assert weights_sha256(again.model) == weights_sha256(first.model)


def test_two_tries_at_once(tmp_path, monkeypatch):
    """A try that finds another one at work gives way: they would write each other's checkpoints."""
    monkeypatch.setattr("pipelines.training.fit.LOCK_SECONDS", 0.1)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another try"):
            fit(lambda: Troubled("none", 7, tmp_path / "happened"), texts(), TEXT, tmp_path)
