"""The load generator of `make bench-serving` and `make proof-serving`: one process, one event loop, every protocol.

Closed loop: so many clients, each of which asks again when it has its answer. Open loop: requests come at times that
were drawn before (Poisson), whatever becomes of the earlier ones, and a latency counts from the time at which its
request was due, not from when it could be sent: a server that stands still is charged for all that would have come
meanwhile (Tene, "How NOT to Measure Latency", 2013: coordinated omission). HTTP/1.1 is spoken by hand over kept
connections, as an HTTP library would cost more than the servers that it measures.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from pipelines.settings import Settings

T = TypeVar("T")
HOST = "127.0.0.1"
OK, ENDED, NOTHING = 200, 0, -1
"""Beside HTTP's: the connection was ended without an answer; nothing had come when the wait was over."""
PATIENCE = 30.0
"""Seconds after the last request in which its answer may come."""
MOST_CONNECTIONS = 900
"""An open loop waits for a free one beyond that, and the wait is part of the latency; a gateway takes 1,000."""


class Answer(NamedTuple):
    """The status of an answer and what it said."""

    status: int
    body: bytes = b""


Ask = Callable[[], Awaitable[Answer]]
"""Sends the next request and gives its answer; it raises nothing."""
See = Callable[[float, float, Answer], None]
"""Is told of each answer: when its request was due (monotonic), after how many seconds it came, and what it was."""


@dataclass
class Load:
    """What came of a load: seconds of each request that was answered 200, and of each other by its status.

    ``wall`` are the seconds in which requests were sent, ``cpu`` those that the generator computed meanwhile, ``late``
    how much later than due an open loop sent each: the generator's own share of its latency.
    """

    seconds: list[float] = field(default_factory=list)
    others: dict[int, list[float]] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0
    late: list[float] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """How many answers there were of each status."""
        return Counter({OK: len(self.seconds)} | {status: len(found) for status, found in self.others.items()})

    @property
    def errors(self) -> int:
        """Requests that were not answered 200."""
        return sum(map(len, self.others.values()))

    def add(self, seconds: float, answer: Answer) -> None:
        """Count one answer."""
        if answer.status == OK:
            self.seconds.append(seconds)
        else:
            self.others.setdefault(answer.status, []).append(seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all are not above (nearest rank); NaN without any."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the start: a Poisson process of ``rate`` a second."""
    drawn = random.Random(seed)
    found: list[float] = []
    at = drawn.expovariate(rate)
    while at < seconds:
        found.append(at)
        at += drawn.expovariate(rate)
    return found


def replicas(rate: float, capacity: float, share: float = 0.7) -> int:
    """How many workers of ``capacity`` requests a second answer ``rate`` of them at ``share`` of what they can."""
    return math.ceil(rate / (share * capacity))


def in_flight(rate: float, seconds: float) -> float:
    """Requests inside on average where ``rate`` a second stay ``seconds`` each (Little 1961: L = lambda W)."""
    return rate * seconds


async def closed(ask: Ask, clients: int, seconds: float, see: See | None = None) -> Load:
    """``clients`` that ask one request after the other for so many seconds."""
    load = Load()
    began = time.monotonic()
    computed = time.process_time()

    async def client() -> None:
        while (due := time.monotonic()) < began + seconds:
            _note(load, see, due, await ask())

    await _ended(load, [asyncio.create_task(client()) for _ in range(clients)], seconds + PATIENCE)
    return _timed(load, began, computed)


async def opened(ask: Ask, due: Iterable[float], see: See | None = None) -> Load:
    """Requests at the times ``due`` (seconds from now), however many are under way; latencies count from those."""
    load = Load()
    began = time.monotonic()
    computed = time.process_time()
    tasks: set[asyncio.Task[None]] = set()

    async def one(at: float) -> None:
        _note(load, see, at, await ask())

    for after in due:
        if (left := began + after - time.monotonic()) > 0:
            await asyncio.sleep(left)
        load.late.append(time.monotonic() - began - after)
        task = asyncio.create_task(one(began + after))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    sent = time.monotonic() - began
    await _ended(load, list(tasks), PATIENCE)
    _timed(load, began, computed)
    load.wall = sent
    return load


async def counted(ask: Ask, clients: int, requests: int, see: See | None = None) -> Load:
    """``clients`` that ask so many requests together."""
    load = Load()
    began = time.monotonic()
    computed = time.process_time()
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            _note(load, see, time.monotonic(), await ask())

    await _ended(load, [asyncio.create_task(client()) for _ in range(clients)], requests / 10 + PATIENCE)
    return _timed(load, began, computed)


def _note(load: Load, see: See | None, due: float, answer: Answer) -> None:
    seconds = time.monotonic() - due
    load.add(seconds, answer)
    if see is not None:
        see(due, seconds, answer)


async def _ended(load: Load, tasks: Sequence[asyncio.Task[None]], patience: float) -> None:
    """Wait for the tasks; who has no answer by then never gets one, and is counted as that."""
    if not tasks:
        return
    done, late = await asyncio.wait(tasks, timeout=patience)
    for task in late:
        task.cancel()
        load.add(patience, Answer(NOTHING))
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()


def _timed(load: Load, began: float, computed: float) -> Load:
    load.wall = time.monotonic() - began
    load.cpu = time.process_time() - computed
    return load


def run(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives, on a loop that is as cheap as there is; SIGTERM ends it and then the program, in order."""
    import uvloop

    async def ended_by_signal() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        found: T = uvloop.run(ended_by_signal())
    except asyncio.CancelledError:
        sys.exit(143)
    return found


def post(path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """A whole request that keeps its connection."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Http:
    """Asks a server over HTTP/1.1: the requests in turn, each on a connection that is free, else on a new one."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = cycle(requests)
        self._free: list[_Connection] = []
        self._room = asyncio.Semaphore(MOST_CONNECTIONS)

    async def __call__(self) -> Answer:
        """The next request's answer."""
        async with self._room:
            try:
                connection = await self._connected()
            except OSError:
                return Answer(ENDED)
            answer = await connection.ask(next(self._requests))
            if not connection.closed:
                self._free.append(connection)
            return answer

    async def _connected(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.closed:
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, HOST, self._port))[1]

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._free:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection, on which one request is under way at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._found = bytearray()
        self._answer: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes) -> Answer:
        """The answer to a request's bytes; ENDED if the connection is ended before it is whole."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._found.clear()
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which is no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        self._found += data
        if (whole := _whole(self._found)) is None or self._answer is None or self._answer.done():
            return
        answer, stays = whole
        if not stays:
            self.close()
        self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The other side ended it."""
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(ENDED))


def _whole(found: bytearray) -> tuple[Answer, bool] | None:
    """An answer that has come whole, and whether its connection stays; None: more is to come."""
    end = found.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(found[:end]).lower()
    body = bytes(found[end + 4 :])
    if b"transfer-encoding: chunked" in head:
        if not body.endswith(b"0\r\n\r\n"):
            return None
    elif len(body) < int(_header(head, b"content-length") or b"0"):
        return None
    return Answer(int(found[9:12]), body), _header(head, b"connection") != b"close"


def _header(head: bytes, name: bytes) -> bytes:
    return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()


class Grpc:
    """Asks Triton itself: raw inferences in turn over one channel, as the gateway has one."""

    def __init__(self, settings: Settings, requests: Sequence[Any]) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        from pipelines.channel import OPTIONS, credentials

        assert settings.triton_client is not None
        self._channel = grpc.aio.secure_channel(
            settings.address("triton_grpc"), credentials(settings.triton_client), OPTIONS
        )
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        self._requests = cycle(requests)
        self._error: type[Exception] = grpc.aio.AioRpcError

    async def __call__(self) -> Answer:
        """The next inference's answer: 503 stands for every refusal."""
        try:
            answer = await self._infer(next(self._requests), timeout=PATIENCE)
        except self._error as error:
            return Answer(503, str(error).encode())
        return Answer(OK, answer.raw_output_contents[0])

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
