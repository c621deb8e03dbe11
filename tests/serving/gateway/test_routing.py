"""Which version answers: what the ledger says, and what happens when it, or the version, is away."""

from __future__ import annotations

import pytest

from pipelines.errors import Unavailable
from pipelines.fields import encode
from serving.gateway import routing
from tests.serving.gateway.world import FIELDS, PREDICT, client, counted, expected, fake_triton, make_home, release, some_rows, until

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
    """The gateway answers with the new champion soon after a promotion, with the old one soon after a rollback, and with that version's scores."""
    http, settings, _ = world
    tensors = encode(FIELDS, {name: [row[name] for row in ROWS["rows"]] for name in FIELDS.names})
    for number, action in ((2, "promote"), (1, "rollback"), (3, "promote")):
        release(settings, number, action=action)
        until(lambda number=number: version(http) == number, 5)
        said = [row["score"] for row in http.post(PREDICT, json=ROWS).json()["rows"]]
        assert said == expected(tensors["categorical"], tensors["numeric"], number).ravel().tolist()
        assert counted(http, "champion_version", case="loans") == number


def test_a_bundle_of_other_fields_is_refused(world):
    """A champion whose bundle names another fields hash is not served: 503 with the reason, a metric, and the next good release serves again."""
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
    """Without a readable bundle.json the fields are unknown, so nothing is served; once it is restored the same release serves."""
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
    """While the ledger does not answer the champion goes on serving, the failed polls and the copy's age show in the metrics, and later releases are seen again."""
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
    """While the champion is not loaded, the previous release answers under its own version, flagged; when the champion is back it answers."""
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


def test_a_version_that_was_rolled_back_does_not_stand_in(world):
    """After a rollback the version that was given up is no fallback, though it is the last row of the history but one."""
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
    """Without Triton every request is a 503 that names its address, nothing is logged, and service resumes by itself when it is back."""
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
