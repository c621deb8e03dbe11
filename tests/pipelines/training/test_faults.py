"""Trainings that something happens to: each ends where the undisturbed one ends, dropout on, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.errors import Unavailable
from pipelines.training.fit import fit
from pipelines.training.loop import CHECKPOINTS
from pipelines.training.weights import weights_sha256
from tests.pipelines.training.models import TEXT, Troubled, texts

TWO = TEXT.model_copy(update={"ranks": 2, "checkpoint_every": 2, "hang_seconds": 20.0})
REPOSITORY = Path(__file__).parents[3]


def troubled(trouble: str, folder: Path, **more):
    """A builder of the model, with its trouble at the seventh step: after the checkpoints of steps 2, 4 and 6."""
    return lambda: Troubled(trouble, 7, folder / "happened", **more)


def living(folder: Path) -> list[str]:
    """The processes that have ``folder`` open or name it: a training's agent and ranks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_text() + " ".join(str(link.readlink()) for link in (process / "fd").iterdir())
        except OSError:
            continue
        if str(folder) in text and int(process.name) != os.getpid():
            found.append(process.name)
    return found


def gone(folder: Path) -> bool:
    """Whether all of a training's processes end within seconds."""
    until = time.monotonic() + 10
    while living(folder) and time.monotonic() < until:
        time.sleep(0.05)
    return not living(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return weights_sha256(fit(troubled("none", folder), texts(), TWO.model_copy(update={"checkpoint_every": None}), folder / "work").model)


@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_rank(who, undisturbed, tmp_path):
    """SIGKILL of a rank is an error that is tried again, and the next try goes on at the newest checkpoint to the same bits."""
    with pytest.raises(Unavailable, match="rank failed: rank .* again"):
        fit(troubled("kill", tmp_path, who=who), texts(), TWO, tmp_path / "work")
    assert gone(tmp_path)
    fitted = fit(troubled("kill", tmp_path, who=who), texts(), TWO, tmp_path / "work")
    assert fitted.facts["resumed_from"] == 6
    assert weights_sha256(fitted.model) == undisturbed


def test_a_rank_that_is_asked_to_leave(undisturbed, tmp_path):
    """SIGTERM of one rank has both save the step that they are at and leave; a damaged newest checkpoint costs the steps since the one before."""
    with pytest.raises(Unavailable, match="asked to leave at step 7: run it again"):
        fit(troubled("term", tmp_path), texts(), TWO, tmp_path / "work")
    kept = tmp_path / "work" / CHECKPOINTS
    assert sorted(path.name for path in kept.iterdir()) == ["step-6", "step-7"]
    shard = next(kept.glob("step-7/*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    fitted = fit(troubled("term", tmp_path), texts(), TWO, tmp_path / "work")
    assert fitted.facts["resumed_from"] == 6
    assert weights_sha256(fitted.model) == undisturbed


def test_a_rank_that_hangs(tmp_path):
    """A rank that sleeps ends the training within the limit, with an error that says what was waited for, and the sleeper is ended, too."""
    with pytest.raises(Unavailable, match=r"rank-0 waited 3 s for the others in vain.*hang_seconds"):
        fit(troubled("sleep", tmp_path), texts(), TWO.model_copy(update={"hang_seconds": 3.0}), tmp_path / "work")
    assert gone(tmp_path)


@pytest.mark.parametrize("victim", ["task", "agent", "term"])
def test_a_killed_task_or_agent(victim, undisturbed, tmp_path):
    """SIGKILL of the task or of the launcher takes every rank with it; SIGTERM of the task lets them save. The next try ends in the same bits."""
    task = subprocess.Popen([sys.executable, "-m", "tests.pipelines.training.task", str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert task.stdout is not None
    assert task.stdout.readline().strip() == "one thread"
    until = time.monotonic() + 60
    while not (tmp_path / "happened").exists() and time.monotonic() < until:
        time.sleep(0.05)
    children = [int(pid) for path in Path(f"/proc/{task.pid}/task").glob("*/children") for pid in path.read_text().split()]
    os.kill(children[0] if victim == "agent" else task.pid, signal.SIGTERM if victim == "term" else signal.SIGKILL)
    answer = task.communicate(timeout=60)[0]
    assert gone(tmp_path)
    if victim != "task":
        assert answer.startswith("Unavailable: " + ("training was asked to leave" if victim == "term" else "a training rank failed"))
    fitted = fit(troubled("wait", tmp_path), texts(), TWO, tmp_path / "work")
    assert fitted.facts["resumed_from"] == (7 if victim == "term" else 6)
    assert weights_sha256(fitted.model) == undisturbed


def test_a_finished_training_is_not_run_again(tmp_path):
    """A try that finds the result of one that finished returns it; one row less would be another training, which has a folder of its own."""
    first = fit(troubled("none", tmp_path), texts(), TEXT, tmp_path / "work")
    written = (tmp_path / "work" / "result.pt").stat().st_mtime_ns
    again = fit(troubled("none", tmp_path), texts(), TEXT, tmp_path / "work")
    assert (tmp_path / "work" / "result.pt").stat().st_mtime_ns == written
    assert again.facts == first.facts
    assert weights_sha256(again.model) == weights_sha256(first.model)


def test_two_tries_at_once(tmp_path, monkeypatch):
    """A try that finds another one at work gives way: they would write each other's checkpoints."""
    import fcntl

    monkeypatch.setattr("pipelines.training.fit.LOCK_SECONDS", 0.1)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another try"):
            fit(troubled("none", tmp_path), texts(), TEXT, tmp_path)
