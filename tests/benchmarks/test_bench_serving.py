"""The bench of serving: its load generator, its arithmetic, and its tables."""

import asyncio
import importlib
import json
import math
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.bench import serving as bench
from benchmarks.bench import serving_load as load
from benchmarks.bench.serving_peers import row_model
from pipelines.cases import load_fields
from serving.gateway.joining import Call, Lane
from tests.serving.gateway.world import FIELDS, some_rows

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
BUSY = b"HTTP/1.1 503 X\r\ncontent-length: 0\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def server(answer):
    """The port of a server that writes what ``answer`` gives for each request; None ends the connection."""

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                said = await answer()
                if said is None:
                    break
                writer.write(said)
                if b"close" in said:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async with await asyncio.start_server(serve, load.HOST, 0) as listener:
        yield listener.sockets[0].getsockname()[1]


def test_a_percentile_is_of_the_nearest_rank():
    """The share of values not above it is at least the one asked for; of one value it is that, of none NaN."""
    values = [float(number) for number in range(100, 0, -1)]
    assert [load.percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert load.percentile([7.0], 0.99) == 7
    assert math.isnan(load.percentile([], 0.5))


def test_arrivals_are_poisson():
    """A schedule has about its rate, gaps that vary as an exponential's do, and is the same for the same seed."""
    due = load.schedule(500.0, 20.0, seed=3)
    gaps = np.diff(due)
    assert due == sorted(due)
    assert due[-1] < 20.0
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert due == load.schedule(500.0, 20.0, seed=3) != load.schedule(500.0, 20.0, seed=4)


def test_littles_law():
    """Replicas are rounded up at the share of their capacity; requests inside are rate times stay."""
    assert [load.replicas(rate, 1000.0) for rate in (1, 700, 701, 1700)] == [1, 1, 2, 3]
    assert load.in_flight(1700.0, 0.02) == pytest.approx(34.0)


def test_an_open_loop_counts_from_when_a_request_was_due():
    """A server that stands still for half a second is charged for all requests that came due meanwhile.

    A closed loop of one client sees a single slow answer there: that is what coordinated omission hides.
    """

    def measured(work):
        async def run():
            first = time.monotonic()

            async def answer():
                await asyncio.sleep(max(0.0, first + 0.5 - time.monotonic()))
                return OK

            async with server(answer) as port:
                ask = load.Http(port, [load.post("/", b"{}")])
                found = await work(ask)
                await ask.close()
                return found

        return asyncio.run(run())

    opened = measured(lambda ask: load.opened(ask, [number / 100 for number in range(60)]))
    closed = measured(lambda ask: load.closed(ask, 1, 0.6))
    assert len(opened.seconds) == 60 == len(opened.late)
    least = [0.5 - number / 100 for number in range(50)]
    found = sorted(opened.seconds, reverse=True)[:50]
    assert all(seconds >= wanted - 0.01 for seconds, wanted in zip(found, least, strict=True))
    assert sum(seconds > 0.3 for seconds in closed.seconds) == 1


def test_what_is_not_answered_is_counted(monkeypatch):
    """A 503, a connection that is ended and an answer that never comes are told apart, and none is a latency."""
    monkeypatch.setattr(load, "PATIENCE", 0.2)
    said = iter([OK, BUSY, OK, None])

    async def answer():
        one = next(said, "")
        if one == "":
            await asyncio.sleep(60)
        return one

    async def run():
        seen = []
        async with server(answer) as port:
            ask = load.Http(port, [load.post("/", b"{}")])
            found = await load.counted(ask, 1, 5, lambda due, seconds, answer: seen.append(answer))
            await ask.close()
            return found, seen

    found, seen = asyncio.run(asyncio.wait_for(run(), 20))
    assert found.statuses == {200: 2, 503: 1, load.ENDED: 1, load.NOTHING: 1}
    assert found.errors == 3
    assert [answer.body for answer in seen if answer.status == 200] == [b"hi", b"hi"]


def test_answers_are_read_whole():
    """Of a length or in chunks, an answer is read when all of it is there; "close" ends its connection."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    for whole in (OK, chunked):
        assert all(load._whole(bytearray(whole[:end])) is None for end in range(len(whole)))
        answer, stays = load._whole(bytearray(whole))
        assert (answer.status, stays) == (200, True)
        assert b"hi" in answer.body
    assert load._whole(bytearray(BUSY)) == (load.Answer(503, b""), False)


def test_an_answer_is_told_in_every_form():
    """The score of JSON, without one the prediction, and the largest of bare tensors."""
    assert bench.told(json.dumps({"rows": [{"prediction": 1, "score": 0.75}]}).encode()) == 0.75
    assert bench.told(b'{"predictions": [{"prediction": -3.5, "problem": null}]}') == -3.5
    assert bench.told(b'[{"prediction":"a","score":2.5e-05}]') == 2.5e-05
    assert bench.told(np.array([0.1, 0.7, 0.2], np.float32).tobytes()) == pytest.approx(0.7)


def test_peers_check_rows_as_declared():
    """A peer takes what the gateway takes, and refuses what is not as declared."""
    row = some_rows(1)[0]
    model = row_model(FIELDS)
    model(**row)
    name = FIELDS.categorical[0].name
    with pytest.raises(ValidationError, match=name):
        model(**row | {name: "no such value"})
    with pytest.raises(ValidationError, match=FIELDS.numeric[0].name):
        model(**row | {FIELDS.numeric[0].name: math.inf})
    missing = next(field.name for field in load_fields("flights").fields if field.missing)
    assert row_model(load_fields("flights")).model_fields[missing].default is None


def test_without_joining_calls_are_under_way_at_once(monkeypatch):
    """The switch of the bench sends every call by itself, at once; a lane as it is lets the second one wait."""
    monkeypatch.setattr(Lane, "ask", Lane.ask)  # put back afterwards

    async def most_at_once():
        inside = []
        most = []

        async def send(call):
            inside.append(call)
            most.append(len(inside))
            await asyncio.sleep(0.05)
            inside.pop()
            return [0.5] * call.rows

        lane = Lane(send, 64)
        calls = [Call({"numeric": np.zeros((1, 2))}, time.monotonic() + 5) for _ in range(3)]
        assert await asyncio.gather(*(lane.ask(call) for call in calls)) == [[0.5]] * 3
        return max(most)

    assert asyncio.run(most_at_once()) == 1
    importlib.import_module("benchmarks.bench.serving_alone")
    assert asyncio.run(most_at_once()) == 3


def test_without_a_gpu_the_bench_says_so(monkeypatch):
    """Nothing is started for triage on a GPU where there is none."""
    monkeypatch.setattr(bench, "machine", lambda: {"gpu": None})
    rows, said = bench.on_gpu(None, bench.QUICK, ())
    assert rows == []
    assert "there is no GPU here" in said


def turn(per_second, seconds=0.01, rate=0.0):
    """A turn of a second."""
    return bench.Turn(rate, load.Load([seconds] * per_second, {}, 1.0, 0.1, [0.0] * per_second), 0.5, 100.0)


def test_ratios_are_of_the_same_rounds():
    """Each round is compared with its own, Triton with the better of its two forms; goals are about bank alone."""
    turns = {
        (bench.GATEWAY, 32): [turn(100), turn(300)],
        (bench.BARE, 32): [turn(50), turn(100)],
        (bench.BATCHED, 32): [turn(60), turn(100)],
        (bench.FASTAPI, 32): [turn(200), turn(300)],
        (bench.GATEWAY, 1): [turn(10, 0.02)],
        (bench.BARE, 1): [turn(10, 0.015)],
        (bench.GATEWAY, 0): [turn(70, rate=70.0)],
    }
    assert bench.better(turns, 32) == bench.BATCHED
    rows = bench.table("bank", turns)
    row = next(row for row in rows if (row["arm"], row["clients"]) == (bench.GATEWAY, 32))
    assert row["requests/s"] == 200
    assert row["of Triton"] == pytest.approx(np.median([100 / 60, 3.0]), abs=0.01)
    assert row["of FastAPI"] == 0.75
    assert rows[-1]["clients"] == "open"
    held = {one["name"]: one["holds"] for one in bench.goals(rows)}
    assert held["bank, 32 clients: requests/s of Triton"] is True
    assert held["bank, 32 clients: requests/s of FastAPI"] is False
    assert held["bank, 1 client: median latency of bare Triton's"] is True
    assert bench.goals(bench.table("flights", turns)) == []
    [told] = bench.replicas("bank", turns)
    assert told["capacity/s"] == 200
    assert told["replicas for 1700/s"] == 13
    assert told["inside at 578/s"] == pytest.approx(5.8)
