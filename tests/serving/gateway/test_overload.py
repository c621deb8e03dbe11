"""More than can be answered in time: it is refused at once, and nobody else is the worse for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from pipelines.cases import file_of
from serving.gateway.scoring import promised
from tests.serving.gateway.world import (
    PREDICT,
    Scores,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)


class Paced(Scores):
    """A Triton that takes ``seconds`` for a call of loans."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.versions = []
        self.go = threading.Event()

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        if request.model_name == "loans":
            self.versions.append(int(request.model_version))
            self.go.wait(self.seconds)
        return super().ModelInfer(request, context)


@contextmanager
def gateway(folder, monkeypatch, triton, serving, cases=("loans",), **bounds):
    """``(http, settings)`` of a gateway whose case loans is served as ``serving`` says; its releases are 1 and 2."""
    params = folder / "params"
    params.mkdir()
    own = yaml.safe_load(file_of("loans", "params.yaml").read_text())
    (params / "loans.yaml").write_text(yaml.safe_dump(own | {"serving": serving}))
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(params))
    with fake_triton(servicer=triton) as (_, port):
        settings = make_home(folder / "home", port)
        for case in cases:
            release(settings, 1, case=case)
        release(settings, 2)
        with client(settings, **bounds) as http:
            yield http, settings


def test_who_would_wait_longer_than_is_promised_is_told_at_once(tmp_path, monkeypatch):
    """While the rows of a slow champion wait for longer than the SLO, further ones are 503 with Retry-After at once.

    They are no matter for the previous release, and none is in the log; the case stays ready, and afterwards all is as
    before.
    """
    triton = Paced(0.2)
    row = some_rows(1)
    with gateway(tmp_path, monkeypatch, triton, {"slo": {"p99_ms": 1000}}) as (http, settings):
        assert http.post(PREDICT, json={"rows": row}).status_code == 200

        def one(number):
            time.sleep(number * 0.01)
            return http.post(PREDICT, json={"rows": row * 600})

        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(one, number) for number in range(40)]
            time.sleep(0.3)
            assert http.get("/readyz", params={"every": "true"}).status_code == 200
            found = [one.result() for one in asked]
        good = [answer for answer in found if answer.status_code == 200]
        late = [answer for answer in found if answer.status_code != 200]
        assert len(good) >= 2
        assert len(late) > 10
        for answer in late:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert "as long as is promised" in answer.json()["error"]
        # Some were refused before their rows were read, and count as one.
        assert len(late) <= counted(http, "refused_rows_total", case="loans", reason="overload") <= 600 * len(late)
        assert set(triton.versions) == {2}
        assert len(lines(settings)) == 1 + 600 * len(good)
        assert http.post(PREDICT, json={"rows": row}).status_code == 200


def test_a_case_whose_lane_refuses_leaves_the_others_as_they_are(tmp_path, monkeypatch):
    """While one case turns requests away, another one is answered, and the worker and both cases are ready."""
    triton = Paced(0.3)
    rows = some_rows(1)
    both = ("loans", "bank")
    with gateway(tmp_path, monkeypatch, triton, {"slo": {"p99_ms": 300}}, both, ready_seconds=0.0) as (http, _):
        assert http.post(PREDICT, json={"rows": rows}).status_code == 200
        stop = threading.Event()

        def storm():
            found = []
            while not stop.is_set():
                found.append(http.post(PREDICT, json={"rows": rows}).status_code)
            return found

        with ThreadPoolExecutor(4) as pool:
            storms = [pool.submit(storm) for _ in range(4)]
            try:
                until(lambda: counted(http, "refused_rows_total", case="loans", reason="overload") > 20)
                ready = http.get("/readyz", params={"every": "true"})
                model = http.get("/v2/models/loans/ready")
            finally:
                stop.set()
            found = [status for one in storms for status in one.result()]
        assert (ready.status_code, model.status_code) == (200, 200), ready.text
        assert set(found) == {200, 503}


def test_without_a_promise_the_deadline_is_the_bound(tmp_path, monkeypatch):
    """Where no SLO is declared, who would wait beyond the deadline is refused at once; nobody waits to fail."""
    triton = Paced(0.8)
    with gateway(tmp_path, monkeypatch, triton, {"deadline_seconds": 6.0}) as (http, _):
        rows = some_rows(1) * 800
        assert http.post(PREDICT, json={"rows": rows}).status_code == 200
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: http.post(PREDICT, json={"rows": rows}), range(12)))
    statuses = [answer.status_code for answer in found]
    assert statuses.count(200) >= 1
    assert all("as long as is promised" in answer.json()["error"] for answer in found if answer.status_code == 503)
    assert set(statuses) == {200, 503}


def test_a_storm_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Once a request was turned away the next ones are before their bodies are looked at, until there is time again."""
    triton = Paced(0.5)
    row = some_rows(1)
    with gateway(tmp_path, monkeypatch, triton, {"slo": {"p99_ms": 600}}) as (http, _), ThreadPoolExecutor(4) as pool:
        assert http.post(PREDICT, json={"rows": row}).status_code == 200
        assert http.post(PREDICT, content=b"no JSON").status_code == 400
        going = [pool.submit(http.post, PREDICT, json={"rows": row}) for _ in range(4)]
        until(lambda: counted(http, "refused_rows_total", case="loans", reason="overload"))
        found = [http.post(PREDICT, content=b"no JSON").status_code for _ in range(20)]
        assert 503 in found
        until(lambda: http.post(PREDICT, content=b"no JSON").status_code == 400)
        assert http.post(PREDICT, json={"rows": row}).status_code == 200
        assert {one.result().status_code for one in going} == {200, 503}


@pytest.mark.parametrize(
    ("p99_ms", "spent", "granted", "left"),
    [
        (None, 0.0, 5.0, 3.5),
        (1000, 0.0, 5.0, 0.7),
        (1000, 0.5, 5.0, 0.2),
        (1000, 9.0, 5.0, 0.0),
        (60_000, 0.0, 5.0, 3.5),  # nobody who is let in shall miss the deadline
    ],
)
def test_a_promise_leaves_room_and_ends_before_the_deadline(p99_ms, spent, granted, left):
    """Scores may take seven tenths of what is promised, less what reading took, and of what the deadline grants."""
    now = time.monotonic()
    received = datetime.now(UTC) - timedelta(seconds=spent)
    assert promised(p99_ms, received, now + granted) - now == pytest.approx(left, abs=0.05)
