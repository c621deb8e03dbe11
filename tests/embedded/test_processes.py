"""Only our own processes are found and ended, and all of them."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from embedded.processes import alive, end, last_lines, launch, tagged
from pipelines.places import TAG

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
FAMILY = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
    "print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def tag(tmp_path):
    """A tag of this test's own; whatever carries it is ended afterwards."""
    value = f"test-{os.getpid()}-{tmp_path.name}"
    yield value
    end([], value, grace=0)


def run(code, tag, tmp_path):
    """Launch Python code and wait until it says that it is ready."""
    log = tmp_path / "child.log"
    process = launch("child", [sys.executable, "-c", code], {**os.environ, TAG: tag}, log)
    deadline = time.monotonic() + 20
    while "ready" not in last_lines(log) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_a_process_and_its_stray_in_another_session_are_ended(tag, tmp_path):
    """Ending a leader also ends the child that it put into a session of its own."""
    process = run(FAMILY, tag, tmp_path)
    assert alive(process)
    assert len(tagged(tag)) == 2
    assert end([process], tag) == 0
    assert not alive(process)
    assert tagged(tag) == []


def test_strays_of_a_killed_leader_are_found_by_their_tag(tag, tmp_path):
    """After SIGKILL of the leader its child is still found and ended, without any record."""
    process = run(FAMILY, tag, tmp_path)
    os.kill(process.pid, 9)
    while alive(process):
        time.sleep(0.01)
    assert len(tagged(tag)) == 1
    assert end([], tag) == 0


def test_who_ignores_term_is_killed(tag, tmp_path):
    """A process that ignores SIGTERM is gone after the grace period."""
    process = run(STUBBORN, tag, tmp_path)
    assert end([process], tag, grace=0.2) == 0
    assert not alive(process)


def test_a_recycled_pid_is_left_alone(tag):
    """A living process with the recorded pid but another start time is neither alive for us nor ended."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        try:
            recorded = replace(launch_record(stranger.pid), birth=1)
            assert not alive(recorded)
            assert end([recorded], tag) == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_the_last_log_is_kept(tag, tmp_path):
    """Starting again keeps the previous log beside the new one."""
    run("print('ready first')", tag, tmp_path)
    run("print('ready second')", tag, tmp_path)
    assert "second" in last_lines(tmp_path / "child.log")
    assert "first" in last_lines(tmp_path / "child.log.1")


def launch_record(pid):
    """A record of a process that we did not start."""
    from embedded.processes import Started

    return Started("stranger", pid, 0, "")
