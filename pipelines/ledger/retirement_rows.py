"""Retirements: which cases are out of service, by whose word and why. The newest row of a case counts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import Column, Integer, String, Table, Text, literal, select, union_all

from pipelines.contracts import Release, Retirement
from pipelines.errors import ConflictError, IntegrityError
from pipelines.ledger import journal
from pipelines.ledger.release_rows import head
from pipelines.ledger.rows import LOOK, begin, cases, insert_first, metadata, read_rows

_retirements = Table(
    "retirements",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("retired", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("recorded_at", String(40), nullable=False),
)
ROUNDS = 3
"""How often a writer looks again because somebody else was first."""


class Retired(NamedTuple):
    """The cases that are out of service, and by case what is wrong with its rows: of such a case nothing is known."""

    now: dict[str, Retirement]
    damaged: dict[str, str]


def retired(url: str, known: Collection[str] = ()) -> Retired:
    """Which cases are out of service. One statement, of one moment: this is what gateways poll.

    That all rows of a case are gone is found of the cases that are ``known``.
    """
    columns = _retirements.c
    own, others = (journal.entries_about(_retirements, some).subquery() for some in (known, select(columns.case)))
    rows = select(literal("row").label("kind"), *columns)
    entries = [
        select(literal("entry"), one.c.case, literal(0), literal(0), one.c.row_key, one.c.row_hash, literal(""))
        for one in (own, others)
    ]
    written: dict[str, dict[str, str]] = {}
    there: dict[str, list[dict[str, Any]]] = {}
    with begin(url) as connection:
        for found in connection.execute(union_all(rows, *entries)).mappings():
            if found["kind"] == "entry":
                written.setdefault(found["case"], {})[found["reason"]] = found["actor"]
            else:
                there.setdefault(found["case"], []).append({name: found[name] for name in columns.keys()})  # noqa: SIM118
    answer = Retired({}, {})
    for case in sorted(written.keys() | there.keys()):
        own_rows = sorted(there.get(case, ()), key=lambda row: row["seq"])
        hashes = {journal.row_key(_retirements, row): journal.row_hash(_retirements, row) for row in own_rows}
        if hashes != written.get(case):
            answer.damaged[case] = f"ledger of {case}: its rows of retirements are not those that were written: {LOOK}"
        elif (newest := _read(own_rows[-1])).retired:
            answer.now[case] = newest
    return answer


def retirement(url: str, case: str) -> Retirement | None:
    """Since when, by whom and why a case is out of service; None: it is not. Raises IntegrityError if nobody knows."""
    found = retired(url, [case])
    if case in found.damaged:
        raise IntegrityError(found.damaged[case])
    return found.now.get(case)


def retirements(url: str, case: str) -> list[Retirement]:
    """All that was said of a case's being in service, oldest first."""
    return [_read(row) for row in read_rows(url, _retirements, case, order=[_retirements.c.seq])]


def set_retired(url: str, case: str, *, retired: bool, reason: str, actor: str) -> bool:
    """Take a case out of service, or back; False if that was said before.

    Compare-and-swap: raises ConflictError if others are always first.
    """
    for _ in range(ROUNDS):
        said = retirements(url, case)
        if (bool(said) and said[-1].retired) == retired:
            return False
        values = {"retired": int(retired), "reason": reason, "actor": actor}
        if insert_first(url, _retirements, case=case, seq=len(said) + 1, **values):
            return True
    raise ConflictError(f"ledger of {case}: others retire it and take it back at this moment: look at the history")


def require_in_service(url: str, case: str) -> None:
    """Raise ConflictError, which says what to do, if a case is retired."""
    found = retirement(url, case)
    if found is not None:
        raise ConflictError(
            f"{found}: nothing was changed; take it back first: `perennial retire {case} --undo --reason ...`"
        )


def gone(url: str, known: Collection[str]) -> dict[str, Release]:
    """What served of the cases that have no folder any more (they are not ``known``) and that nobody has retired.

    A case whose rows are damaged is left out: the audit has it.
    """
    out = retired(url)
    found: dict[str, Release] = {}
    for case in set(cases(url)) - set(known) - out.now.keys():
        try:
            release = head(url, case)
        except IntegrityError:
            continue
        if release is not None:
            found[case] = release
    return dict(sorted(found.items()))


def _read(row: dict[str, Any]) -> Retirement:
    return Retirement(**{**row, "retired": bool(row["retired"])})
