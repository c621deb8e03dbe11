"""Scores of rows: the champion's, the previous release's, or a declared default; in the time that is promised."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pipelines.contracts import ELSEWHERE
from pipelines.encoding import Columns
from pipelines.errors import Crowded, Unavailable
from pipelines.fields import EVENT_TIME
from pipelines.problems import default_scores
from serving.gateway.cache import keys
from serving.gateway.cases import Case
from serving.gateway.connections import RETRY_SECONDS
from serving.gateway.joining import Late
from serving.gateway.refusal import Refused
from serving.gateway.routing import Route
from serving.gateway.state import Gateway, in_thread
from serving.gateway.tracing import asks
from serving.gateway.versions import Version

if TYPE_CHECKING:
    from serving.gateway.predict import Row

KEPT = 0.7
"""What part of a promised p99, or of the deadline, the scores may take.

The pace that it is held against is a mean, and log and reply follow.
"""
INLINE_ROWS = 1000
"""Of so many rows the keys of kept scores are made where they are read: in a few milliseconds."""
PREVIOUS = "the previous release"

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """The version that answered rows, and its scores; ``late``: a default stands in as more waits than can be done."""

    version: int
    scores: list[float]
    late: bool = False


def columns(case: Case, rows: Sequence[Row]) -> Columns:
    """The values of rows by their fields."""
    found = dict(zip(case.fields.names, zip(*(row.features for row in rows), strict=True), strict=True))
    found[EVENT_TIME] = tuple(row.event_time for row in rows)
    return found


def granted(gateway: Gateway, case: Case, rows: int) -> float:
    """The monotonic time by which so many rows must be scored that are asked for now."""
    return gateway.triton.deadline(0 if case.fields.text is None else rows, case.serving.deadline_seconds)


async def score(
    gateway: Gateway,
    case: Case,
    route: Route | None,
    rows: Columns,
    received: datetime,
    only: int | None = None,
    deadline: float | None = None,
) -> Given:
    """The version that answered and its scores: the champion's, the previous release's, or ``ELSEWHERE`` and a default.

    Raises what :func:`_released` raises if the case declares no default, or ``only`` one version may answer.
    """
    count = len(rows[EVENT_TIME])
    try:
        return await _released(gateway, case, route, rows, received, only, deadline or granted(gateway, case, count))
    except (Unavailable, Late) as error:
        scores = default_scores(case.fields, case.serving.default)
        if scores is None or only is not None:
            if isinstance(error, Late):
                case.pressed = error.lane
            if isinstance(error, Crowded):
                again = {"Retry-After": str(RETRY_SECONDS)}
                raise Refused(503, "overload", str(error), rows=count, headers=again) from error
            raise
        asks(None)
        late = isinstance(error, Late | Crowded)
        if not late:  # who is late is no news, and the next one may be in time
            _flag(gateway, case, "the declared default", str(error))
        return Given(ELSEWHERE, [*scores] * count, late)


async def _released(
    gateway: Gateway,
    case: Case,
    route: Route | None,
    rows: Columns,
    received: datetime,
    only: int | None,
    deadline: float,
) -> Given:
    """The champion's scores, or while it does not answer, the previous release's (with its own encoding).

    Raises Unavailable if neither can answer, Crowded if the champion's queue in Triton has no room, and Late if more
    rows wait than can be answered as is promised, by whichever release: it is one Triton.
    """
    champion, previous = gateway.routing.versions(case.name, route, only)
    soon = promised(case.serving.slo.p99_ms, received, deadline)
    try:
        scores = await scored_by(gateway, case, champion, rows, deadline, soon)
    except Crowded:  # it answers: another release would have no more room
        raise
    except Unavailable as error:
        gateway.metrics.triton_errors.labels(case.name, champion.number).inc()
        if previous is None or time.monotonic() >= deadline:
            raise
        try:
            scores = await scored_by(gateway, case, previous, rows, deadline, soon)
        except Unavailable:
            raise error from None
        if case.route is not None and case.route.champion is champion:  # not one of before, that is none any more
            _flag(gateway, case, PREVIOUS, str(error))
        return Given(previous.number, scores)
    if route is not None and champion is route.champion:  # not a challenger that was asked for by its number
        _flag(gateway, case, "", "")
    return Given(champion.number, scores)


def promised(p99_ms: float | None, received: datetime, deadline: float) -> float:
    """The monotonic time by which scores must be there for what is promised of a request that was ``received``.

    Where nothing is promised, or more than the deadline grants, who is let in shall not miss that.
    """
    now = time.monotonic()
    most = KEPT * (deadline - now)
    if p99_ms is None:
        return now + most
    spent = max(0.0, (datetime.now(UTC) - received).total_seconds())
    return now + max(0.0, min(KEPT * p99_ms / 1000 - spent, most))


async def scored_by(
    gateway: Gateway, case: Case, version: Version, rows: Columns, deadline: float, soon: float
) -> list[float]:
    """A version's scores of rows: those that are kept, and of the others Triton's, which are promised ``soon``."""
    asks(version.number)
    kept = case.cache()
    if kept is None:
        return await gateway.triton.score_rows(case.fields, version, rows, deadline, soon)
    count = len(rows[EVENT_TIME])
    if count > INLINE_ROWS:
        known = await in_thread(keys, case.fields, rows)
    else:
        known = keys(case.fields, rows)
    found = kept.find(version.number, known)
    missing = [place for place, scores in enumerate(found) if scores is None]
    gateway.metrics.cached.labels(case.name).inc(count - len(missing))
    if missing:
        rest = {name: tuple(values[place] for place in missing) for name, values in rows.items()}
        fresh = await gateway.triton.score_rows(case.fields, version, rest, deadline, soon)
        each = kept.keep(version.number, [known[place] for place in missing], fresh)
        for place, scores in zip(missing, each, strict=True):
            found[place] = scores
    return [score for scores in found if scores is not None for score in scores]


def _flag(gateway: Gateway, case: Case, who: str, why: str) -> None:
    """Say once, in log and metric, when somebody starts and stops to stand in for the champion."""
    if case.standing_in != who:
        case.standing_in = who
        released = case.route is not None and case.route.release is not None  # before that nobody is stood in for
        gateway.metrics.fallback.labels(case.name).set(int(bool(who) and released))
        log.warning("%s: %s", case.name, f"{who} answers: {why}" if who else "the champion answers again")
