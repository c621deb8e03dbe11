"""alert: tell people what a drift run found, once; nothing hangs on it, least of all a retraining."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from pipelines import ledger, storage
from pipelines.alerts import delivery, lifecycle, rules, sinks
from pipelines.contracts import Alert, Notice, Severity
from pipelines.drift_report import DriftReport
from pipelines.errors import ConflictError
from pipelines.line.facts import AlertFacts
from pipelines.line.step import Read, Run, Work
from pipelines.params import Params
from pipelines.settings import Settings

LOOK_BACK = 200
"""Rows of the ledger that are looked through for notices to send again, and for how many were sent lately."""
ROUNDS = 100
PAGE = "report"
"""The step that draws the page, after this one."""


def work(run: Run, _read: Read) -> Work:
    """Write ``alerts.json`` (the alerts after this run, and its notices).

    Keep both in the ledger, and send the notices. The first run of an ``as_of`` decides; running again sends what no
    sink has taken yet and nothing else. A run that is older than the newest one finds nothing. A sink that fails is a
    fact (``undelivered``) and the next run's alert, not an error.
    """
    params, settings, as_of = run.params, run.settings, run.as_of
    report = DriftReport.model_validate_json((run.dir / "drift" / "report.json").read_bytes())
    alerts, fresh = _decide(params, settings, as_of, report)
    unfinished = delivery.unfinished(ledger.deliveries(settings.ledger, params.case))
    rows = ledger.alert_runs(settings.ledger, params.case, last=LOOK_BACK) if unfinished else []
    earlier = [notice for row in rows for notice in _notices(row) if notice.id in unfinished]
    delivery.deliver(
        settings.ledger, params.case, fresh, earlier, sinks.configured(settings, params.alerts), params.alerts.push
    )
    left = ledger.undelivered(settings.ledger, params.case)
    counts = Counter(alert.severity for alert in alerts if alert.state != "resolved")

    def build(folder: Path, _key: str) -> AlertFacts:
        (folder / "alerts.json").write_text(storage.canonical_json({"alerts": alerts, "notices": fresh}))
        by_severity = {severity: counts[severity] for severity in get_args(Severity)}
        return AlertFacts(**by_severity, notices=len(fresh), undelivered=sum(left.values()))

    return Work(build, {"alerts": alerts, "notices": fresh, "undelivered": left})


def _decide(
    params: Params, settings: Settings, as_of: datetime, report: DriftReport
) -> tuple[tuple[Alert, ...], tuple[Notice, ...]]:
    """The alerts after this run and its notices, as they stand in the ledger."""
    case, url, revision = params.case, settings.ledger, report.policy.revision
    for _ in range(ROUNDS):
        if stands := ledger.alert_runs(url, case, at=as_of, revision=revision):
            return tuple(_alerts(stands[0])), tuple(_notices(stands[0]))
        recent = ledger.alert_runs(url, case, last=LOOK_BACK)
        head = recent[-1] if recent else None
        if head is not None and datetime.fromisoformat(head["as_of"]) > as_of:
            return (), ()
        found = rules.find(_facts(params, settings, as_of, report), params, settings.runbooks)
        told = [
            datetime.fromisoformat(notice["at"])
            for row in recent
            for notice in row["notices"]
            if notice["kind"] != "resolved"
        ]
        silenced = {row["rule"] for row in ledger.silences(url, case, as_of)}
        before = _before(recent, report, params)
        alerts, notices = lifecycle.step(before, found, silenced, told, params.alerts, as_of, revision)
        seq = head["seq"] + 1 if head else 1
        if ledger.append_alerts(
            url, case=case, seq=seq, as_of=as_of, alerts=alerts, notices=notices, revision=revision
        ):
            return alerts, notices
    raise ConflictError(
        f"{case}: other runs were first {ROUNDS} times: more drift runs at once than make sense; run the step again"
    )


def _before(recent: Sequence[Mapping[str, Any]], report: DriftReport, params: Params) -> Sequence[Alert]:
    """The alerts that this run goes on from.

    Of a window that is judged again, as if its first judgement had not been.
    """
    newest = _alerts(recent[-1]) if recent else []
    first = report.policy.judged_again
    if first is None:
        return newest
    older = [row for row in recent if datetime.fromisoformat(row["as_of"]) < first.as_of]
    return lifecycle.taken_back(_alerts(older[-1]) if older else [], newest, params.alerts)


def _facts(params: Params, settings: Settings, as_of: datetime, report: DriftReport) -> rules.Facts:
    case, url = params.case, settings.ledger
    before = ledger.drift_state_before(url, case, as_of)
    trained = [
        release.as_of
        for release in ledger.releases(url, case)
        if release.champion == report.model_version and release.action != "rollback"
    ]
    return rules.Facts(
        as_of=as_of,
        report=report,
        episode=ledger.asking_episode(url, case, as_of),
        champion_since=trained[0] if trained else None,
        judged_until=None if before is None else datetime.fromisoformat(before["policy"]["end"]),
        undelivered=ledger.undelivered(url, case),
        page=None if before is None else _missing_page(settings.run_dir(case, datetime.fromisoformat(before["as_of"]))),
    )


def _missing_page(earlier: Path) -> str | None:
    """What became of the page of the run before, if that run has judged a window and left none."""
    if (earlier / "drift").exists() and not (earlier / PAGE / storage.MANIFEST).exists():
        return f"the run before left no page in {earlier.name}/{PAGE}: see its {PAGE} task"
    return None


def _alerts(row: Mapping[str, Any]) -> list[Alert]:
    return [Alert.model_validate_json(json.dumps(alert)) for alert in row["alerts"]]


def _notices(row: Mapping[str, Any]) -> list[Notice]:
    return [Notice.model_validate_json(json.dumps(notice)) for notice in row["notices"]]
