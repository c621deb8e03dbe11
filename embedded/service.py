"""What a service of a stack is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """One process: its command, its environment, where it answers, and a check that raises or says whether it works.

    ``stop`` is the signal that ends it in order; ``last`` services end when all others are gone.
    ``mend`` is run when a child of it has died and it does not notice.
    """

    name: str
    argv: list[str]
    env: Mapping[str, str]
    address: str
    check: Callable[[], bool]
    stop: int = signal.SIGTERM
    last: bool = False
    mend: tuple[str, ...] = ()
