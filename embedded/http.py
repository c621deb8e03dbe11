"""Small HTTP calls to the stack's own services on 127.0.0.1, never through a proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from pipelines.errors import Unavailable
from pipelines.installation import typed

_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def status(url: str, *, timeout: float = 2.0) -> int:
    """The HTTP status of a GET, 0 if nobody answers."""
    try:
        with _OPEN(url, timeout=timeout) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return 0


def text(url: str, *, timeout: float = 2.0) -> str:
    """The text of a GET. Raises Unavailable if nobody answers, or not with 200."""
    try:
        with _OPEN(url, timeout=timeout) as answer:
            return str(answer.read().decode())
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{url} does not answer ({error}): is the stack up? `{typed('status')}`") from error


def call(url: str, body: Any = None, *, method: str | None = None, timeout: float = 10.0) -> Any:
    """GET, or send ``body`` as JSON; returns the answer's JSON (None if empty).

    Unavailable carries the service's own words.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with _OPEN(request, timeout=timeout) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{url} answered {error.code}: {error.read(2000).decode(errors='replace')}") from error
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{url} does not answer ({error}): is the stack up? `{typed('status')}`") from error
    if text:
        return json.loads(text)
    return None
