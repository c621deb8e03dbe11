"""Answer rows: find what was answered before, score the rest, log it, reply. In this order."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from pipelines.errors import Unavailable
from pipelines.fields import encode
from serving.gateway.identity import Answer, digest, microseconds
from serving.gateway.log import Position
from serving.gateway.refusal import Refused
from serving.gateway.rows import read
from serving.gateway.state import Case, Gateway

log = logging.getLogger(__name__)


class Line(msgspec.Struct, gc=False):
    """A line of the prediction log: contracts.PredictionLine."""

    prediction_id: str
    request_id: str
    event_time: str
    received_at: str
    version: int
    score: float
    prediction: int
    row: Any


class AnswerRow(msgspec.Struct, gc=False):
    """One row of the reply."""

    prediction_id: str
    version: int
    prediction: int
    score: float


class Reply(msgspec.Struct, gc=False):
    """The reply to a predict request."""

    request_id: str
    rows: list[AnswerRow]


class Row(NamedTuple):
    """One row of a request. ``given`` is its event time in microseconds if the client gave one; ``digest`` is empty for an id of our own."""

    number: int
    id: str
    digest: bytes
    event_time: datetime
    given: int | None
    features: tuple[Any, ...]
    item: Any


_encoder = msgspec.json.Encoder()


async def predict(gateway: Gateway, case: Case, body: bytes) -> bytes:
    """The reply, as JSON, to the body of a predict request: every row of it is in the log, with exactly this answer.

    Raises Refused for what the client must change, Unavailable if nobody can answer now; nothing is logged then.
    """
    received = datetime.now(UTC)
    request_id = uuid.uuid4().hex
    rows = [_row(number, item, received, case) for number, item in enumerate(read(case.rows, body))]
    asked = _unique(rows)
    answers = case.index.find(asked) if asked else {}
    _check(asked.values(), answers, len(rows))
    fresh = [row for row in rows if not row.digest or (row.id not in answers and asked[row.id] is row)]
    repeated = len(rows) - len(fresh)
    if fresh:
        columns = dict(zip(case.fields.names, zip(*(row.features for row in fresh), strict=True), strict=True))
        version, scores = await _score(gateway, case, encode(case.fields, columns))
        scored = [
            Answer(row.id, row.digest, microseconds(row.event_time), microseconds(received), version, score) for row, score in zip(fresh, scores, strict=True)
        ]
        raced = _log(gateway, case, fresh, scored, request_id, received, len(rows))
        answers |= {answer.id: answer for answer in scored} | raced
        repeated += len(raced)
        gateway.metrics.rows.labels(case.name, version).inc(len(fresh) - len(raced))
    if repeated:
        gateway.metrics.repeated.labels(case.name).inc(repeated)
    found = [answers[row.id] for row in rows]
    return _encoder.encode(Reply(request_id, [AnswerRow(answer.id, answer.version, int(answer.score >= 0.5), answer.score) for answer in found]))


def _row(number: int, item: Any, received: datetime, case: Case) -> Row:
    features = msgspec.structs.astuple(item)[: len(case.fields.fields)]
    moment, own_id = item.event_time, item.prediction_id is UNSET
    given = None if moment is UNSET else moment.astimezone(UTC)
    name = uuid.uuid4().hex if own_id else item.prediction_id
    # Unset fields are not encoded: what is left of the item is the row of the log.
    item.prediction_id = item.event_time = UNSET
    return Row(
        number,
        name,
        b"" if own_id else digest(features),
        received if given is None else given,
        None if given is None else microseconds(given),
        features,
        item,
    )


def _unique(rows: list[Row]) -> dict[str, Row]:
    """The first row of every client-made id; raises Refused if a later one differs from it."""
    first: dict[str, Row] = {}
    for row in rows:
        if row.digest and (other := first.setdefault(row.id, row)) is not row and _differs(row, other.digest, microseconds(other.event_time)):
            raise _conflict(row, len(rows))
    return first


def _check(rows: Iterable[Row], answers: dict[str, Answer], count: int) -> None:
    """Raise Refused if a row's id was answered for other features, or for another event time than it gives."""
    for row in rows:
        answer = answers.get(row.id)
        if answer is not None and _differs(row, answer.digest, answer.event_us):
            raise _conflict(row, count)


def _differs(row: Row, features: bytes, event_us: int) -> bool:
    return row.digest != features or (row.given is not None and row.given != event_us)


def _conflict(row: Row, count: int) -> Refused:
    text = f"row {row.number}: its prediction_id was used before, for other features or another event_time: send a new one"
    return Refused(409, "conflict", text, field="prediction_id", row=row.number, rows=count)


async def _score(gateway: Gateway, case: Case, tensors: Any) -> tuple[int, list[float]]:
    """The version that answered and its scores: the champion's, or while it does not answer, the previous release's."""
    route = gateway.routing.champion(case.name)
    champion, deadline = route.release.champion, gateway.triton.deadline()
    try:
        scores = await gateway.triton.score(case.name, champion, tensors, deadline)
    except Unavailable as error:
        gateway.metrics.triton_errors.labels(case.name, champion).inc()
        if route.previous is None or time.monotonic() >= deadline:
            raise
        try:
            scores = await gateway.triton.score(case.name, route.previous, tensors, deadline)
        except Unavailable:
            raise error from None
        _flag(gateway, case, str(error))
        return route.previous, scores
    _flag(gateway, case, "")
    return champion, scores


def _flag(gateway: Gateway, case: Case, why: str) -> None:
    """Say once, in log and metric, when the previous release starts and stops to stand in."""
    if case.falling_back != bool(why):
        case.falling_back = bool(why)
        gateway.metrics.fallback.labels(case.name).set(int(case.falling_back))
        log.warning("%s: %s", case.name, f"the previous release answers: {why}" if why else "the champion answers again")


def _log(gateway: Gateway, case: Case, fresh: list[Row], scored: list[Answer], request_id: str, received: datetime, count: int) -> dict[str, Answer]:
    """Write the rows to the log; returns the answers of those that somebody else logged in the meantime, which are not written.

    No await in here: between the look-up and the index's commit no other request of this worker runs, and no other worker writes.
    """
    if not any(row.digest for row in fresh):
        case.predictions_log.append(_lines(fresh, scored, request_id, received))
        gateway.metrics.log_lines.labels(case.name, "predictions").inc(len(fresh))
        return {}
    position: Position | None = None
    try:
        with case.index.writing():
            raced = case.index.find(row.id for row in fresh if row.digest)
            _check(fresh, raced, count)
            pairs = [(row, answer) for row, answer in zip(fresh, scored, strict=True) if row.id not in raced]
            if pairs:
                position = case.predictions_log.append(_lines([row for row, _ in pairs], [answer for _, answer in pairs], request_id, received))
                case.index.remember((answer for row, answer in pairs if row.digest), position)
    except BaseException:
        if position is not None:
            case.predictions_log.undo(position)
        raise
    gateway.metrics.log_lines.labels(case.name, "predictions").inc(len(pairs))
    return raced


def _lines(rows: Iterable[Row], answers: Iterable[Answer], request_id: str, received: datetime) -> bytes:
    now = received.isoformat()
    return _encoder.encode_lines(
        [
            Line(
                row.id,
                request_id,
                now if row.given is None else row.event_time.isoformat(),
                now,
                answer.version,
                answer.score,
                int(answer.score >= 0.5),
                row.item,
            )
            for row, answer in zip(rows, answers, strict=True)
        ]
    )
