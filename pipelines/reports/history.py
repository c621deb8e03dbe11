"""The history of a case's releases, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines import ledger
from pipelines.config import Settings

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("seq", "when", "version", "action", "trigger", "who", "why", "verdict")


def releases(settings: Settings, case: str) -> list[dict[str, Any]]:
    """All releases, oldest first, each with the ``verdict`` it rests on (None if the ledger has none)."""
    verdicts = {row["hash"]: row["verdict"] for row in ledger.verdicts(settings.ledger, case)}
    return [release.model_dump(mode="json") | {"verdict": verdicts.get(release.verdict_hash or "")} for release in ledger.releases(settings.ledger, case)]


def table(case: str, history: list[dict[str, Any]]) -> Table:
    """The history as a table, newest release last; ``when`` is the case's clock (``as_of``)."""
    from rich.table import Table

    drawn = Table(title=f"releases of {case}" if history else f"{case} has no release yet", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in COLUMNS:
        drawn.add_column(name, no_wrap=name != "why")
    for row in history:
        when = row["as_of"][:16].replace("T00:00", "").replace("T", " ")
        cells = [row["seq"], when, f"v{row['champion']}", row["action"], row["trigger"], row["actor"], row["reason"], summary(row)]
        drawn.add_row(*map(str, cells))
    return drawn


def summary(row: dict[str, Any]) -> str:
    """The verdict that a release rests on: its rule and the start of its hash in the ledger."""
    verdict = row["verdict"]
    return "-" if verdict is None else f"{verdict['rule']} ({row['verdict_hash'][:8]})"
