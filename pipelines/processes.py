"""The operating system's processes: who lives, who carries a mark, how one dies with its parent, how many are ended.

A fresh interpreter shows its environment in /proc/<pid>/environ, also when it leads a session of its own and its parent
is gone, as torchrun's ranks do: so what a stack or a task has started is found by a variable that it handed down. A
forked process shows its parent's environment as it was: it is found as a descendant, and dies with its parent by the
kernel's parent-death signal. ``embedded/guard.py`` has to do without this package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.05
LAST_SECONDS = 5.0
"""How long the kernel may take to let a killed process go."""


def die_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Have the kernel send ``number`` to this process when its parent dies, whatever killed that one.

    ``parent`` is who started this process, where somebody else may be its parent by now; then ``number`` comes at once.
    """
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), number)


def birth(pid: int) -> int | None:
    """Start time of a living process in clock ticks since boot; None if it is gone or a zombie.

    Field 22 of /proc/<pid>/stat. A pid is given again, a pid with its start time is not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def carrying(marks: Mapping[str, str], *, prefix: bool = False) -> list[int]:
    """The pids of all living processes whose environment has each variable of ``marks`` with its value.

    With ``prefix`` a value that begins so is enough. This process and its ancestors are left out.
    """
    own = _with_ancestors()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        with suppress(OSError):  # gone meanwhile, or another user's
            environment = (folder / "environ").read_bytes().split(b"\0")
            if _has(environment, marks, prefix=prefix) and birth(int(folder.name)) is not None:
                found.append(int(folder.name))
    return found


def descendants() -> list[int]:
    """The pids of everything that this process has started, and what that has started."""
    import psutil

    return [child.pid for child in psutil.Process().children(recursive=True)]


def end(find: Callable[[], Iterable[int]], *, grace: float, first: Mapping[int, int] | None = None) -> list[int]:
    """End the processes that ``find`` names: TERM, and KILL to those that it still names after ``grace`` seconds.

    ``find`` is asked again and again, as a process may start others while it ends. ``first``: the signal that ends a
    process in order, by its pid, where it is not TERM. Returns whom it had to kill, once none is left or after
    ``LAST_SECONDS``.
    """
    told = set[int]()
    deadline = time.monotonic() + grace
    while left := set(find()):
        if time.monotonic() > deadline:
            break
        for pid in left - told:
            send(pid, (first or {}).get(pid, signal.SIGTERM))
        told |= left
        time.sleep(_LOOK_SECONDS)
    killed = set[int]()
    deadline = time.monotonic() + LAST_SECONDS
    while left := set(find()):
        if time.monotonic() > deadline:
            break
        for pid in left:
            send(pid, signal.SIGKILL)
        killed |= left
        time.sleep(_LOOK_SECONDS)
    return sorted(killed)


def end_all(pids: Iterable[int], *, grace: float) -> list[int]:
    """:func:`end` of these very processes: a pid that is given again meanwhile is left alone."""
    born = {pid: birth(pid) for pid in set(pids)}
    return end(lambda: [pid for pid, when in born.items() if when is not None and birth(pid) == when], grace=grace)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _has(environment: list[bytes], marks: Mapping[str, str], *, prefix: bool) -> bool:
    wanted = [f"{name}={value}".encode() for name, value in marks.items()]
    if prefix:
        return all(any(line.startswith(mark) for line in environment) for mark in wanted)
    return all(mark in environment for mark in wanted)


def _with_ancestors() -> set[int]:
    found = set[int]()
    pid = os.getpid()
    while pid > 1:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found
