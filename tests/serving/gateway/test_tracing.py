"""Where a request's time goes, and which trace it belongs to: in its answer, in the log, in Triton and as spans."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipelines.contracts import Window
from pipelines.data import log as prediction_log
from serving.gateway import tracing
from serving.gateway.joining import Call, Lane
from tests.serving.gateway.world import (
    CASE,
    PREDICT,
    Scores,
    client,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
ROWS = some_rows(3)


class Listening(Scores):
    """A Triton that keeps the metadata of each call."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        self.heard.append(dict(context.invocation_metadata()))
        return super().ModelInfer(request, context)


@contextmanager
def gateway(folder):
    """A gateway's HTTP client, its settings and what its Triton heard."""
    with fake_triton(servicer=Listening()) as (triton, port):
        settings = make_home(folder, port)
        release(settings, 1)
        with client(settings) as http:
            yield http, settings, triton.heard


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A gateway for the tests that do not disturb it."""
    with gateway(tmp_path_factory.mktemp("tracing")) as found:
        yield found


def phases(answer):
    """The header Server-Timing as seconds by name."""
    found = [one.split(";dur=") for one in answer.headers["server-timing"].split(", ")]
    return {name: float(duration) / 1000 for name, duration in found}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/live", "/nowhere", "/openapi.json"])
def test_every_answer_says_how_long_it_took(world, path):
    """Server-Timing stands on every answer, refusals too."""
    assert phases(world[0].get(path))["total"] >= 0
    assert phases(world[0].post(PREDICT, json={"rows": []}))["total"] >= 0


def test_a_predictions_time_is_told_by_phase(world):
    """A prediction's header names reading, queue, encoding, Triton and log, which together are less than the total."""
    found = phases(world[0].post(PREDICT, json={"rows": ROWS}))

    assert set(found) == {"read", "queue", "encode", "triton", "log", "total"}
    assert sum(found.values()) - found["total"] <= found["total"] + 1e-4


def test_a_trace_reaches_triton_and_the_log_and_survives_compaction(tmp_path):
    """The caller's traceparent goes along to Triton, stands in every line of the log and in its compacted rows."""
    with gateway(tmp_path) as (http, settings, heard):
        http.post(PREDICT, json={"rows": ROWS}, headers={"traceparent": PARENT})
        http.post(PREDICT, json={"rows": ROWS[:1]})

        assert [one.get("traceparent") for one in heard] == [PARENT, None]
        assert [line.get("traceparent") for line in lines(settings)] == [PARENT] * 3 + [None]
    day = prediction_log.window_of(prediction_log.datetime.now(prediction_log.UTC).date())
    window = Window(start=day.start - prediction_log.RETRY_MARGIN, end=day.end)
    prediction_log.compact(settings, CASE)
    kept = prediction_log.read_predictions(settings, CASE, window)
    assert sorted(kept["traceparent"].to_list(), key=str) == [PARENT] * 3 + [None]


def test_each_request_of_a_joined_call_has_its_own_time_in_the_queue():
    """What waits for a call that is under way is in the queue until its own goes out; who found none waited for none.

    The joined call carries the trace of the first of its requests that has one.
    """
    seconds, carried, found = 0.1, [], {}
    came, went = {}, []

    async def send(call):
        went.append(time.perf_counter())
        for turn in call.turns:
            turn.went()
        carried.append(tracing.carried(call.turns))
        await asyncio.sleep(seconds)
        for turn in call.turns:
            turn.came()
        return [0.0] * call.rows

    async def one(lane, number, parent=""):
        await asyncio.sleep(number * seconds / 4)
        came[number] = time.perf_counter()
        with tracing.request("a test", parent) as course, tracing.Turn() as turn:
            await lane.ask(Call({"x": np.zeros((1, 1))}, time.monotonic() + 5, (turn,)))
        found[number] = course.phases

    async def run():
        lane = Lane(send, 100)
        await asyncio.gather(one(lane, 0), one(lane, 1), one(lane, 2, PARENT))

    asyncio.run(run())

    assert carried == [(), (("traceparent", PARENT),)]
    queues = [went[number > 0] - came[number] for number in range(3)]
    assert [found[number]["queue"] for number in range(3)] == pytest.approx(queues, abs=0.02)
    assert all(found[number]["triton"] >= 0.9 * seconds for number in range(3))
    assert found[1]["queue"] > found[2]["queue"] > found[0]["queue"]


def test_parts_that_are_under_way_at_a_time_count_once(monkeypatch):
    """Of a request in parts Triton's time is when at least one is under way, and the queue's is the rest."""
    clock = iter(range(100))
    monkeypatch.setattr(tracing.time, "perf_counter", lambda: 1.0 * next(clock))
    with tracing.request("a test", "") as course, tracing.Turn() as turn:
        moments = [turn._since]
        for step in (turn.went, turn.went, turn.came, turn.came, turn.went):
            next(clock)
            step()
            moments.append(turn._since)
    monkeypatch.undo()

    first, out, _, _, back, again = moments
    assert course.phases["queue"] == (out - first) + (again - back)
    assert course.phases["triton"] == (back - out) + 1


def test_who_leaves_the_queue_is_told_no_more():
    """A request that ends while it waits has been in the queue only; a call of before that goes out changes nothing."""
    with tracing.request("a test", "") as course:
        with suppress(TimeoutError), tracing.Turn() as turn:
            time.sleep(0.02)
            raise TimeoutError
        turn.went()
        turn.came()

    assert set(course.phases) == {"queue"}
    assert course.phases["queue"] >= 0.02


@pytest.mark.parametrize(
    "text",
    ["", "nothing", PARENT.upper(), PARENT + "-x", f"00-{'0' * 32}-00f067aa0ba902b7-01", "00-\u00e9", "x" * 10_000],
)
def test_a_traceparent_of_another_form_counts_as_none(text):
    """What is no trace of version 00 is neither logged nor handed on, and refuses nobody."""
    with tracing.request("a test", text):
        assert tracing.given() == ""
        with tracing.Turn() as turn:
            assert tracing.carried([turn]) == ()


class Collector(BaseHTTPRequestHandler):
    """An OTLP collector that keeps the spans it is sent."""

    spans: list = []  # noqa: RUF012 - of the one collector of this module

    def do_POST(self):
        """One batch."""
        sent = ExportTraceServiceRequest()
        sent.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.spans += [span for one in sent.resource_spans for own in one.scope_spans for span in own.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments):
        """Say nothing."""


@pytest.fixture
def collector(monkeypatch):
    """The address of a collector is in the environment, and spans are sent soon."""
    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    tracing._tracer.cache_clear()
    yield Collector.spans
    tracing._tracer.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_request_and_its_phases_are_spans_of_the_callers_trace(tmp_path, collector):
    """With a collector a request is a server span below the caller's, its phases below it, and Triton's call below."""
    with gateway(tmp_path) as (http, settings, heard):
        http.post(PREDICT, json={"rows": ROWS}, headers={"traceparent": PARENT})

        found = {span.name: span for span in until(lambda: len(collector) >= 6 and collector)}
        server = found[f"POST {PREDICT}"]
        assert {span.trace_id.hex() for span in found.values()} == {TRACE}
        assert server.parent_span_id.hex() == PARENT.split("-")[2]
        assert {name for name, span in found.items() if span.parent_span_id == server.span_id} == {
            "read",
            "queue",
            "encode",
            "triton",
            "log",
        }
        assert re.split("-", heard[-1]["traceparent"])[2] == found["triton"].span_id.hex()
        assert lines(settings)[0]["traceparent"] == PARENT


def test_a_collector_that_is_away_costs_nobody_an_answer(tmp_path, monkeypatch):
    """Spans that nobody takes are dropped behind the answers."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing._tracer.cache_clear()
    try:
        with gateway(tmp_path) as (http, _settings, _heard):
            assert http.post(PREDICT, json={"rows": ROWS}).status_code == 200
    finally:
        tracing._tracer.cache_clear()
