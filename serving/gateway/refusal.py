"""Why a request is not answered with a prediction: one exception, one JSON form."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from pipelines.errors import PerennialError

if TYPE_CHECKING:
    from serving.gateway.metrics import Metrics

JSON = "application/json"
log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Refused(PerennialError):
    """A request that the gateway turns away; the text names field and row and never holds what was sent.

    ``status`` is the HTTP status, ``reason`` the word that metrics count, ``rows`` how many rows it stood for (0: its
    body held none).
    """

    def __init__(
        self,
        status: int,
        reason: str,
        text: str,
        *,
        field: str | None = None,
        row: int | None = None,
        rows: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.field = field
        self.row = row
        self.rows = rows
        self.headers = dict(headers or {})


def body(text: str, field: str | None = None, row: int | None = None) -> bytes:
    """``{"error", "field"?, "row"?}`` as JSON bytes."""
    answer: dict[str, str | int] = {"error": text}
    if field is not None:
        answer["field"] = field
    if row is not None:
        answer["row"] = row
    return _encode(answer)


@dataclass(frozen=True)
class Told:
    """What a client is told of an error: an HTTP status, the words, and which field of which row it is about."""

    status: int
    text: str
    field: str | None = None
    row: int | None = None
    headers: Mapping[str, str] | None = None


def refusal(metrics: Metrics, case: str, error: Exception) -> Told:
    """What the client of ``case`` is told of an error, which is counted."""
    if isinstance(error, Refused):
        refused(metrics, case, error)
        return Told(error.status, str(error), error.field, error.row, error.headers)
    metrics.refused.labels(case, "unavailable", "").inc()
    if isinstance(error, PerennialError):
        return Told(error.status, str(error))
    log.error("%s: a request failed", case, exc_info=error)
    return Told(500, "internal error: see the gateway's log")


def refused(metrics: Metrics, case: str, error: Refused) -> None:
    """Count the rows that an error stands for; a request without a row counts as one."""
    metrics.refused.labels(case, error.reason, declared(error)).inc(max(1, error.rows))


def declared(error: Refused) -> str:
    """The declared field that an error is about; empty if there is none, as any other name would be the client's."""
    if error.field is None or error.reason == "unknown_field":
        return ""
    return error.field
