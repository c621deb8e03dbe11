"""A declared table or query of a database: rows of a window, asked for by their time, in chunks.

The address with its login comes from a file, a variable or an Airflow connection, and is in no message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from pipelines.cases import columns, taken
from pipelines.cases.addresses import Told, connection, hidden, told
from pipelines.cases.columns import DAY, PER_SECOND, Asked
from pipelines.cases.sampling import stride
from pipelines.cases.sources import Source
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.faults import said
from pipelines.params import SqlSource
from pipelines.settings import Settings

EXPECTED = "the database's address, like postgresql+psycopg://user:password@host:5432/name"
CHUNK = 20_000
"""Rows that are fetched at once."""
RARE = 1_000
"""Labels up to so many, and rows of those that a sample has not met."""
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
    copies: Path = field(default_factory=Path, repr=False)
    """The folder for rows that are kept for next time."""

    def facts(self) -> dict[str, Any]:
        """The source as small JSON values, without its address."""
        found = Source(self.name, self.kind, self.why, self.notice).facts()
        if self.declared is not None and self.declared.watermark is not None:
            found["watermark"] = self.declared.watermark.model_dump(mode="json")
        return found


def resolve(declared: SqlSource, settings: Settings, case: str) -> Database:
    """The database of a declaration; it is not asked yet. Raises ConfigError if its address cannot be used."""
    found = told(declared.url_from, settings, case, key="source.url_from", expected=EXPECTED)
    try:
        url = _url(found, declared, case)
    except (ArgumentError, ValueError):
        # Without the cause, which repeats the address.
        raise ConfigError(
            f"{case}: {found.where} holds no address of a database: write it like "
            "postgresql+psycopg://user:password@host:5432/name"
        ) from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    what = declared.table or "a query"
    # Without the user too: a name is half of a login.
    shown = f"{url.get_backend_name()}://{url.host or ''}/{url.database or ''}"
    return Database(
        f"{what} of {shown}",
        "real",
        f"{found.where} in params.yaml",
        declared.notice,
        url=url,
        declared=declared,
        copies=settings.root / "data" / "sources",
    )


def _url(found: Told, declared: SqlSource, case: str) -> URL:
    if declared.url_from.connection is None:
        return make_url(found.text)
    given = connection(found, case)
    if given.kind == "sqlite":
        return URL.create("sqlite", database=given.host or given.schema)
    return URL.create(given.kind, given.login, given.password, given.host, given.port, given.schema, given.extra)


# --- reading ------------------------------------------------------------------------------------


def pieces(source: Database, asked: Asked) -> Iterator[pl.DataFrame]:
    """The rows of a window, chunk by chunk (:func:`pipelines.cases.columns.pieces`).

    With a watermark only those that are new are asked for (taken.py). Raises ConfigError for a refused login and a
    table that is not there, DataError for columns that are not those declared, Unavailable if the database does not
    answer or breaks off.
    """
    where = f"{asked.fields.case}: {source.name}"
    if asked.watermark is None:
        return _read(source, asked, where)
    table = taken.Table(
        where,
        source.url.set(password=None).render_as_string(),
        lambda: _ends(source, asked, where),
        lambda within, since: _read(source, within, where, "dated", since),
        lambda: _read(source, asked, where, "undated"),
    )
    return taken.pieces(table, source.copies, asked, timedelta(hours=asked.watermark.overlap_hours))


def _read(
    source: Database,
    asked: Asked,
    where: str,
    which: Literal["all", "dated", "undated"] = "all",
    since: datetime | None = None,
) -> Iterator[pl.DataFrame]:
    """The window's rows and those without a time, or only either; ``dated`` ones in order, and newer than ``since``."""
    with _connected(source, where) as connection:
        rows = _table(source)
        there = list(connection.execute(sa.select(sa.text("*")).select_from(rows).limit(0)).keys())
        asked.check(there, where)
        names = list(asked.names.values())
        all_of_it: list[sa.ColumnClause[Any]] = [sa.column(name) for name in dict.fromkeys(names)]
        time: sa.ColumnClause[Any] = sa.column(asked.event_time)
        wanted = sa.select(*all_of_it).select_from(rows)
        bounds = _bounds(_any(connection, rows, time), asked.window, asked)
        if which == "undated":
            wanted = wanted.where(time.is_(None))
        elif bounds is not None:
            low, high = bounds
            inside = (time >= sa.bindparam("low", low)) & (time < sa.bindparam("high", high))
            wanted = wanted.where(inside if which == "dated" else inside | time.is_(None))
        if which == "dated":
            wanted = wanted.order_by(time)
        if since is not None:
            mark: sa.ColumnClause[Any] = sa.column(asked.names[columns.MARK])
            of_mark = _bounds(_any(connection, rows, mark), Window(start=since, end=since + DAY), asked)
            if of_mark is not None:
                wanted = wanted.where((mark >= sa.bindparam("since", of_mark[0])) | mark.is_(None))
        found = connection.execute(wanted, execution_options={"stream_results": True, "yield_per": CHUNK})
        chunks = (_frame(chunk, list(found.keys()), where).lazy() for chunk in found.partitions(CHUNK))
        first_chunk = next(chunks, pl.LazyFrame(schema=dict.fromkeys(names, pl.Null)))
        try:
            yield from columns.pieces(chain([first_chunk], chunks), asked, where)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{where} holds what cannot be read ({said(error)}): cast it in a query") from error


def _any(connection: sa.Connection, rows: Any, column: sa.ColumnClause[Any]) -> Any:
    """A value of a column, for its type."""
    return connection.execute(sa.select(column).select_from(rows).where(column.is_not(None)).limit(1)).scalar()


def _ends(source: Database, asked: Asked, where: str) -> tuple[datetime | None, datetime | None, datetime | None]:
    """The newest watermark, the oldest and the newest event time."""
    assert asked.watermark is not None
    with _connected(source, where) as connection:
        rows = _table(source)
        asked.check(list(connection.execute(sa.select(sa.text("*")).select_from(rows).limit(0)).keys()), where)
        mark: sa.ColumnClause[Any] = sa.column(asked.watermark.column)
        time: sa.ColumnClause[Any] = sa.column(asked.event_time)
        wanted = sa.select(sa.func.max(mark), sa.func.min(time), sa.func.max(time)).select_from(rows)
        newest, first, last = map(_plain, connection.execute(wanted).one())
    if isinstance(newest, int | float) and asked.declared.time_unit is None:
        raise ConfigError(
            f"{where}: the watermark {mark.name} holds numbers ({newest}): a counter is given out before a row is "
            "written, and nobody can say how much later that may be; name a column of times, declare source.time_unit "
            "if these are some, or leave watermark out"
        )
    [mark_moment] = columns.moments([newest], columns.MARK, asked, where)
    earliest, latest = columns.moments([first, last], "event_time", asked, where)
    return mark_moment, earliest, latest


def _table(source: Database) -> Any:
    declared = source.declared
    assert declared is not None
    if declared.query is not None:
        # As it is: a colon in it begins no parameter.
        query = declared.query.strip().rstrip(";").replace("\\", "\\\\").replace(":", "\\:")
        return sa.text(f"({query}) AS declared_rows")
    schema, _, name = str(declared.table).rpartition(".")
    return sa.table(name, schema=schema or None)


def _bounds(first: Any, window: Window, asked: Asked) -> tuple[Any, Any] | None:
    """The window in the type that a column's times have; a day wider where that has no zone. None: ask for all."""
    start, end = window.start, window.end
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
    except (DBAPIError, SQLAlchemyError) as error:
        password = (source.url.password,)
        shown = hidden(str(error), password) == str(error)  # as a cause it would stand in a traceback
        raise _refused(error, where, password) from (error if shown else None)


def _refused(
    error: SQLAlchemyError, where: str, secrets: tuple[str | None, ...]
) -> ConfigError | DataError | Unavailable:
    if not isinstance(error, DBAPIError):
        return ConfigError(f"{where} cannot be read ({hidden(said(error), secrets)}): mend source in params.yaml")
    words = str(error.orig).strip().splitlines()[0] if error.orig and str(error.orig).strip() else said(error)
    words = hidden(words, secrets)
    if any(text in words for text in _REFUSED):
        return ConfigError(f"{where} refuses the login ({words}): mend the user and password in the address")
    if any(text in words for text in _NOT_THERE):
        return ConfigError(f"{where}: what is asked for is not there ({words}): mend source in params.yaml")
    if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
        return Unavailable(f"{where} does not answer ({words}): try again, or mend the address")
    if isinstance(error, sa.exc.ProgrammingError):
        return ConfigError(f"{where} cannot be asked ({words}): mend the query or the table in params.yaml")
    return DataError(f"{where} holds what cannot be read ({words}): cast it in a query")


@dataclass(frozen=True)
class Sample:
    """Rows of a table as they are, evenly spaced in time; how many it has, and its first and last time."""

    frame: pl.DataFrame
    rows: int
    times: tuple[Any, Any]


def sample(source: Database, case: str, time: str, label: str, most: int, without: Collection[str] = ()) -> Sample:
    """At most ``most`` rows of all columns but those ``without``, for a look at what nobody has declared yet.

    Of a label that is rare some rows are among them. Raises what :func:`read` raises.
    """
    where = f"{case}: {source.name}"
    with _connected(source, where) as connection:
        rows = _table(source)
        there = list(connection.execute(sa.select(sa.text("*")).select_from(rows).limit(0)).keys())
        lost = [name for name in (time, label) if name not in there]
        if lost:
            raise ConfigError(f"{where} has no column {lost[0]}, but {', '.join(there[:40])}: name one of these")
        columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in there if name not in without]
        when: sa.ColumnClause[Any] = sa.column(time)
        answer: sa.ColumnClause[Any] = sa.column(label)
        counted = sa.select(sa.func.count(), sa.func.min(when), sa.func.max(when)).select_from(rows)
        count, first, last = connection.execute(counted).one()
        wanted = sa.select(*columns).select_from(rows)
        if count > most:
            number = sa.func.row_number().over(order_by=when).label("row_in_time")
            numbered = sa.select(*columns, number).select_from(rows).subquery()
            wanted = sa.select(*(numbered.c[column.name] for column in columns))
            wanted = wanted.where(numbered.c.row_in_time * stride(count) % count < most)
        frame = _collected(connection, wanted, where)
        seen = frame[label].drop_nulls().unique().to_list()
        if count > most and len(seen) <= RARE:
            others = sa.select(*columns).select_from(rows).where(answer.not_in(seen)).limit(RARE)
            frame = pl.concat([frame, _collected(connection, others, where)], how="vertical_relaxed")
    return Sample(frame, count, (first, last))


def _collected(connection: sa.Connection, wanted: Any, where: str) -> pl.DataFrame:
    found = connection.execute(wanted, execution_options={"stream_results": True, "yield_per": CHUNK})
    names = list(found.keys())
    frames = [_frame(chunk, names, where) for chunk in found.partitions(CHUNK)]
    return pl.concat(frames or [pl.DataFrame(schema=dict.fromkeys(names, pl.Null))], how="vertical_relaxed")
