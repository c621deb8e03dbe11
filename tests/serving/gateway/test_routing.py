"""Which version answers: what the ledger says, and what happens when it, or the version, is away."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
from sqlalchemy import create_engine

from pipelines import ledger
from pipelines.cases import load_fields
from pipelines.contracts import Order
from pipelines.encoding import encode
from pipelines.errors import Unavailable
from serving.gateway import routing, versions
from serving.gateway import triton as triton_client
from serving.gateway.triton import FAILURES
from serving.gateway.versions import probe
from tests.serving.gateway.world import (
    FIELDS,
    PREDICT,
    Scores,
    client,
    counted,
    expected,
    fake_triton,
    make_home,
    release,
    some_rows,
    until,
)

ROWS = {"rows": some_rows(2)}


@pytest.fixture
def world(tmp_path):
    """``(http, settings, triton)``, the champion of loans being version 1."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            yield http, settings, triton


def version(http):
    """The version that answers now."""
    return http.post(PREDICT, json=ROWS).json()["rows"][0]["version"]


def test_promotion_and_rollback_are_followed(world):
    """The gateway answers with the new champion soon after a promotion, with the old one soon after a rollback.

    The scores are that version's.
    """
    http, settings, _ = world
    tensors = encode(FIELDS, {name: [row[name] for row in ROWS["rows"]] for name in FIELDS.names})
    for number, action in ((2, "promote"), (1, "rollback"), (3, "promote")):
        release(settings, number, action=action)
        until(lambda number=number: version(http) == number, 5)
        said = [row["score"] for row in http.post(PREDICT, json=ROWS).json()["rows"]]
        assert said == expected(tensors["categorical"], tensors["numeric"], number).ravel().tolist()
        assert counted(http, "champion_version", case="loans") == number


def test_a_bundle_of_other_fields_is_refused(world):
    """A champion whose bundle names another fields hash is not served.

    503 with the reason, a metric, and the next good release serves again.
    """
    http, settings, triton = world
    release(settings, 2, fields_hash="0" * 64)
    until(lambda: http.post(PREDICT, json=ROWS).status_code == 503, 5)
    scored = triton.rows
    said = http.post(PREDICT, json=ROWS).json()["error"]
    assert "other fields" in said
    assert triton.rows == scored
    assert counted(http, "fields_refused", case="loans") == 1
    assert http.get("/readyz").status_code == 503
    release(settings, 3)
    until(lambda: http.post(PREDICT, json=ROWS).status_code == 200, 5)
    assert counted(http, "fields_refused", case="loans") == 0


def test_a_bundle_that_cannot_be_read_is_refused_until_it_can(world):
    """Without a readable bundle.json the fields are unknown, so nothing is served.

    Once it is restored the same release serves.
    """
    http, settings, _ = world
    release(settings, 2)
    until(lambda: version(http) == 2, 5)
    path = release(settings, 3) / "bundle.json"
    until(lambda: version(http) == 3, 5)
    kept = path.read_bytes()
    path.unlink()
    with client(settings) as other:
        answer = other.post(PREDICT, json=ROWS)
        assert (answer.status_code, "bundle.json" in answer.json()["error"]) == (503, True)
        path.write_bytes(kept)
        until(lambda: other.post(PREDICT, json=ROWS).status_code == 200, 5)


def test_the_last_copy_is_used_while_the_ledger_is_away(world, monkeypatch):
    """While the ledger does not answer the champion goes on serving.

    The failed polls and the copy's age show in the metrics, and later releases are seen again.
    """
    http, settings, _ = world

    def away(url, case):
        raise Unavailable("the ledger does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(routing.ledger, "head", away)
        until(lambda: counted(http, "ledger_errors_total") >= 3)
        assert version(http) == 1
        assert counted(http, "ledger_poll_age_seconds") > 0.05
    release(settings, 2)
    until(lambda: version(http) == 2, 5)


def test_a_ledger_away_at_the_start_is_said(tmp_path):
    """A gateway that has never read the ledger is not ready and answers 503 saying so."""
    (tmp_path / "broken.db").write_bytes(b"no database at all" * 1000)
    settings = make_home(tmp_path, ledger_url=f"sqlite:///{tmp_path / 'broken.db'}")
    with client(settings) as http:
        assert "ledger" in http.post(PREDICT, json=ROWS).json()["error"]
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert counted(http, "ledger_poll_age_seconds") == -1


def test_the_previous_release_stands_in_and_says_so(world):
    """While the champion is not loaded, the previous release answers under its own version, flagged.

    When the champion is back it answers.
    """
    http, settings, triton = world
    triton.loaded = {1, 3}
    release(settings, 2)
    until(lambda: counted(http, "champion_version", case="loans") == 2, 5)
    for _ in range(10):
        assert version(http) == 1
    assert counted(http, "fallback", case="loans") == 1
    assert counted(http, "rows_total", version="2") == 0
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()["cases"]["loans"]["ready"]) == (503, False)
    triton.loaded.add(2)
    until(lambda: version(http) == 2)
    assert counted(http, "fallback", case="loans") == 0
    assert http.get("/readyz").status_code == 200


class Odd(Scores):
    """Answers NaN for rows that are ``odd``; ``asked`` is how often each version was."""

    def __init__(self, odd):
        super().__init__()
        self.odd = odd
        self.asked = Counter()

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        self.asked[int(request.model_version)] += 1
        answer = super().ModelInfer(request, context)
        scores = np.frombuffer(answer.raw_output_contents[0], np.float32).copy()
        numeric = np.frombuffer(request.raw_input_contents[1], np.float32).reshape(list(request.inputs[1].shape))
        scores[[self.odd(int(request.model_version), row) for row in numeric]] = np.nan
        answer.raw_output_contents[0] = scores.tobytes()
        return answer


def test_a_champion_that_answers_nothing_but_nan_is_left_alone_and_comes_back(tmp_path, monkeypatch):
    """A version without an answer for any row is soon not asked for each of them; who stands in is told.

    It answers again by itself once it is well.
    """
    monkeypatch.setattr(triton_client, "PAUSE_SECONDS", 60.0)
    well = threading.Event()
    with fake_triton(servicer=Odd(lambda number, _row: number == 2 and not well.is_set())) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        release(settings, 2)
        with client(settings) as http:
            assert [version(http) for _ in range(60)] == [1] * 60
            assert triton.asked[2] <= 4 * FAILURES
            assert counted(http, "fallback", case="loans") == 1
            assert "roll it back" in http.get("/readyz").json()["cases"]["loans"]["error"]
        monkeypatch.setattr(triton_client, "PAUSE_SECONDS", 0.1)
        with client(settings) as http:
            assert [version(http) for _ in range(30)] == [1] * 30
            well.set()
            until(lambda: version(http) == 2)
            assert counted(http, "fallback", case="loans") == 0


def test_rows_that_a_champion_has_no_answer_for_take_it_from_nobody(tmp_path):
    """However often a client sends nothing but rows that a version answers with NaN, it goes on answering others."""
    with fake_triton(servicer=Odd(lambda _number, row: row[0] == 7)) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        odd = {"rows": [row | {"salary": 7} for row in ROWS["rows"]]}
        with client(settings) as http:
            for _ in range(6 * FAILURES):
                assert http.post(PREDICT, json=odd).status_code == 503
            assert triton.asked[1] >= 6 * FAILURES
            assert version(http) == 1


def test_a_row_without_an_answer_may_be_the_one_that_is_thought_sound(tmp_path, monkeypatch):
    """A version is asked for a row that it has answered before: for lowest values it may have no answer.

    Who sends only such rows takes the answer from nobody.
    """
    monkeypatch.setattr(triton_client, "PAUSE_SECONDS", 60.0)
    lowest = encode(FIELDS, probe(FIELDS))["numeric"][0]
    with fake_triton(servicer=Odd(lambda _number, row: row[0] == lowest[0])) as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        odd = {"rows": [row | {"salary": probe(FIELDS)["salary"][0]} for row in ROWS["rows"]]}
        with client(settings) as http:
            assert version(http) == 1
            for _ in range(3 * FAILURES):
                assert http.post(PREDICT, json=odd).status_code == 503
            assert version(http) == 1


class Full(Odd):
    """Odd, and slow; once it is ``full`` its queue has no place for rows of other salaries than 7 and 9."""

    def __init__(self):
        super().__init__(lambda _number, row: row[0] == 7)
        self.full = False

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        numeric = np.frombuffer(request.raw_input_contents[1], np.float32).reshape(list(request.inputs[1].shape))
        if self.full and numeric[0, 0] not in {7, 9}:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        time.sleep(0.1)
        return super().ModelInfer(request, context)


def test_rows_have_their_answers_beside_an_odd_one_though_a_doubt_is_not_cleared_up(tmp_path):
    """Where the version's queue has no place for the question whether it answers at all, each row goes on by itself."""
    with fake_triton(servicer=Full()) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        sound, odd, good = ({"rows": [ROWS["rows"][0] | {"salary": salary}]} for salary in (5, 7, 9))
        with client(settings) as http, ThreadPoolExecutor(8) as clients:

            def status(body):
                return http.post(PREDICT, json=body).status_code

            assert status(sound) == 200
            assert [status(odd) for _ in range(FAILURES - 1)] == [503] * (FAILURES - 1)
            triton.full = True
            assert list(clients.map(status, [odd, odd, *[good] * 6])) == [503, 503, *[200] * 6]
            assert max(triton.sizes) > 1


def test_a_previous_release_that_could_not_be_loaded_stands_in_once_it_can(tmp_path, monkeypatch):
    """A previous release whose bundle could not be read is tried again, though no release has come since."""
    monkeypatch.setattr(routing, "AGAIN_SECONDS", 0.1)
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        path = release(settings, 1) / "bundle.json"
        release(settings, 2)
        kept = path.read_bytes()
        path.unlink()
        with client(settings) as http:
            assert version(http) == 2
            triton.loaded = {1}
            assert http.post(PREDICT, json=ROWS).status_code == 503
            path.write_bytes(kept)
            until(lambda: http.post(PREDICT, json=ROWS).status_code == 200)
            assert version(http) == 1


def test_a_previous_release_that_cannot_be_loaded_is_not_tried_by_every_poll(tmp_path, monkeypatch):
    """A bundle that cannot be read is read again once in a while only: not by every poll, and not by a request."""
    tried = []

    def load(root, fields, row):
        tried.append(row.champion)
        return versions.load(root, fields, row)

    monkeypatch.setattr(routing, "load", load)
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        (release(settings, 1) / "bundle.json").unlink()
        release(settings, 2)
        with client(settings) as http:
            polled = heads_read(monkeypatch)
            until(lambda: len(polled) > 3)
            assert version(http) == 2
            assert sorted(tried) == [1, 2]


def heads_read(monkeypatch):
    """The cases whose head was read since, in a list that grows."""
    polled, head = [], ledger.head

    def read(url, case):
        polled.append(case)
        return head(url, case)

    monkeypatch.setattr(routing.ledger, "head", read)
    return polled


def test_a_former_champion_stands_in_though_its_bundle_is_gone(world):
    """A version that is in memory needs no bundle any more: after a promotion the champion before it stands in."""
    http, settings, triton = world
    assert version(http) == 1
    (settings.run_dir("loans", datetime(2024, 1, 1, tzinfo=UTC)) / "export" / "bundle.json").unlink()
    triton.loaded = {1}
    release(settings, 2)
    until(lambda: counted(http, "champion_version", case="loans") == 2, 5)
    assert version(http) == 1


def test_a_version_that_was_rolled_back_does_not_stand_in(world):
    """After a rollback the version that was given up is no fallback.

    That holds though it is the last row of the history but one.
    """
    http, settings, triton = world
    release(settings, 2)
    until(lambda: version(http) == 2, 5)
    release(settings, 1, action="rollback")
    until(lambda: version(http) == 1, 5)
    triton.loaded = {2}
    for _ in range(10):
        answer = http.post(PREDICT, json=ROWS)
        assert answer.status_code == 503
        assert "version 1" in answer.json()["error"]


def test_a_triton_that_is_away_is_a_clear_503_and_comes_back(tmp_path):
    """Without Triton every request is a 503 that names its address, nothing is logged.

    Service resumes by itself when it is back.
    """
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
    with client(settings, deadline_seconds=2) as http:
        answer = http.post(PREDICT, json=ROWS)
        assert answer.status_code == 503
        assert f"127.0.0.1:{port} does not answer" in answer.json()["error"]
        for _ in range(6):
            assert http.post(PREDICT, json=ROWS).status_code == 503
        assert "left alone" in http.post(PREDICT, json=ROWS).json()["error"]
        assert not list(settings.prediction_log.rglob("*.jsonl*"))
        with fake_triton(port):
            until(lambda: http.post(PREDICT, json=ROWS).status_code == 200, 10)


def edit(settings, statement):
    """Change the ledger's database behind its back."""
    engine = create_engine(settings.ledger)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_damaged_row_of_one_case_leaves_the_others_alone(tmp_path):
    """A case whose newest row cannot be trusted is refused from the start, by name.

    The others serve, follow their releases, and it follows once it is mended.
    """
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        release(settings, 1, case="bank")
        edit(settings, "UPDATE releases SET hash = replace(hash, substr(hash, 1, 4), 'ffff') WHERE \"case\" = 'bank'")
        with client(settings) as http:
            assert version(http) == 1
            release(settings, 2)
            until(lambda: version(http) == 2, 5)
            answer = http.post("/v1/cases/bank/predict", json={"rows": [bank_row()]})
            assert answer.status_code == 503
            assert "ledger of bank: row 1 does not continue the chain: column hash says ffff" in answer.json()["error"]
            ready = http.get("/readyz")
            said = ready.json()["cases"]
            # Who serves loans goes on to be sent requests; who waits for a whole start is told.
            assert (ready.status_code, ready.json()["every"]) == (200, False)
            assert http.get("/readyz", params={"every": "true"}).status_code == 503
            assert (said["loans"]["ready"], said["bank"]["ready"]) == (True, False)
            assert "column hash" in said["bank"]["damaged"]
            assert (counted(http, "ledger_damaged", case="bank"), counted(http, "ledger_damaged", case="loans")) == (
                1,
                0,
            )
            edit(settings, "UPDATE releases SET hash = json_extract(row, '$.hash') WHERE \"case\" = 'bank'")
            until(lambda: http.post("/v1/cases/bank/predict", json={"rows": [bank_row()]}).status_code == 200, 5)
            assert counted(http, "ledger_damaged", case="bank") == 0


def bank_row():
    """A row of the case bank."""
    return {name: values[0] for name, values in probe(load_fields("bank")).items()}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE releases SET row = replace(row, '\"champion\":2', '\"champion\":3') WHERE seq = 2",
        "UPDATE releases SET row = CAST(x'7bff00' AS TEXT) WHERE seq = 2",
        "DELETE FROM releases WHERE seq = 2",
        "DELETE FROM releases",
    ],
    ids=["changed", "unreadable", "head deleted", "all deleted"],
)
def test_a_damaged_head_is_not_followed(world, statement):
    """Where the newest row is not what the ledger wrote, the gateway goes on with the release that it knows.

    It says so.
    """
    http, settings, _ = world
    release(settings, 2)
    until(lambda: version(http) == 2, 5)
    edit(settings, statement)
    until(lambda: counted(http, "ledger_damaged", case="loans") == 1, 5)
    assert version(http) == 2
    ready = http.get("/readyz").json()["cases"]["loans"]
    assert (ready["ready"], "ledger of loans" in ready["damaged"]) == (True, True)
    with client(settings) as fresh:
        answer = fresh.post(PREDICT, json=ROWS)
        assert (answer.status_code, "ledger of loans" in answer.json()["error"]) == (503, True)


def test_a_champion_serves_above_a_damaged_older_row(world):
    """An older row that was changed costs the release that would stand in, not the champion, whose own row is whole.

    It is said.
    """
    http, settings, _ = world
    release(settings, 2)
    until(lambda: version(http) == 2, 5)
    edit(settings, "UPDATE releases SET row = replace(row, '\"champion\":1', '\"champion\":3') WHERE seq = 1")
    with client(settings) as fresh:
        assert version(fresh) == 2
        assert "row 1 does not continue the chain" in fresh.get("/readyz").json()["cases"]["loans"]["damaged"]


def test_a_damaged_database_is_said_from_the_start(tmp_path):
    """A gateway that starts on a ledger whose file is no database any more refuses each case.

    The refusal names the file and what to do.
    """
    settings = make_home(tmp_path, 1)
    release(settings, 1)
    (settings.root / "ledger.db").write_bytes(b"no database" * 1000)
    for suffix in ("-wal", "-shm"):
        (settings.root / f"ledger.db{suffix}").unlink(missing_ok=True)
    again = settings.model_copy(update={"ledger_url": f"{settings.ledger}?timeout=29"})  # a process that comes later
    with client(again) as http:
        answer = http.post(PREDICT, json=ROWS)
        assert answer.status_code == 503
        assert "ledger.db?timeout=29 is damaged (file is not a database)" in answer.json()["error"]
        assert "restore it" in http.get("/readyz").json()["cases"]["loans"]["damaged"]


def test_a_release_is_followed_on_its_verdict_only(world):
    """A promotion that cites a verdict which rejected it, or which is not in the ledger, is not followed."""
    http, settings, _ = world
    arguments = {"case": "loans", "as_of": datetime(2024, 1, 9, tzinfo=UTC), "trigger": "drift"}
    value = ledger.record_verdict(settings.ledger, **arguments, gate_key="g", verdict={"decision": "reject"})
    for number, cited in enumerate((value, "0" * 64)):
        head = ledger.head(settings.ledger, "loans")
        own = {name: getattr(head, name) for name in ("case", "candidate_key", "bundle", "as_of")}
        about = {
            "champion": 2,
            "action": "promote",
            "trigger": "drift",
            "reason": "r",
            "actor": "a",
            "verdict_hash": cited,
        }
        ledger.append(settings.ledger, Order(**own, **about, after=head.seq))
        said = ("promotes on a verdict that says reject", f"there is no verdict {'0' * 12}")[number]
        until(lambda said=said: said in http.get("/readyz").json()["cases"]["loans"].get("damaged", ""), 5)
        assert version(http) == 1
