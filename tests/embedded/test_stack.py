"""The stack refuses what cannot work before anything starts, starts for real, survives kill -9.

It leaves nothing behind.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from embedded import stack, triton
from embedded.__main__ import main
from embedded.ports import HOST, Ports, is_free
from embedded.processes import Started, end, launch, tagged
from embedded.service import Service
from pipelines.errors import ConfigError, ConflictError, Unavailable
from pipelines.places import TAG
from pipelines.processes import birth
from tests import shop
from tests.pipelines.releases import answering, kill_stub, promote

SERVICES = {"triton", "mlflow", "gateway", "api-server", "scheduler", "dag-processor", "triggerer"}


def test_a_busy_port_is_refused_before_anything_starts(tmp_path):
    """With the gateway's port taken, the error names it and nothing has been started."""
    ports = Ports.free()
    with socket.create_server((HOST, ports.gateway)), pytest.raises(Unavailable, match="PERENNIAL_PORT_GATEWAY"):
        stack.start(tmp_path, ports)
    assert stack.strays(tmp_path) == 0
    assert not (tmp_path / stack.RECORD).exists()


def test_a_missing_triton_is_refused_before_anything_starts(tmp_path, monkeypatch):
    """Without .venv-triton the error says `make setup`, and not even a log folder appears."""
    monkeypatch.setattr(triton, "WHEEL", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="make setup"):
        stack.start(tmp_path / "home", Ports.free())
    assert not (tmp_path / "home").exists()


def test_a_missing_libpython_is_refused(tmp_path, monkeypatch):
    """Triton would hang without libpython: the error names the library."""
    monkeypatch.setattr(triton.check_machine, "find_libpython", lambda _: "")
    with pytest.raises(ConfigError, match=r"libpython3\.11"):
        stack.start(tmp_path / "home", Ports.free())


def test_a_running_stack_is_refused(tmp_path):
    """A state folder in which a recorded process lives is refused, naming the process; a dead one is no obstacle."""
    own = os.getpid()
    record = {
        "tag": triton.stack_tag(tmp_path),
        "ports": asdict(Ports()),
        "traffic": False,
        "processes": [asdict(Started("mlflow", own, birth(own), "log"))],
    }
    (tmp_path / stack.RECORD).write_text(json.dumps(record))
    with pytest.raises(ConflictError, match=rf"mlflow \({own}\)"):
        stack.refuse_if_running(tmp_path)
    record["processes"][0]["birth"] -= 1
    (tmp_path / stack.RECORD).write_text(json.dumps(record))
    stack.refuse_if_running(tmp_path)


def test_a_setting_that_is_none_is_refused_before_anything_starts(tmp_path):
    """A setting out of its range is named, and nothing has been started."""
    with pytest.raises(ConfigError, match="PERENNIAL_LOG_SEGMENT_SECONDS: Input should be greater than 0"):
        stack.start(tmp_path, Ports.free(), extra_env={"PERENNIAL_LOG_SEGMENT_SECONDS": "-1"})
    assert stack.strays(tmp_path) == 0
    assert not (tmp_path / stack.RECORD).exists()


def test_a_second_start_at_the_same_moment_is_refused(tmp_path):
    """While one start of a state folder is under way another one is refused."""
    with stack._locked(tmp_path), pytest.raises(ConflictError, match="somebody else"), stack._locked(tmp_path):
        pass


def test_a_broken_record_says_what_to_do(tmp_path):
    """A stack.json that is not ours raises ConfigError with its path."""
    (tmp_path / stack.RECORD).write_text("{}")
    with pytest.raises(ConfigError, match=r"stack\.json"):
        stack.read(tmp_path)


def test_the_key_is_made_once_and_is_private(tmp_path):
    """The API key is readable by its owner only and stays the same at the next start."""
    stack._make_key(tmp_path)
    key = (tmp_path / "api_key").read_text()
    assert len(key.strip()) >= 32
    assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o600
    stack._make_key(tmp_path)
    assert (tmp_path / "api_key").read_text() == key


def test_status_and_down_of_nothing(tmp_path, capsys):
    """With nothing running, status says so with exit code 3 and down is content."""
    assert main(["status", "--home", str(tmp_path)]) == 3
    assert "nothing runs" in capsys.readouterr().out
    assert main(["down", "--home", str(tmp_path)]) == 0


def test_status_names_broken_cases(tmp_path, capsys, monkeypatch):
    """A case that cannot work stands below the table with the reason; the services are as healthy as before."""
    row = {"service": "gateway", "state": "healthy", "address": "", "pid": "1", "log": ""}
    monkeypatch.setattr(stack, "status", lambda _home: [row])
    with shop.installed(tmp_path / "cases") as root:
        shop.write(root, "desk")
        (shop.write(root) / "schema.py").write_text("FIELDS = [1\n")
        assert main(["status", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "broken case  shop: pipelines/cases/shop/schema.py, line 1: SyntaxError" in said
    assert "desk" not in said


def test_strays_without_a_record_are_seen_and_ended(tmp_path, capsys):
    """A process of this state whose record is lost shows in status and is ended by down."""
    tag = triton.stack_tag(tmp_path)
    launch(
        "lost", [sys.executable, "-c", "import time; time.sleep(60)"], {**os.environ, TAG: tag}, tmp_path / "lost.log"
    )
    # Its environment can be read a moment after it was started, not at once.
    deadline = time.monotonic() + 10
    while not stack.strays(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert main(["status", "--home", str(tmp_path)]) == 1
    assert "1 stray" in capsys.readouterr().out
    assert main(["down", "--home", str(tmp_path)]) == 0
    assert stack.strays(tmp_path) == 0


def test_an_older_state_is_closed_and_killed_writes_are_swept(tmp_path):
    """A state that others could read is its owner's alone after a start was tried, though it failed.

    What killed writes left is gone, other files stay.
    """
    home = tmp_path / "home"
    (home / "secrets").mkdir(parents=True)
    home.chmod(0o755)
    (home / "lake" / "loans").mkdir(parents=True)
    kept, left = (
        [home / "ledger.db", home / ".stack.json.note", home / "secrets" / "x"],
        [home / ".stack.json.a1b2c3_z", home / "secrets" / ".x.4242"],
    )
    left += [home / "lake" / "loans" / ".a.parquet.0", home / "lake" / "loans" / ".a.parquet.k3_x81qz"]
    for path in (*kept, *left):
        path.write_text("")
        path.chmod(0o644)
    ports = Ports.free()
    with socket.create_server((HOST, ports.gateway)), pytest.raises(Unavailable, match="PERENNIAL_PORT_GATEWAY"):
        stack.start(home, ports)
    assert [path.exists() for path in (*kept, *left)] == [True] * 3 + [False] * 4
    assert not [path for path in (home, *home.rglob("*")) if path.stat().st_mode & 0o077]


@pytest.fixture(scope="module")
def running(live):
    """The real stack that others of these files have used before; the last test here that uses it ends it."""
    return live.stack


def sessions(pids):
    """All living processes in the sessions of these leaders."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in pids and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def untagged(running):
    """What lives in the stack's sessions without its tag.

    A process has no environment to read while it is being started.
    """
    members = sessions(set(running.pids.values()))
    tagged = set(stack.tagged(triton.stack_tag(running.home)))
    return {process for process in members if process.pid not in tagged and process.is_running()}


def listening(process):
    """The addresses a process listens at: none if it has ended meanwhile."""
    try:
        return {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()


@pytest.mark.slow
def test_a_started_stack_is_healthy_private_and_tagged(running, capsys):
    """All services are healthy, listen on the loopback address only, lead their own sessions.

    Every process carries the tag.
    """
    assert main(["status", "--home", str(running.home)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in SERVICES)
    assert set(running.pids) == SERVICES
    assert all(os.getsid(pid) == pid for pid in running.pids.values())
    members = sessions(set(running.pids.values()))
    # Short-lived processes (a health check's) may end between the two looks.
    assert {HOST} <= set().union(*map(listening, members)) <= {HOST, f"::ffff:{HOST}"}
    assert set(running.pids.values()) <= set(stack.tagged(triton.stack_tag(running.home)))
    left, deadline = untagged(running), time.monotonic() + 10
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= untagged(running)
    assert left == set()
    assert not [
        path for path in (running.home, *running.home.rglob("*")) if path.exists() and path.stat().st_mode & 0o077
    ]
    assert running.env["PERENNIAL_MLFLOW_URL"] == f"http://{HOST}:{running.ports.mlflow}"
    with pytest.raises(ConflictError, match="already running"):
        stack.start(running.home, Ports.free())


@pytest.mark.slow
def test_a_killed_service_holds_no_port_and_starts_again(running):
    """After SIGKILL of MLflow and the scheduler nothing of them runs on, the port can be bound.

    Both are healthy again when they are started anew.
    """
    tag = triton.stack_tag(running.home)
    killed = {
        process.name: process.pid
        for process in stack.read(running.home).processes
        if process.name in {"mlflow", "scheduler"}
    }
    assert len(tagged(tag, "mlflow")) > 1
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while (
        tagged(tag, "mlflow") or tagged(tag, "scheduler") or not is_free(running.ports.mlflow)
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tagged(tag, "mlflow") == tagged(tag, "scheduler") == []
    assert is_free(running.ports.mlflow)
    for name in killed:
        stack.again(running.home, name)
    deadline = time.monotonic() + stack.START_SECONDS
    while time.monotonic() < deadline:
        states = {row["service"]: row["state"] for row in stack.status(running.home)}
        if set(states.values()) == {"healthy"}:
            break
    assert set(states.values()) == {"healthy"}, states


@pytest.mark.slow
def test_a_dead_stub_is_healed_without_a_command(running):
    """The stub of the champion is killed, and the champion answers again by itself."""
    settings = triton.settings(running.home, running.ports)
    promote(settings, 1)
    kill_stub(settings, 1)
    deadline = time.monotonic() + 40
    while not (healed := answering(settings, 1)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert healed == [1]


@pytest.mark.slow
def test_up_after_kill_9_of_everything_works_and_down_leaves_nothing(running):
    """After SIGKILL of every process the same state starts again, its champion answers.

    Killed leaders leave no strays.
    """
    settings = triton.settings(running.home, running.ports)
    assert answering(settings, 1) == [1]
    everything = sessions({process.pid for process in stack.read(running.home).processes})
    for process in everything:
        process.kill()
    assert psutil.wait_procs(everything, timeout=20)[1] == []
    stale = Path("/dev/shm") / f"{triton._shm_prefix(running.home)}stale"
    stale.touch()
    assert {row["state"] for row in stack.status(running.home)} == {"dead"}
    again = stack.start(running.home, running.ports)
    assert again.broken == ()
    assert answering(settings, 1) == [1]
    assert not stale.exists()
    assert {row["state"] for row in stack.status(running.home)} == {"healthy"}
    for pid in again.pids.values():
        os.kill(pid, signal.SIGKILL)
    ended, deadline = sessions(set(again.pids.values())), time.monotonic() + 20
    while stack.strays(running.home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stack.strays(running.home) == 0, ended  # they die with what started them
    assert stack.stop(running.home) == 0
    assert stack.strays(running.home) == 0
    assert not list(Path("/dev/shm").glob(f"{triton._shm_prefix(running.home)}*"))
    assert all(is_free(port) for port in asdict(running.ports).values())
    assert not [path for path in running.home.rglob("*") if path.is_socket()]
    assert main(["status", "--home", str(running.home)]) == 3


def test_a_busy_machine_may_take_its_time_to_start(tmp_path):
    """The start's deadline begins anew with each service that works; none further in that time ends it, by name."""
    began, own = time.monotonic(), os.getpid()

    def works_after(name, seconds):
        return Service(name, [], {}, "", lambda: time.monotonic() - began > seconds)

    record = stack.Record("tag", Ports(), False, (Started("late", own, birth(own), str(tmp_path / "log")),))
    stack._wait([works_after("one", 0.5), works_after("two", 1.0)], record, began, 0.8, None)
    with pytest.raises(Unavailable, match=r"not healthy after \d+ s: late; the end of .*log"):
        stack._wait([works_after("three", 1.2), works_after("late", 60)], record, began, 0.8, None)


@pytest.mark.slow
def test_a_service_that_dies_during_the_start_stops_the_others(tmp_path):
    """A gateway with a setting it cannot take ends the start with its log's last lines, and nothing is left running."""
    with pytest.raises(Unavailable, match=r"gateway ended during the start[\s\S]*PERENNIAL_GATEWAY_MAX_ROWS"):
        stack.start(tmp_path, Ports.free(), extra_env={"PERENNIAL_GATEWAY_MAX_ROWS": "0"})
    assert stack.strays(tmp_path) == 0
    assert not (tmp_path / stack.RECORD).exists()


@pytest.mark.slow
def test_interrupting_a_start_stops_what_was_started(tmp_path):
    """Ctrl-C during `make up` ends with 130 and no process."""
    code = f"import sys; from embedded.__main__ import main; sys.exit(main(['up', '--home', {str(tmp_path)!r}]))"
    ports = {f"PERENNIAL_PORT_{name.upper()}": str(port) for name, port in asdict(Ports.free()).items()}
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **ports}, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 60
        while stack.strays(tmp_path) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert stack.strays(tmp_path) == 0
    end([], triton.stack_tag(tmp_path))
