"""Rows while a rollout is under way: each arm's are scored by its version, and what became of them is counted.

A challenger harms nobody: where it has no answer, after half of the time that a request has, the champion answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pipelines.arms import WHOLE
from pipelines.contracts import Arm
from pipelines.encoding import Columns
from pipelines.errors import Crowded, DataError
from serving.gateway.cases import Case
from serving.gateway.identity import Answer
from serving.gateway.joining import Late, TimedOut
from serving.gateway.refusal import Refused
from serving.gateway.routing import Rollout, Route
from serving.gateway.scoring import INLINE_ROWS, columns, granted, promised, score, scored_by
from serving.gateway.shadow import Pair
from serving.gateway.state import Gateway, in_thread
from serving.gateway.traffic import Outcome

if TYPE_CHECKING:
    from serving.gateway.predict import Row, Scored

TRIED = 0.5
"""The part of its time that a request waits for a challenger; the rest is the champion's, if it has to stand in."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The rows of one arm in a request, what became of them, and by which ``version`` they were answered.

    ``seconds`` are those from receipt until they were scored. ``error`` is why nobody has answered.
    """

    arm: Arm
    rows: Sequence[Row]
    outcome: Outcome
    seconds: float
    version: int = 0
    scores: list[float] = field(default_factory=list)
    error: Exception | None = None


async def by_arm(
    gateway: Gateway, case: Case, route: Route, rollout: Rollout, rows: Sequence[Row], received: datetime
) -> list[Part]:
    """The rows of a request by their arms, scored, both arms at a time.

    Raises what keeps an arm's rows from being answered; it is counted then.
    """
    if len(rows) > INLINE_ROWS:
        arms = await in_thread(_split, rollout, rows)
    else:
        arms = _split(rollout, rows)
    request = _Request(gateway, case, route, rollout, received, granted(gateway, case, len(rows)))
    asked = [_part(request, arm, own) for arm, own in arms.items()]
    parts = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
    errors = [part for part in parts if part.error is not None]
    for part in errors:
        case.traffic.count(received, part.arm, _version(route, rollout, part.arm), part.outcome, len(part.rows))
    for part in errors:
        assert part.error is not None
        raise part.error
    return parts


def _split(rollout: Rollout, rows: Sequence[Row]) -> dict[Arm, list[Row]]:
    arms: dict[Arm, list[Row]] = defaultdict(list)
    for row in rows:
        arms[rollout.arm(row.features, row.id)].append(row)
    return arms


class _Request(NamedTuple):
    """What the arms of a request share."""

    gateway: Gateway
    case: Case
    route: Route
    rollout: Rollout
    received: datetime
    deadline: float


async def _part(request: _Request, arm: Arm, rows: list[Row]) -> Part:
    gateway, case, _, rollout, received, deadline = request
    values = columns(case, rows)
    if arm == "champion":
        return await _champions(request, arm, rows, values)
    failed: Outcome = "fallback"
    why = rollout.refused
    if rollout.challenger is not None:
        now = time.monotonic()
        soon = promised(case.serving.slo.p99_ms, received, deadline)
        try:
            scores = await scored_by(gateway, case, rollout.challenger, values, now + TRIED * (deadline - now), soon)
        except (Late, Crowded):
            # A lane that carries no more than the champion's is late of its own slowness; a busier one may be of load.
            failed = "fallback" if rollout.weight <= WHOLE // 2 else "late"
        except Exception as error:  # noqa: BLE001 - whatever it fails of, its rows have an answer
            gateway.metrics.triton_errors.labels(case.name, rollout.challenger.number).inc()
            why = f"{type(error).__name__}: {error}"
        else:
            _say(case, "")
            return Part(arm, rows, "ok", _since(received), rollout.challenger.number, scores)
    if why:
        _say(case, why)
    stood_in = await _champions(request, arm, rows, values)
    if stood_in.outcome == "late" and not why:  # the champion has no room either: it is load
        return stood_in
    if stood_in.error is not None:
        return replace(stood_in, outcome="error") if stood_in.outcome == "late" else stood_in
    return replace(stood_in, outcome=failed)


async def _champions(request: _Request, arm: Arm, rows: list[Row], values: Columns) -> Part:
    """The rows as the champion's arm answers them, or why it does not."""
    gateway, case, route, _, received, deadline = request
    try:
        found = await score(gateway, case, route, values, received, None, deadline)
    except Exception as error:  # noqa: BLE001 - it is counted, and raised for the whole request
        return Part(arm, rows, _failure(error), _since(received), error=error)
    outcome: Outcome = "fallback"
    if found.late:
        outcome = "late"
    elif route.champion is not None and found.version == route.champion.number:
        outcome = "ok"
    return Part(arm, rows, outcome, _since(received), found.version, found.scores)


def _failure(error: Exception) -> Outcome:
    """What to count of rows that nobody has answered."""
    if isinstance(error, Refused):  # overload: what else is refused was refused before
        return "late"
    if isinstance(error, DataError):  # a value that the encoding does not take
        return "refused"
    return "timeout" if isinstance(error, TimedOut) else "error"


def note(
    gateway: Gateway,
    case: Case,
    route: Route,
    rollout: Rollout,
    parts: Sequence[Part],
    scored: Sequence[Scored],
    raced: Mapping[str, Answer],
    received: datetime,
) -> None:
    """Count rows that are in the log now, and offer them to the other version where that is asked for.

    Of a request with rows of both arms each has the seconds that it would have taken without the other's.
    """
    after = _since(received) - max(part.seconds for part in parts)
    own: dict[str, list[Scored]] = {part.arm: [] for part in parts}
    for one in scored:
        if one[1].id not in raced:
            own[one[1].arm].append(one)
    for part in parts:
        logged = own[part.arm]
        if not logged:
            continue
        version = _version(route, rollout, part.arm)
        case.traffic.count(received, part.arm, version, part.outcome, len(logged))
        scores = [answer.score for _, answer, _ in logged] if part.outcome == "ok" else []
        case.traffic.answered(received, part.arm, version, part.seconds + after, scores)
        if part.outcome == "ok" and rollout.mirrors:
            _mirror(gateway, case, route, rollout, part.arm, logged, received)


def _mirror(
    gateway: Gateway,
    case: Case,
    route: Route,
    rollout: Rollout,
    arm: Arm,
    logged: Sequence[Scored],
    received: datetime,
) -> None:
    assert route.release is not None
    assert rollout.number is not None
    other = rollout.challenger if arm == "champion" else route.champion
    champion, challenger = route.release.champion, rollout.number
    room = case.shadow.room
    if len(logged) > room:
        asked = challenger if arm == "champion" else champion
        case.traffic.count(received, "shadow", asked, "dropped", len(logged) - room)
    pairs = [
        Pair(
            other,
            champion,
            challenger,
            arm,
            answer.id,
            row.event_time,
            received,
            row.features,
            answer.score,
            scores if isinstance(scores, list) else None,
        )
        for row, answer, scores in logged[:room]
    ]
    case.shadow.offer(gateway, case, pairs)


def _version(route: Route, rollout: Rollout, arm: Arm) -> int:
    """The version that an arm leads to."""
    if arm == "challenger":
        return rollout.number or 0
    return 0 if route.release is None else route.release.champion


def _since(received: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - received).total_seconds())


def _say(case: Case, why: str) -> None:
    """Say once when the champion starts and stops to stand in for the challenger."""
    if case.trying != why:
        if bool(case.trying) != bool(why):
            log.warning(
                "%s: %s", case.name, f"the champion answers for the challenger: {why}" if why else "it answers again"
            )
        case.trying = why
