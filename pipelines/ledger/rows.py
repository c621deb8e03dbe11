"""What all tables of the ledger have in common.

Rows that are only ever added, each read against its entry in the journal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    select,
)
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from pipelines.contracts import Finding
from pipelines.errors import IntegrityError
from pipelines.ledger import database, journal
from pipelines.provenance import wall_time

metadata = journal.metadata
LOOK = "somebody or something changed it; `python -m pipelines audit` lists all that is wrong, restore the database"


def begin(url: str) -> AbstractContextManager[Connection]:
    """A transaction on the ledger, whose tables are made where there are none."""
    return database.begin(url, metadata)


def check(url: str) -> None:
    """Make the tables where there are none.

    Raises ConfigError if they are another version's, Unavailable if nobody answers.
    """
    with begin(url):
        pass


def insert_first(url: str, table: Table, **values: Any) -> bool:
    """Insert a row; False if its key is there already: of all who try, the first one wins."""
    try:
        with begin(url) as connection:
            journal.add(connection, (table, {**values, "recorded_at": moment_text(wall_time())}))
    except SqlIntegrityError:
        return False
    return True


def read_rows(
    url: str,
    table: Table,
    case: str,
    *where: ColumnElement[bool],
    order: Any = (),
    limit: int | None = None,
    parse: Sequence[str] = (),
    named: Mapping[str, str] = journal.NOTHING,
) -> list[dict[str, Any]]:
    """Rows of a case as the ledger wrote them, the JSON of the columns ``parse`` read.

    Raises IntegrityError, naming case, table, row and, if it cannot be read, column: for a row that was changed or
    added behind the ledger's back, and for one of the case that is gone, as nobody can say whether it would be among
    them. Of rows that are ``named`` by values of columns the others do not matter (journal.read).
    """
    where = (*where, *(table.c[column] == value for column, value in named.items()))
    wanted = select(table).where(table.c.case == case, *where).order_by(*order).limit(limit)
    with begin(url) as connection:
        rows, problem = journal.read(connection, table, case, wanted, named=named)
    found = [{**row, **{column: _parsed(table, row, column) for column in parse}} for row in rows]
    if problem:
        raise IntegrityError(f"ledger of {case}: {problem}: {LOOK}")
    return found


def _parsed(table: Table, row: Mapping[Any, Any], column: str) -> Any:
    try:
        return json.loads(row[column])
    except (TypeError, ValueError, RecursionError) as error:
        key = ", ".join(
            f"{one.name} {row[one.name]}" for one in table.primary_key.columns if one.name != "case" and one.name in row
        )
        raise IntegrityError(
            f"ledger of {row['case']}: table {table.name}, {key}: column {column} cannot be read ({error}): {LOOK}"
        ) from error


def moment_text(moment: datetime) -> str:
    """A moment as the ledger's columns hold it: UTC, so that texts sort as times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def revised(as_of: datetime, revision: int) -> str:
    """The key of a row whose ``as_of`` may be decided on more than once; later revisions sort after earlier ones."""
    if revision == 1:
        return moment_text(as_of)
    return f"{moment_text(as_of)}#{revision}"


def cases(url: str) -> list[str]:
    """Every case of which the ledger has a row."""
    with begin(url) as connection:
        return journal.cases(connection)


def stored(url: str, case: str) -> tuple[dict[str, Sequence[Mapping[Any, Any]]], list[Finding], int]:
    """The rows of a case by table as they stand, read or not; where they are not those that were written.

    How many the journal took over.
    """
    with begin(url) as connection:
        return journal.stored(connection, case)
