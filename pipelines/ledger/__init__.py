"""The ledger of releases, verdicts, drift, alerts and starts: append-only, hash-chained, decided by compare-and-swap.

It is the serving truth. MLflow's aliases and Triton's loaded versions are projections of it. One SQL schema serves
SQLite (embedded) and PostgreSQL (the full stack): database.py. Nothing is ever updated or deleted: whoever inserts
(case, seq+1) first wins, everybody else gets a ConflictError. Every row of every table has an entry in the journal
(journal.py), with which each reader here compares what it reads: a row that is not as it was written, cannot be read or
is gone is an IntegrityError that names it. ``python -m pipelines audit`` lists all of them.
"""

from __future__ import annotations

from pipelines.ledger.alert_rows import (
    alert_runs,
    alerts,
    append_alerts,
    deliveries,
    note_delivery,
    silence,
    silences,
    undelivered,
)
from pipelines.ledger.drift_rows import (
    asking_episode,
    drift_state_before,
    drift_states,
    episodes,
    open_episode,
    record_drift_state,
)
from pipelines.ledger.release_rows import append, chain, champion_before, head, previous_release, read_release, releases
from pipelines.ledger.retirement_rows import (
    Retired,
    gone,
    require_in_service,
    retired,
    retirement,
    retirements,
    set_retired,
)
from pipelines.ledger.rows import LOOK, cases, check, metadata, stored
from pipelines.ledger.start_rows import Start, note_start, started
from pipelines.ledger.verdict_rows import record_verdict, verdict, verdicts

__all__ = [
    "LOOK",
    "Retired",
    "Start",
    "alert_runs",
    "alerts",
    "append",
    "append_alerts",
    "asking_episode",
    "cases",
    "chain",
    "champion_before",
    "check",
    "deliveries",
    "drift_state_before",
    "drift_states",
    "episodes",
    "gone",
    "head",
    "metadata",
    "note_delivery",
    "note_start",
    "open_episode",
    "previous_release",
    "read_release",
    "record_drift_state",
    "record_verdict",
    "releases",
    "require_in_service",
    "retired",
    "retirement",
    "retirements",
    "set_retired",
    "silence",
    "silences",
    "started",
    "stored",
    "undelivered",
    "verdict",
    "verdicts",
]
