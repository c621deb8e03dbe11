"""The processes of a task: found by what they descend from and by a tag in their environment, ended within Airflow's patience.

A fresh interpreter carries the tag in /proc/<pid>/environ, also when it leads a session of its own and its parent is gone
(torchrun's ranks do). A forked process shows its parent's old environment: it is found as a descendant while the task
lives, and dies with it by the kernel's parent-death signal (pipelines/training).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path

TAG = "PERENNIAL_JOB"
KILL_GRACE = 2.5
"""Seconds between TERM and KILL: Airflow kills the task itself after 5."""
_PR_SET_PDEATHSIG = 1


def tagged(prefix: str) -> list[int]:
    """The pids of all living processes whose tag begins with ``prefix``, this one left out."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            tags = [
                line
                for line in (folder / "environ").read_bytes().split(b"\0")
                if line.startswith(f"{TAG}={prefix}".encode())
            ]
            if tags and (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(folder.name))
    return found


def descendants() -> list[int]:
    """The pids of everything that this process has started, and what that has started."""
    import psutil

    return [child.pid for child in psutil.Process().children(recursive=True)]


def end(pids: Iterable[int], grace: float = KILL_GRACE) -> list[int]:
    """TERM to each, KILL to those that are there after ``grace`` seconds; returns whom it had to kill."""
    import psutil

    living = []
    for pid in set(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.terminate()
            living.append(process)
    stubborn = psutil.wait_procs(living, timeout=grace)[1]
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=1.0)
    return [process.pid for process in stubborn]


def allow_children() -> None:
    """Let this process start others: forked from a Celery pool it passes for a daemon of multiprocessing, which may not."""
    import multiprocessing

    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined] # noqa: SLF001 - there is no public way


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send ``number`` to this process when its parent dies, whatever killed that one."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), number)
