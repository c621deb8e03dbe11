"""The proof of the doors in small: what it sends, what it counts, and a round against a gateway of this process."""

import json
import os
import random
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.proof import doors as proof
from benchmarks.proof import doors_requests as sent
from tests.serving.gateway.world import KEY, PREDICT, client, fake_triton, make_home, release, some_rows


def test_a_round_against_a_gateway_holds(tmp_path, monkeypatch):
    """A small round of the proof's own requests.

    All are sent, and every goal about answers, deadlines and held connections holds.
    """
    monkeypatch.setattr(proof, "HELD_SECONDS", 2.5)
    size = replace(proof.QUICK, mutated=60, described=20, held=2, silent=5, bytes=200_000, rows=300)
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, head_seconds=0.5, body_seconds=0.5, answer_seconds=0.5) as http:
            rows, goals, more = proof.attack(proof.Target(http.base_url.port, KEY, (os.getpid(),)), size)
    told = {each["name"]: each for each in goals}
    assert [
        name for name, each in told.items() if not each["holds"] and "MiB" not in name and "s)" not in name
    ] == [], more
    assert rows[0]["requests"] == 60 + 20 + 2 * 7
    statuses = more["statuses"]
    assert sum(statuses["mutated"].values()) == 60
    assert set(statuses["described, valid"]) <= {200, 409, 422}
    assert 200 in statuses["described, valid"]
    assert 200 not in statuses["described, invalid"]
    assert set(statuses["long"]) == {200, 400, 422}


@contextmanager
def server(*answers: bytes):
    """The port of a server that gives each connection one of these bytes and ends it.

    After them it holds one without a word.
    """
    with socket.create_server((proof.HOST, 0)) as listener:
        held = []

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
            held.append(listener.accept()[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()
        held[0].close()


def test_what_is_wrong_is_counted(monkeypatch):
    """A 500, a 503 of no bound, an end without an answer and a silence are told apart; a 503 of a bound is allowed."""
    monkeypatch.setattr(proof, "PATIENCE", 0.3)
    busy = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    with server(b"HTTP/1.1 500 X\r\n\r\n", busy, busy + b'{"error": "try again in a moment"}', b"") as port:
        found = [proof.ask(port, "mutated", b"GET / HTTP/1.1\r\n\r\n") for _ in range(5)]
    assert [answer.status for answer in found] == [500, 503, 503, proof.ENDED, proof.NOTHING]
    assert [proof.unwanted(answer) for answer in found] == [True, True, False, False, False]
    assert proof.grouped(found) == {"2xx": 0, "4xx": 0, "503": 2, "5xx": 1, "ended": 1, "nothing": 1}


def test_an_open_connection_is_seen(monkeypatch):
    """A server that ends nothing has as many connections open as were held."""
    monkeypatch.setattr(proof, "HELD_SECONDS", 0.1)
    monkeypatch.setattr(proof, "PATIENCE", 1)
    with socket.create_server((proof.HOST, 0)) as listener:
        assert proof.hold(listener.getsockname()[1], {"silent": (b"", b"")}, replace(proof.QUICK, silent=1)) == 1


def test_the_requests_are_the_same_every_time():
    """Mutations follow their seed, and are rarely a whole good request; a whole one is what a client would send."""
    rows = some_rows(2)
    first, second = (
        [sent.mutated(random.Random(seed), PREDICT, "rows", rows, KEY) for seed in range(40)] for _ in range(2)
    )
    assert first == second
    good = sent.request(PREDICT, json.dumps({"rows": rows}).encode(), KEY)
    assert first.count(good) < 8
    assert len(set(first)) > 30
    assert good.startswith(b"POST /v1/cases/loans/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert good.endswith(b"\r\n\r\n" + json.dumps({"rows": rows}).encode())
