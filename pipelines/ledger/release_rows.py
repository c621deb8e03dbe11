"""Releases: which version serves a case, and why; a chain of rows, written by compare-and-swap."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    Column,
    Integer,
    String,
    Table,
    Text,
    literal,
    select,
    union_all,
)
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from pipelines.contracts import CHANGES, Order, Release
from pipelines.errors import ConflictError, IntegrityError
from pipelines.ledger import journal
from pipelines.ledger.rows import LOOK, begin, metadata
from pipelines.provenance import wall_time
from pipelines.storage import canonical_json, digest

_releases = Table(
    "releases",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("row", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)


def _row_hash(fields: dict[str, Any]) -> str:
    return digest({k: v for k, v in fields.items() if k != "hash"})


def read_release(row: Mapping[Any, Any]) -> Release:
    """A row of the table as a release.

    Raises IntegrityError, naming case, seq and column, if it cannot be read or its columns disagree.
    """
    case = row["case"]
    seq = row["seq"]
    try:
        release = Release.model_validate_json(row["row"])
    except (ValidationError, TypeError, RecursionError) as error:
        what = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise IntegrityError(
            f"ledger of {case}: row {seq} of releases: column row cannot be read ({what}): {LOOK}"
        ) from error
    told = (("case", release.case), ("seq", release.seq), ("hash", release.hash))
    wrong = next(
        (f"column {name} says {row[name]}, not {value} as the row does" for name, value in told if row[name] != value),
        None,
    )
    if release.hash != _row_hash(release.model_dump(mode="json")):
        wrong = "column row is not what its hash was made of"
    if wrong:
        raise IntegrityError(f"ledger of {case}: row {seq} does not continue the chain: {wrong}: {LOOK}")
    return release


def releases(url: str, case: str) -> list[Release]:
    """The rows of a case that say who serves, oldest first, without those of rollouts; what :func:`chain` raises."""
    return [release for release in chain(url, case) if release.action in CHANGES]


def chain(url: str, case: str) -> list[Release]:
    """All rows of a case, those of rollouts too, oldest first, the hash chain checked.

    IntegrityError names the broken row, or one that is gone.
    """
    with begin(url) as connection:
        rows, problem = journal.read(
            connection, _releases, case, select(_releases).where(_releases.c.case == case).order_by(_releases.c.seq)
        )
    history = [read_release(row) for row in rows]
    previous = ""
    for position, release in enumerate(history, start=1):
        if release.seq != position or release.previous_hash != previous:
            raise IntegrityError(f"ledger of {case}: row {release.seq} does not continue the chain: {LOOK}")
        previous = release.hash
    if problem:
        raise IntegrityError(f"ledger of {case}: {problem}: {LOOK}")
    return history


def head(url: str, case: str) -> Release | None:
    """The newest row of a case: what serves now, and to whom. One statement, no history: this is what gateways poll.

    Raises IntegrityError if the row is not one that the ledger wrote, or not the newest that it wrote.
    """
    newest = select(_releases).where(_releases.c.case == case).order_by(_releases.c.seq.desc()).limit(1).subquery()
    entry = journal.newest_of(case, _releases).subquery()
    # Of one moment: between two statements somebody may promote.
    both = union_all(
        select(literal("row").label("kind"), newest.c.case, newest.c.seq, newest.c.row, newest.c.hash),
        select(literal("entry"), literal(case), literal(0), entry.c.row_key, entry.c.row_hash),
    )
    with begin(url) as connection:
        found = {row["kind"]: row for row in connection.execute(both).mappings()}
    release = read_release(found["row"]) if "row" in found else None
    written = (found["entry"]["row"], found["entry"]["hash"]) if "entry" in found else None
    row = found.get("row")
    if written != (None if row is None else (journal.row_key(_releases, row), journal.row_hash(_releases, row))):
        shown = "no release" if release is None else f"release {release.seq}"
        newest_written = "none" if written is None else f"another one, {written[0]}"
        raise IntegrityError(
            f"ledger of {case}: the newest row is {shown}, the newest that was written {newest_written}: {LOOK}"
        )
    return release


def champion_before(url: str, case: str, as_of: datetime) -> Release | None:
    """The release that served just before ``as_of``: what a run at ``as_of`` is judged against.

    Strictly before, so that running the same run again finds the same opponent, not its own result.
    """
    return next((r for r in reversed(releases(url, case)) if r.as_of < as_of), None)


def append(url: str, order: Order) -> Release:
    """Compare-and-swap: the order's release is the newest if the one that it comes ``after`` still was.

    Raises ConflictError if somebody else was first; nothing is written then.
    """
    case = order.case
    current = head(url, case)
    newest = current.seq if current else 0
    if newest != order.after:
        raise ConflictError(
            f"ledger of {case}: expected release {order.after}, found {newest}: "
            "somebody was first; look at the history and try again"
        )
    seq = order.after + 1
    fields = Release(
        **order.model_dump(exclude={"after"}),
        seq=seq,
        recorded_at=wall_time(),
        previous_hash=current.hash if current else "",
        hash="",
    ).model_dump(mode="json")
    fields["hash"] = _row_hash(fields)
    row = {"case": case, "seq": seq, "row": canonical_json(fields), "hash": fields["hash"]}
    try:
        with begin(url) as connection:
            journal.add(connection, (_releases, row))
    except SqlIntegrityError as error:
        raise ConflictError(
            f"ledger of {case}: release {seq} was written by somebody else first; look at the history and try again"
        ) from error
    return Release.model_validate(fields)


def previous_release(url: str, case: str) -> Release | None:
    """The release that a rollback returns to.

    Promotions and releases by hand stack up, a rollback takes the top one off.
    """
    stack: list[Release] = []
    for release in releases(url, case):
        if release.action == "rollback":
            if not stack:
                raise IntegrityError(
                    f"ledger of {case}: row {release.seq} is a rollback with nothing to take back: {LOOK}"
                )
            stack.pop()
        else:
            stack.append(release)
    if len(stack) > 1:
        return stack[-2]
    return None
