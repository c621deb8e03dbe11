"""A run of the scheduler that is not over in time: told at once, past the ledger, which may be what the run waits for."""

from __future__ import annotations

from datetime import datetime

from pipelines.alerts.lifecycle import takes
from pipelines.alerts.sinks import Undelivered, configured
from pipelines.config import Params, Settings
from pipelines.contracts import Alert, Notice

RULE, SEVERITY = "run_late", "warning"


def notice(params: Params, runbooks: str, dag: str, run: str, due: datetime) -> Notice:
    """The notice that the run ``run`` of ``dag`` was not over when it was ``due``."""
    alert = Alert(
        case=params.case,
        key=f"{RULE}:{run}",
        rule=RULE,
        group=dag,
        severity=SEVERITY,
        owner=params.alerts.owner,
        runbook=f"{runbooks}#run-late",
        summary=f"run {run} of {dag} is late: it was due by {due:%Y-%m-%d %H:%M} UTC",
        first_seen=due,
        last_seen=due,
    )
    return Notice(id=f"{dag}/{run}/late", case=params.case, at=due, group=dag, kind="opened", severity=SEVERITY, alerts=(alert,))


def tell(params: Params, settings: Settings, dag: str, run: str, due: datetime) -> list[str]:
    """Give the notice to every sink that takes warnings; returns which. Undelivered, once all were asked, if one did not take it."""
    late = notice(params, settings.runbooks, dag, run, due)
    told, failed = [], []
    for name, sink in configured(settings, params.alerts).items():
        if not takes(name, late.severity, params.alerts.push):
            continue
        try:
            sink(late)
            told.append(name)
        except Undelivered as error:
            failed.append(str(error))
    if failed:
        raise Undelivered("; ".join(failed))
    return told
