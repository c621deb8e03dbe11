"""Rows that were refused: counted by reason and field, hour, arm and version. What they held is not kept.

A worker adds up in memory and writes what it counted at every tick, as lines of a log of its own beside that of its
predictions (contracts.RefusalLine). A killed worker loses what it counted since its last tick (``sync_seconds``, 0.2).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pipelines.contracts import Arm, RefusalLine
from pipelines.fields import EARLIEST, EVENT_TIME, LATEST, Fields
from pipelines.moments import parse_moment
from pipelines.params import EventTimes
from serving.gateway.refusal import Refused, declared
from serving.gateway.rows import MOST_REPEATS

if TYPE_CHECKING:
    from serving.gateway.cases import Case
    from serving.gateway.log import Log
    from serving.gateway.routing import Rollout
    from serving.gateway.state import Gateway

PREDICTION_ID = "prediction_id"
TOO_MANY = "too_many"
"""A request that is refused for its length alone: nothing is wrong with its rows, which come again in shorter ones."""
_TIMES = re.compile(rb'"' + EVENT_TIME.encode() + rb'"[ \t\n\r]*:[ \t\n\r]*"([^"\\]{10,40})"')
_encode_lines = msgspec.json.Encoder().encode_lines


class Key(NamedTuple):
    """What rows are counted by."""

    hour: datetime
    version: int | None
    reason: str
    field: str
    arm: Arm


class Tally:
    """What one worker refused since its last lines were written. Used by the event loop alone."""

    def __init__(self) -> None:
        self.rows: Counter[Key] = Counter()

    def add(self, hours: Mapping[datetime, int], version: int | None, error: Refused, arm: Arm = "champion") -> None:
        """Count rows, by the beginning of their hour, that were refused by ``error`` and belong to ``arm``."""
        for hour, rows in hours.items():
            self.rows[Key(hour, version, error.reason, declared(error), arm)] += rows

    def write(self, log: Log) -> int:
        """Write what was counted; returns how many lines that took. A log that refuses them is asked again later."""
        if not self.rows or log.failing:
            return 0
        now = datetime.now(UTC).isoformat()
        lines = [
            RefusalLine(
                hour=key.hour.isoformat(),
                arm=key.arm,
                version=key.version,
                field=key.field,
                reason=key.reason,
                rows=rows,
                received_at=now,
            )
            for key, rows in self.rows.items()
        ]
        try:
            log.append(_encode_lines(lines))
        except Refused:  # said by the log
            return 0
        self.rows.clear()
        return len(lines)


async def note(gateway: Gateway, case: Case, error: Refused, body: bytes, received: datetime) -> None:
    """Count the rows of a request that was refused, all of them: none is in the prediction log.

    Nothing is counted where what it was refused for is no matter of its rows.
    """
    if counts(error):
        found = await gateway.apart(len(body), hours, body, error.rows, case.times, received)
        rollout = None if case.route is None else case.route.rollout
        if rollout is None:
            refuse(case, "champion", found, error, received)
            return
        arms = await gateway.apart(len(body), arms_of, body, error.rows, case.fields, rollout)
        for arm, own in _shared(found, arms).items():
            refuse(case, arm, own, error, received)


def refuse(case: Case, arm: Arm, hours: Mapping[datetime, int], error: Refused, received: datetime) -> None:
    """Count rows of an arm that were refused, and for the guard of a rollout, if one is under way."""
    rollout = None if case.route is None else case.route.rollout
    version = rollout.number if rollout is not None and arm == "challenger" else champion(case)
    case.refused.add(hours, version, error, arm)
    if rollout is not None:
        case.traffic.count(received, arm, version or 0, "refused", sum(hours.values()))


def _shared(hours: Counter[datetime], arms: Mapping[Arm, int]) -> dict[Arm, Counter[datetime]]:
    """Each arm's part of the rows of all hours: which row is in which is not known of several."""
    left = Counter(hours)
    found: dict[Arm, Counter[datetime]] = {}
    for arm, rows in arms.items():
        own = found[arm] = Counter[datetime]()
        for hour in sorted(left):
            own[hour] = min(left[hour], rows - own.total())
        left -= own
    return {arm: +own for arm, own in found.items() if own.total()}


def counts(error: Refused) -> bool:
    """Whether an error says that rows are not as declared: not a key, a rate, or a body in which there is no row."""
    return error.status == 422 and error.rows > 0 and error.reason != TOO_MANY


def champion(case: Case) -> int | None:
    """The version that would have answered, if there is one."""
    if case.route is None or case.route.champion is None:
        return None
    return case.route.champion.number


def hours(body: bytes, rows: int, times: EventTimes, received: datetime) -> Counter[datetime]:
    """How many of a body's ``rows`` happened in which hour, given by its beginning.

    By the event times that stand in it, wherever it is broken beside them. Rows that name none, or one that cannot be,
    happened when they were received.
    """
    found: Counter[datetime] = Counter()
    left = rows
    given = (match[1] for match in islice(_TIMES.finditer(body), MOST_REPEATS * rows))
    for text, count in Counter(given).items():
        moment = _moment(text, times, received)
        if moment is not None:
            taken = min(count, left)
            found[_hour(moment)] += taken
            left -= taken
    found[_hour(received)] += left
    return +found


def arms_of(body: bytes, rows: int, fields: Fields, rollout: Rollout) -> Counter[Arm]:
    """How many of a body's ``rows`` belong to which arm, by the keys that stand in it.

    Rows whose key cannot be read, wherever it is broken beside them, are the champion's.
    """
    found: Counter[Arm] = Counter()
    left = rows
    name = PREDICTION_ID if rollout.place is None else fields.names[rollout.place]
    if rollout.weight:
        for match in islice(_values(name).finditer(body), rows):
            found[rollout.arm_of(_key(match))] += 1
            left -= 1
    found["champion"] += left
    return +found


@lru_cache(maxsize=64)
def _values(name: str) -> re.Pattern[bytes]:
    """Where a field's values stand that are texts without escapes, or numbers."""
    return re.compile(
        rb'"' + re.escape(name.encode()) + rb'"[ \t\n\r]*:[ \t\n\r]*(?:"([^"\\]{1,1000})"|(-?[0-9][0-9.eE+-]{0,30}))'
    )


def _key(match: re.Match[bytes]) -> str:
    """A key as a decoded row would have it: every number is a float."""
    if match[1] is not None:
        return match[1].decode(errors="replace")
    try:
        return str(float(match[2]))
    except ValueError:
        return ""


def _moment(text: bytes, times: EventTimes, received: datetime) -> datetime | None:
    try:
        moment = parse_moment(text.decode())
    except ValueError:
        return None
    if not EARLIEST <= moment < LATEST or times.mistake(moment, received) is not None:
        return None
    return moment


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
