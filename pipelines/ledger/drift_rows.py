"""Drift: the policy's state after every window, and the episodes that it opened."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    String,
    Table,
    Text,
)
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from pipelines.errors import Overtaken
from pipelines.ledger import journal
from pipelines.ledger.rows import begin, insert_first, metadata, moment_text, read_rows, revised
from pipelines.provenance import wall_time
from pipelines.storage import canonical_json

_drift_states = Table(
    "drift_states",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("as_of", String(40), primary_key=True),
    Column("state", Text, nullable=False),
    Column("evidence_hash", String(64), nullable=False),
    Column("recorded_at", String(40), nullable=False),
)
_drift_chain = Table(
    "drift_chain",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("previous", String(40), primary_key=True),
    Column("as_of", String(40), nullable=False),
)
_episodes = Table(
    "drift_episodes",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("episode", String(96), primary_key=True),
    Column("as_of", String(40), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
)


def drift_state_before(url: str, case: str, as_of: datetime) -> dict[str, Any] | None:
    """The policy's state after the last window before ``as_of``, or None for a new case."""
    earlier = _drift_states.c.as_of < moment_text(as_of)
    rows = read_rows(url, _drift_states, case, earlier, order=[_drift_states.c.as_of.desc()], limit=1, parse=["state"])
    if not rows:
        return None
    state: dict[str, Any] = rows[0]["state"]
    return state


def drift_states(url: str, case: str) -> list[dict[str, Any]]:
    """Every state that the policy of a case ever had, oldest first, as one read finds them."""
    return [row["state"] for row in read_rows(url, _drift_states, case, order=[_drift_states.c.as_of], parse=["state"])]


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

    ``previous`` names the state that it was made from or takes the place of (``""``: none; None: not said). A state has
    one successor, so that two windows judged at once cannot both open an episode: raises Overtaken, and writes nothing,
    if another window came first. A window that is judged again leaves a state of the next ``revision``, beside those
    before.
    """
    name = revised(as_of, revision)
    row = {
        "case": case,
        "as_of": name,
        "state": canonical_json(state),
        "evidence_hash": evidence_hash,
        "recorded_at": moment_text(wall_time()),
    }
    link = [] if previous is None else [(_drift_chain, {"case": case, "previous": previous, "as_of": name})]
    # Where another try of the same window was first, what it wrote is returned.
    with suppress(SqlIntegrityError), begin(url) as connection:
        journal.add(connection, *link, (_drift_states, row))
    found = read_rows(url, _drift_states, case, parse=["state"], named={"as_of": name})
    if not found:
        raise Overtaken(
            f"{case}: a drift run of another window than {as_of.isoformat()} decided first, on the same earlier "
            "state; run the step again"
        )
    kept: dict[str, Any] = found[0]["state"]
    return kept


def open_episode(url: str, *, case: str, episode: str, as_of: datetime, evidence: Any) -> bool:
    """Record a drift episode; True for whoever was first, False if it was there already."""
    return insert_first(
        url, _episodes, case=case, episode=episode, as_of=moment_text(as_of), evidence=canonical_json(evidence)
    )


def episodes(url: str, case: str) -> list[dict[str, Any]]:
    """All drift episodes of a case, oldest first: ``{episode, as_of, evidence, recorded_at}``."""
    return read_rows(url, _episodes, case, order=[_episodes.c.as_of], parse=["evidence"])


def asking_episode(url: str, case: str, as_of: datetime) -> str | None:
    """The episode that asked for a drift-triggered run at ``as_of``: the newest one opened up to then."""
    opened: list[str] = [row["episode"] for row in episodes(url, case) if datetime.fromisoformat(row["as_of"]) <= as_of]
    if opened:
        return opened[-1]
    return None
