"""Answer rows: find what was answered before, score the rest, log it, reply. In this order."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from pipelines.contracts import DEFAULT, ELSEWHERE, Arm
from serving.gateway import refusals
from serving.gateway.cases import Case
from serving.gateway.identity import Answer, microseconds
from serving.gateway.joining import Late
from serving.gateway.log import Position
from serving.gateway.protections import Place
from serving.gateway.refusal import Refused, refused
from serving.gateway.rows import Unfit, check_times, read, read_each
from serving.gateway.scoring import columns, promised, score
from serving.gateway.state import INLINE_BYTES, Gateway, in_thread
from serving.gateway.tracing import given, phase
from serving.gateway.trial import Part, by_arm, note

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
    arm: str | UnsetType = UNSET


class AnswerRow(msgspec.Struct, gc=False):
    """One row of the reply; a number has no score beside it, and ``default`` is there where it is true.

    ``arm`` is there if the row was answered while a rollout was under way.
    """

    prediction_id: str
    version: int
    prediction: int | str | float
    score: float | UnsetType = UNSET
    default: bool | UnsetType = UNSET
    arm: str | UnsetType = UNSET


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
        promise = promised(case.serving.slo.p99_ms, datetime.now(UTC), deadline) - now
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
        route = case.route
        parts: list[Part] = []
        if only is not None or route is None or route.rollout is None:
            found_by, scores, _ = await score(gateway, case, route, columns(case, fresh), received, only)
            scored = await gateway.apart(size, _scored, case, fresh, received, found_by, scores)
        else:
            parts = await by_arm(gateway, case, route, route.rollout, fresh, received)
            scored = await gateway.apart(size, _scored_parts, case, received, parts)
        with phase("log"):
            raced = await _logged(gateway, case, size, scored, request_id, received, len(rows))
        if parts and route is not None and route.rollout is not None:
            note(gateway, case, route, route.rollout, parts, scored, raced, received)
        found = {answer.id: answer for _, answer, _ in scored} | raced
        repeated += len(raced)
        for version, count in _by_version(scored, raced, several=len(parts) > 1).items():
            if version == ELSEWHERE:
                gateway.metrics.defaults.labels(case.name).inc(count)
            else:
                gateway.metrics.rows.labels(case.name, version).inc(count)
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
        rows, unfit, places = await _taken(gateway, case, body, received, _read_each)
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
    for number, (hour, arm) in places.items():
        refusals.refuse(case, arm, {hour: 1}, unfit[number], received)
    for one in errors.values():
        refused(gateway.metrics, case.name, one)
    found: dict[int, Answer | Refused] = {row.number: answers[row.id] for row in left}
    return request_id, [one for _, one in sorted((found | errors).items())]


def _read_each(
    case: Case, body: bytes, received: datetime
) -> tuple[list[Row], dict[int, Refused], dict[int, tuple[datetime, Arm]]]:
    """The rows that are as declared; by their number what is wrong with the others, and the hours and arms of these."""
    rows: list[Row] = []
    unfit: dict[int, Refused] = {}
    places: dict[int, tuple[datetime, Arm]] = {}
    rollout = None if case.route is None else case.route.rollout
    for number, item in enumerate(read_each(case.rows, body, case.times, received)):
        if isinstance(item, Unfit):
            unfit[number] = item.error
            [hour] = refusals.hours(item.text, 1, case.times, received)
            arm: Arm = "champion"
            if rollout is not None:
                [arm] = refusals.arms_of(item.text, 1, case.fields, rollout)
            places[number] = hour, arm
        else:
            rows.append(_row(number, item, received, case))
    return rows, unfit, places


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
        return [
            AnswerRow(one.id, one.version, one.score, UNSET, one.by_default or UNSET, one.arm or UNSET) for one in found
        ]
    names = case.fields.classes or (0, 1)
    return [
        AnswerRow(one.id, one.version, names[int(one.prediction)], one.score, one.by_default or UNSET, one.arm or UNSET)
        for one in found
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
        b"" if own_id else case.index.digest(features),
        received if given is None else given,
        None if given is None else microseconds(given),
        features,
        item,
    )


def _by_version(scored: Sequence[Scored], raced: Mapping[str, Answer], *, several: bool) -> dict[int, int]:
    """How many of the rows that are in the log now each version answered."""
    if not several:  # all of them the same one
        return {scored[0][1].version: len(scored) - len(raced)}
    return Counter(answer.version for _, answer, _ in scored if answer.id not in raced)


def _scored_parts(case: Case, received: datetime, parts: Sequence[Part]) -> list[Scored]:
    """What the scores of the rows of each arm mean, in the order of the rows."""
    scored = [one for part in parts for one in _scored(case, part.rows, received, part.version, part.scores, part.arm)]
    return sorted(scored, key=lambda one: one[0].number)


def _scored(
    case: Case, rows: Sequence[Row], received: datetime, version: int, scores: Sequence[float], arm: str = ""
) -> list[Scored]:
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
                    arm,
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
        answer = Answer(row.id, row.digest, moment, now, version, own.index(best), best, by_default, arm)
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
                answer.arm or UNSET,
            )
            for row, answer, scores in fresh
        ]
    )
