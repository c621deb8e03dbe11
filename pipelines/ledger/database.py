"""The ledger's database: SQLite in a file, or PostgreSQL.

One engine per process, tables made and checked, errors translated. Both keep the promise that the ledger is built on:
of two inserts of one key, one fails. PostgreSQL lets the second wait until the first has committed, so READ COMMITTED
is enough.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import DatabaseError as SqlDatabaseError
from sqlalchemy.exc import DataError as SqlDataError

from pipelines.errors import ConfigError, DatabaseDamaged, DataError, Unavailable
from pipelines.faults import of_disk
from pipelines.sqlite import write_ahead

SETTING = "PERENNIAL_LEDGER_URL"
LOCK_SECONDS = 30
_MAKING = 5_117_402
"""The advisory lock of whoever makes the tables: CREATE TABLE IF NOT EXISTS can still fail when two do it at once."""
_REFUSED = ("password authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied")
"""What trying again does not mend; a connection that fails has a sentence of the server's, but no SQLSTATE."""
_DAMAGED = ("XX001", "XX002")
"""PostgreSQL's SQLSTATEs of a damaged table and a damaged index."""
_FILE = "file"
"""What a connection to SQLite remembers: which file it opened."""
_MADE = Lock()
"""Held by the thread that makes an engine."""
# A child that is forked while another thread holds it could never take it.
os.register_at_fork(before=_MADE.acquire, after_in_parent=_MADE.release, after_in_child=_MADE.release)
RESTORE = "stop what writes to it and restore it from a backup, see docs/runbooks.md#ledger-changed"


@contextmanager
def begin(url: str, tables: MetaData) -> Iterator[Connection]:
    """One transaction on the database ``url``, which has ``tables`` then.

    Raises Unavailable if it does not answer, ConfigError if the address is wrong, the login is refused or the tables
    there are another version's, DataError for a value that the database cannot keep, DatabaseDamaged if its own files
    are. IntegrityErrors of SQLAlchemy pass.
    """
    try:
        with engine(url, tables).begin() as connection:
            yield connection
    except SqlDataError as error:
        raise DataError(
            f"the ledger {shown(url)} cannot keep a value: {_first_line(error)}; shorten it, and leave out NUL "
            "characters"
        ) from error
    except (OperationalError, InterfaceError) as error:
        if (disk := of_disk(error)) is not None:
            raise disk from error
        if any(words in str(error.orig) for words in _REFUSED):
            raise ConfigError(
                f"the ledger {shown(url)} refuses: {_first_line(error)}; mend {SETTING}, or the user and database it "
                "names"
            ) from error
        raise Unavailable(
            f"the ledger {shown(url)} does not answer: {_first_line(error)}; start it, or set {SETTING} to where it is"
        ) from error
    except ProgrammingError as error:
        raise ConfigError(
            f"the ledger {shown(url)} refuses: {_first_line(error)}; {SETTING} must name a user that owns its tables"
        ) from error
    except SqlDatabaseError as error:
        if not _damaged(error.orig):
            raise
        raise DatabaseDamaged(f"the ledger {shown(url)} is damaged ({_first_line(error)}): {RESTORE}") from error


def _damaged(error: Any) -> bool:
    """Whether SQLite or PostgreSQL says that the database's own files are not what it wrote."""
    # The low byte of SQLite's code is its class.
    return (
        getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        or getattr(error, "sqlstate", "") in _DAMAGED
    )


def shown(url: str) -> str:
    """The address without its password."""
    return make_url(url).render_as_string(hide_password=True)


def engine(url: str, tables: MetaData) -> Engine:
    """One engine per database and process, also for threads that ask for the first one together.

    Each further one would keep connections of its own from all others.
    """
    with _MADE:
        return _engine(url, os.getpid(), tables)


@lru_cache(maxsize=8)
def _engine(url: str, pid: int, tables: MetaData) -> Engine:  # noqa: ARG001 - pid is part of the cache's key
    """An engine whose database has the tables (``pid`` keeps a fork from sharing its parent's connections)."""
    engine = _connect(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MAKING})"))
        check(connection, tables, shown(url))
        there = set(inspect(connection).get_table_names())
        if engine.dialect.name == "sqlite" and not set(tables.tables) <= there:
            # SQLite's driver begins no transaction for CREATE TABLE: without one, two processes could make the tables
            # at the same moment.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        tables.create_all(connection)
    return engine


def _connect(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(url, parsed.database)
        # A task is one process that asks a few questions: more connections would only use up the server's.
        waits = (
            {"connect_timeout": 5, "application_name": "perennial"} if parsed.get_backend_name() == "postgresql" else {}
        )
        return create_engine(url, pool_pre_ping=True, pool_size=2, connect_args=waits)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            f"{SETTING} cannot be used ({error}): give it like postgresql+psycopg://user:password@host:5432/ledger, "
            "or unset it"
        ) from error


def _sqlite(url: str, path: str | None) -> Engine:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": LOCK_SECONDS})
    opened = False

    @event.listens_for(engine, "do_connect")
    def _not_anew(*_: Any) -> None:
        # SQLite would make an empty file where there was a ledger.
        if opened and path and _identity(path) is None:
            raise Unavailable(f"the ledger {path} is gone: {RESTORE}")

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, record: Any) -> None:
        nonlocal opened
        # WAL lets gateways read while a rollout writes; FULL makes a committed release survive a power cut.
        write_ahead(connection, LOCK_SECONDS)
        connection.execute("PRAGMA synchronous=FULL")
        # Bytes that are no text belong to a damaged row, which its reader names; the driver would only say that it
        # cannot read.
        connection.text_factory = lambda data: data.decode(errors="replace")
        record.info[_FILE] = _identity(path)
        opened = True

    @event.listens_for(engine, "checkout")
    def _still_there(_connection: Any, record: Any, _proxy: Any) -> None:
        # Who keeps a file open that a backup has replaced reads what was there before, and writes where nobody looks.
        if _identity(path) != record.info[_FILE]:
            raise DisconnectionError(f"{path} is another file than before")

    return engine


def _identity(path: str | None) -> tuple[int, int] | None:
    """Which file a path leads to; None: to none, or the database is in memory."""
    try:
        found = Path(path).stat() if path else None
    except FileNotFoundError:
        found = None
    return found and (found.st_dev, found.st_ino)


def check(connection: Connection, tables: MetaData, address: str) -> None:
    """Raise ConfigError naming the table whose columns are not those of this code.

    A table that is not there yet is made later.
    """
    found = inspect(connection)
    there = set(found.get_table_names())
    for table in tables.sorted_tables:
        if table.name not in there:
            continue
        own = {column["name"] for column in found.get_columns(table.name)}
        wanted = set(table.columns.keys())
        if own != wanted:
            differs = [f"lacks {', '.join(sorted(wanted - own))}"] * bool(wanted - own) + [
                f"has {', '.join(sorted(own - wanted))} too"
            ] * bool(own - wanted)
            raise ConfigError(
                f"the ledger {address} has the schema of another version: table {table.name} {' and '.join(differs)}; "
                f"set {SETTING} to a new database, or run the version of Perennial that made this one"
            )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]
