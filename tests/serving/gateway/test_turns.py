"""How long what is read next may have waited in its socket, and what is done about it."""

import asyncio
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvicorn
import uvloop

from serving.gateway.connections import CROWD
from serving.gateway.joining import Lane, Late
from serving.gateway.protections import LEAST, LEFT, SETTLES, UNREAD_SECONDS, Door
from serving.gateway.settings import Bounds
from serving.gateway.turns import Loop, Turns
from tests.serving.gateway.world import until


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop, Loop])
def test_a_turn_that_takes_long_is_told_of(loop):
    """What holds the loop up is told of in the next two turns that read something, and in no other."""

    async def run():
        told = []
        turns = Turns(told.append)
        for seconds in (0.0, 0.05, 0.0, 0.0, 0.0):
            turns.reads()
            time.sleep(seconds)  # noqa: ASYNC251 - what a busy worker does
            await asyncio.sleep(0)
        return told[:5]

    with asyncio.Runner(loop_factory=loop) as runner:
        told = runner.run(run())
    assert [seconds >= 0.05 for seconds in told] == [False, True, True, False, False]


def test_a_loop_that_reads_nothing_rests():
    """A turn without reading is the last one that is told of, however long the loop waits; a later one begins anew."""

    async def run():
        told = []
        turns = Turns(told.append)
        turns.reads()
        await asyncio.sleep(0.05)
        count = len(told)
        turns.reads()
        await asyncio.sleep(0.01)
        return count, told

    count, told = asyncio.run(run())
    assert count == 2
    assert len(told) == 4
    assert max(told) < 0.04


def limit(door, case):
    """How many requests for a case are let in at a time; the last one is turned away."""
    places = []
    while not door.full(case):
        places.append(door.place(case))
        places[-1].__enter__()
    for place in places:
        place.__exit__(ValueError)
    return len(places)


def test_a_case_that_has_too_much_leaves_the_worker_time_to_read():
    """While its requests are turned away and wait long to be read, it has fewer places, never fewer than a few.

    Who has not asked for more has as many as before, and a turn in which nobody was turned away says nothing. Places
    come back while answers are in time.
    """
    door = Door(Bounds(auth=False, max_requests=200, case_share=0.5), Path("key"))
    assert (limit(door, "loans"), limit(door, "bank")) == (100, 100)
    door.came_round(0.5 * UNREAD_SECONDS)
    door.came_round(1.0)
    assert limit(door, "loans") == 100
    door.came_round(1.25 * UNREAD_SECONDS)
    assert (limit(door, "loans"), door.full("bank")) == (80, "")
    for _ in range(4):
        time.sleep(0.01 + 100 * SETTLES * UNREAD_SECONDS / 10)
        limit(door, "loans")
        door.came_round(10 * UNREAD_SECONDS)
    assert LEFT == 0.5
    assert (limit(door, "loans"), limit(door, "bank")) == (LEAST, 100)
    for _ in range(10 * LEAST):
        with door.place("loans"):
            pass
    assert LEAST + 5 <= limit(door, "loans") <= LEAST + 10


@contextmanager
def in_thread(loop):
    """The loop runs in a thread until the block ends."""
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_slow_worker_takes_up_all_who_connect():
    """Of sixty who connect at once a loop whose turns take 20 ms takes up many in each."""
    loop = Loop()
    turns = []
    stop = threading.Event()

    class Greets(asyncio.Protocol):
        def connection_made(self, transport):
            turns.append(len(counted))
            transport.write(b"x")

    counted = []

    def busy():
        counted.append(1)
        loop.turns.reads()
        time.sleep(0.02)
        if not stop.is_set():
            loop.call_soon(busy)

    made = Future()

    async def serve():
        made.set_result(await loop.create_server(Greets, "127.0.0.1", 0))

    with in_thread(loop), ExitStack() as opened:
        asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
        address = made.result().sockets[0].getsockname()
        hold = threading.Event()
        loop.call_soon_threadsafe(hold.wait, 10)
        clients = [opened.enter_context(socket.create_connection(address, timeout=10)) for _ in range(60)]
        loop.call_soon_threadsafe(busy)
        hold.set()
        assert all(client.recv(1) == b"x" for client in clients)
        stop.set()
        loop.call_soon_threadsafe(made.result().close)
    assert max(turns) - min(turns) < 20


@contextmanager
def served(crowd):
    """The address of a server that keeps a connection for a second, and turns away what ``crowd`` answers."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            scope["state"][CROWD] = crowd
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(
        app,
        loop="serving.gateway.turns:Loop",
        http="serving.gateway.connections:Connection",
        ws="none",
        log_level="error",
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


def test_what_has_come_is_read_before_an_idle_connection_ends():
    """A request that waits in its socket while the worker reads others, until the connection's time is over, counts.

    It is answered, and the connection ends when nothing has come for its time.
    """

    def slow(data):
        if data == b"slow":
            time.sleep(1.5)
            return REFUSAL
        return None

    with (
        served(slow) as address,
        socket.create_connection(address, timeout=10) as client,
        socket.create_connection(address, timeout=10) as other,
    ):
        client.sendall(ASK)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        other.sendall(b"slow")
        time.sleep(0.5)
        client.sendall(ASK)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert client.recv(65536) == b""
        assert 0.9 < time.monotonic() - began < 5


def test_who_is_turned_away_unread_keeps_the_connection():
    """Its time begins anew with each refusal, and ends it when nothing has come since the last one."""
    with served(lambda _data: REFUSAL) as address, socket.create_connection(address, timeout=10) as client:
        for _ in range(8):
            client.sendall(ASK)
            assert client.recv(65536) == REFUSAL
            time.sleep(0.2)
        client.sendall(ASK)
        assert client.recv(65536) == REFUSAL
        began = time.monotonic()
        assert client.recv(65536) == b""
        assert 0.9 < time.monotonic() - began < 5


def test_who_is_let_in_only_to_be_refused_costs_its_case_places():
    """A request that was read before it was clear that it would be late is dearer than one that is turned away unread.

    So its case has fewer places, if it promises anything.
    """
    door = Door(Bounds(auth=False, max_requests=200, case_share=0.5), Path("key"))
    late = Late(Lane(None, 1), 1.0, 1)
    for case, p99_ms in (("loans", 200.0), ("bank", None)):
        with pytest.raises(Late), door.place(case, "", p99_ms):
            raise late
    assert (limit(door, "loans"), limit(door, "bank")) == (80, 100)
