"""Why a request is not answered with a prediction: one exception, one JSON form."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pipelines.errors import PerennialError

JSON = "application/json"
_encode = msgspec.json.Encoder().encode


class Refused(PerennialError):
    """A request that the gateway turns away; the text names field and row and never holds what was sent.

    ``status`` is the HTTP status, ``reason`` the word that metrics count, ``rows`` how many rows it stood for.
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
