"""Rows that were refused are counted beside the log, by reason and field, without what they held."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.contracts import Window
from pipelines.data import log as prediction_log
from pipelines.params import EventTimes
from pipelines.segments import adopt
from serving.gateway.log import Log
from serving.gateway.refusal import Refused
from serving.gateway.refusals import Tally, hours
from tests.serving.gateway.world import (
    LABELS,
    PREDICT,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

ROOT = Path(__file__).parents[3]
SECRET = "nobody-may-keep-this"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
BAD = Refused(422, "category", "row 0: education: unknown category", field="education", rows=1)


@pytest.fixture
def home(tmp_path):
    """A state folder with a champion, and the gateway on it."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 2)
        with client(settings) as http:
            yield settings, http


def refused(settings) -> Counter:
    """Rows by hour, version, reason and field."""
    found: Counter = Counter()
    for line in lines(settings, "refusals"):
        key = (datetime.fromisoformat(line["hour"]), line["version"], line["reason"], line["field"])
        found[key] += line["rows"]
    return found


def test_rows_are_counted_in_the_hour_of_their_event(home):
    """All rows of a refused request count, each in its hour, under the first problem; nothing they held is kept."""
    settings, http = home
    times = [NOON + timedelta(minutes=40 * number) for number in range(3)]
    rows = [{**row, "event_time": time.isoformat()} for row, time in zip(some_rows(3), times, strict=True)]
    rows[1]["education"] = SECRET
    assert http.post(PREDICT, json={"rows": rows}).status_code == 422
    assert http.post(PREDICT, json={"rows": some_rows(2)}).status_code == 200
    until(lambda: lines(settings, "refusals"))
    assert refused(settings) == {
        (NOON, 2, "category", "education"): 2,
        (NOON + timedelta(hours=1), 2, "category", "education"): 1,
    }
    [arm] = {line["arm"] for line in lines(settings, "refusals")}
    assert arm == "champion"
    assert SECRET not in json.dumps(lines(settings, "refusals"))
    assert len(lines(settings)) == counted(http, "rows_total") == 2
    until(lambda: counted(http, "log_lines_total", kind="refusals") == 2)


def test_what_is_no_matter_of_rows_is_not_counted(home):
    """Wrong keys, broken JSON, bodies without a row, too many rows, conflicts and labels are no refused rows."""
    settings, http = home
    row = some_rows(1)[0]
    named = {**row, "prediction_id": "a"}
    assert http.post(PREDICT, json={"rows": [{**row, "age": -1}]}, headers={"X-API-Key": "no"}).status_code == 401
    for text in (b"{", b'{"rows": []}', b'{"rows": 3}', b'{"lines": [{}]}', b'{"rows": [{"age": 1]}'):
        assert http.post(PREDICT, content=text).status_code in (400, 422)
    assert http.post(PREDICT, json={"rows": [row] * 10_001}).status_code == 422
    assert http.post(PREDICT, json={"rows": [named]}).status_code == 200
    assert http.post(PREDICT, json={"rows": [{**named, "age": 99}]}).status_code == 409
    assert http.post(LABELS, json={"labels": [{"prediction_id": "a", "label": 7}]}).status_code == 422
    assert http.post(PREDICT, json={"rows": [row], "more": 1}).status_code == 422
    until(lambda: lines(settings, "refusals"))
    [(_, version, reason, field)] = refused(settings)
    assert (version, reason, field, refused(settings).total()) == (2, "shape", "", 1)


def test_rows_that_come_as_tensors_are_counted_too(home):
    """A value that is not allowed, and a tensor of another shape, refuse all rows of a request over /v2."""
    settings, http = home
    rows = some_rows(3)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    inputs = [
        {"name": name, "shape": [3], "datatype": "BYTES" if isinstance(values[0], str) else "FP64", "data": values}
        for name, values in columns.items()
    ]
    of = {one["name"]: one for one in inputs}
    of["education"]["data"] = [SECRET] * 3
    moment = NOON.isoformat()
    when = {"name": "event_time", "shape": [3], "datatype": "BYTES", "data": [moment] * 3}
    assert http.post("/v2/models/loans/infer", json={"inputs": [*inputs, when]}).status_code == 422
    of["age"]["shape"], of["age"]["data"] = [3, 2], [1.0] * 6
    assert http.post("/v2/models/loans/infer", json={"inputs": inputs}).status_code == 422
    until(lambda: refused(settings).total() == 6)
    assert refused(settings)[NOON, 2, "category", "education"] == 3
    assert {key[2:] for key in refused(settings)} == {("category", "education"), ("shape", "age")}


def test_an_unknown_fields_name_is_not_kept(home):
    """A name that nobody declared is the client's, and may hold anything."""
    settings, http = home
    assert http.post(PREDICT, json={"rows": [{**some_rows(1)[0], "secret_name": 1}]}).status_code == 422
    until(lambda: lines(settings, "refusals"))
    assert "secret" not in json.dumps(lines(settings, "refusals"))
    assert [key[2:] for key in refused(settings)] == [("unknown_field", "")]


def test_a_gateway_that_stops_or_is_asked_leaves_closed_and_sealed_counts(tmp_path):
    """What was counted is in a closed segment with a seal once a step asked, and once a gateway has stopped.

    Compacted twice it counts once, and the counts of two workers add up.
    """
    window = Window(start=NOON, end=NOON + timedelta(hours=1))
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 2)
        bad = [{**row, "event_time": NOON.isoformat(), "age": -1} for row in some_rows(2)]
        good = [{**row, "event_time": NOON.isoformat()} for row in some_rows(5)]
        for _ in range(2):
            with client(settings) as http:
                assert http.post(PREDICT, json={"rows": bad}).status_code == 422
                assert http.post(PREDICT, json={"rows": good}).status_code == 200
                until(lambda: lines(settings, "refusals"))
                prediction_log.catch_up(settings, "loans", window)
    folder = settings.prediction_log / "loans" / "refusals"
    assert len(list(folder.glob("*.jsonl"))) == len(list(folder.glob("*.sha256"))) == 2
    prediction_log.compact(settings, "loans")
    assert prediction_log.compact(settings, "loans") == 0
    found = prediction_log.arrived(settings, "loans", window)
    assert found.answered == {NOON: 10}
    assert [(one.hour, one.version, one.field, one.reason, one.rows) for one in found.refused] == [
        (NOON, 2, "age", "bounds", 4)
    ]
    later = Window(start=window.end, end=window.end + timedelta(hours=1))
    assert prediction_log.arrived(settings, "loans", later).refused == ()


KILLED = """
import os, signal, sys
from datetime import datetime, UTC
from pathlib import Path
from serving.gateway.log import Log
from serving.gateway.refusal import Refused
from serving.gateway.refusals import Tally
log = Log(Path({folder!r}), "worker", max_bytes=2**20, max_seconds=3600.0, on_error=lambda: None)
tally, error = Tally(), Refused(422, "bounds", "", field="age", rows=1)
tally.add({{datetime(2024, 3, 1, tzinfo=UTC): 3}}, 1, error)
tally.write(log)
tally.add({{datetime(2024, 3, 1, tzinfo=UTC): 4}}, 1, error)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_loses_what_it_had_not_written(tmp_path):
    """Lines of before the kill are whole and taken up; what was counted since the last tick is gone."""
    run = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], cwd=ROOT, check=False)
    assert run.returncode == -9
    assert adopt(tmp_path) == 1
    [path] = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["rows"] for line in path.read_text().splitlines()] == [3]


def test_counts_wait_for_a_log_that_cannot_be_written(tmp_path, monkeypatch):
    """A full disk loses no count: it is written once there is room, once."""
    log = Log(tmp_path, "worker", max_bytes=2**20, max_seconds=3600.0, on_error=lambda: None)
    tally = Tally()
    tally.add({NOON: 3}, 1, BAD)
    with monkeypatch.context() as full:
        full.setattr("serving.gateway.log.os.write", lambda _fd, _data: (_ for _ in ()).throw(OSError(28, "full")))
        assert tally.write(log) == tally.write(log) == 0
    tally.add({NOON: 2}, 1, BAD)
    asyncio.run(log.tick())
    assert (tally.write(log), tally.write(log)) == (1, 0)
    asyncio.run(log.close())
    [path] = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["rows"] for line in path.read_text().splitlines()] == [5]


RECEIVED = datetime(2024, 5, 7, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "rows", "found"),
    [
        (b'[{"event_time": "2024-05-07T08:59:59Z"}, {"event_time":"2024-05-07T10:59:59+02:00"}]', 2, {8: 2}),
        (b'[{"event_time": "2024-05-07T07:00:00Z", "x": NaN}, {"x": 1}]', 2, {7: 1, 9: 1}),
        (b'[{"event_time": "yesterday at noon"}]', 1, {9: 1}),
        (b'[{"event_time": "2024-05-07T07:00:00"}]', 1, {9: 1}),
        (b'[{"event_time": "9999-12-31T23:59:59Z"}]', 1, {9: 1}),
        (b'[{"event_time": 1715068800}]', 1, {9: 1}),
        (b'[{"text": "\\"event_time\\": \\"2024-05-07T07:00:00Z\\""}]', 1, {9: 1}),
        (b'[{"event_time": "2024-05-07T07:00:00Z", "event_time": "2024-05-07T07:00:00Z"}]', 1, {7: 1}),
        (b"", 3, {9: 3}),
    ],
)
def test_an_event_time_counts_where_it_can_be_read(body, rows, found):
    """Rows count in the hour that they name, in UTC, else in that of their receipt, and each of them once."""
    counts = hours(body, rows, EventTimes(), RECEIVED)
    assert {hour.hour: count for hour, count in counts.items()} == found
    assert all(hour.date() == RECEIVED.date() for hour in counts)
