"""The ledger's journal: one entry for each row of each table.

Entries are chained by hashes within a case, and written in the row's own transaction. It covers every column of every
row, so that a row which somebody changed, removed or added behind the ledger's back is told from those that the ledger
wrote. Rows from before there was a journal were taken over when its table was made, and are marked so. What nobody can
tell from inside the database is a chain that was recomputed as a whole, or cut off at its newest end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    cast,
    event,
    func,
    insert,
    literal,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from pipelines.contracts import Finding
from pipelines.errors import IntegrityError
from pipelines.provenance import wall_time
from pipelines.storage import canonical_json, digest

metadata = MetaData()
"""The ledger's tables; every one has a column ``case``, and what tells its rows apart as its primary key."""

_journal = Table(
    "journal",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("about", String(32), nullable=False),
    Column("row_key", Text, nullable=False),
    Column("row_hash", String(64), nullable=False),
    Column("taken_over", Integer, nullable=False),
    Column("recorded_at", String(40), nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("case", "about", "row_key"),
)
_WRITING = 5_117_403
"""The advisory lock of whoever enters rows of a case in PostgreSQL; SQLite has one writer anyway."""
Row = Mapping[Any, Any]
NOTHING: Mapping[str, str] = MappingProxyType({})


def add(connection: Connection, *rows: tuple[Table, Row]) -> None:
    """Insert rows of one case, and their entries.

    Raises SQLAlchemy's IntegrityError if a row's key is there already.
    """
    for table, row in rows:
        connection.execute(insert(table).values(**row))
    # The rows come first: whoever waits for the entries' lock holds all else that this transaction needs.
    _enter(connection, rows)


def _enter(connection: Connection, rows: Sequence[tuple[Table, Row]], *, taken_over: bool = False) -> None:
    case = rows[0][1]["case"]
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:kind, hashtext(:case))"), {"kind": _WRITING, "case": case}
        )
    newest = connection.execute(_entries(case).order_by(_journal.c.number.desc()).limit(1)).mappings().first()
    number, previous = (newest["number"], newest["hash"]) if newest else (0, "")
    entries = []
    for table, row in rows:
        number += 1
        fields = {
            "case": case,
            "number": number,
            "about": table.name,
            "row_key": row_key(table, row),
            "row_hash": row_hash(table, row),
        }
        fields |= {"taken_over": int(taken_over), "recorded_at": wall_time().isoformat(timespec="microseconds")}
        entries.append(fields | {"hash": (previous := _entry_hash(fields, previous))})
    try:
        connection.execute(insert(_journal), entries)
    except SqlIntegrityError as error:
        keys = ", ".join(f"{entry['about']} {entry['row_key']}" for entry in entries)
        raise IntegrityError(
            f"ledger of {case}: its journal has an entry for {keys} already, but the row was gone: "
            "`python -m pipelines audit`"
        ) from error


def row_key(table: Table, row: Row) -> str:
    """What tells a row from the others of its case, as text: the columns of its primary key."""
    return canonical_json(
        {column.name: row[column.name] for column in table.primary_key.columns if column.name != "case"}
    )


def row_hash(table: Table, row: Row) -> str:
    """sha256 over all columns of a row; of what is no text and no number, as only damage leaves it, nothing ("")."""
    try:
        return digest({"table": table.name, **{column.name: row[column.name] for column in table.columns}})
    except (TypeError, ValueError):
        return ""


def _entry_hash(fields: Row, previous: str) -> str:
    return digest({**{name: value for name, value in fields.items() if name != "hash"}, "previous": previous})


def _entries(case: str) -> Select[Any]:
    return select(_journal).where(_journal.c.case == case)


def newest_of(case: str, table: Table) -> Select[Any]:
    """``row_key`` and ``row_hash`` of the newest entry about a table."""
    wanted = select(_journal.c.row_key, _journal.c.row_hash).where(
        _journal.c.case == case, _journal.c.about == table.name
    )
    return wanted.order_by(_journal.c.number.desc()).limit(1)


def entries_about(table: Table, cases: Collection[str] | Select[Any]) -> Select[Any]:
    """``case``, ``row_key`` and ``row_hash`` of the entries about a table, of these cases."""
    return select(_journal.c.case, _journal.c.row_key, _journal.c.row_hash).where(
        _journal.c.case.in_(cases), _journal.c.about == table.name
    )


def read(
    connection: Connection, table: Table, case: str, wanted: Select[Any], *, named: Mapping[str, str] = NOTHING
) -> tuple[list[dict[str, Any]], str]:
    """The ``wanted`` rows of a table, all of one case.

    And what is wrong, if one is not as it was written or any row of the case is gone, else "". Of rows that are
    ``named`` by values of columns the others do not matter, if there is one. That there is none is said only after a
    look at all rows of the case without an index: a damaged index hides a row, and whoever relies on it does a work
    twice.
    """
    key = _sql_key(connection, table)
    entry = (_journal.c.case == table.c.case) & (_journal.c.about == table.name) & (_journal.c.row_key == key)
    found = (
        connection.execute(wanted.add_columns(_journal.c.row_hash.label("entered")).outerjoin(_journal, entry))
        .mappings()
        .all()
    )
    rows = [{column.name: row[column.name] for column in table.columns} for row in found]
    now = [row_hash(table, row) for row in rows]
    if now == [row["entered"] for row in found] and ((named and rows) or _whole(connection, table, case, entry)):
        return rows, "" if rows or not named else _hidden(connection, table, case, named)
    return rows, _wrong(connection, table, case, dict(zip((_key(table, row) for row in rows), now, strict=True)))


def _hidden(connection: Connection, table: Table, case: str, named: Mapping[str, str]) -> str:
    """Which row has the values ``named``, though it was not found by them; "" if none has."""
    everything = select(table).where(table.c.case.concat("") == case)  # an expression, which no index serves
    by_name = select(table).where(table.c.case == case, *(table.c[column] == value for column, value in named.items()))
    for row in connection.execute(everything).mappings():
        if all(row[column] == value for column, value in named.items()):
            if connection.execute(by_name).first() is not None:
                return ""  # somebody wrote it since it was asked for
            return (
                f"table {table.name}, row {_key(table, row)} is there and is not found by its {', '.join(named)}: "
                "an index of the database is damaged"
            )
    return ""


def _whole(connection: Connection, table: Table, case: str, entry: ColumnElement[bool]) -> bool:
    """Whether every row of a case has an entry and every entry a row.

    Keys are unique on both sides: then there are as many pairs as of each.
    """
    rows = select(func.count()).select_from(table)
    entries = select(func.count()).select_from(_journal)
    counts = (
        rows.where(table.c.case == case),
        entries.where(_journal.c.case == case, _journal.c.about == table.name),
        rows.join(_journal, entry).where(table.c.case == case),
    )
    return len(set(connection.execute(select(*(count.scalar_subquery() for count in counts))).one())) == 1


def _sql_key(connection: Connection, table: Table) -> ColumnElement[str]:
    """:func:`row_key` in SQL.

    Of a key with other letters than ASCII it may be another text, which :func:`_wrong` has to look at then.
    """
    quoted = func.json_quote if connection.dialect.name == "sqlite" else lambda column: cast(func.to_json(column), Text)
    names = sorted(column.name for column in table.primary_key.columns if column.name != "case")
    parts: list[Any] = [part for name in names for part in (f',"{name}":', quoted(table.c[name]))]
    return sum([*parts[1:], "}"], literal("{" + parts[0][1:], Text))


def _wrong(connection: Connection, table: Table, case: str, found: Mapping[str, str]) -> str:
    """Which row of a case is gone, strange or, of those that were ``found`` (hashes by key), changed; "" if none is.

    Others may write meanwhile: an entry that is older than the reading must have its row, and a row an entry that
    stands after it.
    """
    entries = select(_journal.c.row_key, _journal.c.row_hash).where(
        _journal.c.case == case, _journal.c.about == table.name
    )
    before = {row.row_key for row in connection.execute(entries)}
    there = {
        _key(table, row)
        for row in connection.execute(select(*table.primary_key.columns).where(table.c.case == case)).mappings()
    }
    after = {row.row_key: row.row_hash for row in connection.execute(entries)}
    for problem, wrong in (
        ("was written and is gone", before - there),
        ("was not written by the ledger", (there | found.keys()) - after.keys()),
        ("is not what was written", {key for key, value in found.items() if value != after.get(key)}),
    ):
        if wrong:
            return f"table {table.name}, row {min(wrong)} {problem}"
    return ""


@event.listens_for(metadata, "after_create")
def _take_over(_metadata: MetaData, connection: Connection, *, tables: Sequence[Table], **_: Any) -> None:
    """Enter the rows that were there before the journal, in the transaction that makes its table."""
    if _journal not in tables:
        return
    for case in _cases(connection):
        rows = [(table, row) for table in _own_tables() for row in _rows(connection, table, case)]
        _enter(connection, rows, taken_over=True)


def _own_tables() -> list[Table]:
    return [table for table in metadata.sorted_tables if table is not _journal]


def _rows(connection: Connection, table: Table, case: str) -> Sequence[Row]:
    return (
        connection.execute(select(table).where(table.c.case == case).order_by(*table.primary_key.columns))
        .mappings()
        .all()
    )


def _cases(connection: Connection) -> list[str]:
    return sorted(
        {str(case) for table in _own_tables() for case in connection.execute(select(table.c.case).distinct()).scalars()}
    )


def cases(connection: Connection) -> list[str]:
    """Every case of which there is a row or an entry."""
    return sorted({*_cases(connection), *map(str, connection.execute(select(_journal.c.case).distinct()).scalars())})


def stored(connection: Connection, case: str) -> tuple[dict[str, Sequence[Row]], list[Finding], int]:
    """The rows of a case as they stand, by table; where they are not those that the journal has.

    How many of them were taken over. Others may write meanwhile: an entry that is older than the reading must have its
    row, and a row an entry that stands after it.
    """
    before = connection.execute(_entries(case).order_by(_journal.c.number)).mappings().all()
    rows = {table.name: _rows(connection, table, case) for table in _own_tables()}
    after = connection.execute(_entries(case).order_by(_journal.c.number)).mappings().all()
    return (
        rows,
        [*_broken_links(case, after), *_strays(case, rows, before, after)],
        sum(entry["taken_over"] == 1 for entry in after),
    )


def _broken_links(case: str, entries: Sequence[Row]) -> Iterator[Finding]:
    previous = ""
    for position, entry in enumerate(entries, start=1):
        if entry["number"] != position:
            yield Finding(
                case=case,
                table="journal",
                row=f"number {entry['number']}",
                problem=f"number {position} should follow: entries are missing",
            )
            return  # whatever comes after it cannot continue the chain
        if entry["hash"] != _hash_of(entry, previous):
            yield Finding(
                case=case,
                table="journal",
                row=f"number {position}",
                column="hash",
                problem="the entry does not continue the chain",
            )
        previous = entry["hash"]


def _hash_of(entry: Row, previous: str) -> str:
    try:
        return _entry_hash(entry, previous)
    except (TypeError, ValueError):
        return ""


def _strays(
    case: str, rows: Mapping[str, Sequence[Row]], before: Sequence[Row], after: Sequence[Row]
) -> Iterator[Finding]:
    wanted = {(entry["about"], entry["row_key"]): entry["row_hash"] for entry in after}
    there = {
        (table.name, _key(table, row)): row_hash(table, row) for table in _own_tables() for row in rows[table.name]
    }
    for (name, key), value in there.items():
        if (name, key) not in wanted:
            yield Finding(
                case=case,
                table=name,
                row=key,
                problem="the row has no entry in the journal: the ledger did not write it",
            )
        elif value != wanted[name, key]:
            yield Finding(case=case, table=name, row=key, problem="the columns are not those that were written")
    for entry in before:
        if (entry["about"], entry["row_key"]) not in there:
            yield Finding(
                case=case,
                table=str(entry["about"]),
                row=str(entry["row_key"]),
                problem="the row is gone: the journal has an entry for it",
            )


def _key(table: Table, row: Row) -> str:
    try:
        return row_key(table, row)
    except (TypeError, ValueError):
        return repr({column.name: row[column.name] for column in table.primary_key.columns})
