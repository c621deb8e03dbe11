"""Only our own processes are found and ended, and all of them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from embedded import processes
from embedded.processes import ROOT, Started, alive, end, last_lines, launch, sweep, tagged
from pipelines.places import TAG

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
FAMILY = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    "start_new_session=True); "
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


def test_a_killed_leader_leaves_nothing(tag, tmp_path):
    """After SIGKILL of the leader its child ends by itself, also one in a session of its own."""
    process = run(FAMILY, tag, tmp_path)
    assert len(tagged(tag)) == 2
    os.kill(process.pid, 9)
    assert gone(tag)


def test_a_service_outlives_who_started_it(tag, tmp_path):
    """The process that launched a service may end, or be killed: the service and its child go on."""
    code = (
        "import json, os, sys, time; from dataclasses import asdict; from pathlib import Path; "
        "from embedded.processes import launch; "
        f"print(json.dumps(asdict(launch('child', [sys.executable, '-c', {FAMILY!r}], dict(os.environ), "
        f"Path({str(tmp_path / 'child.log')!r})))), flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, TAG: tag},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == -9, done.stderr
    process = Started(**json.loads(done.stdout))
    deadline = time.monotonic() + 20
    while len(tagged(tag)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive(process)
    assert len(tagged(tag)) == 2
    os.kill(process.pid, 9)
    assert gone(tag)


def test_what_a_dead_service_left_is_swept_and_nothing_else(tag, tmp_path):
    """If the guard was killed too, what a service left is found by its marks and ended.

    Another service of the same stack goes on.
    """
    process = run(FAMILY, tag, tmp_path)
    other = launch(
        "other", [sys.executable, "-c", "import time; time.sleep(60)"], {**os.environ, TAG: tag}, tmp_path / "other.log"
    )
    for pid in (psutil.Process(process.pid).ppid(), process.pid):
        os.kill(pid, 9)
    while alive(process):
        time.sleep(0.01)
    assert len(tagged(tag, "child")) == 1
    assert sweep(tag, "child") == 0
    assert tagged(tag, "child") == []
    assert alive(other)


def test_a_child_that_died_unmourned_is_mended(tag, tmp_path):
    """When a child of a service was killed and the service does not notice, the given command is run, once."""
    code = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print('ready', flush=True); time.sleep(60)"
    )
    mend = ["sh", "-c", f"echo mended >> {tmp_path / 'mended'}"]
    process = launch("child", [sys.executable, "-c", code], {**os.environ, TAG: tag}, tmp_path / "child.log", mend)
    while len(tagged(tag)) < 2:
        time.sleep(0.02)
    [child] = psutil.Process(process.pid).children()
    child.kill()
    deadline = time.monotonic() + 20
    while not (tmp_path / "mended").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    assert (tmp_path / "mended").read_text() == "mended\n"
    assert alive(process)


def test_a_service_of_an_installed_package_starts_outside_of_its_packages(tag, tmp_path, monkeypatch):
    """Where the package is installed a service does not stand among the packages, which a stub of Triton would take."""
    for checkout, folder in ((True, ROOT), (False, tmp_path)):
        monkeypatch.setattr(processes, "CHECKOUT", checkout)
        process = launch("child", ["sh", "-c", "pwd; sleep 60"], {**os.environ, TAG: tag}, tmp_path / "child.log")
        deadline = time.monotonic() + 20
        while not (told := last_lines(tmp_path / "child.log")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert told == str(folder)
        assert end([process], tag) == 0


def gone(tag):
    """Whether nothing carries the tag any more, in the ten seconds that guards have."""
    deadline = time.monotonic() + 10
    while tagged(tag) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not tagged(tag)


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


def test_a_start_whose_caller_is_gone_leaves_no_service():
    """Interrupted before it is told the pid, a caller leaves nothing that runs on: the guard ends what it started."""
    tag = f"gone-{os.getpid()}"
    given = {"argv": [sys.executable, "-S", "-c", "import time; time.sleep(60)"], "env": {TAG: tag}}
    reading, writing = os.pipe()
    os.close(reading)
    guard = [sys.executable, "-I", "-S", str(ROOT / "embedded" / "guard.py"), str(writing)]
    done = subprocess.run(guard, input=json.dumps(given) + "\n", text=True, pass_fds=[writing], timeout=30, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert tagged(tag) == []
