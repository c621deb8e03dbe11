"""What each arm of a rollout came to: requests, outcomes, latencies and scores, counted while one is under way.

A worker adds up in memory, by stretches of the wall clock in which requests were received, and writes a stretch when it
is over, as lines of a log of its own beside that of its predictions (contracts.TrafficLine). What ends later is a line
more: lines add up. A killed worker loses what it counted since its last lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from pipelines.arms import latency_bin, score_bin
from pipelines.contracts import TrafficLine
from serving.gateway.refusal import Refused

if TYPE_CHECKING:
    from serving.gateway.log import Log

Asked = Literal["champion", "challenger", "shadow"]
"""Whose answer was wanted."""
Outcome = Literal["ok", "fallback", "error", "timeout", "late", "refused", "dropped"]
"""What became of rows, as contracts.TrafficLine has it."""
Told = Callable[[Asked, Outcome, int], None]
_encode_lines = msgspec.json.Encoder().encode_lines


class _Key(NamedTuple):
    """What is counted together; ``stretch`` numbers those of the wall clock since 1970."""

    stretch: int
    arm: Asked
    version: int


class _Counts:
    __slots__ = ("latency", "outcomes", "requests", "scores")

    def __init__(self) -> None:
        self.requests = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.latency: Counter[int] = Counter()
        self.scores: Counter[int] = Counter()


class Traffic:
    """What one worker's requests for a case came to since its last lines were written. Used by the event loop alone."""

    def __init__(self, seconds: float, told: Told, *, number: bool = False) -> None:
        """``seconds`` is how long a stretch is, ``told`` hears what is counted; ``number``: scores are numbers."""
        self._seconds = seconds
        self._told = told
        self._number = number
        self._counts: dict[_Key, _Counts] = {}

    def count(self, received: datetime, arm: Asked, version: int, outcome: Outcome, rows: int) -> None:
        """So many rows of a request came to this."""
        self._of(received, arm, version).outcomes[outcome] += rows
        self._told(arm, outcome, rows)

    def answered(self, received: datetime, arm: Asked, version: int, seconds: float, scores: Iterable[float]) -> None:
        """A request took so long; ``scores`` are those that the arm's own version gave."""
        own = self._of(received, arm, version)
        own.requests += 1
        own.latency[latency_bin(1000 * seconds)] += 1
        for score in scores:
            own.scores[score_bin(score, number=self._number)] += 1

    def _of(self, received: datetime, arm: Asked, version: int) -> _Counts:
        key = _Key(self._stretch(received), arm, version)
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = _Counts()
        return found

    def _stretch(self, moment: datetime) -> int:
        return int(moment.timestamp() // self._seconds)

    def _begins(self, stretch: int) -> str:
        return datetime.fromtimestamp(stretch * self._seconds, UTC).isoformat()

    def write(self, log: Log, *, every: bool = False) -> int:
        """Write the stretches that are over (``every``: all); returns how many lines that took.

        A log that refuses them is asked again later.
        """
        if not self._counts or log.failing:
            return 0
        now = self._stretch(datetime.now(UTC))
        # One that is yet to come is over, too: it began before the clock was set back.
        over = {key: counts for key, counts in self._counts.items() if every or key.stretch != now}
        if not over:
            return 0
        lines = [
            TrafficLine(
                begin=self._begins(key.stretch),
                end=self._begins(key.stretch + 1),
                arm=key.arm,
                version=key.version,
                requests=counts.requests,
                outcomes={str(outcome): rows for outcome, rows in counts.outcomes.items()},
                latency={str(place): count for place, count in counts.latency.items()},
                scores={str(place): count for place, count in counts.scores.items()},
            )
            for key, counts in over.items()
        ]
        try:
            log.append(_encode_lines(lines))
        except Refused:  # said by the log
            return 0
        for key in over:
            del self._counts[key]
        return len(lines)
