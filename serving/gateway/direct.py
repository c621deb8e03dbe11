"""The routes that every row goes through, without the layers of a framework: they cost as much as all of our own work.

FastAPI has the same functions, for the document that it makes of them; whatever is asked otherwise goes on to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.errors import PerennialError

Endpoint = Callable[[Request, str], Awaitable[Response]]
Refuse = Callable[[Request, Exception], Awaitable[Response]]


class Direct:
    """Answers POST to ``/v1/cases/{case}/<name>`` for each name of ``endpoints``; everything else is ``app``'s."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint], refuse: Refuse) -> None:
        """``endpoints`` are given the request and the case, ``refuse`` answers what they raise."""
        self._app = app
        self._endpoints = {f"/v1/cases/{{case}}/{name}": endpoint for name, endpoint in endpoints.items()}
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        parts = scope["path"].split("/") if scope["type"] == "http" and scope["method"] == "POST" else []
        if len(parts) != 5 or not parts[3] or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        case, parts[3] = parts[3], "{case}"
        endpoint = self._endpoints.get(route := "/".join(parts))
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"], scope["route_path"] = {"case": case}, route
        request = Request(scope, receive)
        try:
            response = await endpoint(request, case)
        except PerennialError as error:
            response = await self._refuse(request, error)
        await response(scope, receive, send)
