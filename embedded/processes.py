"""Starting, finding and ending operating-system processes, and only those that a stack started.

Every service gets ``PERENNIAL_STACK=<tag>`` and ``PERENNIAL_SERVICE=<name>`` in its environment and hands them down, so
that a scheduler's workers, a torchrun's ranks and Triton's stubs are found (pipelines/processes.py) even if their
parent was killed. A process is identified by its pid and its start time: a recycled pid is never taken for ours. Each
service has a guard (guard.py), which ends what a killed one leaves; whoever started the stack may go.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import processes
from pipelines.installation import CHECKOUT
from pipelines.places import TAG
from pipelines.processes import birth

ROOT = Path(__file__).parent.parent
SERVICE = "PERENNIAL_SERVICE"
"""The name of the service that a process belongs to."""
STRAYS_SECONDS = 3.0
"""What the strays of a dead leader have to end in order."""
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
    """Start ``argv`` from the repository's root in a session of its own, its output in ``log``.

    Of an installed package it is started beside the log: the root is then where pip puts packages, and Triton's stub
    would find numpy there, not in its own environment. The last log is kept as ``.1``. What it starts ends with it.
    ``mend`` is a command that is run when a child of it has died and it does not notice.
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
            cwd=ROOT if CHECKOUT else log.parent,
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
    """All living processes that carry ``tag`` (and belong to ``service``), but this one and its ancestors."""
    wanted = {TAG: tag}
    if service:
        wanted[SERVICE] = service
    return processes.carrying(wanted)


def end(started: Sequence[Started], tag: str, *, grace: float = 20.0) -> int:
    """End the ``started`` ones and all that carry ``tag``.

    TERM to the leaders, KILL after ``grace`` seconds, then the same to their strays. What others stand on goes last.
    Returns how many are left: more than 0 means that the kernel does not let them die.
    """
    for last in (False, True):
        end_leaders([process for process in started if process.last is last], grace)
    # Orderly leaders take their children with them; what is left has lost its leader.
    processes.end(lambda: tagged(tag), grace=STRAYS_SECONDS)
    return len({*tagged(tag), *(process.pid for process in started if alive(process))})


def end_leaders(started: Sequence[Started], grace: float) -> None:
    """End these processes alone, each by its own signal."""
    stops = {process.pid: process.stop for process in started}
    processes.end(lambda: [process.pid for process in started if alive(process)], grace=grace, first=stops)


def sweep(tag: str, service: str) -> int:
    """End what a dead service left: all that carries its marks. Returns how many are left (0)."""
    processes.end(lambda: tagged(tag, service), grace=STRAYS_SECONDS)
    return len(tagged(tag, service))


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return "(no log)"
