"""What the page of a rollout is drawn from: plain values, gathered by whoever has ledger, traffic and guard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipelines.contracts import Action, Stage


@dataclass(frozen=True)
class Event:
    """One row of the ledger: from ``at`` on the version that the rollout is about answers ``share`` of all keys."""

    seq: int
    at: datetime
    action: Action
    stage: Stage
    share: float
    who: str
    why: str


@dataclass(frozen=True)
class Side:
    """What an arm's requests came to: rows, and requests by latency in milliseconds (None: none are known)."""

    name: Literal["champion", "challenger"]
    version: int
    answered: int
    failed: int
    refused: int
    requests: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class Sign:
    """One of the guard's signals."""

    name: str
    told: str
    e_value: float
    weight: float


@dataclass(frozen=True)
class Guarded:
    """What the guard says, the sum of e-values after each window (by its end), and the ``limit`` it is held against."""

    verdict: str
    reason: str
    limit: float
    signals: tuple[Sign, ...]
    course: tuple[tuple[datetime, float], ...]


@dataclass(frozen=True)
class Arm:
    """The units of an arm in an experiment; ``mean`` is that of the ``mature`` ones, which a look has counted.

    Others are ``waiting`` for their horizon, or for the end of a look; the ``unlabelled`` had no label by then.
    """

    name: Literal["champion", "challenger"]
    begun: int
    waiting: int
    unlabelled: int
    mature: int
    mean: float


@dataclass(frozen=True)
class Estimate:
    """What an experiment said at a look; None: no bound yet."""

    at: datetime
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Compared:
    """An experiment: what it asks, what it says, and how that came; ``ends`` says in words what would end it.

    ``null`` is the estimate of two arms that do not differ: 0, or 1 for an odds ratio.
    """

    outcome: str
    better: Literal["higher", "lower"]
    horizon_hours: float
    scale: str
    null: float
    verdict: str
    reason: str
    arms: tuple[Arm, Arm]
    course: tuple[Estimate, ...]
    ends: tuple[str, ...]
    p: float
    unsplit: str = ""
    bandit: bool = False


@dataclass(frozen=True)
class View:
    """A rollout as it is at ``now``, or as it ended at ``over``; ``waits`` says what its stage waits for."""

    case: str
    champion: int
    challenger: int
    opened: datetime
    now: datetime
    over: datetime | None
    events: tuple[Event, ...]
    sides: tuple[Side, Side] | None
    guarded: Guarded | None
    compared: Compared | None
    waits: str = ""
    held: str = ""

    @property
    def until(self) -> datetime:
        """The end of what is shown."""
        return self.over or self.now

    @property
    def last(self) -> Event:
        """The newest row."""
        return self.events[-1]
