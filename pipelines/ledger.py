"""The ledger of releases, verdicts, drift and alerts: append-only, hash-chained, decided by compare-and-swap. It is the serving truth.

MLflow's aliases and Triton's loaded versions are projections of it. One SQL schema serves SQLite
(embedded) and PostgreSQL (the full stack): database.py. Nothing is ever updated or deleted: whoever inserts (case, seq+1)
first wins, everybody else gets a ConflictError. Every row of every table has an entry in the journal (journal.py), with which
each reader here compares what it reads: a row that is not as it was written, cannot be read or is gone is an IntegrityError that
names it. ``python -m pipelines audit`` lists all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal,
    select,
    union_all,
)
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from pipelines import database, journal
from pipelines.contracts import Action, Alert, Finding, Notice, Release, Trigger
from pipelines.errors import ConflictError, IntegrityError, Overtaken
from pipelines.storage import canonical_json, digest, wall_time

_metadata = journal.metadata

_releases = Table(
    "releases",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("row", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)
_verdicts = Table(
    "verdicts",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("gate_key", String(64), primary_key=True),
    Column("as_of", String(40), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("verdict", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
)
_drift_states = Table(
    "drift_states",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("as_of", String(40), primary_key=True),
    Column("state", Text, nullable=False),
    Column("evidence_hash", String(64), nullable=False),
    Column("recorded_at", String(40), nullable=False),
)
_drift_chain = Table(
    "drift_chain",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("previous", String(40), primary_key=True),
    Column("as_of", String(40), nullable=False),
)
_episodes = Table(
    "drift_episodes",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("episode", String(96), primary_key=True),
    Column("as_of", String(40), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
)
_alert_runs = Table(
    "alert_runs",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("as_of", String(40), nullable=False),
    Column("alerts", Text, nullable=False),
    Column("notices", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
    UniqueConstraint("case", "as_of"),
)
_deliveries = Table(
    "alert_deliveries",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("notice", String(192), primary_key=True),
    Column("sink", String(16), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("event", String(16), primary_key=True),
    Column("detail", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
)
_silences = Table(
    "alert_silences",
    _metadata,
    Column("case", String(64), primary_key=True),
    Column("rule", String(32), primary_key=True),
    Column("recorded_at", String(40), primary_key=True),
    Column("until", String(40), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
)


def _begin(url: str) -> AbstractContextManager[Connection]:
    return database.begin(url, _metadata)


def check(url: str) -> None:
    """Make the tables where there are none. Raises ConfigError if they are another version's, Unavailable if nobody answers."""
    with _begin(url):
        pass


def _insert_first(url: str, table: Table, **values: Any) -> bool:
    """Insert a row; False if its key is there already: of all who try, the first one wins."""
    try:
        with _begin(url) as connection:
            journal.add(connection, (table, {**values, "recorded_at": _text(wall_time())}))
    except SqlIntegrityError:
        return False
    return True


def _rows(
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

    Raises IntegrityError, naming case, table, row and, if it cannot be read, column: for a row that was changed or added behind the ledger's
    back, and for one of the case that is gone, as nobody can say whether it would be among them. Of rows that are ``named`` by values of
    columns the others do not matter (journal.read).
    """
    where = (*where, *(table.c[column] == value for column, value in named.items()))
    wanted = select(table).where(table.c.case == case, *where).order_by(*order).limit(limit)
    with _begin(url) as connection:
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


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _revised(as_of: datetime, revision: int) -> str:
    """The key of a row whose ``as_of`` may be decided on more than once; later revisions sort after earlier ones."""
    return _text(as_of) if revision == 1 else f"{_text(as_of)}#{revision}"


# --- releases -----------------------------------------------------------------------------------


def _row_hash(fields: dict[str, Any]) -> str:
    return digest({k: v for k, v in fields.items() if k != "hash"})


LOOK = "somebody or something changed it; `python -m pipelines audit` lists all that is wrong, restore the database"


def read_release(row: Mapping[Any, Any]) -> Release:
    """A row of the table as a release. Raises IntegrityError, naming case, seq and column, if it cannot be read or its columns disagree."""
    case, seq = row["case"], row["seq"]
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
    """All releases of a case, oldest first, the hash chain checked (IntegrityError names the broken row, or one that is gone)."""
    with _begin(url) as connection:
        rows, problem = journal.read(
            connection, _releases, case, select(_releases).where(_releases.c.case == case).order_by(_releases.c.seq)
        )
    history, previous = [read_release(row) for row in rows], ""
    for position, release in enumerate(history, start=1):
        if release.seq != position or release.previous_hash != previous:
            raise IntegrityError(f"ledger of {case}: row {release.seq} does not continue the chain: {LOOK}")
        previous = release.hash
    if problem:
        raise IntegrityError(f"ledger of {case}: {problem}: {LOOK}")
    return history


def head(url: str, case: str) -> Release | None:
    """The newest release of a case: what serves now. One statement, no history: this is what gateways poll.

    Raises IntegrityError if the row is not one that the ledger wrote, or not the newest that it wrote.
    """
    newest = select(_releases).where(_releases.c.case == case).order_by(_releases.c.seq.desc()).limit(1).subquery()
    entry = journal.newest_of(case, _releases).subquery()
    # Of one moment: between two statements somebody may promote.
    both = union_all(
        select(literal("row").label("kind"), newest.c.case, newest.c.seq, newest.c.row, newest.c.hash),
        select(literal("entry"), literal(case), literal(0), entry.c.row_key, entry.c.row_hash),
    )
    with _begin(url) as connection:
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


def append(
    url: str,
    *,
    case: str,
    expected_seq: int,
    champion: int,
    candidate_key: str,
    bundle: str,
    action: Action,
    trigger: Trigger,
    reason: str,
    actor: str,
    as_of: datetime,
    mlflow_run: str | None = None,
    verdict_hash: str | None = None,
) -> Release:
    """Compare-and-swap: append row ``expected_seq + 1`` if ``expected_seq`` is still the head (0: none yet).

    Raises ConflictError if somebody else was first; nothing is written then.
    """
    current = head(url, case)
    if (current.seq if current else 0) != expected_seq:
        raise ConflictError(
            f"ledger of {case}: expected release {expected_seq}, found {current.seq if current else 0}: somebody was first; look at the history and try again"
        )
    fields = Release(
        case=case,
        seq=expected_seq + 1,
        champion=champion,
        candidate_key=candidate_key,
        bundle=bundle,
        action=action,
        trigger=trigger,
        reason=reason,
        actor=actor,
        mlflow_run=mlflow_run,
        verdict_hash=verdict_hash,
        as_of=as_of,
        recorded_at=wall_time(),
        previous_hash=current.hash if current else "",
        hash="",
    ).model_dump(mode="json")
    fields["hash"] = _row_hash(fields)
    try:
        with _begin(url) as connection:
            journal.add(
                connection,
                (
                    _releases,
                    {"case": case, "seq": expected_seq + 1, "row": canonical_json(fields), "hash": fields["hash"]},
                ),
            )
    except SqlIntegrityError as error:
        raise ConflictError(
            f"ledger of {case}: release {expected_seq + 1} was written by somebody else first; look at the history and try again"
        ) from error
    return Release.model_validate(fields)


def previous_release(url: str, case: str) -> Release | None:
    """The release that a rollback returns to: promotions and releases by hand stack up, a rollback takes the top one off."""
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
    return stack[-2] if len(stack) > 1 else None


# --- verdicts -----------------------------------------------------------------------------------


def record_verdict(url: str, *, case: str, gate_key: str, as_of: datetime, trigger: Trigger, verdict: Any) -> str:
    """Keep the verdict of one gate run (``gate_key``: its manifest's key) for good; returns its sha256. The same verdict again changes nothing.

    Raises ConflictError if the same gate run answered differently before: verdicts are immutable.
    """
    text, value = canonical_json(verdict), digest(verdict)
    if not _insert_first(
        url, _verdicts, case=case, gate_key=gate_key, as_of=_text(as_of), trigger=trigger, hash=value, verdict=text
    ):
        [row] = _rows(url, _verdicts, case, named={"gate_key": gate_key})
        if (found := row["hash"]) != value:
            raise ConflictError(
                f"{case}: gate run {gate_key[:12]} already has verdict {found[:12]}, not {value[:12]}: verdicts are immutable"
            )
    return value


def verdicts(url: str, case: str) -> list[dict[str, Any]]:
    """All verdicts of a case by as_of: ``{gate_key, as_of, trigger, hash, verdict, recorded_at}``."""
    return _rows(url, _verdicts, case, order=(_verdicts.c.as_of, _verdicts.c.recorded_at), parse=["verdict"])


def verdict(url: str, case: str, value: str, *, gate_key: str = "") -> dict[str, Any]:
    """The verdict whose sha256 is ``value``, as :func:`verdicts` gives it.

    Several gate runs may come to the same verdict, to the byte: it is the row of ``gate_key`` where that run is one of them.

    Raises IntegrityError if the ledger has none, or its row is another one than was hashed.
    """
    rows = _rows(
        url,
        _verdicts,
        case,
        order=[_verdicts.c.gate_key != gate_key],
        limit=1,
        parse=["verdict"],
        named={"hash": value},
    )
    if not rows:
        raise IntegrityError(f"ledger of {case}: there is no verdict {value[:12]}: {LOOK}")
    if digest(rows[0]["verdict"]) != value:
        raise IntegrityError(
            f"ledger of {case}: table verdicts, gate_key {rows[0]['gate_key']}: column verdict is not what its hash was made of: {LOOK}"
        )
    return rows[0]


# --- drift --------------------------------------------------------------------------------------


def drift_state_before(url: str, case: str, as_of: datetime) -> dict[str, Any] | None:
    """The policy's state after the last window before ``as_of``, or None for a new case."""
    earlier = _drift_states.c.as_of < _text(as_of)
    rows = _rows(url, _drift_states, case, earlier, order=[_drift_states.c.as_of.desc()], limit=1, parse=["state"])
    return rows[0]["state"] if rows else None


def drift_states(url: str, case: str) -> list[dict[str, Any]]:
    """Every state that the policy of a case ever had, oldest first, as one read finds them."""
    return [row["state"] for row in _rows(url, _drift_states, case, order=[_drift_states.c.as_of], parse=["state"])]


def record_drift_state(
    url: str,
    *,
    case: str,
    as_of: datetime,
    state: dict[str, Any],
    evidence_hash: str,
    previous: str | None = None,
    revision: int = 1,
) -> dict[str, Any]:
    """Keep the policy's state after the window ending at ``as_of``; the first one written stands and is returned.

    ``previous`` names the state that it was made from or takes the place of (``""``: none; None: not said). A state has one
    successor, so that two windows judged at once cannot both open an episode: raises Overtaken, and writes nothing, if another
    window came first. A window that is judged again leaves a state of the next ``revision``, beside those before.
    """
    name = _revised(as_of, revision)
    row = {
        "case": case,
        "as_of": name,
        "state": canonical_json(state),
        "evidence_hash": evidence_hash,
        "recorded_at": _text(wall_time()),
    }
    link = [] if previous is None else [(_drift_chain, {"case": case, "previous": previous, "as_of": name})]
    # Where another try of the same window was first, what it wrote is returned.
    with suppress(SqlIntegrityError), _begin(url) as connection:
        journal.add(connection, *link, (_drift_states, row))
    found = _rows(url, _drift_states, case, parse=["state"], named={"as_of": name})
    if not found:
        raise Overtaken(
            f"{case}: a drift run of another window than {as_of.isoformat()} decided first, on the same earlier state; run the step again"
        )
    kept: dict[str, Any] = found[0]["state"]
    return kept


def open_episode(url: str, *, case: str, episode: str, as_of: datetime, evidence: Any) -> bool:
    """Record a drift episode; True for whoever was first, False if it was there already."""
    return _insert_first(
        url, _episodes, case=case, episode=episode, as_of=_text(as_of), evidence=canonical_json(evidence)
    )


def episodes(url: str, case: str) -> list[dict[str, Any]]:
    """All drift episodes of a case, oldest first: ``{episode, as_of, evidence, recorded_at}``."""
    return _rows(url, _episodes, case, order=[_episodes.c.as_of], parse=["evidence"])


def asking_episode(url: str, case: str, as_of: datetime) -> str | None:
    """The episode that asked for a drift-triggered run at ``as_of``: the newest one opened up to then."""
    opened: list[str] = [row["episode"] for row in episodes(url, case) if datetime.fromisoformat(row["as_of"]) <= as_of]
    return opened[-1] if opened else None


# --- alerts -------------------------------------------------------------------------------------


def alert_runs(
    url: str, case: str, *, last: int | None = None, at: datetime | None = None, revision: int = 1
) -> list[dict[str, Any]]:
    """What the alert steps of a case left, oldest first: ``{seq, as_of, alerts, notices, recorded_at}``; the ``last`` rows, or that of ``at``.

    A row's alerts are those that were open after it and those that it resolved. A window that was judged again has a row for each ``revision``.
    """
    named = journal.NOTHING if at is None else {"as_of": _revised(at, revision)}
    rows = _rows(
        url, _alert_runs, case, order=[_alert_runs.c.seq.desc()], limit=last, parse=["alerts", "notices"], named=named
    )
    return [{**row, "as_of": row["as_of"].partition("#")[0]} for row in reversed(rows)]


def append_alerts(
    url: str,
    *,
    case: str,
    seq: int,
    as_of: datetime,
    alerts: Sequence[Alert],
    notices: Sequence[Notice],
    revision: int = 1,
) -> bool:
    """Compare-and-swap: write row ``seq`` of ``alert_runs``; False if somebody has written it, or that row of ``as_of``, before."""
    text = {"alerts": canonical_json(list(alerts)), "notices": canonical_json(list(notices))}
    return _insert_first(url, _alert_runs, case=case, seq=seq, as_of=_revised(as_of, revision), **text)


def alerts(url: str, case: str) -> list[Alert]:
    """Every alert that a case ever had, as it stands now, by the time it was first seen."""
    found = {(alert["key"], alert["first_seen"]): alert for row in alert_runs(url, case) for alert in row["alerts"]}
    return [
        Alert.model_validate_json(json.dumps(alert))
        for _, alert in sorted(found.items(), key=lambda item: (item[1]["first_seen"], item[0]))
    ]


def note_delivery(url: str, *, case: str, notice: str, sink: str, attempt: int, event: str, detail: str = "") -> bool:
    """Write that ``attempt`` to send a notice was ``claimed``, ``delivered`` or ``failed``; False if that is written already."""
    return _insert_first(
        url, _deliveries, case=case, notice=notice, sink=sink, attempt=attempt, event=event, detail=detail
    )


def deliveries(url: str, case: str) -> list[dict[str, Any]]:
    """What became of the notices: ``{notice, sink, attempt, event, detail, recorded_at}``, by attempt, oldest first."""
    return _rows(url, _deliveries, case, order=(_deliveries.c.attempt, _deliveries.c.recorded_at))


def undelivered(url: str, case: str) -> dict[str, int]:
    """By sink that is broken now, i.e. whose newest answer is a failure: how many notices it has not taken."""
    answers = [row for row in deliveries(url, case) if row["event"] != "claimed"]
    newest = {row["sink"]: row["event"] for row in sorted(answers, key=lambda row: row["recorded_at"])}
    open_ = {(row["sink"], row["notice"]) for row in answers} - {
        (row["sink"], row["notice"]) for row in answers if row["event"] == "delivered"
    }
    return {sink: sum(own == sink for own, _ in open_) for sink in sorted(newest) if newest[sink] == "failed"}


def silence(url: str, *, case: str, rule: str, until: datetime, reason: str, actor: str) -> None:
    """Tell nobody of a rule's alerts until ``until`` (event time); they are still counted."""
    _insert_first(url, _silences, case=case, rule=rule, until=_text(until), reason=reason, actor=actor)


def silences(url: str, case: str, at: datetime) -> list[dict[str, Any]]:
    """The silences in force at ``at``: ``{rule, until, reason, actor, recorded_at}``; of several for a rule the newest one counts."""
    rows = _rows(url, _silences, case, order=[_silences.c.recorded_at])
    return [row for row in {row["rule"]: row for row in rows}.values() if row["until"] > _text(at)]


# --- what stands there ----------------------------------------------------------------------------


def cases(url: str) -> list[str]:
    """Every case of which the ledger has a row."""
    with _begin(url) as connection:
        return journal.cases(connection)


def stored(url: str, case: str) -> tuple[dict[str, Sequence[Mapping[Any, Any]]], list[Finding], int]:
    """The rows of a case by table as they stand, read or not; where they are not those that were written; how many the journal took over."""
    with _begin(url) as connection:
        return journal.stored(connection, case)
