"""Starts of DAG runs: what the ledger remembers of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from pipelines import audit, ledger
from pipelines.errors import IntegrityError
from pipelines.ledger import database
from pipelines.settings import Settings

NAME = ("shop", "shop_training", "drift__shop-1")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A fresh ledger on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("schema")


def edit(url, statement):
    """Change the database behind the ledger's back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_a_start_is_noted_once_and_known_by_its_whole_name(url):
    """The first of twenty who note a run at once is its row; another run, DAG or case is another start."""
    assert ledger.started(url, *NAME) is None
    with ThreadPoolExecutor(20) as pool:
        noted = list(pool.map(lambda number: ledger.note_start(url, *NAME, f"task#{number}"), range(20)))
    assert noted.count(True) == 1
    found = ledger.started(url, *NAME)
    assert found.asked_by == f"task#{noted.index(True)}"
    assert datetime.now(UTC) - found.recorded_at < timedelta(minutes=1)
    for other in (("desk", *NAME[1:]), ("shop", "shop_drift", NAME[2]), (*NAME[:2], "drift__shop-2")):
        assert ledger.started(url, *other) is None
        assert ledger.note_start(url, *other, "task#1")
    assert audit.audit(Settings(home="nowhere", ledger_url=url))["ok"]


@pytest.mark.parametrize("damage", ["DELETE FROM starts", "UPDATE starts SET run = 'moved'"])
def test_a_start_that_somebody_took_away_is_found(url, damage):
    """A row that is gone or has another name does not let the run be started again: it is an error that names it."""
    ledger.note_start(url, *NAME, "task#1")
    edit(url, damage)
    with pytest.raises(IntegrityError, match=r"ledger of shop: table starts, row .*drift__shop-1"):
        ledger.started(url, *NAME)
    assert {one["table"] for one in audit.audit(Settings(home="nowhere", ledger_url=url))["findings"]} == {"starts"}


def test_a_ledger_of_before_gets_the_table(url):
    """One that was made before there were starts is read as it is, and remembers from then on."""
    ledger.set_retired(url, "shop", retired=True, reason="old", actor="ada")
    edit(url, "DROP TABLE starts")
    database._engine.cache_clear()
    assert ledger.started(url, *NAME) is None
    assert ledger.note_start(url, *NAME, "task#1")
    assert ledger.retirement(url, "shop").actor == "ada"
