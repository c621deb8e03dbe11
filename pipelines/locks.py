"""A lock of one file: held by one process at a time, given back by the kernel when that one ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_SECONDS = 0.02


@contextmanager
def alone(path: Path, refusal: Callable[[str], Exception], *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of the file ``path``, which is made if need be; its content is the pid of whoever holds it.

    After ``patience`` seconds, ``refusal`` is asked for the error to raise: it is given the pid of who holds the lock.
    A child that was forked meanwhile holds it too.
    """
    deadline = time.monotonic() + patience
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise refusal(path.read_text() or "?") from error
                time.sleep(_LOOK_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
