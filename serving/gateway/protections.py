"""Who may come in, how often, and with how much: API keys, rate limit, and the bounds of one worker."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from limits import parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from pydantic import SecretStr
from starlette.types import Receive, Scope

from pipelines.errors import ConfigError
from serving.gateway.connections import RETRY_SECONDS
from serving.gateway.joining import Late
from serving.gateway.pace import Limit
from serving.gateway.refusal import Refused
from serving.gateway.settings import Bounds

HEADER = "x-api-key"
_HASHED = "sha256:"
_WAIT_SECONDS = 0.2
"""How long a request may wait for the shared count before it is counted here."""
FEW = 16
"""Rows of a request whose time says something of how busy a worker is: more may take long by themselves."""
INSIDE = 0.5
"""What part of a promised p99 a request may be inside before its case has fewer places.

Before, it waits to be read; and the slowest hundredth takes some twice as long as what this holds most of the time.
"""
UNREAD_SECONDS = 0.02
"""How long a request may wait to be read while others of its case are turned away."""
LEFT, SETTLES = 0.5, 2.0
"""What is left of its places at the least where that is longer, and for how many times as long no more of them go."""
LEAST = 16
"""Places that a case keeps, however late its answers are: so few do not make a worker slow, and share calls."""
_REST_SECONDS = 5.0
"""How long a shared count that failed is left alone."""
_SLACK_SECONDS = 1.0
"""By so much the end of a window may be told too late: Redis rounds it."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Load:
    """What is being answered: how many requests, the bytes of their bodies, and their rows."""

    requests: int = 0
    size: int = 0
    rows: int = 0


class Counts(MemoryStorage):
    """The counts of this worker. A window that is over goes with the first count a moment later, and with its next one.

    The library's own starts a task for every count, which looks at those of all callers.
    """

    _looked = 0.0

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count ``amount`` in the window of ``key``, which lasts ``expiry`` seconds from its first one; the count."""
        now = time.time()
        if abs(now - self._looked) >= expiry:
            self._looked = now
            for other in [other for other, end in self.expirations.items() if end <= now]:
                await self.clear(other)
        if self.expirations.get(key, 0.0) <= now:
            self.storage[key] = 0
            self.expirations[key] = now + expiry
        self.storage[key] += amount
        return self.storage[key]


class Door:
    """Checks what stands before every request for a case. Keys are kept as hashes only."""

    def __init__(
        self,
        bounds: Bounds,
        key_file: Path,
        shared: SecretStr | None = None,
        told: Callable[[int], None] = lambda _inside: None,
    ) -> None:
        """``shared`` is the Redis in which all workers count together, ``told`` hears how many requests are inside.

        Raises ConfigError if keys are wanted and ``key_file`` holds none.
        """
        self._keys = read_keys(key_file) if bounds.auth else ()
        self._limiter = FixedWindowRateLimiter(Counts())
        self._shared = None if shared is None else shared_limiter(shared.get_secret_value())
        self._rests_until = 0.0
        self.rate = parse(bounds.rate)
        self._bounds = bounds
        self._told = told
        self._all = Load()
        self._cases: defaultdict[str, Load] = defaultdict(Load)
        most = max(1, int(bounds.max_requests * bounds.case_share))
        self._limits: defaultdict[str, Limit] = defaultdict(partial(Limit, most, LEAST))
        self._least = most
        self._beyond: set[str] = set()  # cases of which requests were turned away in this turn of the event loop

    async def admit(self, key: str, address: str) -> str:
        """Whose rate a request counts to: that of its ``key`` (without keys: of its ``address``), where it counts one.

        Raises Refused: 401 for a missing or wrong key, 429 above its rate.
        """
        caller = address
        if self._keys:
            given = hashlib.sha256(key.encode("latin-1", "replace")).digest()
            # Every key is compared, each in constant time: the time taken says nothing about which one was near.
            if not sum(hmac.compare_digest(given, key) for key in self._keys):
                raise Refused(
                    401, "key", "missing or wrong API key: send it as X-API-Key", headers={"WWW-Authenticate": "ApiKey"}
                )
            caller = given.hex()
        if not await self.hit(caller, 1):
            raise self.above()
        return caller

    def above(self, rows: int = 1) -> Refused:
        """The refusal of so many rows that are above their caller's rate."""
        headers = {"Retry-After": str(self.rate.get_expiry())}
        return Refused(429, "rate", f"more rows than {self.rate}: wait a moment", rows=rows, headers=headers)

    async def hit(self, caller: str, rows: int) -> bool:
        """Count ``rows`` to a caller's rate; those of a request that it does not let in do not count.

        A Redis that is away costs nobody an answer: each worker then counts its own for a while.
        """
        if self._shared is not None and time.monotonic() >= self._rests_until:
            try:
                return await self._counted(self._shared, caller, rows)
            except (StorageError, OSError) as error:
                self._rests_until = time.monotonic() + _REST_SECONDS
                log.warning(
                    "PERENNIAL_LIMITS_URL does not answer (%s): this worker counts for itself for %g s",
                    type(error).__name__,
                    _REST_SECONDS,
                )
        return await self._counted(self._limiter, caller, rows)

    async def _counted(self, limiter: FixedWindowRateLimiter, caller: str, rows: int) -> bool:
        if await self._let_in(limiter, caller, rows):
            return True
        # Windows end by the wall clock. One that would go on for longer than a window lasts began before that was set
        # back: whoever is refused by it would be so for as long.
        left = await limiter.storage.get_expiry(self.rate.key_for(caller)) - time.time()
        if left <= self.rate.get_expiry() + _SLACK_SECONDS:
            return False
        await limiter.clear(self.rate, caller)
        return await self._let_in(limiter, caller, rows)

    async def _let_in(self, limiter: FixedWindowRateLimiter, caller: str, rows: int) -> bool:
        if rows > 1 and not await limiter.test(self.rate, caller, cost=rows):
            return False
        return await limiter.hit(self.rate, caller, cost=rows)

    def place(self, case: str, caller: str = "", p99_ms: float | None = None) -> Place:
        """A request of ``caller`` for ``case``, until the block ends; ``p99_ms`` is what is promised of its answer.

        Raises Refused (503) beyond what a worker takes at a time.
        """
        return Place(self, self._bounds, case, caller, p99_ms)

    @property
    def crowded(self) -> bool:
        """Whether some case may have no place left."""
        return self._all.requests >= self._least

    def room(self, case: str) -> None:
        """Raise Refused (503) if a worker takes no further request now, of all cases or of one."""
        if why := self.full(case):
            raise busy(why)

    def full(self, case: str) -> str:
        """Why a worker takes no further request for a case now; empty: it does."""
        if self._all.requests >= self._bounds.max_requests:
            return f"{self._all.requests} requests are being answered"
        own = self._cases[case].requests
        if own >= self._limits[case].requests:
            self._beyond.add(case)
            return f"{own} requests for {case} are being answered"
        return ""

    def answered(self, case: str, seconds: float, promised: float) -> None:
        """A request for a case was inside for so many seconds of those that are ``promised``."""
        limit = self._limits[case]
        before = limit.requests
        limit.note(seconds, promised, time.monotonic())
        if limit.requests != before:
            self._look()

    def came_round(self, seconds: float) -> None:
        """What is read now may have waited for so many seconds.

        A case that has more than it is let in with has fewer places where that is long: what the worker does for those
        inside is what the others wait for, to be read or to be told no.
        """
        if not self._beyond:
            return
        if seconds > UNREAD_SECONDS:
            now = time.monotonic()
            for case in self._beyond:
                self._limits[case].lower(SETTLES * seconds, now, max(LEFT, UNREAD_SECONDS / seconds))
            self._look()
        self._beyond.clear()

    def _look(self) -> None:
        self._least = min(limit.requests for limit in self._limits.values())

    def loads(self, case: str) -> tuple[Load, Load]:
        """What is being answered for all cases, and for one."""
        return self._all, self._cases[case]

    def tell(self) -> None:
        """Tell how many requests are inside."""
        self._told(self._all.requests)


class Place:
    """A request that is being answered until the block ends, and what it holds of a worker's bounds."""

    __slots__ = ("_all", "_began", "_bounds", "_caller", "_case", "_door", "_own", "_p99_ms", "_rows", "_size")

    def __init__(self, door: Door, bounds: Bounds, case: str, caller: str, p99_ms: float | None) -> None:
        self._door = door
        self._bounds = bounds
        self._case = case
        self._caller = caller
        self._all, self._own = door.loads(case)
        self._p99_ms = p99_ms
        self._size = 0
        self._rows = 0

    def __enter__(self) -> Self:
        """Take the place. Raises Refused (503)."""
        self._door.room(self._case)
        self._all.requests += 1
        self._own.requests += 1
        self._door.tell()
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        """Give it back."""
        if self._rows <= FEW and (kind is None or (kind is Late and self._p99_ms is not None)):
            seconds = math.inf if kind is Late else time.monotonic() - self._began
            promised = math.inf if self._p99_ms is None else INSIDE * self._p99_ms / 1000
            self._door.answered(self._case, seconds, promised)
        for load in (self._all, self._own):
            load.requests -= 1
            load.size -= self._size
            load.rows -= self._rows
        self._door.tell()

    def hold(self, size: int) -> None:
        """Take room for bytes. Raises Refused (503)."""
        most = self._bounds.max_pending_bytes
        if self._all.size + size > most:
            raise busy("as many bytes as fit are being answered")
        if self._own.size + size > int(most * self._bounds.case_share):
            raise busy(f"as many bytes for {self._case} as fit are being answered")
        self._all.size += size
        self._own.size += size
        self._size += size

    async def rows(self, count: int) -> None:
        """Take room for the rows of the request, which was read, and count them to its caller's rate.

        A request counts as one before. Raises Refused: 429 above the rate, 422 for more rows than the rate ever lets
        in, 503 beyond what a worker takes at a time. A request that is alone may have as many rows as any.
        """
        if count > self._door.rate.amount:
            text = f"{count} rows are more than the rate of {self._door.rate} lets in at all: send fewer in a request"
            raise Refused(422, "too_many", text, rows=count)
        most = self._bounds.max_pending_rows
        if self._all.rows and self._all.rows + count > most:
            raise busy(f"{self._all.rows} rows are being answered", rows=count)
        if self._own.rows and self._own.rows + count > int(most * self._bounds.case_share):
            raise busy(f"{self._own.rows} rows for {self._case} are being answered", rows=count)
        self._all.rows += count
        self._own.rows += count
        self._rows += count
        if count > 1 and not await self._door.hit(self._caller, count - 1):
            raise self._door.above(count)

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The body of an ASGI request.

        Raises Refused: 413 as soon as it is known to be too long, without reading on.
        """
        most = self._bounds.max_body_bytes
        declared = header(scope, b"content-length")
        length = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
        if length > most:
            raise self._too_long(close=length > 8 * most)
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                text = "the client went away while sending, or did not send in time"
                raise Refused(400, "disconnected", text)
            more = message.get("more_body", False)
            if part := message.get("body", b""):
                if self._size + len(part) > most:
                    raise self._too_long(close=True)
                self.hold(len(part))
                parts.append(part)
        self._began = time.monotonic()  # how long a client takes to send says nothing of us
        return b"".join(parts)

    def _too_long(self, *, close: bool) -> Refused:
        # A body that is merely too long is thrown away by the server, so that its sender reads the answer; an endless
        # one is cut off.
        return Refused(
            413,
            "body",
            f"the body is longer than {self._bounds.max_body_bytes} bytes: send fewer rows",
            headers={"Connection": "close"} if close else None,
        )


def header(scope: Scope, name: bytes) -> str:
    """The first value of a header, named in small letters; empty if there is none."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


def busy(what: str, rows: int = 1) -> Refused:
    """The refusal of what a worker has no place for."""
    # The connection stays: a new one costs both sides more than the next answer on this one, and what is still sent of
    # this request is thrown away as it comes (connections.py bounds for how long).
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return Refused(503, "busy", f"{what}: try again in a moment", rows=rows, headers=headers)


def shared_limiter(url: str) -> FixedWindowRateLimiter:
    """A limiter whose counts lie in the Redis ``url``; ConfigError if that is no address of one.

    Nothing is asked yet.
    """
    try:
        storage = RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="perennial",
            socket_timeout=_WAIT_SECONDS,
            socket_connect_timeout=_WAIT_SECONDS,
        )
    except (ValueError, ConfigurationError) as error:
        raise ConfigError(
            f"PERENNIAL_LIMITS_URL cannot be used ({error}): give it like redis://:password@host:6379/1, or unset it"
        ) from error
    return FixedWindowRateLimiter(storage)


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The sha256 of every key in the file: one key per line, in clear or as ``sha256:<hex>``."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
        keys = tuple(_hashed(line) for line in lines if line)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): write an API key into it, or set PERENNIAL_GATEWAY_AUTH=false on a "
            "loopback address"
        ) from error
    if not keys:
        raise ConfigError(
            f"{path} is empty: write an API key into it, or set PERENNIAL_GATEWAY_AUTH=false on a loopback address"
        )
    return keys


def _hashed(line: str) -> bytes:
    if line.startswith(_HASHED):
        return bytes.fromhex(line.removeprefix(_HASHED))
    return hashlib.sha256(line.encode()).digest()
