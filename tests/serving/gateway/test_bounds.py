"""No client keeps the others waiting: long bad bodies, slow and half-open requests, slow readers, many at once."""

from __future__ import annotations

import asyncio
import gc
import json
import select
import socket
import sqlite3
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import grpc
import httpx
import pytest

from serving.gateway.protections import Door
from serving.gateway.refusal import Refused
from serving.gateway.rows import read, row_shape
from serving.gateway.settings import Bounds
from tests.serving.gateway.world import (
    FIELDS,
    KEY,
    LABELS,
    PREDICT,
    Scores,
    client,
    counted,
    fake_triton,
    make_home,
    release,
    some_rows,
    until,
)

MEBI = 2**20
HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
LONG = {
    "empty items": (b"{},", "too_many"),
    "empty lists": (b"[],", "too_many"),
    "numbers": (b"0,", "too_many"),
    "nested": (b'{"age":{"a":[' + b"{}," * 100_000 + b"{}]}},", "missing"),
}


def long_body(piece, size=7_800_000):
    """A body of ``size`` bytes whose rows are ``piece`` again and again."""
    return b'{"rows":[' + (piece * (size // len(piece))).rstrip(b",") + b"]}"


@contextmanager
def gateway(tmp_path, triton=None, **bounds):
    """``(http, triton, address)`` of a gateway with the champion 1."""
    with fake_triton(servicer=triton) as (servicer, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, **bounds) as http:
            yield http, servicer, (http.base_url.host, http.base_url.port)


@contextmanager
def healthz_watched(http):
    """Ask /healthz all the time; afterwards the list holds the processor time that this process spent on each.

    The collector of garbage does not look through what other tests have left in this process: it takes seconds for it.
    """
    took: list[float] = []
    stop = threading.Event()

    def ask():
        with httpx.Client(base_url=http.base_url, timeout=30, trust_env=False) as own:
            own.get("/healthz")  # by then all connections that were opened before are taken
            while not stop.is_set():
                began = time.process_time()
                assert own.get("/healthz").status_code == 200
                took.append(time.process_time() - began)
                time.sleep(0.005)

    gc.collect()
    gc.freeze()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield took
        finally:
            gc.unfreeze()
            stop.set()
            asking.result()


def ended(connection, seconds=10.0):
    """What a connection still gives until its other side ends it; TimeoutError if it does not."""
    connection.settimeout(seconds)
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return found


@pytest.mark.parametrize("kind", LONG)
def test_what_a_long_bad_body_costs_is_bounded(kind):
    """Whatever 8 MB hold, they are refused within two seconds, in a few hundred bytes and less than 256 MiB.

    Too many rows are counted first.
    """
    piece, reason = LONG[kind]
    body = long_body(piece)
    shape = row_shape(FIELDS, 10_000)
    began = time.process_time()
    with pytest.raises(Refused) as refused:
        read(shape, body)
    assert time.process_time() - began < 2
    assert refused.value.reason == reason
    assert len(str(refused.value)) < 500
    tracemalloc.start()
    try:
        with pytest.raises(Refused):
            read(shape, body)
        assert tracemalloc.get_traced_memory()[1] < 256 * MEBI
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ("{" + ",".join(f'"k{number}": 1' for number in range(20_000)) + "}", None),
        ('{"' + "k" * 100_000 + '": 1}', "education"),
        ('{"education": "' + "x" * 100_000 + '"}', "car"),
        ('{"education": ' + "9" * 100_000 + "}", "car"),
        ("[" * 100_000 + "]" * 100_000, None),
    ],
)
def test_messages_are_short_whatever_was_sent(item, field):
    """Thousands of unknown keys, a huge key, string, number or depth.

    The refusal names row 0 in a few hundred characters, or says it is no JSON.
    """
    with pytest.raises(Refused) as refused:
        read(row_shape(FIELDS, 10), b'{"rows": [%s]}' % item.encode())
    assert len(str(refused.value)) < 500
    assert refused.value.row == 0 or refused.value.status == 400
    assert field is None or refused.value.field == field


def test_long_bodies_keep_nobody_waiting(tmp_path):
    """While bad and long bodies come six at a time, /healthz answers within a second of processor time.

    The bodies are bad ones of 8 MB and good ones of 5,000 rows; the time is this process's. What a busy machine gives
    to other processes meanwhile is not the gateway's; `make proof-doors` has the seconds on a quiet one.
    """
    bad = long_body(b"{},")
    good = json.dumps({"rows": some_rows(5_000)}).encode()
    with (
        gateway(tmp_path) as (http, _, _),
        healthz_watched(http) as took,
        ThreadPoolExecutor(6) as pool,
    ):
        statuses = list(pool.map(lambda body: http.post(PREDICT, content=body).status_code, [bad, good] * 4))
    assert statuses == [422, 200] * 4
    assert max(took) < 1


def test_another_workers_write_keeps_nobody_waiting(tmp_path):
    """While another worker writes to the index, a row with an id waits for it and /healthz does not."""
    rows = [{**row, "prediction_id": str(number)} for number, row in enumerate(some_rows(2))]
    with gateway(tmp_path) as (http, _, _), ThreadPoolExecutor(1) as pool:
        other = sqlite3.connect(tmp_path / "gateway" / "loans.ids.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        asked = pool.submit(http.post, PREDICT, json={"rows": rows})
        until = time.monotonic() + 1  # the index is waited for much longer
        while time.monotonic() < until:
            assert http.get("/healthz").status_code == 200
            time.sleep(0.01)
        assert not asked.done()
        other.execute("ROLLBACK")
        assert asked.result().status_code == 200
        other.close()


SLOW = {
    "nothing": (b"", b"", b"408"),
    "a head without an end": (HEAD.encode(), b"x-a: b\r\n", b"408"),
    "empty lines only": (b"", b"\r\n", b"408"),
    "no body": (HEAD.encode() + b"Content-Length: 100\r\n\r\n", b"", b"408"),
    "a body, byte by byte": (HEAD.encode() + b"Content-Length: 10000\r\n\r\n", b"x", b"408"),
    "a body in chunks without an end": (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"408"),
    "a body without a key": (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000\r\n\r\n" % PREDICT.encode(),
        b"x",
        b"401",
    ),
    "a second head without an end": (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /healthz", b"200"),
}


def test_a_request_that_does_not_come_is_ended(tmp_path):
    """Every kind of half-open request, dripping or silent, is told so and ended by its deadline.

    One that was answered already is not told; others are answered while they are open.
    """
    with gateway(tmp_path, head_seconds=3, body_seconds=3) as (http, _, address), ExitStack() as opened:
        connections = {
            kind: [opened.enter_context(socket.create_connection(address)) for _ in range(20)] for kind in SLOW
        }
        for kind, (first, _, _) in SLOW.items():
            for connection in connections[kind]:
                connection.sendall(first)
        for _ in range(10):
            assert http.get("/healthz").status_code == 200
        assert select.select(connections["nothing"], [], [], 0)[0] == []  # not ended yet
        stop = time.monotonic() + 4
        while time.monotonic() < stop:
            for kind, (_, drip, _) in SLOW.items():
                for connection in connections[kind] if drip else ():
                    with suppress(OSError):  # the gateway has ended it
                        connection.sendall(drip)
            time.sleep(0.05)
        for kind, (_, drip, status) in SLOW.items():
            for connection in connections[kind]:
                found = ended(connection, 3)
                # What came after the end may take the answer along (TCP's reset).
                assert status in found or drip, kind
        assert http.post(PREDICT, json={"rows": some_rows(1)}).status_code == 200


def test_an_answer_that_is_not_read_is_dropped(tmp_path, capfd):
    """A client that asks for megabytes and reads nothing loses its connection at the deadline; nothing else fails."""
    with gateway(tmp_path, answer_seconds=0.5) as (_, _, address), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address)
        connection.sendall(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 8)
        time.sleep(1.5)
        assert len(ended(connection, 5)) < 8 * MEBI  # of eleven; what the kernel had taken still comes
    assert "Traceback" not in capfd.readouterr().err


def test_who_goes_while_requests_wait_breaks_nothing(tmp_path, capfd):
    """A client that sends several requests at once and goes away leaves no error in the log; others are answered."""
    with gateway(tmp_path) as (http, _, address):
        for _ in range(20):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(address)
                connection.sendall(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 4)
                time.sleep(0.02)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert http.get("/healthz").status_code == 200
        time.sleep(0.3)
    assert "Traceback" not in capfd.readouterr().err


def test_a_head_has_a_size(tmp_path):
    """A head, trailers or chunk extensions without an end are 431 or cut off, long before their deadline."""
    endless = (
        HEAD.encode(),
        HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n1;",
    )
    with gateway(tmp_path, max_head_bytes=16_384) as (_, _, address):
        for first in endless:
            with socket.create_connection(address) as connection:
                connection.sendall(first)
                with pytest.raises(ConnectionError):
                    connection.sendall(b"b" * 64 * MEBI)


class Held(Scores):
    """A Triton that answers once it is let go."""

    def __init__(self):
        super().__init__()
        self.come, self.go = 0, threading.Event()

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        self.come += 1
        self.go.wait(4)
        return super().ModelInfer(request, context)


@pytest.mark.parametrize("bounds", [{"max_requests": 2}, {"max_pending_bytes": 1_000}])
def test_beyond_the_bounds_requests_are_told_to_come_again(tmp_path, bounds):
    """While a worker answers as many requests (or bytes of them) as it takes, a further one is refused.

    It is 503 with Retry-After, and /healthz 200; then all is as before.
    """
    triton = Held()
    body = json.dumps({"rows": some_rows(2)}).encode()
    assert 333 < len(body) < 500
    with gateway(tmp_path, triton, case_share=1.0, **bounds) as (http, _, _), ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(http.post, PREDICT, content=body) for _ in range(2)]
        until(lambda: triton.come == 1 and counted(http, "requests_inside") == 2)
        more = http.post(PREDICT, content=body)
        assert (more.status_code, more.headers["retry-after"]) == (503, "1")
        assert "try again" in more.json()["error"]
        assert http.get("/healthz").status_code == 200
        triton.go.set()
        assert [one.result().status_code for one in inside] == [200, 200]
        assert http.post(PREDICT, content=body).status_code == 200


@pytest.mark.parametrize("bounds", [{"max_requests": 4}, {"max_pending_bytes": 40}])
def test_one_cases_storm_leaves_room_for_the_others(tmp_path, bounds):
    """A case that takes its share of a worker is told to come again; another one still gets in, up to the bound."""
    door = Door(Bounds(auth=False, case_share=0.5, **bounds), tmp_path / "key")

    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(door.place("storm")).hold(10)
        with pytest.raises(Refused, match=r"for storm .*try again") as refused, door.place("storm") as place:
            place.hold(10)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
        for _ in range(2):
            inside.enter_context(door.place("calm")).hold(10)
        with pytest.raises(Refused, match="try again"), door.place("third") as place:
            place.hold(10)
    for _ in range(2):
        with door.place("storm") as one, door.place("storm") as other:
            one.hold(10)
            other.hold(10)


def test_rows_in_flight_are_bounded_per_worker_and_case(tmp_path):
    """A case has its share of a worker's rows, all cases together the bound; a request that is alone always gets in."""
    door = Door(Bounds(auth=False, case_share=0.5, max_pending_rows=20), tmp_path / "key")

    async def run():
        with ExitStack() as inside:

            async def come(case, rows):
                await inside.enter_context(door.place(case)).rows(rows)

            await come("storm", 25)
            with pytest.raises(Refused, match=r"25 rows are being answered.*try again") as refused:
                await come("calm", 1)
            assert (refused.value.status, refused.value.rows, refused.value.headers) == (503, 1, {"Retry-After": "1"})
        with ExitStack() as inside:
            await come("storm", 6)
            with pytest.raises(Refused, match="6 rows for storm are being answered"):
                await come("storm", 5)
            await come("storm", 4)
            await come("calm", 10)
        with door.place("storm") as place:
            await place.rows(10)

    asyncio.run(run())


def test_a_storm_of_rows_is_refused_at_every_door_and_keeps_its_connections(tmp_path):
    """Beyond its rows a worker answers 503 with Retry-After: whole requests, rows one by one, v2 and labels alike.

    None of them is in the log, and each connection takes the next request.
    """
    triton = Held()
    many = {"rows": some_rows(6)}
    labels = {"labels": [{"prediction_id": str(number), "label": 1} for number in range(6)]}
    with (
        gateway(tmp_path, triton, max_pending_rows=10) as (http, _, _),
        httpx.Client(base_url=http.base_url, headers=http.headers, limits=httpx.Limits(max_connections=1)) as one,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(http.post, PREDICT, json=many)
        until(lambda: triton.come == 1)
        assert one.get("/healthz").status_code == 200
        [connection] = one._transport._pool.connections
        for path, asked in ((PREDICT, many), (f"{PREDICT}?partial=true", many), (LABELS, labels)):
            more = one.post(path, json=asked)
            assert (more.status_code, more.headers["retry-after"]) == (503, "1"), path
            assert "6 rows are being answered: try again" in more.json()["error"]
            assert "connection" not in more.headers
        assert one._transport._pool.connections == [connection]
        triton.go.set()
        assert first.result().status_code == 200
        assert one.post(PREDICT, json=many).status_code == 200
        assert counted(http, "refused_rows_total", case="loans", reason="busy") == 18
        assert counted(http, "log_lines_total", case="loans", kind="predictions") == 12
        assert counted(http, "labels_total", case="loans") == 0


def test_a_request_that_is_turned_away_leaves_its_connection_in_order(tmp_path):
    """Beyond the bound an answer comes before the body does, which is thrown away; the next request is answered.

    Requests that are sent together are answered in their order; who asks for the end of the connection gets it; each
    is counted, and a case that nobody knows is none of them.
    """
    triton = Held()
    body = json.dumps({"rows": some_rows(1)}).encode()
    head = HEAD + f"Content-Length: {len(body)}\r\n"
    with (
        gateway(tmp_path, triton, max_requests=1) as (http, _, address),
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(address) as connection,
    ):
        first = pool.submit(http.post, PREDICT, content=body)
        until(lambda: triton.come == 1)
        connection.settimeout(10)
        found = b""
        connection.sendall(head.encode() + b"\r\n" + body[:5])
        while b"try again" not in found:
            found += connection.recv(65536)
        assert found.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in found
        assert b"x-frame-options: DENY" in found
        connection.sendall(body[5:])
        unknown = HEAD.replace("loans", "nobody") + f"Content-Length: {len(body)}\r\n\r\n"
        health = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        connection.sendall((head.encode() + b"\r\n" + body) * 300 + health + unknown.encode() + body)
        found = b""
        while found.count(b"HTTP/1.1 ") < 302:
            found += connection.recv(2**20)
        statuses = [line[:3] for line in found.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"503"] * 300 + [b"200", b"404"]
        triton.go.set()
        assert first.result().status_code == 200
        until(lambda: counted(http, "requests_inside") == 0)
        connection.sendall(head.encode() + b"\r\n" + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert counted(http, "requests_total", case="loans", route="predict", status="503") == 301
        assert counted(http, "refused_rows_total", case="loans", reason="busy") == 301
    triton.go.clear()
    with (
        gateway(tmp_path / "again", triton, max_requests=1) as (http, _, address),
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(address) as connection,
    ):
        first = pool.submit(http.post, PREDICT, content=body)
        until(lambda: triton.come == 3)
        connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        assert ended(connection).startswith(b"HTTP/1.1 503")
        triton.go.set()
        assert first.result().status_code == 200


def test_whole_requests_are_turned_away_unread_and_their_connection_goes_on(tmp_path):
    """Beyond the bound each of many requests that come whole has its 503; then the connection is answered, in time."""
    triton = Held()
    body = json.dumps({"rows": some_rows(1)}).encode()
    whole = HEAD.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with (
        gateway(tmp_path, triton, max_requests=1, head_seconds=0.5) as (http, _, address),
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(address) as connection,
    ):
        first = pool.submit(http.post, PREDICT, content=body)
        until(lambda: triton.come == 1)
        connection.settimeout(10)
        for _ in range(20):
            connection.sendall(whole)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer
            assert answer.endswith(b'1 requests are being answered: try again in a moment"}')
        connection.sendall(whole[:50])  # a request that is not whole is read, and has a clock
        assert ended(connection).startswith(b"HTTP/1.1 408")
        with socket.create_connection(address) as another:
            another.settimeout(10)
            another.sendall(whole)
            assert another.recv(65536).startswith(b"HTTP/1.1 503")
            triton.go.set()
            assert first.result().status_code == 200
            until(lambda: counted(http, "requests_inside") == 0)
            another.sendall(whole)
            assert another.recv(65536).startswith(b"HTTP/1.1 200")
        assert counted(http, "requests_total", case="loans", route="predict", status="503") == 21
        assert counted(http, "refused_rows_total", case="loans", reason="busy") == 21


def test_a_case_whose_answers_come_late_has_fewer_places(tmp_path):
    """Late answers of single rows take places from their case alone; those in time give them back.

    Long requests, and cases that promise nothing, have theirs.
    """
    door = Door(Bounds(auth=False, max_requests=100), tmp_path / "key")

    def places(case):
        with ExitStack() as inside:
            for number in range(101):
                try:
                    inside.enter_context(door.place(case))
                except Refused:
                    return number
        return None

    assert (places("late"), places("calm")) == (75, 75)
    door.answered("late", 0.3, 0.2)
    assert (places("late"), places("calm")) == (60, 75)
    assert door.full("late") == ""
    for _ in range(2000):
        door.answered("late", 0.1, 0.2)
    assert places("late") == 75

    async def visit(case, p99_ms, rows):
        with door.place(case, "", p99_ms) as place:
            await place.rows(rows)
            await asyncio.sleep(0.02)

    asyncio.run(visit("calm", None, 1))
    asyncio.run(visit("calm", 10.0, 17))
    assert places("calm") == 75
    asyncio.run(visit("calm", 10.0, 1))
    assert places("calm") == 60


class Slow(Scores):
    """A Triton that answers for one case after a while only."""

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        if request.model_name == "bank":
            time.sleep(1)
            context.abort(grpc.StatusCode.UNAVAILABLE, "is not at ready state")
        return super().ModelInfer(request, context)


def test_a_sick_case_does_not_make_the_others_unready(tmp_path):
    """While one champion does not answer a worker is ready for the others; all are probed at once."""
    with fake_triton(servicer=Slow()) as (_, port):
        settings = make_home(tmp_path, port)
        for case in ("bank", "loans"):
            release(settings, 1, case=case)
        with client(settings, ready_seconds=0.0) as http:
            ready = http.get("/readyz")
            assert (ready.status_code, ready.json()["every"]) == (200, False)
            assert {name: case["ready"] for name, case in ready.json()["cases"].items()} == {
                "bank": False,
                "loans": True,
            }
            assert http.get("/readyz", params={"every": "true"}).status_code == 503
            assert http.get("/v2/health/ready").status_code == 200
            assert http.get("/v2/models/bank/ready").status_code == 503
            assert http.get("/v2/models/loans/ready").status_code == 200


def test_more_connections_than_allowed_end_the_oldest(tmp_path):
    """Of 60 half-open connections the newest 20 stay, the others are 503.

    A whole request is answered at once all the same.
    """
    with gateway(tmp_path, max_connections=20) as (http, _, address), ExitStack() as opened:
        connections = []
        for _ in range(60):
            connections.append(opened.enter_context(socket.create_connection(address)))
            connections[-1].sendall(HEAD.encode())
        for connection in connections[:38]:
            found = ended(connection, 2)
            assert found.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in found
        assert http.get("/healthz", timeout=1).status_code == 200
        with pytest.raises(TimeoutError):
            ended(connections[-1], 0.2)


def test_readyz_is_asked_once_for_all(tmp_path):
    """Two hundred requests for /readyz within a second cost one or two inferences, and all have the answer."""
    with gateway(tmp_path, ready_seconds=1.0) as (http, triton, _), ThreadPoolExecutor(8) as pool:
        before = triton.rows
        began = time.monotonic()
        assert {answer.status_code for answer in pool.map(lambda _: http.get("/readyz"), range(200))} == {200}
        assert triton.rows - before <= 2 + (time.monotonic() - began)


def test_no_page_may_be_framed(tmp_path):
    """Pages, answers and refusals alike tell browsers to show them in no frame."""
    with gateway(tmp_path) as (http, _, _):
        for path in ("/docs", "/openapi.json", "/readyz", "/metrics", "/nowhere", "/docs/assets/swagger-ui.css"):
            headers = http.get(path).headers
            assert headers["x-frame-options"] == "DENY", path
            assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert http.post(PREDICT, content=b"{").headers["x-frame-options"] == "DENY"
