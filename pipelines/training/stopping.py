"""How the processes of a training end: asked to by a signal, or because the one that started them is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def asked_to_leave(grace_seconds: float | None = None) -> Iterator[Callable[[], bool]]:
    """A question for the loop: has SIGTERM come? The signal alone ends nothing, so that a step ends and is saved first.

    With ``grace_seconds`` a process that has not left by then is ended by SIGALRM, wherever it hangs. Outside of
    the main thread, where no signal can be caught, the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()

    def on_term(_number: int, _frame: FrameType | None) -> None:
        came.set()
        if grace_seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, grace_seconds)

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
