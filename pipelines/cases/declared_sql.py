"""A declared table or query of a database: rows of a window, asked for by their time, in chunks.

The address with its login comes from a file, a variable or an Airflow connection, and is in no message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from pipelines.cases import columns
from pipelines.cases.columns import DAY, PER_SECOND, Asked
from pipelines.cases.sources import Source
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.faults import said
from pipelines.params import SqlSource, UrlFrom
from pipelines.settings import Settings

CHUNK = 20_000
"""Rows that are fetched at once."""
DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
"""How SQLAlchemy names what Airflow's connections and most addresses call by another name."""
_REFUSED = ("password authentication failed", "no pg_hba.conf entry", "permission denied", "Access denied")
_NOT_THERE = ("does not exist", "no such table", "no such column", "unable to open database file")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Database(Source):
    """A declared table or query; its address is known to who reads and shown to nobody."""

    url: URL = field(default_factory=lambda: URL.create("sqlite"), repr=False)
    declared: SqlSource | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """The source as small JSON values, without its address."""
        return Source(self.name, self.kind, self.why, self.notice).facts()


def resolve(declared: SqlSource, settings: Settings, case: str) -> Database:
    """The database of a declaration; it is not asked yet. Raises ConfigError if its address cannot be used."""
    told, text = _address(declared.url_from, settings, case)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            f"{case}: {told} holds no address of a database: write it like "
            "postgresql+psycopg://user:password@host:5432/name"
        ) from error
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    what = declared.table or "a query"
    # Without the user too: a name is half of a login.
    shown = f"{url.get_backend_name()}://{url.host or ''}/{url.database or ''}"
    return Database(f"{what} of {shown}", "real", f"{told} in params.yaml", declared.notice, url=url, declared=declared)


# --- the address --------------------------------------------------------------------------------


def _address(given: UrlFrom, settings: Settings, case: str) -> tuple[str, str]:
    """Where the address is told, for messages, and the address."""
    if given.file is not None:
        path = settings.root / Path(given.file).expanduser()
        try:
            return f"the file {path}", _not_empty(path.read_text().strip(), f"the file {path}", case)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{case}: source.url_from names {path}, which cannot be read ({said(error)}): write the database's "
                "address into it"
            ) from error
    if given.env is not None:
        told = f"the variable {given.env}"
        return told, _not_empty(os.environ.get(given.env, ""), told, case)
    variable = f"AIRFLOW_CONN_{(given.connection or '').upper()}"
    told = f"the connection {given.connection} ({variable})"
    return told, _of_connection(_not_empty(os.environ.get(variable, ""), told, case), told, case)


def _not_empty(text: str, told: str, case: str) -> str:
    if not text:
        raise ConfigError(
            f"{case}: source.url_from names {told}, which is empty or not set: give it the database's address, like "
            "postgresql+psycopg://user:password@host:5432/name"
        )
    return text


def _of_connection(text: str, told: str, case: str) -> str:
    """An Airflow connection, as URI or JSON, as an address of SQLAlchemy's."""
    try:
        if text.startswith("{"):
            found = json.loads(text)
            port = found.get("port")
            url = URL.create(
                _driver(found["conn_type"]),
                found.get("login"),
                found.get("password"),
                found.get("host") if found["conn_type"] != "sqlite" else None,
                None if port is None else int(port),
                found.get("schema") if found["conn_type"] != "sqlite" else found.get("host"),
                _options(found.get("extra")),
            )
            return url.render_as_string(hide_password=False)
        parts = urlsplit(text)
        host = unquote(parts.hostname or "")
        path = unquote(parts.path)
        if parts.scheme == "sqlite":
            return f"sqlite:///{host or path.removeprefix('/')}"
        options = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair)
        url = URL.create(
            _driver(parts.scheme),
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
            host,
            parts.port,
            path.removeprefix("/"),
            {name: unquote(value) for name, value in options.items() if not name.startswith("__extra")},
        )
        return url.render_as_string(hide_password=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{case}: {told} is no connection of Airflow's: write it as URI or as JSON with conn_type, login, "
            "password, host, port and schema"
        ) from error


def _driver(kind: str) -> str:
    return DRIVERS.get(kind, kind)


def _options(extra: Any) -> dict[str, str]:
    if isinstance(extra, str):
        extra = json.loads(extra or "{}")
    return {str(name): str(value) for name, value in (extra or {}).items() if isinstance(value, str | int)}


# --- reading ------------------------------------------------------------------------------------


def pieces(source: Database, asked: Asked) -> Iterator[pl.DataFrame]:
    """The rows of a window, chunk by chunk (:func:`pipelines.cases.columns.pieces`).

    Raises ConfigError for a refused login and a table that is not there, DataError for columns that are not those
    declared, Unavailable if the database does not answer or breaks off.
    """
    case = asked.fields.case
    where = f"{case}: {source.name}"
    with _connected(source, where) as connection:
        rows = _table(source)
        there = list(connection.execute(sa.select(sa.text("*")).select_from(rows).limit(0)).keys())
        asked.check(there, where)
        names = list(asked.names.values())
        all_of_it: list[sa.ColumnClause[Any]] = [sa.column(name) for name in dict.fromkeys(names)]
        time: sa.ColumnClause[Any] = sa.column(asked.event_time)
        wanted = sa.select(*all_of_it).select_from(rows)
        first = connection.execute(sa.select(time).select_from(rows).where(time.is_not(None)).limit(1)).scalar()
        bounds = _bounds(first, asked)
        if bounds is not None:
            low, high = bounds
            inside = (time >= sa.bindparam("low", low)) & (time < sa.bindparam("high", high))
            wanted = wanted.where(inside | time.is_(None))
        found = connection.execute(wanted, execution_options={"stream_results": True, "yield_per": CHUNK})
        chunks = (_frame(chunk, list(found.keys()), where).lazy() for chunk in found.partitions(CHUNK))
        first_chunk = next(chunks, pl.LazyFrame(schema=dict.fromkeys(names, pl.Null)))
        try:
            yield from columns.pieces(chain([first_chunk], chunks), asked, where)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{where} holds what cannot be read ({said(error)}): cast it in a query") from error


def _table(source: Database) -> Any:
    declared = source.declared
    assert declared is not None
    if declared.query is not None:
        # As it is: a colon in it begins no parameter.
        query = declared.query.strip().rstrip(";").replace("\\", "\\\\").replace(":", "\\:")
        return sa.text(f"({query}) AS declared_rows")
    schema, _, name = str(declared.table).rpartition(".")
    return sa.table(name, schema=schema or None)


def _bounds(first: Any, asked: Asked) -> tuple[Any, Any] | None:
    """The window in the type that the column's times have; a day wider where that has no zone. None: ask for all."""
    start, end = asked.window.start, asked.window.end
    wide = (max(start, _EPOCH.replace(year=2)) - DAY, min(end, _EPOCH.replace(year=9998)) + DAY)
    zone = ZoneInfo(asked.declared.time_zone or "UTC")
    if isinstance(first, datetime):
        if first.tzinfo is not None:
            return start, end
        return wide[0].astimezone(zone).replace(tzinfo=None), wide[1].astimezone(zone).replace(tzinfo=None)
    if isinstance(first, date):
        return wide[0].astimezone(zone).date(), wide[1].astimezone(zone).date()
    if isinstance(first, str):  # ISO 8601 begins with the day, and days of texts are in order
        return wide[0].date().isoformat(), (wide[1].date() + DAY).isoformat()
    if isinstance(first, int | float | Decimal) and asked.declared.time_unit is not None:
        per = PER_SECOND[asked.declared.time_unit]
        return tuple(round((moment - _EPOCH) / timedelta(seconds=1) * per) for moment in (start, end))  # type: ignore[return-value]
    return None


def _frame(chunk: Any, names: list[str], where: str) -> pl.DataFrame:
    plain = [tuple(_plain(value) for value in row) for row in chunk]
    try:
        return pl.DataFrame(plain, schema=names, orient="row", infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} holds values of several types in one column ({said(error)}): cast it in a query"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, UUID):
        return str(value)
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo is not None else value


@contextmanager
def _connected(source: Database, where: str) -> Iterator[sa.Connection]:
    """One connection in one transaction that only reads, and errors as ours."""
    try:
        waits: dict[str, Any] = {}
        if source.url.get_backend_name() == "postgresql":
            waits = {"connect_timeout": 10, "application_name": "perennial"}
        elif source.url.get_backend_name() == "sqlite" and not Path(source.url.database or "").is_file():
            raise ConfigError(f"{where}: there is no such file: mend the address")  # opening it would make it
        engine = sa.create_engine(source.url, poolclass=sa.pool.NullPool, connect_args=waits)
        with engine.connect() as connection:
            if source.url.get_backend_name() == "postgresql":
                connection.execution_options(postgresql_readonly=True)
            yield connection
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            f"{where}: the driver of {source.url.drivername} is not installed ({said(error)}): install it, or name "
            "another one in the address"
        ) from error
    except DBAPIError as error:
        raise _refused(error, where) from error
    except SQLAlchemyError as error:
        raise ConfigError(f"{where} cannot be read ({said(error)}): mend source in params.yaml") from error


def _refused(error: DBAPIError, where: str) -> ConfigError | DataError | Unavailable:
    words = str(error.orig).strip().splitlines()[0] if error.orig and str(error.orig).strip() else said(error)
    if any(text in words for text in _REFUSED):
        return ConfigError(f"{where} refuses the login ({words}): mend the user and password in the address")
    if any(text in words for text in _NOT_THERE):
        return ConfigError(f"{where}: what is asked for is not there ({words}): mend source in params.yaml")
    if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
        return Unavailable(f"{where} does not answer ({words}): try again, or mend the address")
    if isinstance(error, sa.exc.ProgrammingError):
        return ConfigError(f"{where} cannot be asked ({words}): mend the query or the table in params.yaml")
    return DataError(f"{where} holds what cannot be read ({words}): cast it in a query")
