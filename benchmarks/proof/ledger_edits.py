"""Edits of a real small ledger behind its back, each one audited.

Which kinds are found, and which leave a consistent chain. Part of ``make proof-flips``; alone: ``python -m
benchmarks.proof.ledger_edits``.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines import ledger, storage
from pipelines.audit import audit
from pipelines.contracts import Alert, Evidence, Interval, Notice, Order, Verdict
from pipelines.deploy import stages
from pipelines.deploy.stages import Candidate, Said
from pipelines.ledger.journal import metadata
from pipelines.params import RolloutParams
from pipelines.settings import Settings, read_settings

CASE = "bank"
T0 = datetime(2008, 8, 1, tzinfo=UTC)
STAGED = RolloutParams(preset="safe")
TABLES = {table.name: table for table in metadata.sorted_tables if table.name != "journal"}
CONSISTENT = ("chain recomputed", "newest row removed")
"""Kinds that nobody can tell from inside of the database: only what lies outside of it may give them away."""


@dataclass(frozen=True)
class Edit:
    """One edit: its kind, what it did, whether the audit found it, and whether the database alone gave it away."""

    kind: str
    what: str
    found: bool
    in_database: bool


def make(home: Path) -> Settings:
    """A state folder whose ledger has rows in all of its tables.

    And the runs that its releases and verdicts are from.
    """
    settings = read_settings(home=home)
    for number, (decision, version) in enumerate(
        [("promote", 1), ("reject", 2), ("promote", 3), ("inconclusive", 4), ("promote", 5)]
    ):
        if version == 5:
            _run(settings, T0 + timedelta(days=100), "promote", 6, trial=True)
        _run(settings, T0 + timedelta(days=30 * number), decision, version)
    taken_back = ledger.releases(settings.ledger, CASE)[-1:]
    below = ledger.previous_release(settings.ledger, CASE)
    assert below is not None
    ledger.append(
        settings.ledger,
        Order(
            case=CASE,
            after=taken_back[0].seq,
            action="rollback",
            as_of=T0 + timedelta(days=130),
            champion=below.champion,
            candidate_key=below.candidate_key,
            bundle=below.bundle,
            mlflow_run=below.mlflow_run,
            verdict_hash=below.verdict_hash,
            trigger="manual",
            reason="worse on the phone",
            actor="ada",
        ),
    )
    previous = ""
    for number in range(6):
        as_of = T0 + timedelta(days=140 + number)
        episode = f"{CASE}-{as_of:%Y%m%d}" if number in {2, 5} else None
        state = {
            "as_of": as_of.isoformat(),
            "policy": {"name": "CONFIRMED" if episode else "STABLE", "episode": episode},
            "rows": 1000 + number,
        }
        ledger.record_drift_state(
            settings.ledger, case=CASE, as_of=as_of, state=state, evidence_hash=storage.digest(state), previous=previous
        )
        previous = as_of.isoformat()
        if episode:
            run = f"drift__{episode}"
            ledger.note_start(settings.ledger, CASE, f"{CASE}_training", run, f"{CASE}_drift/manual/retrain#1")
            ledger.open_episode(
                settings.ledger,
                case=CASE,
                episode=episode,
                as_of=as_of,
                evidence={"trigger": "drift", "rows": 1000 + number},
            )
        _tell(settings, number + 1, as_of)
    for rule in ("labels_late", "champion_old"):
        ledger.silence(
            settings.ledger, case=CASE, rule=rule, until=T0 + timedelta(days=200), reason="known", actor="ada"
        )
    for retired in (True, False):
        ledger.set_retired(settings.ledger, CASE, retired=retired, reason="a break", actor="ada")
    return settings


def _run(settings: Settings, as_of: datetime, decision: Any, version: int, *, trial: bool = False) -> None:
    """One training run: its bundle, what evaluated it, its gate's verdict in the ledger.

    And its release, if the verdict says so; or its ``trial``, which was ended.
    """
    folder = settings.run_dir(CASE, as_of)
    keys = dict[str, str]()

    def commit(step: str, inputs: tuple[str, ...], facts: dict[str, Any], **files: str) -> None:
        sources = {name: keys[name] for name in inputs}
        keys[step] = storage.step_key(step, 1, sources, {"version": version})

        def build(work: Path) -> dict[str, Any]:
            for name, text in files.items():
                (work / name).write_text(text)
            return facts

        storage.commit(folder / step, case=CASE, as_of=as_of, key=keys[step], inputs=sources, build=build)

    lift = Interval(value=0.01 * version, low=0.005, high=0.03)
    evidence = Evidence(metric="log_loss", n=400, positives=40, opponent="champion", lift=lift)
    verdict = Verdict(
        decision=decision, rule="lower_bound", reason=f"lift of version {version}", evidence=evidence, min_lift=0.005
    )
    commit("export", (), {}, model=f"weights of version {version}")
    commit("evaluate", ("export",), {"n": 400})
    commit(
        "gate",
        ("evaluate",),
        {"decision": decision, "verdict_sha256": storage.digest(verdict)},
        verdict=storage.canonical_json(verdict),
    )
    value = ledger.record_verdict(
        settings.ledger, case=CASE, gate_key=keys["gate"], as_of=as_of, trigger="schedule", verdict=verdict
    )
    if decision != "promote":
        return
    head = ledger.head(settings.ledger, CASE)
    candidate = Candidate(
        version=version,
        candidate_key=keys["export"],
        bundle=str((folder / "export").relative_to(settings.root)),
        trigger="schedule",
        reason=verdict.reason,
        mlflow_run=f"run-{version}",
        verdict_hash=value,
        as_of=as_of,
    )
    if trial and head is not None:
        said = Said(actor="guard", reason="slow", now=as_of, as_of=as_of)
        opened = ledger.append(settings.ledger, stages.open_(head, candidate, STAGED, said))
        ledger.append(settings.ledger, stages.abort(opened, said))
        commit("rollout", ("export", "gate"), {"outcome": "opened", "version": version, "seq": opened.seq})
        return
    own = candidate.model_dump(exclude={"version", "by_hand"})
    after = head.seq if head else 0
    order = Order(case=CASE, after=after, champion=version, action="promote", actor="ada", **own)
    release = ledger.append(settings.ledger, order)
    commit("rollout", ("export", "gate"), {"outcome": "promoted", "version": version, "seq": release.seq})


def _tell(settings: Settings, seq: int, as_of: datetime) -> None:
    about: dict[str, Any] = {"case": CASE, "severity": "warning", "group": "labels_late"}
    alert = Alert(
        **about,
        key="labels_late",
        rule="labels_late",
        owner="ml",
        runbook="r",
        summary="labels are late",
        first_seen=T0,
        last_seen=as_of,
        count=seq,
    )
    notice = Notice(**about, id=f"n{seq}", at=as_of, kind="opened", alerts=(alert,))
    ledger.append_alerts(settings.ledger, case=CASE, seq=seq, as_of=as_of, alerts=[alert], notices=[notice])
    ledger.note_delivery(settings.ledger, case=CASE, notice=notice.id, sink="log", attempt=1, event="delivered")


# --- the edits ------------------------------------------------------------------------------------

Row = dict[str, Any]
Change = Callable[[sqlite3.Connection, random.Random], str]


def _rows(database: sqlite3.Connection, table: str) -> list[Row]:
    found = database.execute(f'SELECT rowid AS own_rowid, * FROM "{table}" ORDER BY rowid')
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found]


def _set(database: sqlite3.Connection, table: str, at: Row, /, **values: Any) -> None:
    names = ", ".join(f'"{name}" = ?' for name in values)
    database.execute(f'UPDATE "{table}" SET {names} WHERE rowid = ?', (*values.values(), at["own_rowid"]))


def _remove(database: sqlite3.Connection, table: str, row: Row) -> None:
    database.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (row["own_rowid"],))


def _another(value: Any, rng: random.Random) -> Any:
    """Another value of the kind: a number moved, one character of a text exchanged."""
    if isinstance(value, int):
        return value + rng.choice([1_000, 7_000])
    if not value:
        return "x"
    at = rng.randrange(len(value))
    return value[:at] + rng.choice([char for char in "0123456789abcdef" if char != value[at]]) + value[at + 1 :]


def _column(table: str) -> Change:
    """One column of one row gets another value."""

    def change(database: sqlite3.Connection, rng: random.Random) -> str:
        row = rng.choice(_rows(database, table))
        column = rng.choice([column.name for column in TABLES[table].columns])
        _set(database, table, row, **{column: _another(row[column], rng)})
        return f"{table}.{column}"

    return change


def _deleted(table: str, *, newest: bool = False) -> Change:
    """A row is removed, its journal entry stays."""

    def change(database: sqlite3.Connection, rng: random.Random) -> str:
        rows = _rows(database, table)
        _remove(database, table, rows[-1] if newest else rng.choice(rows))
        return f"of {table}"

    return change


def _forged(database: sqlite3.Connection, rng: random.Random) -> str:
    """A row that the ledger did not write: a copy of one under another key."""
    table = rng.choice(sorted(TABLES))
    rows = _rows(database, table)
    new = {name: value for name, value in rng.choice(rows).items() if name != "own_rowid"}
    for name in {"seq", "attempt"} & new.keys():
        new[name] = max(row[name] for row in rows) + 1
    for name in {"gate_key", "as_of", "previous", "episode", "rule"} & new.keys():
        new[name] += "0"
    names = ", ".join(f'"{name}"' for name in new)
    marks = ", ".join("?" for _ in new)
    database.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', tuple(new.values()))
    return f"in {table}"


def _rehashed(*, newest: bool) -> Change:
    """A release lets another version serve, with a hash that is right for what the row says now."""

    def change(database: sqlite3.Connection, rng: random.Random) -> str:
        rows = _rows(database, "releases")
        row = rows[-1] if newest else rng.choice(rows[:-1])
        fields = json.loads(row["row"]) | {"champion": 2}
        fields["hash"] = storage.digest({name: value for name, value in fields.items() if name != "hash"})
        _set(database, "releases", row, row=storage.canonical_json(fields), hash=fields["hash"])
        return f"seq {row['seq']}"

    return change


def _verdict(database: sqlite3.Connection, rng: random.Random) -> str:
    """A verdict becomes another one, its hash with it."""
    row = rng.choice(_rows(database, "verdicts"))
    value = json.loads(row["verdict"])
    value["decision"] = "reject" if value["decision"] == "promote" else "promote"
    _set(database, "verdicts", row, verdict=storage.canonical_json(value), hash=storage.digest(value))
    return f"to {value['decision']}"


def _bytes(database: sqlite3.Connection, rng: random.Random) -> str:
    """A bit of a text flips, as on a bad disk: what comes out need be no UTF-8."""
    table = rng.choice(sorted(TABLES))
    row = rng.choice(_rows(database, table))
    column = rng.choice([column.name for column in TABLES[table].columns if column.type.python_type is str])
    if not row[column]:
        column = "case"
    data = bytearray(row[column].encode())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    database.execute(
        f'UPDATE "{table}" SET "{column}" = CAST(? AS TEXT) WHERE rowid = ?', (bytes(data), row["own_rowid"])
    )
    return f"{table}.{column}"


def _entry(database: sqlite3.Connection, rng: random.Random) -> str:
    """A journal entry gets another value in one column, or is removed though a later one stands."""
    rows = _rows(database, "journal")[:-1]
    row = rng.choice(rows)
    column = rng.choice([name for name in row if name != "own_rowid"] + ["removed"])
    if column == "removed":
        _remove(database, "journal", row)
    else:
        _set(database, "journal", row, **{column: _another(row[column], rng)})
    return column


def _recomputed(database: sqlite3.Connection, rng: random.Random) -> str:
    """A row of some table changes, and with it its hash, the releases' chain and the whole journal.

    A consistent database.
    """
    columns = {"alert_silences": "reason", "alert_deliveries": "recorded_at", "drift_states": "evidence_hash"}
    table = rng.choice(["releases", *columns])
    if table == "releases":
        previous = ""
        changed = rng.randrange(len(_rows(database, table)))
        for number, row in enumerate(_rows(database, table)):
            fields = (
                json.loads(row["row"]) | {"previous_hash": previous} | ({"actor": "eve"} if number == changed else {})
            )
            fields["hash"] = previous = storage.digest(
                {name: value for name, value in fields.items() if name != "hash"}
            )
            _set(database, table, row, row=storage.canonical_json(fields), hash=fields["hash"])
    else:
        row = rng.choice(_rows(database, table))
        _set(database, table, row, **{columns[table]: _another(row[columns[table]], rng)})
    _rewrite_journal(database)
    return f"of {table}"


def _rewrite_journal(database: sqlite3.Connection) -> None:
    from pipelines.ledger.journal import row_hash, row_key

    hashes = {
        (name, row_key(table, row)): row_hash(table, row)
        for name, table in TABLES.items()
        for row in _rows(database, name)
    }
    previous = ""
    for row in _rows(database, "journal"):
        fields = {name: value for name, value in row.items() if name not in {"own_rowid", "hash"}} | {
            "row_hash": hashes[row["about"], row["row_key"]]
        }
        previous = storage.digest({**fields, "previous": previous})
        _set(database, "journal", row, row_hash=fields["row_hash"], hash=previous)


def _cut_off(database: sqlite3.Connection, _rng: random.Random) -> str:
    """The newest row of the ledger is removed together with its journal entry."""
    entry = _rows(database, "journal")[-1]
    key = json.loads(entry["row_key"])
    row = next(row for row in _rows(database, entry["about"]) if all(row[name] == value for name, value in key.items()))
    _remove(database, entry["about"], row)
    _remove(database, "journal", entry)
    return f"of {entry['about']}"


KINDS: dict[str, Change] = {
    **{f"column of {table}": _column(table) for table in sorted(TABLES)},
    **{f"row of {table} deleted": _deleted(table) for table in sorted(TABLES)},
    "head deleted": _deleted("releases", newest=True),
    "head re-hashed": _rehashed(newest=True),
    "older release re-hashed": _rehashed(newest=False),
    "verdict re-hashed": _verdict,
    "row forged": _forged,
    "bit flipped": _bytes,
    "journal entry": _entry,
    "chain recomputed": _recomputed,
    "newest row removed": _cut_off,
}


def edits(count: int = 100, seed: int = 0, home: Path | None = None) -> list[Edit]:
    """``count`` seeded edits, the kinds in turn, each on a fresh copy of one ledger that was clean.

    ``home`` is where to work (a temporary folder).
    """
    if home is None:
        with tempfile.TemporaryDirectory() as folder:
            return edits(count, seed, Path(folder))
    settings = make(home)
    rng = random.Random(seed)
    clean = audit(settings)
    assert clean["ok"], clean["findings"]
    names = list(KINDS)
    return [_one(settings, names[number % len(names)], rng, home / f"edit-{number}.db") for number in range(count)]


def _one(settings: Settings, kind: str, rng: random.Random, path: Path) -> Edit:
    with closing(sqlite3.connect(settings.root / "ledger.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(settings.root / "ledger.db", path)
    with closing(sqlite3.connect(path)) as database:
        what = None
        while what is None:
            with suppress(sqlite3.IntegrityError), database:  # the tables' own keys refuse it: no edit, the next draw
                what = KINDS[kind](database, rng)
    found = audit(settings.model_copy(update={"ledger_url": f"sqlite:///{path}"}))["findings"]
    return Edit(kind, what, bool(found), any(one["table"] != "artefacts" for one in found))


def table(found: Iterable[Edit]) -> list[dict[str, Any]]:
    """By kind: how many edits, how many the audit found, and how many the database alone gave away."""
    by_kind: dict[str, list[Edit]] = {}
    for one in found:
        by_kind.setdefault(one.kind, []).append(one)
    return [
        {
            "kind": kind,
            "edits": len(own),
            "found": sum(one.found for one in own),
            "in_database": sum(one.in_database for one in own),
            "consistent": kind in CONSISTENT,
        }
        for kind, own in by_kind.items()
    ]


if __name__ == "__main__":
    for line in table(edits()):
        print(line)
