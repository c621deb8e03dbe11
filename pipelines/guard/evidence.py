"""What the guard looks at: counts of both arms in each window since the rollout was opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipelines.contracts import Instant, Value


class Side(Value):
    """What one arm came to in a window.

    ``answered``, ``failed`` (no answer, or another version or a default stood in) and ``refused`` count rows;
    ``latency`` counts requests and ``scores`` rows, by the bins of arms.py.
    """

    answered: int = 0
    failed: int = 0
    refused: int = 0
    latency: Mapping[int, int] = {}
    scores: Mapping[int, int] = {}

    @property
    def requests(self) -> int:
        """The requests whose latency is known."""
        return sum(self.latency.values())


class Mirrored(Value):
    """Rows that both versions were asked: how many both ``answered``, and of these decided differently (``disagreed``).

    ``champion_failed`` and ``challenger_failed`` count rows that only the other one answered; ``dropped`` those that
    were not mirrored because there was no room.
    """

    answered: int = 0
    disagreed: int = 0
    champion_failed: int = 0
    challenger_failed: int = 0
    dropped: int = 0


class Seen(Value):
    """One window of a rollout, complete: a repeated look at it gives the same.

    ``weight`` is the share of keys (of 10,000) that met the challenger; in a soak it is 10,000, and all is the
    challenger's. ``losses`` are the challenger's minus the champion's loss on the labelled rows that both answered;
    ``champion_losses`` and ``challenger_losses`` those of the rows that each arm answered alone (losses.row_losses).
    All in the order in which the labels arrived, each label once and mature: while those of one kind are known earlier,
    what is known is not what will be.
    """

    begin: Instant
    end: Instant
    weight: int
    champion: Side = Side()
    challenger: Side = Side()
    mirrored: Mirrored = Mirrored()
    losses: tuple[float, ...] = ()
    champion_losses: tuple[float, ...] = ()
    challenger_losses: tuple[float, ...] = ()


class Signal(Value):
    """One of the guard's measures at the last window: its e-value (1: nothing seen) and what people are told."""

    name: str
    e_value: float
    weight: float
    told: str


class Answer(Value):
    """``fail``: take the challenger back, ``hold``: too little is known yet, ``pass``: nothing speaks against it.

    ``e_value`` is the weighted sum of the signals', held against 1 / alpha; ``reason`` is for people.
    """

    verdict: Literal["pass", "fail", "hold"]
    reason: str
    e_value: float
    windows: int
    signals: tuple[Signal, ...] = ()
