"""The HTTP routes. What they do lies in predict.py and the rooms beside it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET
from starlette.types import Receive, Scope

from serving.gateway.cases import Case
from serving.gateway.metrics import CONTENT_TYPE_LATEST
from serving.gateway.openapi import FIGURES, LABELS, PARTIAL, PREDICT
from serving.gateway.predict import in_time, predict, predict_each
from serving.gateway.protections import HEADER, header
from serving.gateway.readiness import Readiness
from serving.gateway.refusal import JSON, Refused
from serving.gateway.rows import check_times, read
from serving.gateway.state import Gateway

router = APIRouter()
_KEY = HEADER.encode()
_encoder = msgspec.json.Encoder()


@router.post(PREDICT)
async def predict_rows(request: Request, case: str) -> Response:
    """Score rows of raw features; each answered row is in the prediction log.

    Send a prediction_id to be able to ask again safely. The answer's prediction is 0 or 1 and its score the probability
    of 1; in a case with classes the prediction is the name of the likeliest class, and the score its probability. Where
    a number is predicted, the prediction is that number, and there is no score. A row that is refused refuses all rows
    of its request, but with partial=true. While a rollout is under way, the arm says whose answer the row got.
    """
    return Response(await predicted(request.app.state.gateway, case, request.scope, request.receive), media_type=JSON)


async def predicted(gateway: Gateway, name: str, scope: Scope, receive: Receive) -> bytes:
    """The answer of :func:`predict_rows`."""
    caller = await admitted(gateway, scope)
    with gateway.using(name) as case, gateway.door.place(name, caller, case.serving.slo.p99_ms) as place:
        in_time(gateway, case)
        body = await place.read(scope, receive)
        if _one_by_one(scope["query_string"]):
            return await predict_each(gateway, case, place, body)
        return await predict(gateway, case, place, body)


def _one_by_one(query: bytes) -> bool:
    """Whether a query asks for an answer to each row by itself. Raises Refused (422) if it says neither yes nor no."""
    if not query:
        return False
    asked = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get(PARTIAL, "false")
    if asked not in ("true", "false"):
        raise Refused(422, "shape", f"{PARTIAL} must be true or false, or left out", rows=0)
    return asked == "true"


@router.post(LABELS)
async def post_labels(request: Request, case: str) -> Response:
    """Log labels of earlier predictions; of several for one id the highest revision counts.

    Ids are not looked up: a label may arrive before its row was compacted, or after its row was archived.
    A label without a row is joined to nothing.
    """
    return Response(await labelled(request.app.state.gateway, case, request.scope, request.receive), media_type=JSON)


async def labelled(gateway: Gateway, name: str, scope: Scope, receive: Receive) -> bytes:
    """The answer of :func:`post_labels`."""
    count = await _logged(gateway, name, scope, receive, "labels", _label_lines)
    gateway.metrics.labels.labels(name).inc(count)
    return _encoder.encode({"accepted": count})


@router.post(FIGURES)
async def post_figures(request: Request, case: str) -> Response:
    """Log business figures of earlier predictions, like their revenue: an experiment compares the arms by them.

    Of several of one name for one id the highest revision counts. Ids are not looked up, as with labels.
    """
    return Response(await figured(request.app.state.gateway, case, request.scope, request.receive), media_type=JSON)


async def figured(gateway: Gateway, name: str, scope: Scope, receive: Receive) -> bytes:
    """The answer of :func:`post_figures`."""
    count = await _logged(gateway, name, scope, receive, "figures", _figure_lines)
    gateway.metrics.figures.labels(name).inc(count)
    return _encoder.encode({"accepted": count})


async def _logged(
    gateway: Gateway,
    name: str,
    scope: Scope,
    receive: Receive,
    kind: Literal["labels", "figures"],
    lines_of: Callable[[Case, bytes, datetime], tuple[bytes, int]],
) -> int:
    """Log what a body says of earlier predictions; how much that is."""
    caller = await admitted(gateway, scope)
    with gateway.using(name) as case, gateway.door.place(name, caller) as place:
        body = await place.read(scope, receive)
        lines, count = await gateway.apart(len(body), lines_of, case, body, datetime.now(UTC))
        await place.rows(count)
        (case.labels_log if kind == "labels" else case.figures_log).append(lines)
        gateway.metrics.log_lines.labels(name, kind).inc(count)
    return count


@router.get("/healthz")
async def healthz() -> Response:
    """Whether the process runs."""
    return Response(_encoder.encode({"status": "ok"}), media_type=JSON)


@router.get("/readyz")
async def readyz(request: Request, *, every: bool = False) -> Response:
    """Whether champions of the ledger answer a real inference: 200, or 503 and why if none does.

    With ``?every=true`` it is 503 if one of them does not: for who waits for a start, or for a person. No champion yet
    is no fault, nor is a challenger that does not answer. It is asked once for all who want to know within a second.
    ``damaged`` says of a case what the ledger holds that it did not write. ``broken`` names the cases whose folders
    cannot be used, and what to do: the others are none the worse for it.
    """
    readiness: Readiness = request.app.state.readiness
    answer = await readiness.answer()
    good = answer["every" if every else "ready"]
    return Response(_encoder.encode(answer), 200 if good else 503, media_type=JSON)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _label_lines(case: Case, body: bytes, received: datetime) -> tuple[bytes, int]:
    """The lines of the log for a body of labels, and how many there are."""
    now = received.isoformat()
    classes = case.fields.classes
    labels = read(case.labels, body)
    check_times(labels, case.times, received)
    lines = [
        {
            "prediction_id": label.prediction_id,
            "label": classes.index(label.label) if classes else label.label,
            "revision": label.revision,
            "event_time": now if label.event_time is UNSET else label.event_time.astimezone(UTC).isoformat(),
            "received_at": now,
        }
        for label in labels
    ]
    return _encoder.encode_lines(lines), len(lines)


def _figure_lines(case: Case, body: bytes, received: datetime) -> tuple[bytes, int]:
    """The lines of the log for a body of figures, and how many there are."""
    figures = read(case.figures, body)
    check_times(figures, case.times, received)
    now = received.isoformat()
    lines = [
        {
            "prediction_id": figure.prediction_id,
            "name": figure.name,
            "value": figure.value,
            "revision": figure.revision,
            "event_time": now if figure.event_time is UNSET else figure.event_time.astimezone(UTC).isoformat(),
            "received_at": now,
        }
        for figure in figures
    ]
    return _encoder.encode_lines(lines), len(lines)


async def admitted(gateway: Gateway, scope: Scope) -> str:
    """Whose rate a request counts to. Raises Refused if its sender has no key, or sends too often."""
    client = scope.get("client")
    return await gateway.door.admit(header(scope, _KEY), client[0] if client else "")
