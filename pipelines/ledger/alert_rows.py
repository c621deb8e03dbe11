"""Alerts: what was found, who was told of it, and what is silenced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from pipelines.contracts import Alert, Notice
from pipelines.ledger import journal
from pipelines.ledger.rows import insert_first, metadata, moment_text, read_rows, revised
from pipelines.storage import canonical_json

_alert_runs = Table(
    "alert_runs",
    metadata,
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
    metadata,
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
    metadata,
    Column("case", String(64), primary_key=True),
    Column("rule", String(32), primary_key=True),
    Column("recorded_at", String(40), primary_key=True),
    Column("until", String(40), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
)


def alert_runs(
    url: str, case: str, *, last: int | None = None, at: datetime | None = None, revision: int = 1
) -> list[dict[str, Any]]:
    """What the alert steps of a case left, oldest first: ``{seq, as_of, alerts, notices, recorded_at}``.

    The ``last`` rows, or that of ``at``. A row's alerts are those that were open after it and those that it resolved. A
    window that was judged again has a row for each ``revision``.
    """
    named = journal.NOTHING if at is None else {"as_of": revised(at, revision)}
    rows = read_rows(
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
    """Compare-and-swap: write row ``seq`` of ``alert_runs``.

    False if somebody has written it, or that row of ``as_of``, before.
    """
    text = {"alerts": canonical_json(list(alerts)), "notices": canonical_json(list(notices))}
    return insert_first(url, _alert_runs, case=case, seq=seq, as_of=revised(as_of, revision), **text)


def alerts(url: str, case: str) -> list[Alert]:
    """Every alert that a case ever had, as it stands now, by the time it was first seen."""
    found = {(alert["key"], alert["first_seen"]): alert for row in alert_runs(url, case) for alert in row["alerts"]}
    return [
        Alert.model_validate_json(json.dumps(alert))
        for _, alert in sorted(found.items(), key=lambda item: (item[1]["first_seen"], item[0]))
    ]


def note_delivery(url: str, *, case: str, notice: str, sink: str, attempt: int, event: str, detail: str = "") -> bool:
    """Write that ``attempt`` to send a notice was ``claimed``, ``delivered`` or ``failed``.

    False if that is written already.
    """
    return insert_first(
        url, _deliveries, case=case, notice=notice, sink=sink, attempt=attempt, event=event, detail=detail
    )


def deliveries(url: str, case: str) -> list[dict[str, Any]]:
    """What became of the notices: ``{notice, sink, attempt, event, detail, recorded_at}``, by attempt, oldest first."""
    return read_rows(url, _deliveries, case, order=(_deliveries.c.attempt, _deliveries.c.recorded_at))


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
    insert_first(url, _silences, case=case, rule=rule, until=moment_text(until), reason=reason, actor=actor)


def silences(url: str, case: str, at: datetime) -> list[dict[str, Any]]:
    """The silences in force at ``at``: ``{rule, until, reason, actor, recorded_at}``.

    Of several for a rule the newest one counts.
    """
    rows = read_rows(url, _silences, case, order=[_silences.c.recorded_at])
    return [row for row in {row["rule"]: row for row in rows}.values() if row["until"] > moment_text(at)]
