"""The routes that every row goes through, without the layers of a framework: they cost as much as all of our own work.

FastAPI has the same functions, for the document that it makes of them; whatever is asked otherwise is its to answer.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from pipelines import hosts
from serving.gateway import tracing
from serving.gateway.connections import predicts, response
from serving.gateway.metrics import GONE
from serving.gateway.predict import in_time
from serving.gateway.protections import busy, header
from serving.gateway.refusal import JSON, Refused, body, refusal, refused

if TYPE_CHECKING:
    from serving.gateway.cases import Case
    from serving.gateway.state import Gateway

Endpoint = Callable[["Gateway", str, Scope, Receive], Awaitable[bytes]]
"""The JSON that a request for a case is answered. Raises what :func:`serving.gateway.refusal.refusal` tells of."""

TRACEPARENT = tracing.TRACEPARENT.encode()
UNFRAMED = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),  # a refusal is never taken for a page
)
"""Of every answer: a page that frames /docs could have its visitors press the buttons."""
_JSON = (b"content-type", JSON.encode())
_UNREAD = tracing.Course()
"""Of a request that nothing was done for."""


class Application(FastAPI):
    """FastAPI, but for POST to ``/v1/cases/{case}/<name>`` for each name of ``direct``, which it never sees."""

    direct: Mapping[str, Endpoint]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        case, name = _asked(scope)
        if case and name in self.direct:
            await self._answer(case, name, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer(self, case: str, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        gateway: Gateway = self.state.gateway
        counted = case if case in gateway.cases else ""
        began = time.perf_counter()
        status = GONE
        parent = header(scope, TRACEPARENT)
        with tracing.request(f"POST {scope['path']}", parent) as course:
            try:
                _check_host(gateway, scope)
                content = await self.direct[name](gateway, case, scope, receive)
                status, more = 200, []
            except Exception as error:  # noqa: BLE001 - every error is an answer
                told = refusal(gateway.metrics, counted, error)
                content = body(told.text, told.field, told.row)
                status = told.status
                more = [(key.lower().encode(), value.encode()) for key, value in (told.headers or {}).items()]
            finally:
                gateway.metrics.answered(counted, name, status, course, time.perf_counter() - began)
            length = (b"content-length", b"%d" % len(content))
            timing = (b"server-timing", course.server_timing().encode())
            head = [length, _JSON, *more, *UNFRAMED, timing]
            await send({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": content})


def crowd(gateway: Gateway, data: bytes) -> bytes | None:
    """The refusal of a predict request, by its bytes, that a worker has no place for now; None: it may be read.

    It costs a tenth of an answer, so that a storm leaves room for those who are answered. Neither key nor name of the
    host is looked at: it says no more than that there is much to do.
    """
    if not gateway.door.crowded:
        return None
    case = gateway.cases.get(predicts(data))
    why = gateway.door.full(case.name) if case is not None else ""
    if case is None or not why:
        return None
    error, answer = _busy(why)
    _count(gateway, case, error)
    return answer


def turned_away(gateway: Gateway, scope: Scope) -> bytes | None:
    """:func:`crowd`, by what a request's head says; and the refusal of one that would be answered too late."""
    asked, name = _asked(scope)
    case = gateway.cases.get(asked)
    if case is None or name != "predict":
        return None
    try:
        gateway.door.room(case.name)
        in_time(gateway, case)
    except Refused as error:
        return _refusal(gateway, case, error)
    return None


def _asked(scope: Scope) -> tuple[str, str]:
    """Case and name of a POST to ``/v1/cases/{case}/<name>``; both empty for all else."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
        return "", ""
    parts = scope["path"].split("/")
    if len(parts) != 5 or parts[1] != "v1" or parts[2] != "cases":
        return "", ""
    return parts[3], parts[4]


def _refusal(gateway: Gateway, case: Case, error: Refused) -> bytes:
    """An answer that says so, counted as any other."""
    _count(gateway, case, error)
    return _written(error.status, str(error), error.headers["Retry-After"])


def _count(gateway: Gateway, case: Case, error: Refused) -> None:
    refused(gateway.metrics, case.name, error)
    gateway.metrics.answered(case.name, "predict", error.status, _UNREAD, 0.0)


@lru_cache(maxsize=1024)
def _busy(why: str) -> tuple[Refused, bytes]:
    """The refusal of what a worker has no place for, and its answer."""
    error = busy(why)
    return error, _written(error.status, str(error), error.headers["Retry-After"])


@lru_cache(maxsize=64)
def _written(status: int, text: str, seconds: str) -> bytes:
    more = ((b"retry-after", seconds.encode()), (b"server-timing", b"total;dur=0"))
    return response(status, [_JSON, *more, *UNFRAMED], body(text))


def _check_host(gateway: Gateway, scope: Scope) -> None:
    turned_away = hosts.refusal(scope, *names(gateway))
    if turned_away is not None:
        status, text = turned_away
        raise Refused(status, "host", text, rows=0)


def names(gateway: Gateway) -> tuple[frozenset[str], frozenset[str]]:
    """The names that the gateway is known by, and those whose pages may write to it."""
    return hosts.of_urls(gateway.settings.gateway_url), hosts.listed(gateway.settings.allowed_hosts)
