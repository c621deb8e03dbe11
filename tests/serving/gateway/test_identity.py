"""One answer per prediction_id, whoever asks, whenever, and however often."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from pipelines import segments
from serving.gateway.identity import Answer, Index
from serving.gateway.log import Log, Position
from tests.serving.gateway.world import PREDICT, client, counted, fake_triton, lines, make_home, release, some_rows


def named(count, prefix, **extra):
    """Rows with ids of the client's making."""
    return [{**row, "prediction_id": f"{prefix}-{number}", **extra} for number, row in enumerate(some_rows(count))]


def logged(settings, prefix):
    """The ids of the log that start with ``prefix``, one per line."""
    return [line["prediction_id"] for line in lines(settings) if line["prediction_id"].startswith(prefix)]


def test_a_repeated_id_gets_the_first_answer(world):
    """The same rows sent again get the same answers, are not scored, and are in the log once."""
    rows = named(3, "again")
    first = world.http.post(PREDICT, json={"rows": rows}).json()["rows"]
    scored = world.triton.rows
    for _ in range(2):
        assert world.http.post(PREDICT, json={"rows": rows}).json()["rows"] == first
    assert world.triton.rows == scored
    assert logged(world.settings, "again") == ["again-0", "again-1", "again-2"]


def test_known_and_new_rows_mix(world):
    """A request of known, new and unnamed rows answers all in order; only what is new is logged."""
    known = named(2, "mixed")
    first = world.http.post(PREDICT, json={"rows": known}).json()["rows"]
    rows = [some_rows(3)[2], known[1], *named(4, "mixed")[3:], known[0]]
    before = len(lines(world.settings))
    said = world.http.post(PREDICT, json={"rows": rows}).json()["rows"]
    assert [said[1], said[3]] == [first[1], first[0]]
    assert said[2]["prediction_id"] == "mixed-3"
    assert len(lines(world.settings)) == before + 2


@pytest.mark.parametrize("change", [{"age": 33}, {"education": "school"}, {"event_time": "2024-01-02T00:00:00Z"}])
def test_other_content_under_a_known_id_is_a_conflict(world, change):
    """Other features, or another event time, under a known id are a 409 that names the row.

    Nothing of the request is logged.
    """
    rows = named(2, f"conflict-{next(iter(change))}", event_time="2024-01-01T00:00:00Z")
    world.http.post(PREDICT, json={"rows": rows[1:]})
    before = len(lines(world.settings))
    answer = world.http.post(PREDICT, json={"rows": [rows[0], {**rows[1], **change}]})
    assert (answer.status_code, answer.json()["row"], answer.json()["field"]) == (409, 1, "prediction_id")
    assert len(lines(world.settings)) == before


def test_an_index_of_another_format_is_made_anew(tmp_path):
    """An index that an older gateway left, with other columns, is replaced by one from the log.

    Known ids keep their answer, new ones are taken.
    """
    rows = named(3, "old")
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            first = http.post(PREDICT, json={"rows": rows[:2]}).json()["rows"]
        path = settings.root / "gateway" / "loans.ids.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(
                "DROP TABLE answers; CREATE TABLE answers (id TEXT PRIMARY KEY, score REAL); UPDATE facts SET value = "
                "'0' WHERE name = 'format'"
            )
        with client(settings) as http:
            said = http.post(PREDICT, json={"rows": rows}).json()["rows"]
        assert said[:2] == first
        assert sorted(logged(settings, "old")) == ["old-0", "old-1", "old-2"]


def test_the_same_moment_in_another_zone_is_no_conflict(world):
    """An event time is compared as a moment, and a repeat may leave it out."""
    row = named(1, "zone")[0]
    first = world.http.post(PREDICT, json={"rows": [{**row, "event_time": "2024-01-01T00:00:00Z"}]}).json()["rows"]
    assert (
        world.http.post(PREDICT, json={"rows": [{**row, "event_time": "2024-01-01T02:00:00+02:00"}]}).json()["rows"]
        == first
    )
    assert world.http.post(PREDICT, json={"rows": [row]}).json()["rows"] == first


def test_an_id_twice_in_one_request_is_one_row(world):
    """Within a request the same rule holds.

    Equal rows are one line and one answer, different ones a 409 that names the later.
    """
    row, other = named(2, "twice")
    said = world.http.post(PREDICT, json={"rows": [row, other, row]}).json()["rows"]
    assert said[0] == said[2]
    assert logged(world.settings, "twice") == ["twice-0", "twice-1"]
    changed = world.http.post(
        PREDICT, json={"rows": [{**row, "prediction_id": "thrice"}, {**other, "prediction_id": "thrice"}]}
    )
    assert (changed.status_code, changed.json()["row"]) == (409, 1)
    assert logged(world.settings, "thrice") == []


def test_a_known_id_is_answered_without_a_model(tmp_path):
    """When nothing can score, a repeat still gets its first answer and a new row its 503."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            rows = named(1, "calm")
            first = http.post(PREDICT, json={"rows": rows}).json()["rows"]
            triton.loaded.clear()
            assert http.post(PREDICT, json={"rows": rows}).json()["rows"] == first
            assert http.post(PREDICT, json={"rows": named(1, "new")}).status_code == 503


def _lose(path):
    path.unlink()


def _damage(path):
    path.write_bytes(b"this is no database" * 100)


def _damage_inside(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


def _keep(path):
    assert path.exists()


@pytest.mark.parametrize("fate", [_keep, _lose, _damage, _damage_inside])
def test_a_restart_remembers_the_answers(tmp_path, fate):
    """After a restart, the champion being another, ids get their first answer and version.

    From the index, or from the log when the index is gone or broken.
    """
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        rows = named(5, "kept")
        with client(settings) as http:
            first = http.post(PREDICT, json={"rows": rows}).json()["rows"]
        release(settings, 2)
        fate(tmp_path / "gateway" / "loans.ids.db")
        with client(settings) as http:
            assert http.post(PREDICT, json={"rows": rows}).json()["rows"] == first
            assert http.post(PREDICT, json={"rows": [{**rows[0], "age": 99}]}).status_code == 409
            assert http.post(PREDICT, json={"rows": named(1, "later")}).json()["rows"][0]["version"] == 2
        assert len(logged(settings, "kept")) == 5


@pytest.mark.parametrize("damage", [_damage, _damage_inside])
def test_workers_that_start_on_a_damaged_index_share_the_one_that_is_made_anew(tmp_path, damage):
    """Eight that start at once find what each of them keeps: none goes on with a file that another one has removed."""
    path, log = tmp_path / "gateway" / "loans.ids.db", tmp_path / "log"
    log.mkdir()
    ready = threading.Barrier(8)

    def start(_):
        ready.wait()
        index = Index(path, log, ["age"])
        index.catch_up()
        return index

    for _ in range(5):
        with closing(Index(path, log, ["age"])) as index:
            index.catch_up()
        damage(path)
        with ThreadPoolExecutor(8) as pool:
            workers = list(pool.map(start, range(8)))
        with ExitStack() as stack:
            for worker in workers:
                stack.enter_context(closing(worker))
            for number, worker in enumerate(workers):
                asyncio.run(worker.begin())
                with worker.writing():
                    worker.remember([Answer(f"id-{number}", b"", 0, 0, 1, 1, 0.5)], Position("one.jsonl", 0, 0))
            ids = [f"id-{number}" for number in range(8)]
            assert [sorted(worker.find(ids)) for worker in workers] == [ids] * 8


def test_lines_beyond_the_index_are_found_at_the_start(tmp_path):
    """A line that was logged just before a crash, and so is missing in the index, is found when a worker starts.

    A torn one is cut off.
    """
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            http.post(PREDICT, json={"rows": named(1, "whole")})
        line = {**lines(settings)[0], "prediction_id": "late-0"}
        torn = json.dumps({**line, "prediction_id": "torn-0"})[:-9]
        left = settings.prediction_log / "loans" / "predictions" / "dead-000001.jsonl.open"
        left.write_text(json.dumps(line) + "\n" + torn)
        with client(settings) as http:
            assert http.post(PREDICT, json={"rows": named(1, "late")}).json()["rows"][0]["score"] == line["score"]
            assert http.post(PREDICT, json={"rows": named(1, "torn")}).status_code == 200
        assert logged(settings, "late") == ["late-0"]
        assert left.with_suffix("").read_text() == json.dumps(line) + "\n"


def answered_line(settings):
    """The line of the log's first row, which a gateway has answered that has ended since."""
    with client(settings) as http:
        http.post(PREDICT, json={"rows": named(1, "whole")})
    [line] = lines(settings)
    return line


def test_rows_that_are_not_in_the_log_yet_are_not_known(tmp_path):
    """What an import has not put in its place, and may never, is no answer: its row is answered and logged."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        line = answered_line(settings)
        beside = settings.prediction_log / "loans" / "predictions" / ".import-000001.jsonl.open"
        beside.write_text(json.dumps(line | {"prediction_id": "before-0", "version": 0}) + "\n")
        with client(settings) as http:
            assert http.post(PREDICT, json={"rows": named(1, "before")}).json()["rows"][0]["version"] == 1
        assert logged(settings, "before") == ["before-0"]


def test_a_worker_starts_while_others_close_their_segments(tmp_path):
    """A segment that is closed, or begun, or removed as it is empty, while an index is made keeps no worker away."""
    own = Log(tmp_path / "log", "other", max_bytes=1, max_seconds=3600.0, on_error=lambda: None)
    ended = threading.Event()

    def work():
        while not ended.is_set():
            own.undo(own.append(b"{}\n"))
            own.append(b"{}\n")
            asyncio.run(own.close())

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(100):
            with closing(Index(tmp_path / "gateway" / f"{number % 3}.ids.db", tmp_path / "log", ["age"])) as index:
                index.catch_up()
    finally:
        ended.set()
        worker.join()


def test_an_imported_row_is_answered_by_what_was_imported_or_else_anew(tmp_path):
    """An id of a row that was answered elsewhere gets that answer; of one that nobody answered, the champion's."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        line = answered_line(settings)
        answered = line | {"prediction_id": "before-0", "version": 0, "score": 0.125, "prediction": 0}
        nobody = answered | {"prediction_id": "nobody-0", "score": None, "prediction": None}
        folder = settings.prediction_log / "loans" / "predictions"
        text = "".join(json.dumps(one) + "\n" for one in (answered, nobody))
        segments.put([(folder / "import-000001.jsonl", [text.encode()])])
        with client(settings) as http:
            assert http.post(PREDICT, json={"rows": named(1, "before")}).json()["rows"][0]["score"] == 0.125
            assert http.post(PREDICT, json={"rows": named(1, "nobody")}).json()["rows"][0]["version"] == 1


def test_an_index_ahead_of_the_log_is_made_anew(tmp_path):
    """Answers that the log has lost (a power cut) are not believed: their rows are scored and logged again."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            http.post(PREDICT, json={"rows": named(2, "lost")})
        (path,) = (settings.prediction_log / "loans" / "predictions").glob("*.jsonl")
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(b"\n") + 1])
        with client(settings) as http:
            assert http.post(PREDICT, json={"rows": named(2, "lost")}).status_code == 200
        # Each once; the segments of two workers have no order between them.
        assert sorted(logged(settings, "lost")) == ["lost-0", "lost-1"]


def test_rows_that_the_index_cannot_keep_are_taken_back(world, monkeypatch):
    """When the index fails after the log was written, the request is a 503 and its lines are gone.

    Sent again, it is answered and logged once.
    """

    def fails(*_):
        raise sqlite3.OperationalError("disk I/O error")

    rows = named(2, "undone")
    before = len(lines(world.settings))
    with monkeypatch.context() as patch:
        patch.setattr(Index, "remember", fails)
        answer = world.http.post(PREDICT, json={"rows": rows})
        assert answer.status_code == 503
        assert "index" in answer.json()["error"]
        assert len(lines(world.settings)) == before
    assert world.http.post(PREDICT, json={"rows": rows}).status_code == 200
    assert logged(world.settings, "undone") == ["undone-0", "undone-1"]


def test_concurrent_requests_with_one_id_agree(tmp_path):
    """Two workers and eight threads with the same ids: one line per id, and everybody gets the answer that is in it."""
    with fake_triton() as (triton, port), ExitStack() as stack:
        settings = make_home(tmp_path, port)
        release(settings, 1)
        workers = [stack.enter_context(client(settings)) for _ in range(2)]
        rounds = 15

        def ask(thread):
            said = []
            for number in range(rounds):
                if thread == 0 and number == rounds // 2:
                    release(settings, 2)  # from here on the workers would answer differently
                answer = workers[thread % 2].post(PREDICT, json={"rows": named(3, f"race{number}")})
                assert answer.status_code == 200, answer.text
                said.append(answer.json()["rows"])
            return said

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(ask, range(8)))
        assert all(answers == said[0] for answers in said)
        assert sorted(logged(settings, "race")) == sorted(
            f"race{number}-{row}" for number in range(rounds) for row in range(3)
        )
        by_id = {line["prediction_id"]: line for line in lines(settings)}
        for row in (row for answers in said[0] for row in answers):
            assert {name: by_id[row["prediction_id"]][name] for name in row} == row
        repeated = sum(counted(worker, "repeated_rows_total") for worker in workers)
        assert repeated == 7 * 3 * rounds
        assert triton.rows >= 3 * rounds
