"""Which names a server of ours answers to, and whose pages may write to it.

A page on the web can have its own name lead to 127.0.0.1 (DNS rebinding); the browser then takes our server for the
page's own and lets it read the answers. The name still stands in ``Host``. A page can also post a form to any address;
``Origin`` then says whose page it is.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
VARIABLE = "PERENNIAL_ALLOWED_HOSTS"
_READS = ("GET", "HEAD", "OPTIONS")
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,253}))(?::(\d{1,5}))?", re.IGNORECASE | re.ASCII)
_PORTS = {"http": 80, "https": 443}

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]


class HostGuard:
    """ASGI middleware: 421 for a foreign ``Host``, 400 for none, 403 for what another page writes.

    ``known`` gives the names that are ours beside the loopback's and the address that a client has connected to; the
    pages of those that ``trusted`` gives may write, too. Both are called by each request: what they raise ends it.
    ``headers`` go with every answer.
    """

    def __init__(
        self,
        app: App,
        known: Callable[[], Collection[str]],
        trusted: Callable[[], Collection[str]],
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._app = app
        self._known = known
        self._trusted = trusted
        self._headers = tuple(headers)

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """One request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return

        async def add(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        refused = refusal(scope, self._known(), self._trusted())
        if refused is None:
            await self._app(scope, receive, add)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, text = refused
            body = json.dumps({"error": text}).encode()
            head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await add({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": body})


def refusal(scope: Scope, known: Collection[str], trusted: Collection[str]) -> tuple[int, str] | None:
    """The status and the reason with which a request of this ASGI ``scope`` must be refused; None: it may come in."""
    hosts = _headers(scope, b"host")
    found = authority(hosts[0]) if len(hosts) == 1 else None
    if found is None:
        return 400, "say in one Host header which server is wanted, as in Host: 127.0.0.1:8090"
    host, port = found
    if host not in LOOPBACK and host not in known and host not in trusted and host != _connected_to(scope):
        return 421, f"this server is not known as {host}: if that is its name, add it to {VARIABLE} and start it again"
    if scope["type"] == "http" and scope["method"] in _READS:
        return None
    for origin in _headers(scope, b"origin"):
        scheme, _, rest = origin.partition("://")
        page = authority(rest)
        default = _PORTS.get(scheme)
        if page is None or default is None:
            return 403, "a page that has no address of its own may not write here"
        if page[0] not in trusted and (page[0], page[1] or default) != (host, port or default):
            return (
                403,
                (
                    f"pages of {page[0]} may not write here: if they shall, add that name to {VARIABLE} and start this "
                    "again"
                ),
            )
    return None


@lru_cache(maxsize=1024)
def authority(text: str) -> tuple[str, int | None] | None:
    """Host and port of ``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port``, in one spelling; None for all else."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    address, name, port = found.groups()
    if port is not None and int(port) > 65535:
        return None
    try:
        return (str(ipaddress.IPv6Address(address)) if address else name.lower()), None if port is None else int(port)
    except ValueError:
        return None


@cache
def listed(text: str) -> frozenset[str]:
    """The names of a comma-separated list, as :func:`authority` spells them; ValueError names what is no host."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    found = [authority(name if name.count(":") < 2 or name.startswith("[") else f"[{name}]") for name in names]
    for name, known in zip(names, found, strict=True):
        if known is None or known[1] is not None:
            raise ValueError(
                f"{name!r} is no host: give names or addresses without a port, as in a.example.org,192.0.2.7"
            )
    return frozenset(known[0] for known in found if known is not None)


@cache
def of_urls(*urls: str) -> frozenset[str]:
    """The hosts of addresses such as ``http://gateway:8090``; an empty one has none."""
    return frozenset(found[0] for url in urls if (found := authority(urlsplit(url).netloc.rpartition("@")[2])))


def _headers(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


def _connected_to(scope: Scope) -> str | None:
    """The address that the client has connected to: no name can be led to it without being another name."""
    try:
        return str(ipaddress.ip_address((scope.get("server") or ("",))[0]))
    except ValueError:
        return None
