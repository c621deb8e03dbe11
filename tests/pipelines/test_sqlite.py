"""SQLite files that several processes open at once."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from pipelines import ledger
from pipelines.sqlite import write_ahead
from serving.gateway.identity import Index
from tests.pipelines.releases import CASE


@pytest.fixture
def writing(tmp_path):
    """Lets a connection write to a new file that has no write-ahead log yet, for the seconds that are asked for."""
    timers = []

    def write(path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        timers.append(threading.Timer(seconds, connection.close))
        timers[-1].start()

    yield write
    for timer in timers:
        timer.join()


def test_who_comes_while_another_one_writes_waits(writing, tmp_path):
    """The file has its write-ahead log as soon as the other connection is done."""
    path = tmp_path / "new.db"
    writing(path, 0.3)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        write_ahead(connection, 30)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_nobody_waits_for_ever(writing, tmp_path):
    """Whose time is over gets SQLite's own error; so does at once who opens what is no database."""
    path = tmp_path / "new.db"
    writing(path, 1.0)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(connection, 0.05)
    other = tmp_path / "other.db"
    other.write_bytes(b"no database" * 500)
    with closing(sqlite3.connect(other)) as connection, pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead(connection, 30)


def test_two_workers_of_a_gateway_make_their_index_at_once(writing, tmp_path):
    """The second worker of a gateway that starts for the first time waits for the one that makes the index."""
    path = tmp_path / "gateway" / "loans.ids.db"
    writing(path, 0.3)
    Index(path, tmp_path / "predictions", ("amount",)).close()


def test_two_processes_make_the_ledger_at_once(writing, tmp_path):
    """Who asks a ledger that another process is about to make waits for it."""
    writing(tmp_path / "ledger.db", 0.3)
    assert ledger.head(f"sqlite:///{tmp_path / 'ledger.db'}", CASE) is None
