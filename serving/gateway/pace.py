"""How long rows take that wait for Triton, by how long calls took lately, and whether an answer would come too late.

What a call costs grows with its rows, but not in proportion, and a storm sends calls of one size, which say nothing
about others. So calls are counted by the power of two that their rows come to, an exponentially weighted mean of rows
and seconds for each (Gardner, "Exponential smoothing: the state of the art", Journal of Forecasting 4, 1985), and
seconds are read off the line through these points.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

BACK = 0.8
"""What is left of a limit after a late answer."""
WEIGHT = 0.2
"""What the newest call of its size counts: some ten of them are remembered, of a slow version those of seconds."""


TURNS = 4
"""So many turns of the event loop a call takes beside its time in Triton: measured with loops that turn slowly."""


def of_triton(seconds: float, turn: float) -> float:
    """What is Triton's of a call's seconds, where one turn of the event loop takes ``turn``; a quarter at the least.

    A worker that is itself what is slow has slow turns. It would gain nothing from turning rows away for that: refusing
    takes turns, too. What it has inside is bounded at its door.
    """
    return max(seconds - TURNS * turn, seconds / TURNS)


class Pace:
    """Mean rows and seconds of the newest calls of every size."""

    __slots__ = ("_known", "_points")

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}
        self._points: list[tuple[float, float]] = []

    def note(self, rows: int, seconds: float) -> None:
        """A call of so many rows took so many seconds."""
        size = rows.bit_length()
        known = self._known.get(size)
        if known is not None:
            rows_, seconds_ = known
            self._known[size] = rows_ + WEIGHT * (rows - rows_), seconds_ + WEIGHT * (seconds - seconds_)
        else:
            self._known[size] = float(rows), seconds
        self._points = []

    def seconds(self, rows: int) -> float:
        """What a call of so many rows takes; 0 before the first call.

        No call is thought to take less than the shortest, nor a longer one less than a shorter one of the same line.
        """
        points = self._points = self._points or [point for _, point in sorted(self._known.items())]
        if not points:
            return 0.0
        low, fast = points[0]
        if rows <= low:
            return fast
        if len(points) == 1:  # between a call that costs the same whatever it has, and one that costs so much a row
            return fast * math.sqrt(rows / low)
        place = min(bisect_left(points, (rows, 0.0)), len(points) - 1)
        (low, fast), (high, slow) = points[place - 1 : place + 1]
        return max(fast, fast + (slow - fast) * (rows - low) / (high - low))


class Limit:
    """How many requests may be inside at a time for answers to take no longer than is promised.

    One more for every round of answers in time, a fifth less for a late one, whose effect is waited for (additive
    increase, multiplicative decrease: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion
    avoidance in computer networks", 1989). It sees what :class:`Pace` does not: a worker that has no time for Triton's
    answers, as it is busy with requests.
    """

    __slots__ = ("_blind_until", "_least", "_most", "_now")

    def __init__(self, most: int, least: int = 1) -> None:
        """``most``: what it never exceeds, and begins with; ``least`` is left whatever happens."""
        self._most = float(most)
        self._least = float(min(least, most))
        self._now = float(most)
        self._blind_until = 0.0

    @property
    def requests(self) -> int:
        """The limit."""
        return int(self._now)

    def note(self, seconds: float, promised: float, now: float) -> None:
        """An answer has taken so long; ``now`` is monotonic."""
        if seconds <= promised:
            self._now = min(self._most, self._now + 1.0 / self._now)
        else:
            self.lower(promised, now)

    def lower(self, seconds: float, now: float, left: float = BACK) -> None:
        """So much is ``left``; no less within so many seconds, in which its effect is waited for."""
        if now >= self._blind_until:
            self._now = max(self._least, self._now * left)
            self._blind_until = now + seconds


class Wait(NamedTuple):
    """What a request has to wait for: the seconds of all that comes before its rows, and those of its own rows.

    ``others`` is in how many seconds those must be answered whose call it would share.
    """

    before: float
    own: float
    others: float = math.inf

    def late(self, promise: float, deadline: float) -> float:
        """By how many seconds an answer would come too late; 0: in time. Both are seconds from now.

        Who waits for nobody is never late: nothing would be gained. Of a request whose own rows alone take longer than
        what is promised only the waiting has to keep it; the deadline holds for all.
        """
        if not self.before:
            return 0.0
        own = self.own if self.own <= promise else 0.0
        answered = self.before + self.own
        return max(0.0, self.before + own - promise, answered - deadline, answered - self.others)
