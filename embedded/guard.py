"""One service's guard: starts it in a session of its own and outlives it by seconds, so that nothing of it is left.

As the subreaper of all that the service starts, it gets what the service leaves behind when it is killed (workers,
forked executors, stubs) and ends it: TERM, and KILL after three seconds. A program of the standard library alone, run
by ``processes.launch``; what to start comes as one JSON line on stdin, and the service's pid goes out on the given
descriptor. It has no environment of its own and no tag: it ends with its service.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Run by `python -I -S`, it finds no package of ours: the parent-death signal, the table of processes and the ending of
# them stand here once more (pipelines/processes.py).
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_SECONDS = 3.0
LOOK_SECONDS, DEAD_LOOKS = 1.0, 3
"""A child that stays a zombie for so many looks was not ended by the service: it died."""


def main() -> None:
    """Start the service, wait for its end, end what it left."""
    told = int(sys.argv[1])
    os.set_inheritable(told, False)
    given = json.loads(sys.stdin.readline())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    service = os.fork()
    if service == 0:
        _become(given["argv"], given["env"])
    try:
        os.write(told, str(service).encode())
    except BrokenPipeError:  # who asked was interrupted: nobody else knows of the service
        os.kill(service, signal.SIGKILL)
    os.close(told)
    _wait(service, given.get("mend") or [])
    end = time.monotonic() + GRACE_SECONDS
    while left := descendants(os.getpid()):
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM if time.monotonic() < end else signal.SIGKILL)
        _reap()
        time.sleep(0.1)


def _become(argv: Sequence[str], env: dict[str, str]) -> None:
    os.setsid()
    os.umask(0o077)  # what a service writes is its owner's alone
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    try:
        os.execvpe(argv[0], list(argv), env)
    except OSError as error:
        print(f"{argv[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        os._exit(127)


def _wait(service: int, mend: Sequence[str]) -> None:
    """Return when the service has ended.

    With ``mend``, run it once for every child of the service that has died and stays unmourned.
    """
    looks: dict[int, int] = {}
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, LOOK_SECONDS if mend else 3600.0)
        if service in _reap():
            return
        if mend:
            dead = {pid for pid, (parent, state) in table().items() if parent == service and state == "Z"}
            looks = {pid: looks.get(pid, 0) + 1 for pid in dead}
            if DEAD_LOOKS in looks.values():
                print(f"a child of {service} has died: {' '.join(mend)}", file=sys.stderr, flush=True)
                subprocess.Popen(list(mend), stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)  # noqa: PLW1509 - one thread


def _die_with_parent() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _reap() -> set[int]:
    """The pids of all children that have ended."""
    found = set[int]()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            found.add(pid)
    return found


def table() -> dict[int, tuple[int, str]]:
    """Every process of the machine: its parent and its state."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                found[int(folder.name)] = (int(parent), state)
    return found


def descendants(pid: int) -> list[int]:
    """All living processes below ``pid``."""
    everything, found, above = table(), list[int](), {pid}
    while above:
        above = {child for child, (parent, state) in everything.items() if parent in above and state not in "ZX"}
        found += above
    return found


if __name__ == "__main__":
    main()
