"""What is told past the drift runs: runs that failed or are late, cases that are gone, aliases moved, rollouts ended.

Told at once, past the ledger, which may be what the run waits for, and where a case without a folder has no runs. Of an
alias people are told once, by claims in the ledger.
"""

from __future__ import annotations

from datetime import datetime

from pipelines.alerts.delivery import deliver, settled
from pipelines.alerts.lifecycle import takes
from pipelines.alerts.sinks import Undelivered, configured
from pipelines.contracts import Alert, Notice, Release, RunRule, Severity
from pipelines.params import Params
from pipelines.settings import Settings

SEVERITY: Severity = "warning"


def late(params: Params, runbooks: str, dag: str, run: str, due: datetime) -> Notice:
    """The notice that the run ``run`` of ``dag`` was not over when it was ``due``."""
    return _notice(
        params,
        runbooks,
        "run_late",
        dag,
        run,
        due,
        f"run {run} of {dag} is late: it was due by {due:%Y-%m-%d %H:%M} UTC",
    )


def failed(params: Params, runbooks: str, dag: str, run: str, at: datetime, task: str | None, why: str) -> Notice:
    """The notice that the run ``run`` of ``dag`` failed at ``at`` with the error ``why``.

    It failed in ``task`` (None: in none).
    """
    where = ""
    if task is not None:
        where = f" in its task {task}"
    return _notice(params, runbooks, "run_failed", dag, run, at, f"run {run} of {dag} failed{where}: {why}")


def gone(params: Params, runbooks: str, release: Release, at: datetime) -> Notice:
    """The notice that a case whose champion is by ``release`` has no folder, found by a run of another (``params``)."""
    case = release.case
    summary = f"version {release.champion} is the champion of {case}, and its folder is gone: nobody answers for it"
    return _notice(params, runbooks, "case_gone", case, f"{at:%Y%m%dT%H%M%SZ}", at, summary, case, "critical")


def moved(
    params: Params, runbooks: str, alias: str, was: int | None, found: int | None, number: int, at: datetime
) -> Notice:
    """The notice that somebody moved an alias in MLflow, the ``number``-th time that this was found of the case."""
    before, after = (f"version {version}" if version else "no version" for version in (was, found))
    summary = (
        f"somebody moved the alias {alias} of {params.case} in MLflow, from {before} to {after}: "
        "it follows the ledger again, and nothing else serves"
    )
    return _notice(params, runbooks, "alias_moved", "MLflow", str(number), at, summary)


def rollout_aborted(params: Params, runbooks: str, row: Release) -> Notice:
    """The notice that the guard took a version back, by this row."""
    was = "in its soak" if row.action == "rollback" else "on trial"
    summary = f"the guard took back a version {was}: {row.reason}; version {row.champion} answers everybody"
    return _notice(params, runbooks, "rollout_aborted", "rollout", str(row.seq), row.recorded_at, summary)


def rollout_stuck(params: Params, runbooks: str, head: Release, why: str, at: datetime) -> Notice:
    """The notice that the stage that ``head`` began lasts far longer than it has to, and ``why``."""
    assert head.trial is not None
    version = head.champion if head.challenger is None else head.challenger
    since = f"{head.trial.since:%Y-%m-%d %H:%M} UTC"
    summary = f"the rollout of version {version} is in its stage {head.stage} since {since}: {why}"
    return _notice(params, runbooks, "rollout_stuck", "rollout", f"{head.trial.since:%Y%m%dT%H%M%SZ}", at, summary)


def _notice(
    params: Params,
    runbooks: str,
    rule: RunRule,
    dag: str,
    run: str,
    at: datetime,
    summary: str,
    case: str = "",
    severity: Severity = SEVERITY,
) -> Notice:
    case = case or params.case
    alert = Alert(
        case=case,
        key=f"{rule}:{run}",
        rule=rule,
        group=dag,
        severity=severity,
        owner=params.alerts.owner,
        runbook=f"{runbooks}#{rule.replace('_', '-')}",
        summary=summary,
        first_seen=at,
        last_seen=at,
    )
    name = f"{dag}/{run}/{rule.removeprefix('run_')}"
    return Notice(id=name, case=case, at=at, group=dag, kind="opened", severity=severity, alerts=(alert,))


def tell(params: Params, settings: Settings, notice: Notice) -> list[str]:
    """Give the notice to every sink that takes its severity; returns which.

    Undelivered, once all were asked, if one did not take it.
    """
    told = []
    failures = []
    for name, sink in configured(settings, params.alerts).items():
        if not takes(name, notice.severity, params.alerts.push):
            continue
        try:
            sink(notice)
            told.append(name)
        except Undelivered as error:
            failures.append(str(error))
    if failures:
        raise Undelivered("; ".join(failures))
    return told


def tell_once(params: Params, settings: Settings, notice: Notice) -> bool:
    """Give the notice to every sink once, however many runs try; whether nobody needs to try again.

    What a sink did not take stands in the ledger, and another call tries it again, a few times.
    """
    deliver(settings.ledger, notice.case, [notice], [], configured(settings, params.alerts), params.alerts.push)
    return settled(settings.ledger, notice.case, notice.id)
