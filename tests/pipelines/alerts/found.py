"""Reports, alerts and notices as the tests of the alerts need them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipelines.alerts import rules
from pipelines.contracts import Alert, Notice, Window
from pipelines.drift_report import DriftReport
from pipelines.params import AlertParams
from pipelines.params_file import load_params

PARAMS = load_params("loans")
ALERTS = AlertParams()
NOW = datetime(2020, 6, 10, 2, tzinfo=UTC)
WINDOW = Window(start=datetime(2020, 6, 9, tzinfo=UTC), end=datetime(2020, 6, 10, tzinfo=UTC))
DAY = timedelta(days=1)


def report(**given) -> DriftReport:
    """A quiet day's report, but for what is given."""
    quiet = {
        "case": "loans",
        "window": WINDOW,
        "model_version": 3,
        "reference_rows": 5000,
        "current_rows": 400,
        "overdispersion": 1.0,
        "features": (),
        "labels": {"drop": None},
        "quality": {"problems": [], "volume": 1.0, "page": None},
        "state": "STABLE",
        "action": "none",
        "reason": "nothing moved",
        "policy": {"path": ["STABLE"], "verdict": "none", "marks": [{"end": WINDOW.end.isoformat()}]},
    }
    return DriftReport.model_validate(quiet | given)


def facts(given: DriftReport | None = None, **other) -> rules.Facts:
    """What the rules look at."""
    known = {
        "as_of": NOW,
        "report": given or report(),
        "episode": "e1",
        "champion_since": NOW - 5 * DAY,
        "judged_until": WINDOW.start,
    }
    return rules.Facts(**(known | other))


def alert(rule: str = "volume_out_of_band", about: str = "window", at: datetime = NOW, **other) -> Alert:
    """An alert that was seen once, at ``at``."""
    common = {
        "case": "loans",
        "key": f"{rule}:{about}",
        "rule": rule,
        "group": rule,
        "severity": "warning",
        "owner": "ada",
        "runbook": f"docs#{rule}",
    }
    return Alert(**(common | {"summary": f"{about} is odd", "first_seen": at, "last_seen": at} | other))


def notice(name: str = "n1", kind: str = "opened", severity: str = "critical", **other) -> Notice:
    """A notice of one alert."""
    return Notice(
        id=name,
        case="loans",
        at=NOW,
        group="volume_out_of_band",
        kind=kind,
        severity=severity,
        alerts=(alert(severity=severity, **other),),
    )
