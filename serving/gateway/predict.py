"""Answer rows: find what was answered before, score the rest, log it, reply. In this order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from pipelines.contracts import DEFAULT, ELSEWHERE
from pipelines.encoding import Columns
from pipelines.errors import Crowded, Unavailable
from pipelines.fields import EVENT_TIME
from pipelines.problems import default_scores
from serving.gateway import refusals
from serving.gateway.cache import keys
from serving.gateway.cases import Case
from serving.gateway.connections import RETRY_SECONDS
from serving.gateway.identity import Answer, digest, microseconds
from serving.gateway.joining import Late
from serving.gateway.log import Position
from serving.gateway.protections import Place
from serving.gateway.refusal import Refused, refused
from serving.gateway.rows import Unfit, check_times, read, read_each
from serving.gateway.state import INLINE_BYTES, Gateway, in_thread
from serving.gateway.tracing import asks, given, phase
from serving.gateway.versions import Version

T = TypeVar("T")

log = logging.getLogger(__name__)


class Line(msgspec.Struct, gc=False):
    """A line of the prediction log: contracts.PredictionLine."""

    prediction_id: str
    request_id: str
    event_time: str
    received_at: str
    version: int
    score: float
    prediction: int | float
    row: Any
    scores: list[float] | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET


class AnswerRow(msgspec.Struct, gc=False):
    """One row of the reply; a number has no score beside it, and ``default`` is there where it is true."""

    prediction_id: str
    version: int
    prediction: int | str | float
    score: float | UnsetType = UNSET
    default: bool | UnsetType = UNSET


class Reply(msgspec.Struct, gc=False):
    """The reply to a predict request."""

    request_id: str
    rows: list[AnswerRow]


class RefusedRow(msgspec.Struct, gc=False, omit_defaults=True):
    """A row of the reply that was not answered: the status and the words that it would have got alone."""

    row: int
    status: int
    error: str
    field: str | None = None


class PartialReply(msgspec.Struct, gc=False):
    """The reply to a request whose rows are answered one by one; ``refused`` counts those that were not."""

    request_id: str
    rows: list[AnswerRow | RefusedRow]
    refused: int


class Row(NamedTuple):
    """One row of a request.

    ``given`` is its event time in microseconds if the client gave one; ``digest`` is empty for an id of our own.
    """

    number: int
    id: str
    digest: bytes
    event_time: datetime
    given: int | None
    features: tuple[Any, ...]
    item: Any


Scored = tuple[Row, Answer, list[float] | UnsetType]
"""A row, its answer, and in a case with classes the scores of all of them."""
KEPT = 0.7
"""What part of a promised p99, or of the deadline, the scores may take.

The pace that it is held against is a mean, and log and reply follow.
"""
INLINE_ROWS = 1000
"""Of so many rows the keys of kept scores are made where they are read: in a few milliseconds."""
BUSY = 503
"""The status of a request that is refused because there is too much to do."""
PREVIOUS = "the previous release"
CONFLICT = "conflict"
"""Why a row is refused whose id belongs to another one."""
_encoder = msgspec.json.Encoder()


def in_time(gateway: Gateway, case: Case) -> None:
    """Raise Late, before a request is read, if one of a single row would be answered too late.

    A refusal then costs a fraction of an answer. It is seen by the lane that turned the newest request away, until that
    lets in. Not where texts have lanes by their lengths, and not where a default is answered, which needs the rows.
    """
    lane = case.pressed
    if lane is None:
        return
    if case.fields.text is None and case.serving.default is None:
        now = time.monotonic()
        deadline = gateway.triton.deadline(seconds=case.serving.deadline_seconds)
        promise = _promised(case.serving.slo.p99_ms, datetime.now(UTC), deadline) - now
        if late := lane.wait(1).late(promise, promise):
            raise Late(lane, late, 1)
    case.pressed = None


async def predict(gateway: Gateway, case: Case, place: Place, body: bytes) -> bytes:
    """The reply, as JSON, to the body of a predict request. Raises what :func:`answer` raises."""
    request_id, answers = await answer(gateway, case, place, body)
    return await gateway.apart(len(body), _reply, case, request_id, answers)


async def answer(
    gateway: Gateway, case: Case, place: Place, body: bytes, only: int | None = None
) -> tuple[str, list[Answer]]:
    """An id of the request and the answers to its rows: each of them is in the log, with exactly this answer.

    ``only`` is the one version that may answer (None: whichever the ledger says). Raises Refused for what the client
    must change, Unavailable if nobody can answer now; nothing is logged then.
    """
    received = datetime.now(UTC)
    request_id = os.urandom(16).hex()
    if only is not None:
        gateway.routing.versions(case.name, case.route, only)
    with phase("read"):
        rows, asked = await _taken(gateway, case, body, received, _read)
        await place.rows(len(rows))
        answers = await _found(case, len(body), asked) if asked else {}
    _check(asked.values(), answers, len(rows))
    answers |= await _fresh(gateway, case, len(body), rows, asked, answers, only, request_id, received)
    return request_id, [answers[row.id] for row in rows]


async def _taken(
    gateway: Gateway, case: Case, body: bytes, received: datetime, read: Callable[[Case, bytes, datetime], T]
) -> T:
    """What ``read`` takes from a body; the rows of one that it refuses are counted."""
    try:
        return await gateway.apart(len(body), read, case, body, received)
    except Refused as error:
        await refusals.note(gateway, case, error, body, received)
        raise


async def _fresh(
    gateway: Gateway,
    case: Case,
    size: int,
    rows: Sequence[Row],
    asked: Mapping[str, Row],
    answers: Mapping[str, Answer],
    only: int | None,
    request_id: str,
    received: datetime,
) -> dict[str, Answer]:
    """The answers to those of ``rows`` that ``answers`` does not hold yet: scored, and in the log."""
    found: dict[str, Answer] = {}
    fresh = [row for row in rows if not row.digest or (row.id not in answers and asked[row.id] is row)]
    repeated = len(rows) - len(fresh)
    if fresh:
        columns = dict(zip(case.fields.names, zip(*(row.features for row in fresh), strict=True), strict=True))
        columns[EVENT_TIME] = tuple(row.event_time for row in fresh)
        version, scores = await _score(gateway, case, columns, only, received)
        scored = await gateway.apart(size, _scored, case, fresh, received, version, scores)
        with phase("log"):
            raced = await _logged(gateway, case, size, scored, request_id, received, len(rows))
        found = {answer.id: answer for _, answer, _ in scored} | raced
        repeated += len(raced)
        if version == ELSEWHERE:
            gateway.metrics.defaults.labels(case.name).inc(len(fresh) - len(raced))
        else:
            gateway.metrics.rows.labels(case.name, version).inc(len(fresh) - len(raced))
    if repeated:
        gateway.metrics.repeated.labels(case.name).inc(repeated)
    return found


async def predict_each(gateway: Gateway, case: Case, place: Place, body: bytes) -> bytes:
    """The reply, as JSON, to a predict request whose rows are answered one by one."""
    request_id, found = await answer_each(gateway, case, place, body)
    return await gateway.apart(len(body), _reply_each, case, request_id, found)


async def answer_each(gateway: Gateway, case: Case, place: Place, body: bytes) -> tuple[str, list[Answer | Refused]]:
    """An id of the request and what becomes of each row: its answer, which is in the log, or why it is refused.

    A row that is not as declared, or whose id belongs to another one, keeps no other from being answered. Raises
    Refused for what is wrong with the body beside its rows, and else what :func:`answer` raises; nothing is logged
    then.
    """
    received = datetime.now(UTC)
    request_id = os.urandom(16).hex()
    with phase("read"):
        rows, unfit, hours = await _taken(gateway, case, body, received, _read_each)
        await place.rows(len(rows) + len(unfit))
    asked: dict[str, Row] = {}
    for row in rows:
        if row.digest:
            asked.setdefault(row.id, row)
    while True:
        answers = await _found(case, len(body), asked) if asked else {}
        errors = unfit | _conflicts(rows, asked, answers)
        left = [row for row in rows if row.number not in errors]
        try:
            answers |= await _fresh(gateway, case, len(body), left, asked, answers, None, request_id, received)
        except Refused as error:
            if error.reason != CONFLICT:
                raise
            continue  # somebody has just logged one of these ids with another row: it is found now, and nothing logged
        break
    for number, hour in hours.items():
        case.refused.add({hour: 1}, refusals.champion(case), unfit[number])
    for one in errors.values():
        refused(gateway.metrics, case.name, one)
    found: dict[int, Answer | Refused] = {row.number: answers[row.id] for row in left}
    return request_id, [one for _, one in sorted((found | errors).items())]


def _read_each(
    case: Case, body: bytes, received: datetime
) -> tuple[list[Row], dict[int, Refused], dict[int, datetime]]:
    """The rows that are as declared; by their number what is wrong with the others, and the hours of these."""
    rows: list[Row] = []
    unfit: dict[int, Refused] = {}
    hours: dict[int, datetime] = {}
    for number, item in enumerate(read_each(case.rows, body, case.times, received)):
        if isinstance(item, Unfit):
            unfit[number] = item.error
            [hours[number]] = refusals.hours(item.text, 1, case.times, received)
        else:
            rows.append(_row(number, item, received, case))
    return rows, unfit, hours


def _conflicts(rows: Iterable[Row], asked: Mapping[str, Row], answers: Mapping[str, Answer]) -> dict[int, Refused]:
    """The rows whose id belongs to another row: to one that was answered before, else to the first of the request."""
    found: dict[int, Refused] = {}
    for row in rows:
        if not row.digest:
            continue
        first, known = asked[row.id], answers.get(row.id)
        if known is not None:
            differs = _differs(row, known.digest, known.event_us)
        else:
            differs = first is not row and _differs(row, first.digest, microseconds(first.event_time))
        if differs:
            found[row.number] = _conflict(row, 1)
    return found


async def _found(case: Case, size: int, asked: Mapping[str, Row]) -> dict[str, Answer]:
    async with case.alone:
        if size <= INLINE_BYTES:
            return case.index.find(asked)
        return await in_thread(case.index.find, list(asked))


async def _logged(
    gateway: Gateway,
    case: Case,
    size: int,
    scored: Sequence[Scored],
    request_id: str,
    received: datetime,
    count: int,
) -> dict[str, Answer]:
    """What :func:`_log` gives, alone in this worker and, where ids are kept, of all; for a long body in a thread."""
    async with case.alone:
        if any(row.digest for row, _, _ in scored):
            await case.index.begin()
        if size <= INLINE_BYTES:
            return _log(gateway, case, scored, request_id, received, count)
        case.predictions_log.free.clear()
        try:
            return await in_thread(_log, gateway, case, scored, request_id, received, count)
        finally:
            case.predictions_log.free.set()


def _read(case: Case, body: bytes, received: datetime) -> tuple[list[Row], dict[str, Row]]:
    items = read(case.rows, body)
    check_times(items, case.times, received)
    rows = [_row(number, item, received, case) for number, item in enumerate(items)]
    return rows, _unique(rows)


def _reply(case: Case, request_id: str, found: Sequence[Answer]) -> bytes:
    return _encoder.encode(Reply(request_id, _answer_rows(case, found)))


def _reply_each(case: Case, request_id: str, found: Sequence[Answer | Refused]) -> bytes:
    answers = iter(_answer_rows(case, [one for one in found if not isinstance(one, Refused)]))
    rows = [
        RefusedRow(number, one.status, str(one), one.field) if isinstance(one, Refused) else next(answers)
        for number, one in enumerate(found)
    ]
    return _encoder.encode(PartialReply(request_id, rows, sum(isinstance(one, Refused) for one in found)))


def _answer_rows(case: Case, found: Sequence[Answer]) -> list[AnswerRow]:
    if case.fields.number is not None:
        return [AnswerRow(one.id, one.version, one.score, UNSET, one.by_default or UNSET) for one in found]
    names = case.fields.classes or (0, 1)
    return [
        AnswerRow(one.id, one.version, names[int(one.prediction)], one.score, one.by_default or UNSET) for one in found
    ]


def _row(number: int, item: Any, received: datetime, case: Case) -> Row:
    features = msgspec.structs.astuple(item)[: len(case.fields.fields)]
    moment = item.event_time
    own_id = item.prediction_id is UNSET
    given = None if moment is UNSET else moment.astimezone(UTC)
    name = os.urandom(16).hex() if own_id else item.prediction_id
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


def _scored(case: Case, rows: Sequence[Row], received: datetime, version: int, scores: Sequence[float]) -> list[Scored]:
    """What the ``scores`` of all rows mean.

    One for each is the positive class's, or the predicted number; several are the classes', of which the likeliest is
    predicted.
    """
    now = microseconds(received)
    outputs = case.fields.outputs
    number = case.fields.number is not None
    by_default = version == ELSEWHERE
    if outputs == 1:
        return [
            (
                row,
                Answer(
                    row.id,
                    row.digest,
                    now if row.given is None else row.given,
                    now,
                    version,
                    score if number else int(score >= 0.5),
                    score,
                    by_default,
                ),
                UNSET,
            )
            for row, score in zip(rows, scores, strict=True)
        ]
    scored: list[Scored] = []
    for row, start in zip(rows, range(0, len(scores), outputs), strict=True):
        own = list(scores[start : start + outputs])
        best = max(own)
        moment = now if row.given is None else row.given
        answer = Answer(row.id, row.digest, moment, now, version, own.index(best), best, by_default)
        scored.append((row, answer, own))
    return scored


def _unique(rows: list[Row]) -> dict[str, Row]:
    """The first row of every client-made id; raises Refused if a later one differs from it."""
    first: dict[str, Row] = {}
    for row in rows:
        if (
            row.digest
            and (other := first.setdefault(row.id, row)) is not row
            and _differs(row, other.digest, microseconds(other.event_time))
        ):
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
    text = (
        f"row {row.number}: its prediction_id was used before, for other features or another event_time: send a new one"
    )
    return Refused(409, CONFLICT, text, field="prediction_id", row=row.number, rows=count)


async def _score(
    gateway: Gateway, case: Case, columns: Columns, only: int | None, received: datetime
) -> tuple[int, list[float]]:
    """The version that answered and its scores: the champion's, the previous release's, or ``ELSEWHERE`` and a default.

    Raises what :func:`_released` raises if the case declares no default, or ``only`` one version may answer.
    """
    try:
        return await _released(gateway, case, columns, only, received)
    except (Unavailable, Refused) as error:
        if isinstance(error, Refused) and error.status != BUSY:
            raise
        scores = default_scores(case.fields, case.serving.default)
        if scores is None or only is not None:
            if isinstance(error, Late):
                case.pressed = error.lane
            raise
        asks(None)
        if isinstance(error, Unavailable):  # who is late is no news, and the next one may be in time
            _flag(gateway, case, "the declared default", str(error))
        return ELSEWHERE, [*scores] * len(columns[EVENT_TIME])


async def _released(
    gateway: Gateway, case: Case, columns: Columns, only: int | None, received: datetime
) -> tuple[int, list[float]]:
    """The champion's scores, or while it does not answer, the previous release's (with its own encoding).

    Raises Unavailable if neither can answer, and Late if more rows wait than can be answered as is promised, by
    whichever release: it is one Triton.
    """
    champion, previous = gateway.routing.versions(case.name, case.route, only)
    texts = 0 if case.fields.text is None else len(columns[case.fields.text.name])
    deadline = gateway.triton.deadline(texts, case.serving.deadline_seconds)
    promised = _promised(case.serving.slo.p99_ms, received, deadline)
    try:
        scores = await _scored_by(gateway, case, champion, columns, deadline, promised)
    except Crowded as error:  # it answers: what stands in for it would have no more room
        count = len(columns[EVENT_TIME])
        raise Refused(503, "busy", str(error), rows=count, headers={"Retry-After": str(RETRY_SECONDS)}) from error
    except Unavailable as error:
        gateway.metrics.triton_errors.labels(case.name, champion.number).inc()
        if previous is None or time.monotonic() >= deadline:
            raise
        try:
            scores = await _scored_by(gateway, case, previous, columns, deadline, promised)
        except Unavailable:
            raise error from None
        _flag(gateway, case, PREVIOUS, str(error))
        return previous.number, scores
    _flag(gateway, case, "", "")
    return champion.number, scores


def _promised(p99_ms: float | None, received: datetime, deadline: float) -> float:
    """The monotonic time by which scores must be there for what is promised of a request that was ``received``.

    Where nothing is promised, or more than the deadline grants, who is let in shall not miss that.
    """
    now = time.monotonic()
    granted = KEPT * (deadline - now)
    if p99_ms is None:
        return now + granted
    spent = max(0.0, (datetime.now(UTC) - received).total_seconds())
    return now + max(0.0, min(KEPT * p99_ms / 1000 - spent, granted))


async def _scored_by(
    gateway: Gateway, case: Case, version: Version, columns: Columns, deadline: float, promised: float
) -> list[float]:
    """A version's scores of rows: those that are kept, and of the others Triton's."""
    asks(version.number)
    kept = case.cache()
    if kept is None:
        return await _asked(gateway, case, version, columns, deadline, promised)
    count = len(columns[EVENT_TIME])
    if count > INLINE_ROWS:
        known = await in_thread(keys, case.fields, columns)
    else:
        known = keys(case.fields, columns)
    found = kept.find(version.number, known)
    missing = [place for place, scores in enumerate(found) if scores is None]
    gateway.metrics.cached.labels(case.name).inc(count - len(missing))
    if missing:
        rest = {name: tuple(values[place] for place in missing) for name, values in columns.items()}
        fresh = await _asked(gateway, case, version, rest, deadline, promised)
        each = kept.keep(version.number, [known[place] for place in missing], fresh)
        for place, scores in zip(missing, each, strict=True):
            found[place] = scores
    return [score for scores in found if scores is not None for score in scores]


async def _asked(
    gateway: Gateway, case: Case, version: Version, columns: Columns, deadline: float, promised: float
) -> list[float]:
    with phase("encode"):
        parts = await version.parts(columns)
    return await gateway.triton.score(case.fields, version.number, parts, deadline, promised)


def _flag(gateway: Gateway, case: Case, who: str, why: str) -> None:
    """Say once, in log and metric, when somebody starts and stops to stand in for the champion."""
    if case.standing_in != who:
        case.standing_in = who
        gateway.metrics.fallback.labels(case.name).set(int(who == PREVIOUS))
        log.warning("%s: %s", case.name, f"{who} answers: {why}" if who else "the champion answers again")


def _log(
    gateway: Gateway, case: Case, fresh: Sequence[Scored], request_id: str, received: datetime, count: int
) -> dict[str, Answer]:
    """Write the rows to the log.

    Returns the answers of those that somebody else logged in the meantime, which are not written. The index has begun
    to write, if any row has an id of the client's.
    """
    named = [row for row, _, _ in fresh if row.digest]
    if not named:
        case.predictions_log.append(_lines(fresh, request_id, received))
        gateway.metrics.log_lines.labels(case.name, "predictions").inc(len(fresh))
        return {}
    position: Position | None = None
    try:
        with case.index.writing():
            raced = case.index.find(row.id for row in named)
            _check(named, raced, count)
            new = [one for one in fresh if one[0].id not in raced]
            if new:
                position = case.predictions_log.append(_lines(new, request_id, received))
                case.index.remember((answer for row, answer, _ in new if row.digest), position)
    except BaseException:
        if position is not None:
            case.predictions_log.undo(position)
        raise
    gateway.metrics.log_lines.labels(case.name, "predictions").inc(len(new))
    return raced


def _lines(fresh: Iterable[Scored], request_id: str, received: datetime) -> bytes:
    now = received.isoformat()
    parent = given() or UNSET
    return _encoder.encode_lines(
        [
            Line(
                row.id,
                request_id,
                now if row.given is None else row.event_time.isoformat(),
                now,
                answer.version,
                answer.score,
                answer.prediction,
                row.item,
                scores,
                parent,
                DEFAULT if answer.by_default else UNSET,
            )
            for row, answer, scores in fresh
        ]
    )
