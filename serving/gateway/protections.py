"""Who may come in, how often, and with how much: API keys, rate limit, and the bounds of one worker."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable
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
from serving.gateway.refusal import Refused
from serving.gateway.settings import Bounds

HEADER = "x-api-key"
_HASHED = "sha256:"
_WAIT_SECONDS = 0.2
"""How long a request may wait for the shared count before it is counted here."""
_REST_SECONDS = 5.0
"""How long a shared count that failed is left alone."""

log = logging.getLogger(__name__)


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
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._shared = None if shared is None else shared_limiter(shared.get_secret_value())
        self._rests_until = 0.0
        self._rate = parse(bounds.rate)
        self._bounds = bounds
        self._told = told
        # Requests that are being answered and the bytes of their bodies: of each case, and of all together under "".
        self._inside: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()

    async def admit(self, key: str, address: str) -> None:
        """Raise Refused: 401 for a missing or wrong ``key``, 429 above its rate (without keys: the address')."""
        caller = address
        if self._keys:
            given = hashlib.sha256(key.encode("latin-1", "replace")).digest()
            # Every key is compared, each in constant time: the time taken says nothing about which one was near.
            if not sum(hmac.compare_digest(given, key) for key in self._keys):
                raise Refused(
                    401, "key", "missing or wrong API key: send it as X-API-Key", headers={"WWW-Authenticate": "ApiKey"}
                )
            caller = given.hex()
        if not await self._hit(caller):
            raise Refused(
                429,
                "rate",
                f"more than {self._rate}: wait a moment",
                headers={"Retry-After": str(self._rate.get_expiry())},
            )

    async def _hit(self, caller: str) -> bool:
        """Count one request.

        A Redis that is away costs nobody an answer: each worker then counts its own for a while.
        """
        if self._shared is not None and time.monotonic() >= self._rests_until:
            try:
                return await self._shared.hit(self._rate, caller)
            except (StorageError, OSError) as error:
                self._rests_until = time.monotonic() + _REST_SECONDS
                log.warning(
                    "PERENNIAL_LIMITS_URL does not answer (%s): this worker counts for itself for %g s",
                    type(error).__name__,
                    _REST_SECONDS,
                )
        return await self._limiter.hit(self._rate, caller)

    def place(self, case: str) -> Place:
        """A request for ``case``, until the block ends. Raises Refused (503) beyond what a worker takes at a time."""
        return Place(self, self._bounds, case)

    def enter(self, case: str) -> None:
        """Count one request more. Raises Refused (503) beyond what a worker takes of all cases, and of one."""
        bound = self._bounds.max_requests
        for whose, most in (("", bound), (case, max(1, int(bound * self._bounds.case_share)))):
            if self._inside[whose] >= most:
                raise _busy(f"{self._inside[whose]} requests {_of(whose)}are being answered")
        self._inside[""] += 1
        self._inside[case] += 1
        self._told(self._inside[""])

    def hold(self, case: str, size: int) -> None:
        """Count bytes of a request. Raises Refused (503) beyond what a worker takes of all cases, and of one."""
        bound = self._bounds.max_pending_bytes
        for whose, most in (("", bound), (case, int(bound * self._bounds.case_share))):
            if self._pending[whose] + size > most:
                raise _busy(f"as many bytes {_of(whose)}as fit are being answered")
        self._pending[""] += size
        self._pending[case] += size

    def leave(self, case: str, size: int) -> None:
        """One request less, of ``size`` bytes."""
        self._pending[""] -= size
        self._pending[case] -= size
        self._inside[""] -= 1
        self._inside[case] -= 1
        self._told(self._inside[""])


class Place:
    """A request that is being answered until the block ends."""

    __slots__ = ("_bounds", "_case", "_door", "_size")

    def __init__(self, door: Door, bounds: Bounds, case: str) -> None:
        self._door = door
        self._bounds = bounds
        self._case = case
        self._size = 0

    def __enter__(self) -> Self:
        """Take the place. Raises Refused (503)."""
        self._door.enter(self._case)
        return self

    def __exit__(self, *_error: object) -> None:
        """Give it back."""
        self._door.leave(self._case, self._size)

    def hold(self, size: int) -> None:
        """Take room for bytes. Raises Refused (503)."""
        self._door.hold(self._case, size)
        self._size += size

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


def _of(case: str) -> str:
    return f"for {case} " if case else ""


def _busy(what: str) -> Refused:
    return Refused(
        503,
        "busy",
        f"{what}: try again in a moment",
        headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"},
    )


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
