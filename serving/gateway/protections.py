"""Who may come in, how often, and with how much: API keys, rate limit, and the bounds of one worker."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from limits import parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from pydantic import SecretStr
from starlette.requests import ClientDisconnect, Request

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

    @asynccontextmanager
    async def body(self, request: Request, case: str) -> AsyncIterator[bytes]:
        """The body of a request for ``case`` that is being answered until the block ends.

        Raises Refused: 413 as soon as it is known to be too long, without reading on; 503 beyond what a worker takes at
        a time, of all cases and of one.
        """
        with self._place(case):
            parts: list[bytes] = []
            try:
                await self._read(request, case, parts)
                yield b"".join(parts)
            finally:
                self._let_go(case, sum(map(len, parts)))

    @contextmanager
    def holding(self, size: int, case: str) -> Iterator[None]:
        """A request of ``size`` bytes for ``case``, whole already, that is being answered until the block ends.

        Raises Refused (503) beyond what a worker takes at a time.
        """
        with self._place(case):
            self._hold(case, size)
            try:
                yield
            finally:
                self._let_go(case, size)

    @contextmanager
    def _place(self, case: str) -> Iterator[None]:
        bound = self._bounds.max_requests
        for whose, most in (("", bound), (case, max(1, int(bound * self._bounds.case_share)))):
            if self._inside[whose] >= most:
                raise _busy(f"{self._inside[whose]} requests {_of(whose)}are being answered")
        self._inside.update(("", case))
        self._told(self._inside[""])
        try:
            yield
        finally:
            self._inside.subtract(("", case))
            self._told(self._inside[""])

    def _hold(self, case: str, size: int) -> None:
        bound = self._bounds.max_pending_bytes
        for whose, most in (("", bound), (case, int(bound * self._bounds.case_share))):
            if self._pending[whose] + size > most:
                raise _busy(f"as many bytes {_of(whose)}as fit are being answered")
        self._pending.update({"": size, case: size})

    def _let_go(self, case: str, size: int) -> None:
        self._pending.subtract({"": size, case: size})

    async def _read(self, request: Request, case: str, parts: list[bytes]) -> None:
        most = self._bounds.max_body_bytes
        declared = request.headers.get("content-length", "")
        length = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
        if length > most:
            raise self._too_long(close=length > 8 * most)
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise self._too_long(close=True)
                self._hold(case, len(part))
                parts.append(part)
        except ClientDisconnect as error:
            raise Refused(400, "disconnected", "the client went away while sending, or did not send in time") from error

    def _too_long(self, *, close: bool) -> Refused:
        # A body that is merely too long is thrown away by the server, so that its sender reads the answer; an endless
        # one is cut off.
        return Refused(
            413,
            "body",
            f"the body is longer than {self._bounds.max_body_bytes} bytes: send fewer rows",
            headers={"Connection": "close"} if close else None,
        )


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
