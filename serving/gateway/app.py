"""The gateway as an ASGI application.

``uvicorn serving.gateway.app:app --http=serving.gateway.connections:Connection``. Routes in routes.py; one worker's
belongings in state.py; every error becomes ``{"error", "field"?, "row"?}`` here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines import hosts
from pipelines.errors import PerennialError
from pipelines.settings import Settings, read_settings
from serving.gateway import grpc_server, inference, openapi, routes_v2, tracing
from serving.gateway.connections import BOUNDS, CROWD, HEARD, TURNED_AWAY
from serving.gateway.direct import TRACEPARENT, UNFRAMED, Application, crowd, names, turned_away
from serving.gateway.metrics import Metrics
from serving.gateway.protections import header
from serving.gateway.readiness import Readiness
from serving.gateway.refusal import JSON, body, refusal
from serving.gateway.routes import labelled, predicted, router
from serving.gateway.settings import Bounds, read_bounds
from serving.gateway.state import start, stop
from serving.gateway.turns import Turns

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, bounds: Bounds | None = None, *, alone: bool = False) -> FastAPI:
    """The application; settings default to the environment, read when it starts.

    ``alone``: nothing else lives in this process.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        own = bounds or read_bounds()
        gateway = app.state.gateway = await start(settings or read_settings(), own, metrics)
        readiness = app.state.readiness = Readiness(gateway)
        tasks = [asyncio.create_task(task) for task in (gateway.poll(), gateway.follow(), gateway.keep_log())]
        for task in tasks:
            task.add_done_callback(_say_if_it_failed)
        if alone:
            _keep_what_is_there()
        turns: Turns = getattr(asyncio.get_running_loop(), "turns", None) or Turns()
        turns.tell(gateway.door.came_round)
        try:
            async with grpc_server.serving(gateway, readiness):
                yield {
                    BOUNDS: own,
                    TURNED_AWAY: partial(turned_away, gateway),
                    CROWD: partial(crowd, gateway),
                    HEARD: turns.reads,
                }
        finally:
            gateway.stopping.set()
            await asyncio.wait(tasks)
            await stop(gateway)

    app = Application(
        title="Perennial gateway", version=inference.VERSION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.direct = {"predict": predicted, "labels": labelled}
    app.include_router(router)
    app.include_router(routes_v2.router)
    openapi.install(app)
    app.add_middleware(
        hosts.HostGuard,
        known=lambda: names(app.state.gateway)[0],
        trusted=lambda: names(app.state.gateway)[1],
    )
    app.add_middleware(Counted, metrics=metrics)
    app.add_exception_handler(PerennialError, _refused)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _broken)
    return app


class Counted:
    """Counts and times every request, whatever becomes of it; no page is shown inside of another one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500
        parent = header(scope, TRACEPARENT)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timing = (b"server-timing", course.server_timing().encode())
                message["headers"] = [*message.get("headers", ()), *UNFRAMED, timing]
            await send(message)

        try:
            with tracing.request(f"{scope['method']} {scope['path']}", parent) as course:
                await self._app(scope, receive, watch)
        finally:
            self._metrics.answered(_case(scope), _route(scope), status, course, time.perf_counter() - began)


def _keep_what_is_there() -> None:
    """Have the collector of garbage leave alone what the start has made: to look through it takes a tenth of a second.

    All requests would wait for that, every few seconds.
    """
    gc.collect()
    gc.freeze()


def _say_if_it_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        # A gateway that no longer syncs its log or sees releases must not look alive: the supervisor starts another.
        log.critical("a background task ended: this worker stops", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def _case(scope: Scope) -> str:
    """The request's case if there is such a case: no client can make labels of its own."""
    name: str = scope.get("path_params", {}).get("case", "")
    if name in scope["app"].state.gateway.cases:
        return name
    return ""


def _route(scope: Scope) -> str:
    """The last word of the request's route, but for those that end in a name."""
    path = str(getattr(scope.get("route"), "path", "none"))
    word = path.rpartition("/")[2]
    return "metadata" if word.startswith("{") else word


async def _refused(request: Request, error: Exception) -> Response:
    told = refusal(request.app.state.gateway.metrics, _case(request.scope), error)
    return Response(body(told.text, told.field, told.row), told.status, told.headers, JSON)


async def _not_here(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(body(str(error.detail)), error.status_code, error.headers, JSON)


async def _invalid(_request: Request, error: Exception) -> Response:
    # The stock answer repeats the input, and fails on input that is not UTF-8.
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return Response(body(str(first["msg"]), ".".join(map(str, first["loc"]))), 422, media_type=JSON)


async def _broken(_request: Request, _error: Exception) -> Response:
    return Response(body("internal error: see the gateway's log"), 500, media_type=JSON)


app = create_app(alone=True)
