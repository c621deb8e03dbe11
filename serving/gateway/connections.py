"""Connections that cannot be held open: uvicorn's HTTP protocol with deadlines and bounds of its own.

``uvicorn --http=serving.gateway.connections:Connection``. Uvicorn only ends connections that are idle between two
requests; here a request's head, its body and the reading of its answer have deadlines too, and what is not part of a
body has a size.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serving.gateway.refusal import JSON, body
from serving.gateway.settings import Bounds, read_bounds

BOUNDS = "bounds"
"""Where the application's lifespan leaves its Bounds in the server's state."""
TURNED_AWAY = "turned_away"
"""Where it leaves what says of a request's scope which answer turns it away before it is begun (None: it is not)."""
CROWD = "crowd"
"""Where it leaves what says of a request's bytes which answer turns it away before anything is read of it."""
HEARD = "heard"
"""Where it leaves what is called whenever something was read."""
_READ_SECONDS = 0.01
"""A clock that has run out is looked at again after so long: the loop has read once by then."""
RETRY_SECONDS = 1
"""What a caller beyond the bounds is told to wait."""
_TURNS = itertools.count()
"""A number for each time that a client begins to be waited for.

The loop's clock stands still while it takes up connections that came together.
"""


def response(status: int, headers: Iterable[tuple[bytes, bytes]], content: bytes) -> bytes:
    """An answer as it is sent."""
    head = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"%scontent-length: %d\r\n%s\r\n%s" % (STATUS_LINE[status], len(content), head, content)


_PREDICT = re.compile(rb"POST /v1/cases/(\w{1,128})/predict(?:\?[!-~]*)? HTTP/1\.1\r\n", re.ASCII)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?=\r\n|\Z)", re.IGNORECASE)
_OTHERWISE = re.compile(rb"\r\n(?:transfer-encoding|connection|expect|upgrade)[ \t]*:|[^\r]\n", re.IGNORECASE)
"""A head that says more of how the request ends than its length, or is not written as usual."""


def predicts(data: bytes) -> str:
    """The case of a predict request if ``data`` is all of one and nothing else; else empty.

    For who is going to turn it away: a tenth of what it takes to read the request.
    """
    asked = _PREDICT.match(data)
    end = data.find(b"\r\n\r\n")
    if asked is None or end < 0:
        return ""
    lengths = _LENGTH.findall(data, 0, end)
    if len(lengths) != 1 or end + 4 + int(lengths[0]) != len(data) or _OTHERWISE.search(data, 0, end):
        return ""
    return asked[1].decode()


class _HeadWithBody:
    """The transport of one answer, whose head goes with the first bytes of its body.

    Each alone would be a packet of its own, and would wake the client for itself.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = False
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send bytes; the head waits for the next ones."""
        if self._begun or data.startswith(b"HTTP/1.1 100 "):  # which says that a body may come
            self._transport.write(self._head + data if self._head else data)
            self._head = b""
        else:
            self._begun, self._head = True, data

    def close(self) -> None:
        """Close the connection when all is sent."""
        if self._head:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or will be."""
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """One client's connection. All clocks run only while the client is the one who is waited for."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.bounds: Bounds = self.app_state.get(BOUNDS) or read_bounds()
        self._turned_away: Callable[[Any], bytes | None] | None = self.app_state.get(TURNED_AWAY)
        self._crowd: Callable[[bytes], bytes | None] | None = self.app_state.get(CROWD)
        self._heard: Callable[[], None] | None = self.app_state.get(HEARD)
        self._within = False  # a request whose end has not come
        self.since = next(_TURNS)
        self._idle_from = -math.inf  # when it was last turned away unread, by the loop's time
        self._running: RequestResponseCycle | None = None  # ``cycle`` is the one that came last, which may wait for it
        self._reading: asyncio.TimerHandle | None = None
        self._until: float | None = None  # the loop's time by which what is being read must be there
        self._writing: asyncio.TimerHandle | None = None
        self._outside = 0  # bytes since the last byte of a body: a head, trailers, the sizes of chunks

    @property
    def _answered(self) -> bool:
        """Whether nothing of the client's is being answered, nor waits for that."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    @property
    def waits(self) -> bool:
        """Whether the client is who is waited for: nothing of its is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return not self.pipeline and (not answering or self.cycle.more_body)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give a new connection its clock; beyond the bound the client that is waited for longest loses its own."""
        super().connection_made(transport)
        self._read_within(self.bounds.head_seconds)
        if len(self.connections) > self.bounds.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and what is still being answered."""
        super().connection_lost(exc)
        self._leave()
        for clock in (self._reading, self._writing, self.timeout_keep_alive_task):
            if clock is not None:
                clock.cancel()
        self._reading = self._writing = self._until = None

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._heard is not None:
            self._heard()
        if self._crowd is not None and not self._within and self._answered and (answer := self._crowd(data)):
            self._stop_reading()
            self.transport.write(answer)
            self.server_state.total_requests += 1
            self._idle_from = self.loop.time()
            self.since = next(_TURNS)
            if self.timeout_keep_alive_task is None:
                self._end_after(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            return
        self._read_within(self.bounds.head_seconds)
        self._outside += len(data)
        super().data_received(data)
        if self._outside > self.bounds.max_head_bytes and not self.transport.is_closing():
            self.refuse(431, f"the request's head is longer than {self.bounds.max_head_bytes} bytes")
        self._end_soon()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._within = True
        super().on_message_begin()
        self._read_within(self.bounds.head_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Trailers come here too: nobody reads them."""
        if self.cycle is None or self.scope is not self.cycle.scope:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there: the body has a time of its own."""
        self._outside = 0
        super().on_headers_complete()
        self._stop_reading()
        self._read_within(self.bounds.body_seconds)

    def on_body(self, body: bytes) -> None:
        """A piece of a body: how long it may be is for the application to say."""
        self._outside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._within = False
        self._outside = 0
        self._stop_reading()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        answer = None if self.pipeline or self._turned_away is None else self._turned_away(cycle.scope)
        if answer is not None:
            self._turn_away(cycle, answer)
            return
        cycle.transport = cast("asyncio.Transport", _HeadWithBody(cycle.transport))
        super()._start_asgi_task(cycle, app)

    def _turn_away(self, cycle: RequestResponseCycle, answer: bytes) -> None:
        """Answer without a task of its own; what still comes of the request is thrown away."""
        cycle.response_started = cycle.response_complete = True
        self.transport.write(answer)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """The answer is written, which does not say that it was read."""
        self.since = next(_TURNS)
        super().on_response_complete()
        self._end_soon()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._abort_within()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._writing is not None and not self.transport.is_closing():
            self._writing.cancel()
            self._writing = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was read since the last answer. What has come while the loop was busy is read before the end."""
        self._end_after(_READ_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        left = self._idle_from + self.timeout_keep_alive - self.loop.time()
        if left > 0:  # what is turned away unread starts no clock of its own
            self._end_after(left, self.timeout_keep_alive_handler)
            return
        super().timeout_keep_alive_handler()
        self._end_soon()

    def _end_after(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, callback)

    def refuse(self, status: int, text: str) -> None:
        """End the connection; with an answer, where none has begun and the client has asked for one, or is new."""
        if self.transport.is_closing():
            return
        if self.cycle is None or (not self.cycle.response_started and not self.pipeline):
            content = body(text)
            head = b"content-type: %s\r\ncontent-length: %d\r\nretry-after: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % (JSON.encode(), len(content), RETRY_SECONDS) + content)
        self._leave()
        self.transport.close()
        self._end_soon()

    def _make_room(self) -> None:
        others = [
            other for other in self.connections if isinstance(other, Connection) and not other.transport.is_closing()
        ]
        if len(others) > self.bounds.max_connections:
            waited_for = [other for other in others if other is not self and other.waits]
            oldest = min(waited_for, key=lambda other: other.since, default=self)
            oldest.refuse(503, "too many connections: try again in a moment")

    def _read_within(self, seconds: float) -> None:
        """Start the clock of reading, unless it runs."""
        if self._until is None and not self.transport.is_closing():
            self.since = next(_TURNS)
            self._until = self.loop.time() + seconds
            if self._reading is None or self._reading.when() > self._until:
                self._look_at(self._until)

    def _stop_reading(self) -> None:
        self._until = None

    def _look_at(self, moment: float) -> None:
        """Look then whether the client is late: one timer serves many requests, as most are in time."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_at(moment, self._look)

    def _look(self) -> None:
        self._reading = None
        if self._until is None:
            return
        if self.loop.time() < self._until:
            self._look_at(self._until)
            return
        self._until = None
        if self.waits:
            self.refuse(408, "the request was not sent in time")
        else:  # the client waits for us, with its next request begun
            self._read_within(self.bounds.head_seconds)

    def _end_soon(self) -> None:
        """A connection that is being closed may still wait for its client to read."""
        if self.transport.is_closing():
            self._abort_within()

    def _abort_within(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self.bounds.answer_seconds, self._abort)

    def _abort(self) -> None:
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        """What still works on the request goes on without its client, and writes nothing."""
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
