"""The trickle of live traffic, against a gateway with a pretended Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import polars as pl
import pytest

from embedded import traffic
from pipelines.cases import load_fields, part
from pipelines.contracts import Window
from pipelines.errors import Unavailable
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop
from tests.serving.gateway.world import client, fake_triton, lines, make_home, release, until

NOW = datetime(2024, 5, 20, 15, 30, tzinfo=UTC)
DELAY = timedelta(days=load_params("loans").label_delay_days)


@pytest.fixture
def served(tmp_path):
    """``(http, settings)`` of a gateway whose loans have a champion."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            yield http, settings


def stream(settings, start, end):
    """The rows of the stream in ``[start, end)``."""
    params = load_params("loans")
    source = part("loans", "source")
    return source.rows(source.resolve(settings, params), Window(start=start, end=end), params)


def ids(settings, kind="predictions"):
    """The ids of the log, one per line, sorted."""
    return sorted(line["prediction_id"] for line in lines(settings, kind))


def test_a_first_start_sends_the_last_days_and_their_labels(served):
    """The first call sends every row of the last whole days and of today so far, in event time.

    With them it sends exactly the labels that are due.
    """
    http, settings = served
    since = datetime(2024, 5, 20, tzinfo=UTC) - timedelta(days=traffic.BACKFILL_DAYS)
    assert traffic.advance(settings, http, "loans", NOW) == (len(ids(settings)), len(ids(settings, "labels")))
    sent = stream(settings, since, NOW)
    assert ids(settings) == sorted(sent["id"])
    times = dict(zip(sent["id"], sent["event_time"], strict=True))
    assert all(datetime.fromisoformat(line["event_time"]) == times[line["prediction_id"]] for line in lines(settings))
    due = stream(settings, since, NOW - DELAY)
    assert ids(settings, "labels") == sorted(due["id"])
    labels = dict(zip(due["id"], due["granted"], strict=True))
    assert all(line["label"] == labels[line["prediction_id"]] for line in lines(settings, "labels"))
    assert all(
        datetime.fromisoformat(line["event_time"]) == times[line["prediction_id"]] + DELAY
        for line in lines(settings, "labels")
    )


def test_later_calls_send_only_what_is_new(served):
    """The same moment again sends nothing.

    Hours later come exactly the rows and labels of these hours, in one piece or in several.
    """
    http, settings = served
    traffic.advance(settings, http, "loans", NOW)
    assert traffic.advance(settings, http, "loans", NOW) == (0, 0)
    for hours in (1, 2, 9):
        traffic.advance(settings, http, "loans", NOW + timedelta(hours=hours))
    since = datetime(2024, 5, 20, tzinfo=UTC) - timedelta(days=traffic.BACKFILL_DAYS)
    assert ids(settings) == sorted(stream(settings, since, NOW + timedelta(hours=9))["id"])
    assert ids(settings, "labels") == sorted(stream(settings, since, NOW + timedelta(hours=9) - DELAY)["id"])


def test_a_lost_place_changes_nothing_in_the_log_of_predictions(served):
    """With its state file gone everything is sent again and no row is logged twice."""
    http, settings = served
    traffic.advance(settings, http, "loans", NOW)
    before = ids(settings)
    traffic.place_file(settings, "loans").unlink()
    traffic.advance(settings, http, "loans", NOW)
    assert ids(settings) == before


def test_it_waits_for_a_champion_and_for_the_gateway(tmp_path):
    """Without a champion, and without a gateway, nothing is skipped.

    The call says that it waits, and the next one starts where it stood.
    """
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        with client(settings) as http:
            with pytest.raises(Unavailable, match="no champion yet"):
                traffic.advance(settings, http, "loans", NOW)
            assert not traffic.place_file(settings, "loans").exists()
        with pytest.raises(Unavailable, match="does not answer"):
            traffic.advance(settings, httpx.Client(base_url="http://127.0.0.1:1", trust_env=False), "loans", NOW)
        release(settings, 1)
        with client(settings) as http:
            traffic.advance(settings, http, "loans", NOW)
        triton.loaded.clear()
        with client(settings) as http, pytest.raises(Unavailable):
            traffic.advance(settings, http, "loans", NOW + timedelta(hours=3))
        triton.loaded.add(1)
        with client(settings) as http:
            traffic.advance(settings, http, "loans", NOW + timedelta(hours=4))
    since = datetime(2024, 5, 20, tzinfo=UTC) - timedelta(days=traffic.BACKFILL_DAYS)
    assert ids(settings) == sorted(stream(settings, since, NOW + timedelta(hours=4))["id"])


def test_the_process_waits_quietly_and_ends_at_once(tmp_path):
    """Without a gateway the process says once that it waits, and SIGTERM ends it with exit code 0."""
    make_home(tmp_path)
    log = tmp_path / "traffic.log"
    env = {**os.environ, "PERENNIAL_HOME": str(tmp_path), "PERENNIAL_GATEWAY_URL": "http://127.0.0.1:1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedded.traffic"], env=env, stderr=file, cwd=Path(__file__).parents[2]
        )
    try:
        until(lambda: b"waiting" in log.read_bytes(), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert log.read_bytes().count(b"waiting") == 1
    finally:
        process.kill()


def test_texts_go_in_small_batches_and_their_labels_as_class_names(tmp_path, monkeypatch):
    """A text case's rows are sent some at a time, as the gateway waits only seconds for a transformer.

    Its labels are sent by the classes' names.
    """
    fields = load_fields("triage")
    count = 100
    posted = []
    moments = [NOW - timedelta(minutes=count - number) for number in range(count)]
    frame = pl.DataFrame(
        {"id": [f"r{number}" for number in range(count)], "event_time": moments, "text": ["heap overflow"] * count}
    )
    frame = frame.with_columns(
        pl.Series(fields.label, [number % len(fields.classes) for number in range(count)], pl.Int8),
        label_time=pl.col("event_time"),
    )
    stream = SimpleNamespace(resolve=lambda *_: None, rows=lambda *_: frame)
    monkeypatch.setattr(traffic, "part", lambda *_: stream)

    def take(request):
        posted.append(json.loads(request.content))
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(take), base_url="http://gateway") as http:
        assert traffic.advance(Settings(home=tmp_path), http, "triage", NOW) == (count, count)
    rows = [body["rows"] for body in posted if "rows" in body]
    assert max(map(len, rows)) == traffic.BATCH_TEXTS
    assert [item for batch in rows for item in batch] == [
        {"prediction_id": row["id"], "event_time": row["event_time"].isoformat(), "text": row["text"]}
        for row in frame.to_dicts()
    ]
    labels = [item["label"] for body in posted for item in body.get("labels", [])]
    assert labels == [fields.classes[number % len(fields.classes)] for number in range(count)]


def test_it_is_known_when_all_that_was_due_is_sent(served):
    """Nothing is caught up before the first call or at half of it.

    After it everything up to midnight is, also right after midnight, before the day's first row.
    """
    http, settings = served
    midnight = datetime(2024, 5, 20, tzinfo=UTC)
    assert not traffic.caught_up(settings, "loans", midnight)
    traffic.advance(settings, http, "loans", midnight - timedelta(hours=7))
    assert not traffic.caught_up(settings, "loans", midnight)
    traffic.advance(settings, http, "loans", midnight + timedelta(seconds=1))
    assert traffic.read_place(settings, "loans", midnight).rows < midnight
    assert traffic.caught_up(settings, "loans", midnight)


def test_a_broken_case_stops_its_own_traffic_only(tmp_path, monkeypatch, caplog):
    """A source that raises is said with its line and the other cases go on.

    A case that is broken or comes later is left out and taken up.
    """
    sent = []
    rounds = []

    def advance(settings, gateway, case, now):
        part(case, "source").rows(None, None, None)
        sent.append(case)
        return 1, 0

    def pause(_seconds):
        rounds.append(len(sent))
        if len(rounds) == 2:
            raise KeyboardInterrupt
        shop.edit(root / "lamp" / "schema.py", ("FELDER", "FIELDS"))

    monkeypatch.setattr(traffic, "advance", advance)
    monkeypatch.setattr(traffic, "_client", lambda _settings: nullcontext())
    monkeypatch.setattr(traffic.time, "sleep", pause)
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk", "lamp"):
            folder = shop.write(root, name)
            shop.edit(folder / "params.yaml", ("live: false", "live: true"))
            (folder / "source.py").write_text(
                "def resolve(settings, params): ...\ndef rows(source, window, params):\n    return "
                f"{int(name != 'shop')} / {int(name != 'shop')}\n"
            )
        shop.edit(root / "lamp" / "schema.py", ("FIELDS", "FELDER"))
        with pytest.raises(KeyboardInterrupt):
            traffic.run(Settings(home=tmp_path))
    assert sent == ["desk", "desk", "lamp"]
    assert [
        record.message
        for record in caplog.records
        if "shop" in record.message and "division by zero" in record.message and "source.py, line 3" in record.message
    ]


def test_a_truth_that_never_came_is_not_sent(served, monkeypatch):
    """Rows whose label is null go to the gateway, and no label of theirs does, now or later."""
    http, settings = served
    source = part("loans", "source")

    def half_known(*arguments):
        rows = source.rows(*arguments)
        known = pl.col("id").str.ends_with("0")
        return rows.with_columns(pl.when(known).then(pl.col("granted")).alias("granted"))

    monkeypatch.setattr(traffic, "part", lambda *_: SimpleNamespace(resolve=source.resolve, rows=half_known))
    rows, labels = traffic.advance(settings, http, "loans", NOW)
    due = stream(settings, NOW - timedelta(days=traffic.BACKFILL_DAYS), NOW - DELAY)
    known = {id_ for id_ in due["id"] if id_.endswith("0")}
    sent = set(ids(settings, "labels"))
    assert rows > len(due)
    assert labels == len(sent) > 0
    assert all(id_.endswith("0") for id_ in sent)
    assert known <= sent
