"""An event loop that knows how long its turns take, and takes up connections as fast as they come.

What a client has sent waits in its socket for a turn of the loop, and nobody sees it until it is read. A new connection
waits for longer: libuv takes up one in a turn (its pull request 3696). A worker whose turns take 30 ms would take up
thirty a second, and a storm of new clients, or a health check, would wait for many seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvloop

EACH_SECONDS = 0.001
"""A connection is taken up for each of so many seconds of a turn; a quick worker leaves others of the port theirs."""
MOST = 64
"""Connections that are taken up in a turn beside libuv's own."""


class Turns:
    """The turns of the running event loop, from one that reads something until one that reads nothing.

    uvloop has no time of a turn: its clock is read anew whenever it is asked. So a callback goes round with the loop.
    """

    __slots__ = ("_before", "_began", "_reads", "_running", "_told")

    def __init__(self, told: Callable[[float], None] = lambda _seconds: None) -> None:
        """``told``: see :meth:`tell`."""
        self._told = told
        self._running = False
        self._reads = False
        self._began = self._before = 0.0

    def tell(self, told: Callable[[float], None]) -> None:
        """Let ``told`` hear once a turn for how many seconds what is read next may have waited: two turns at most."""
        self._told = told

    @property
    def age(self) -> float:
        """For how many seconds what is read now may have waited."""
        return time.monotonic() - self._before if self._running else 0.0

    def reads(self) -> None:
        """Something was read."""
        self._reads = True
        if not self._running:
            self._running = True
            self._began = self._before = time.monotonic()
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        now = time.monotonic()
        self._told(now - self._before)
        self._before, self._began = self._began, now
        self._running = self._reads
        if self._reads:
            self._reads = False
            asyncio.get_running_loop().call_soon(self._round)


class Loop(uvloop.Loop):  # type: ignore[misc]
    """``uvicorn --loop=serving.gateway.turns:Loop``."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._taken: set[asyncio.Task[None]] = set()

    async def create_server(self, protocol_factory: Any, *arguments: Any, **named: Any) -> Any:
        """A server that takes up what waits to connect, by how long turns take."""
        server: Any = None

        def made() -> Any:
            if server is not None and (most := min(MOST, int(self.turns.age / EACH_SECONDS))):
                for listening in server.sockets:
                    self._take_up(listening.fileno(), most, protocol_factory, named.get("ssl"))
            return protocol_factory()

        server = await super().create_server(made, *arguments, **named)
        return server

    def _take_up(self, listening: int, most: int, protocol_factory: Any, ssl: Any) -> None:
        with socket.socket(fileno=os.dup(listening)) as own, suppress(OSError):
            for _ in range(most):
                connection, _ = own.accept()
                task = self.create_task(self._serve(connection, protocol_factory, ssl))
                self._taken.add(task)
                task.add_done_callback(self._taken.discard)

    async def _serve(self, connection: socket.socket, protocol_factory: Any, ssl: Any) -> None:
        with suppress(OSError):  # it has gone again
            await self.connect_accepted_socket(protocol_factory, connection, ssl=ssl)
