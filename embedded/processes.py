"""Starting, finding and ending operating-system processes, and only those that a stack started.

Every service gets ``PERENNIAL_STACK=<tag>`` and ``PERENNIAL_SERVICE=<name>`` in its environment and hands them down, so that a
scheduler's workers, a torchrun's ranks and Triton's stubs are found by ``/proc/<pid>/environ`` even if their parent
was killed. A process is identified by its pid and its start time: a recycled pid is never taken for ours. Each service has a
guard (guard.py), which ends what a killed one leaves; whoever started the stack may go.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.places import TAG, birth

ROOT = Path(__file__).parent.parent
SERVICE = "PERENNIAL_SERVICE"
"""The name of the service that a process belongs to."""
_GUARDS = list["subprocess.Popen[bytes]"]()
"""Those that this process started: subprocess reaps them when it starts another."""


@dataclass(frozen=True)
class Started:
    """One process that leads a session of its own. ``birth`` is its start time in clock ticks since boot.

    ``stop`` is the signal that ends it in order; ``last`` ones are ended when all others are gone.
    """

    name: str
    pid: int
    birth: int
    log: str
    stop: int = signal.SIGTERM
    last: bool = False


def launch(name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, mend: Sequence[str] = ()) -> Started:
    """Start ``argv`` from the repository's root in a session of its own, its output in ``log`` (the last one is kept as ``.1``).

    What it starts ends with it. ``mend`` is a command that is run when a child of it has died and it does not notice.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        os.replace(log, log.with_name(f"{log.name}.1"))
    own = {"PATH": os.defpath, **env, SERVICE: name}
    given = json.dumps({"argv": list(argv), "env": own, "mend": list(mend)}) + "\n"
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-S", str(ROOT / "embedded" / "guard.py"), str(writing)]
    with log.open("wb") as file, os.fdopen(reading) as told:
        guard = subprocess.Popen(
            command,
            env={},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            pass_fds=[writing],
        )
        os.close(writing)
        assert guard.stdin is not None
        with guard.stdin as pipe:
            pipe.write(given.encode())
        pid = int(told.read() or 0)
    _GUARDS.append(guard)
    return Started(name, pid, birth(pid) or 0, str(log))


def alive(process: Started) -> bool:
    """Whether this very process runs (a zombie does not)."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return birth(process.pid) == process.birth


def tagged(tag: str, service: str = "") -> list[int]:
    """The pids of all living processes that carry ``tag`` (and belong to ``service``), this one and its ancestors left out."""
    marks = {f"{TAG}={tag}".encode(), *([f"{SERVICE}={service}".encode()] if service else [])}
    own = _ancestors()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        try:
            environ = (folder / "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or another user's
        if marks <= set(environ.split(b"\0")) and birth(int(folder.name)) is not None:
            found.append(int(folder.name))
    return found


def end(processes: Sequence[Started], tag: str, *, grace: float = 20.0) -> int:
    """End ``processes`` and all that carry ``tag``: TERM to the leaders, KILL after ``grace`` seconds, then the same to their strays.

    What others stand on goes last. Returns how many are left: more than 0 means that the kernel does not let them die.
    """
    _end_leaders([process for process in processes if not process.last], grace)
    _end_leaders([process for process in processes if process.last], grace)
    leaders = [process for process in processes if alive(process)]
    # Orderly leaders take their children with them; what is left has lost its leader.
    for pid in tagged(tag):
        _signal(pid, signal.SIGTERM)
    _wait(leaders, tag, time.monotonic() + 3.0)
    for pid in tagged(tag):
        _signal(pid, signal.SIGKILL)
    return _wait(leaders, tag, time.monotonic() + 5.0)


def sweep(tag: str, service: str) -> int:
    """End what a dead service left: all that carries its marks. Returns how many are left (0)."""
    for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        while left := tagged(tag, service):
            for pid in left:
                _signal(pid, number)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return 0
    return len(left)


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return "(no log)"


def _end_leaders(leaders: Sequence[Started], grace: float) -> None:
    deadline = time.monotonic() + grace
    leaders = [process for process in leaders if alive(process)]
    for process in leaders:
        _signal(process.pid, process.stop)
    while leaders and time.monotonic() < deadline:
        time.sleep(0.05)
        leaders = [process for process in leaders if alive(process)]
    for process in leaders:
        _signal(process.pid, signal.SIGKILL)


def _wait(leaders: Sequence[Started], tag: str, deadline: float) -> int:
    while True:
        left = len({*tagged(tag), *(process.pid for process in leaders if alive(process))})
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 1:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found
