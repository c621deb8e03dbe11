"""The history of a case: its releases and the gate's verdicts, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines import amounts, ledger
from pipelines.arms import WHOLE
from pipelines.contracts import CHANGES, Release
from pipelines.moments import parse_utc as moment
from pipelines.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

KEPT = {"reject": "rejected", "inconclusive": "inconclusive", "promote": "not released"}
"""What a verdict that released nothing did."""
COLUMNS = ("seq", "when", "version", "action", "trigger", "who", "why", "verdict")


def releases(settings: Settings, case: str) -> list[dict[str, Any]]:
    """All releases and the rows of rollouts, oldest first, each with the ``verdict`` it rests on (None: there is none).

    Of a row that moves a rollout it is the one on its challenger.
    """
    verdicts = {row["hash"]: row["verdict"] for row in ledger.verdicts(settings.ledger, case)}
    return [
        row.model_dump(mode="json") | {"verdict": verdicts.get(_cited(row) or "")}
        for row in ledger.chain(settings.ledger, case)
    ]


def _cited(row: Release) -> str | None:
    """The hash of the verdict that a row rests on."""
    if row.trial is not None and row.action not in CHANGES:
        return row.trial.verdict_hash
    return row.verdict_hash


def verdicts(settings: Settings, case: str) -> list[dict[str, Any]]:
    """All verdicts in order of time: ``{as_of, trigger, decision, rule, reason, rows_needed, hash, recorded_at, seq}``.

    ``seq`` is the first release, or row of a rollout, that rests on the verdict; None: rejected, inconclusive, or
    promoted too late to be released.
    """
    released: dict[str | None, int] = {}
    for row in ledger.chain(settings.ledger, case):
        released.setdefault(_cited(row), row.seq)
    return [
        {
            **{name: row[name] for name in ("as_of", "trigger", "hash", "recorded_at")},
            **{name: row["verdict"].get(name) for name in ("decision", "rule", "reason", "rows_needed")},
            "seq": released.get(row["hash"]),
        }
        for row in ledger.verdicts(settings.ledger, case)
    ]


def table(case: str, history: list[dict[str, Any]], judged: list[dict[str, Any]] | None = None) -> Table:
    """Releases, and between them the verdicts ``judged`` that released nothing, newest last.

    ``when`` is the case's clock (``as_of``).
    """
    from rich.table import Table

    drawn = Table(
        title=f"history of {case}" if history else f"{case} has no release yet",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name in COLUMNS:
        drawn.add_column(name, no_wrap=name != "why")
    kept = [row for row in judged or [] if row["seq"] is None]
    for row in sorted([*history, *kept], key=lambda row: (moment(row["as_of"]), moment(row["recorded_at"]))):
        when = f"{moment(row['as_of']):%Y-%m-%d %H:%M}".removesuffix(" 00:00")
        if "champion" in row:
            cells = [
                row["seq"],
                when,
                _version(row),
                row["action"],
                row["trigger"],
                row["actor"],
                row["reason"],
                summary(row),
            ]
        else:
            cells = [
                "-",
                when,
                "-",
                KEPT[row["decision"]],
                row["trigger"],
                "gate",
                row["reason"],
                f"{row['rule']} ({row['hash'][:8]})",
            ]
        drawn.add_row(*map(str, cells))
    return drawn


def _version(row: dict[str, Any]) -> str:
    """The version that serves, and beside it the one on trial with its share of the keys."""
    found = f"v{row['champion']}"
    if row.get("challenger") is not None:
        share = "shadow" if row["stage"] == "shadow" else amounts.share(row["weight"] / WHOLE)
        found += f" + v{row['challenger']} {share}"
    elif row.get("stage") == "soak":
        found += " soak"
    return found


def standing(retirements: list[dict[str, Any]]) -> str:
    """When a case was retired and taken back, oldest first, a line each; "" if it never was."""
    return "\n".join(
        f"{moment(row['recorded_at']):%Y-%m-%d %H:%M} UTC: {'retired' if row['retired'] else 'taken back'} by "
        f"{row['actor']}: {row['reason']}"
        for row in retirements
    )


def summary(row: dict[str, Any]) -> str:
    """The verdict that a release rests on: its rule and the start of its hash in the ledger."""
    verdict = row["verdict"]
    if verdict is None:
        return "-"
    cited = row["verdict_hash"] if row["action"] in CHANGES else row["trial"]["verdict_hash"]
    return f"{verdict['rule']} ({cited[:8]})"
