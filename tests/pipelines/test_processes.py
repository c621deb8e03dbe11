"""pipelines/processes.py and locks.py: what is found, ended and held, on real processes."""

import os
import signal
import subprocess
import sys

import pytest

from pipelines import processes
from pipelines.errors import ConflictError
from pipelines.locks import alone

MARK = "PERENNIAL_TEST_MARK"
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@pytest.fixture
def started():
    """Starts marked processes in sessions of their own, which have begun to sleep."""
    children = []

    def start(code: str = SLEEP, **marks: str):
        command = [sys.executable, "-S", "-c", code]
        child = subprocess.Popen(command, env={**os.environ, **marks}, stdout=subprocess.PIPE, start_new_session=True)
        child.stdout.readline()
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_who_carries_a_mark_is_found(started):
    """Every mark counts, whole or as a beginning; one's own process, which carries the mark too, is left out."""
    own = f"{os.getpid()}-a"
    one, other = started(**{MARK: own, "PERENNIAL_ROLE": "x"}), started(**{MARK: f"{own}b"})
    assert processes.carrying({MARK: own}) == [one.pid]
    assert set(processes.carrying({MARK: own}, prefix=True)) == {one.pid, other.pid}
    assert processes.carrying({MARK: own, "PERENNIAL_ROLE": "y"}) == []


def test_who_ends_in_order_is_not_killed(started):
    """TERM ends the one that listens, KILL after the grace the deaf one, and another first signal a third."""
    calm, deaf = started(), started(DEAF)
    assert processes.end_all([calm.pid, deaf.pid], grace=0.3) == [deaf.pid]
    assert (calm.wait(), deaf.wait()) == (-signal.SIGTERM, -signal.SIGKILL)
    other = started(DEAF)
    born = processes.birth(other.pid)
    names = lambda: [other.pid] if processes.birth(other.pid) == born else []  # noqa: E731
    assert processes.end(names, grace=5.0, first={other.pid: signal.SIGINT}) == []
    assert other.wait() != -signal.SIGKILL


def test_a_dead_process_has_no_birth(started):
    """A zombie and a pid that nobody has were never born, so their numbers are never taken for somebody."""
    child = started()
    assert processes.birth(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.birth(child.pid) is None
    child.wait()
    assert processes.birth(child.pid) is None


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    """While another process holds the lock, its pid is in the refusal; when that one is killed the lock is free."""
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from pipelines.locks import alone\n"
        "with alone(Path(sys.argv[1]), OSError): print('up', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(ConflictError, match=f"held by {holder.pid}"), alone(path, _refusal, patience=0.1):
        pass
    holder.kill()
    holder.communicate()
    with alone(path, _refusal):
        assert path.read_text() == str(os.getpid())


def _refusal(pid: str) -> ConflictError:
    return ConflictError(f"held by {pid}")
