"""A retired case at the gateway: no predictions, labels taken, its log closed, and back again without a restart."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from pipelines import ledger
from tests.serving.gateway.world import (
    CASE,
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

WHY = {"reason": "nobody borrows", "actor": "ada"}


@pytest.fixture
def settings(tmp_path):
    """The settings of a home with version 1 released and a Triton; young segments stay open for an hour."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port, log_segment_seconds=3600.0)
        release(settings, 1)
        yield settings


def ask(http, **more):
    """The answer to one row."""
    return http.post(PREDICT, json={"rows": [{**some_rows(1)[0], **more}]})


def retire(settings, *, retired=True):
    """Say so in the ledger."""
    ledger.set_retired(settings.ledger, CASE, retired=retired, **WHY)


def test_a_retired_case_answers_410_and_takes_labels(settings):
    """New rows are refused with who and why; an answer that was given is given again; late labels are in the log."""
    with client(settings) as http:
        first = ask(http, prediction_id="one")
        assert first.status_code == 200
        retire(settings)
        until(lambda: ask(http).status_code == 410)
        before = len(lines(settings))
        said = ask(http).json()["error"]
        assert f"{CASE} is retired since" in said
        assert "(ada: nobody borrows)" in said
        assert ask(http, prediction_id="one").json()["rows"] == first.json()["rows"]
        folder = settings.prediction_log / CASE / "predictions"
        until(lambda: [path.suffix for path in folder.glob("[!.]*.jsonl*")] == [".jsonl"])
        answer = http.post(LABELS, json={"labels": [{"prediction_id": "one", "label": 1}]})
        assert answer.json() == {"accepted": 1}
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["cases"]) == (200, {})
        assert CASE not in ready.json()["without_champion"]
        assert f"{CASE} is retired since" in ready.json()["retired"][CASE]
        assert (counted(http, "case_retired", case=CASE), counted(http, "champion_version", case=CASE)) == (1, 0)
        assert counted(http, "refused_rows_total", case=CASE, reason="retired") >= 2
    assert len(lines(settings)) == before
    assert [line["prediction_id"] for line in lines(settings, "labels")] == ["one"]


@pytest.mark.parametrize("change", [retire, lambda settings: release(settings, 1, action="rollback")])
def test_nobody_stands_in_for_a_champion_that_is_none_any_more(tmp_path, change):
    """Where the one that did not answer is retired or taken back, nobody is told that another one answers for it."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        release(settings, 2)
        triton.loaded = {1}
        with client(settings) as http:
            assert ask(http).json()["rows"][0]["version"] == 1
            assert counted(http, "fallback", case=CASE) == 1
            change(settings)
            until(lambda: counted(http, "fallback", case=CASE) == 0)


def test_it_stays_retired_over_a_restart_and_serves_again_when_it_is_taken_back(settings):
    """A gateway that starts finds it retired; taken back, the old champion answers within a poll."""
    retire(settings)
    with client(settings) as http:
        assert ask(http).status_code == 410
        retire(settings, retired=False)
        answer = until(lambda: (found := ask(http)).status_code == 200 and found)
        assert answer.json()["rows"][0]["version"] == 1
        assert http.get("/readyz").json()["cases"] == {CASE: {"champion": 1, "ready": True}}
        assert counted(http, "case_retired", case=CASE) == 0


@pytest.mark.parametrize("served", [True, False])
def test_a_retirement_that_was_edited_changes_nothing(settings, served):
    """A row that the ledger did not write is not followed: what was known goes on, served or retired."""
    retire(settings)
    retire(settings, retired=False)
    if not served:
        retire(settings)
    with client(settings) as http:
        before = ask(http).status_code
        engine = create_engine(settings.ledger)
        with engine.begin() as connection:
            connection.execute(text("UPDATE retirements SET retired = 1 - retired"))
        engine.dispose()
        until(lambda: counted(http, "ledger_damaged", case=CASE) == 1)
        assert ask(http).status_code == before == (200 if served else 410)
