"""Rows that were answered, asked of the other version of a rollout: after the reply, and only as far as there is room.

A case has one queue of bounded length and at most one call under way, through lanes of their own: no row of a request
waits behind one of these. It takes a quarter of the time at most, makes one call a second where the worker is busy, and
waits while the case is pressed; what has no room meanwhile is dropped and counted. contracts.ShadowLine is what comes
of a row.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pipelines.contracts import Arm, ShadowLine
from pipelines.errors import Crowded, DataError, PerennialError
from pipelines.fields import EVENT_TIME
from serving.gateway.joining import Refusal, TimedOut
from serving.gateway.pace import Pace
from serving.gateway.refusal import Refused
from serving.gateway.traffic import Outcome

if TYPE_CHECKING:
    from serving.gateway.cases import Case
    from serving.gateway.state import Gateway
    from serving.gateway.traffic import Traffic
    from serving.gateway.versions import Version

SIZES = tuple(2**power for power in range(8))
"""Rows of a call, at most: of the longest, tensors are made in about a millisecond, and nothing else meanwhile."""
CALL_SECONDS, TIMES = 0.025, 2.0
"""A call has no more rows than take so long, or so many times as long as a single one."""
SHARE = 0.25
"""The part of the time that calls may be under way."""
GATHER_SECONDS = 0.1
"""How long rows gather that are fewer than a call may have: a call costs a hundred times what a row in it does."""
MOST_PAUSE_SECONDS = 1.0
"""The longest pause after a call, however long that took."""
BUSY = 0.7
"""A worker that works for more of its time has none left: requests would wait for what a shadow takes, and for more."""

log = logging.getLogger(__name__)
_encode_lines = msgspec.json.Encoder().encode_lines


class Pair(NamedTuple):
    """A row that one version has answered, and the ``other`` one, which is to be asked (None: it is not served here).

    ``arm`` is whose answer was given, ``score`` and ``scores`` (of classes) are that answer's.
    """

    other: Version | None
    champion: int
    challenger: int
    arm: Arm
    prediction_id: str
    event_time: datetime
    received: datetime
    features: tuple[Any, ...]
    score: float
    scores: list[float] | None

    @property
    def asked(self) -> int:
        """The version that is to be asked."""
        return self.challenger if self.arm == "champion" else self.champion


class Found(NamedTuple):
    """What the other version said of a row: its scores, one for each output, or (None) what became of it instead."""

    outcome: Outcome
    scores: list[float] | None = None


class Shadow:
    """The rows of one case that wait for the other version. Used by the event loop alone."""

    def __init__(self, most: int) -> None:
        """``most`` rows wait at a time."""
        self._most = most
        self._rows = 1  # of the next call, at most
        self._pace = Pace()
        self._waiting: deque[Pair] = deque()
        self._asked: list[Pair] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        """How many rows more may wait."""
        return self._most - len(self._waiting)

    def offer(self, gateway: Gateway, case: Case, pairs: Sequence[Pair]) -> None:
        """Take rows that were answered, no more than there is room for."""
        self._waiting.extend(pairs)
        if self._waiting and self._task is None:
            # Not in the context of a request: its time is its own.
            self._task = asyncio.create_task(self._work(gateway, case), context=Context())

    def stop(self, traffic: Traffic) -> None:
        """Ask for nothing more."""
        if self._task is not None:
            self._task.cancel()
        self._drop(traffic)

    def _drop(self, traffic: Traffic) -> None:
        _count(traffic, [*self._asked, *self._waiting], "dropped")
        self._asked = []
        self._waiting.clear()

    async def _work(self, gateway: Gateway, case: Case) -> None:
        pause = GATHER_SECONDS
        try:
            while self._waiting:
                busy = await _worked(pause) > BUSY
                if case.pressed is None or case.pressed.idle:
                    rest = min(await self._ask(gateway, case) * (1 / SHARE - 1), MOST_PAUSE_SECONDS)
                    pause = rest if len(self._waiting) >= self._rows else max(rest, GATHER_SECONDS)
                if busy:
                    pause = MOST_PAUSE_SECONDS
        except Exception:
            log.exception("%s: what waits for the other version of its rollout is dropped", case.name)
            self._drop(case.traffic)
        finally:
            self._task = None

    async def _ask(self, gateway: Gateway, case: Case) -> float:
        """Ask for the rows that come next; returns how many seconds that took."""
        pairs = self._asked = self._next(case)
        if not pairs:
            return 0.0
        began = time.monotonic()
        found = await ask(gateway, case, pairs)
        took = time.monotonic() - began
        self._asked = []
        if pairs[0].other is not None:
            self._pace.note(len(pairs), took)
        most = max(CALL_SECONDS, TIMES * self._pace.seconds(1))
        fit = (rows for rows in SIZES if rows <= 2 * self._rows and self._pace.seconds(rows) <= most)
        self._rows = max(fit, default=1)
        lines = _write(case, pairs, found, took)
        gateway.metrics.log_lines.labels(case.name, "shadow").inc(lines)
        return took

    def _next(self, case: Case) -> list[Pair]:
        """Rows for one version; those of a rollout that is over are left out."""
        now = None if case.route is None or case.route.rollout is None else case.route.rollout.number
        found: list[Pair] = []
        while self._waiting and len(found) < self._rows:
            if found and self._waiting[0].other is not found[0].other:
                break
            pair = self._waiting.popleft()
            if pair.challenger == now:
                found.append(pair)
        return found


async def _worked(pause: float) -> float:
    """For what part of a pause the event loop had something to do, by the processor's time."""
    began, spent = time.monotonic(), time.thread_time()
    await asyncio.sleep(pause)
    return (time.thread_time() - spent) / max(time.monotonic() - began, 1e-6)


async def ask(gateway: Gateway, case: Case, pairs: Sequence[Pair]) -> list[Found]:
    """What the other version says of rows. Where single rows may be why it has no answer, it is asked by halves."""
    other = pairs[0].other
    if other is None:
        return [Found("error")] * len(pairs)
    columns = dict(zip(case.fields.names, zip(*(pair.features for pair in pairs), strict=True), strict=True))
    columns[EVENT_TIME] = tuple(pair.event_time for pair in pairs)
    texts = 0 if case.fields.text is None else len(pairs)
    deadline = gateway.aside.deadline(texts, case.serving.deadline_seconds)
    try:
        scores = await gateway.aside.score_rows(case.fields, other, columns, deadline)
    except Crowded:  # it works, and answers requests
        return [Found("dropped")] * len(pairs)
    except (Refusal, DataError):
        if len(pairs) == 1:
            return [Found("error")]
        middle = len(pairs) // 2
        return [*await ask(gateway, case, pairs[:middle]), *await ask(gateway, case, pairs[middle:])]
    except PerennialError as error:
        return [Found("timeout" if isinstance(error, TimedOut) else "error")] * len(pairs)
    outputs = case.fields.outputs
    return [Found("ok", list(scores[start : start + outputs])) for start in range(0, len(scores), outputs)]


def _count(traffic: Traffic, pairs: Sequence[Pair], outcome: Outcome) -> None:
    for pair in pairs:
        traffic.count(pair.received, "shadow", pair.asked, outcome, 1)


def _write(case: Case, pairs: Sequence[Pair], found: Sequence[Found], took: float) -> int:
    """Log what was asked, and count it: in the stretches in which the rows were received. Returns the lines."""
    asked = [(pair, one) for pair, one in zip(pairs, found, strict=True) if one.outcome != "dropped"]
    if case.shadow_log.failing:
        _count(case.traffic, pairs, "dropped")
        return 0
    try:
        if asked:
            case.shadow_log.append(_encode_lines([line_of(pair, one, took) for pair, one in asked]))
    except Refused:  # said by the log
        _count(case.traffic, pairs, "dropped")
        return 0
    for pair, one in zip(pairs, found, strict=True):
        _count(case.traffic, [pair], one.outcome)
    if asked:
        scores = [max(one.scores) for _, one in asked if one.scores is not None]
        first = asked[0][0]
        case.traffic.answered(first.received, "shadow", first.asked, took, scores)
    return len(asked)


def line_of(pair: Pair, found: Found, took: float) -> ShadowLine:
    """The line of a row, which took so many seconds."""
    other = None if found.scores is None else max(found.scores)
    own: Arm = pair.arm
    line = ShadowLine(
        prediction_id=pair.prediction_id,
        event_time=pair.event_time.isoformat(),
        received_at=pair.received.isoformat(),
        arm=own,
        champion=pair.champion,
        challenger=pair.challenger,
        champion_score=pair.score if own == "champion" else other,
        challenger_score=other if own == "champion" else pair.score,
        ms=round(1000 * took, 3),
    )
    if pair.scores is not None:
        champion, challenger = (pair.scores, found.scores) if own == "champion" else (found.scores, pair.scores)
        if champion is not None:
            line["champion_scores"] = champion
        if challenger is not None:
            line["challenger_scores"] = challenger
    return line
