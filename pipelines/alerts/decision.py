"""What people are told after a drift run: decided by the first try, and kept in the ledger for every later one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipelines import ledger
from pipelines.alerts import delivery, lifecycle, rules
from pipelines.contracts import Alert, Notice
from pipelines.drift_report import DriftReport
from pipelines.errors import ConflictError
from pipelines.params import Params
from pipelines.settings import Settings

LOOK_BACK = 200
"""Rows of the ledger that are looked through for notices to send again, and for how many were sent lately."""
ROUNDS = 100

MissingPage = Callable[[datetime], str | None]
"""What became of the page of the run at a time, if that run has judged a window and left none."""


def decide(
    params: Params, settings: Settings, as_of: datetime, report: DriftReport, missing_page: MissingPage
) -> tuple[tuple[Alert, ...], tuple[Notice, ...]]:
    """The alerts after the drift run at ``as_of`` and its notices, as they stand in the ledger.

    A run that is older than the newest one finds nothing. Raises ConflictError if other runs are always first.
    """
    case, url, revision = params.case, settings.ledger, report.policy.revision
    for _ in range(ROUNDS):
        if stands := ledger.alert_runs(url, case, at=as_of, revision=revision):
            return tuple(_alerts(stands[0])), tuple(_notices(stands[0]))
        recent = ledger.alert_runs(url, case, last=LOOK_BACK)
        seq = 1
        if recent:
            head = recent[-1]
            if datetime.fromisoformat(head["as_of"]) > as_of:
                return (), ()
            seq = head["seq"] + 1
        found = rules.find(_facts(params, settings, as_of, report, missing_page), params, settings.runbooks)
        told = [
            datetime.fromisoformat(notice["at"])
            for row in recent
            for notice in row["notices"]
            if notice["kind"] != "resolved"
        ]
        silenced = {row["rule"] for row in ledger.silences(url, case, as_of)}
        before = _before(recent, report, params)
        alerts, notices = lifecycle.step(before, found, silenced, told, params.alerts, as_of, revision)
        if ledger.append_alerts(
            url, case=case, seq=seq, as_of=as_of, alerts=alerts, notices=notices, revision=revision
        ):
            return alerts, notices
    raise ConflictError(
        f"{case}: other runs were first {ROUNDS} times: more drift runs at once than make sense; run the step again"
    )


def unsent(url: str, case: str) -> list[Notice]:
    """The notices of all runs that a sink was asked to take and has not taken, as far as they are looked back for."""
    wanted = delivery.unfinished(ledger.deliveries(url, case))
    if not wanted:
        return []
    rows = ledger.alert_runs(url, case, last=LOOK_BACK)
    return [notice for row in rows for notice in _notices(row) if notice.id in wanted]


def _before(recent: Sequence[Mapping[str, Any]], report: DriftReport, params: Params) -> Sequence[Alert]:
    """The alerts that this run goes on from.

    Of a window that is judged again, as if its first judgement had not been.
    """
    newest = _last_alerts(recent)
    first = report.policy.judged_again
    if first is None:
        return newest
    older = [row for row in recent if datetime.fromisoformat(row["as_of"]) < first.as_of]
    return lifecycle.taken_back(_last_alerts(older), newest, params.alerts)


def _facts(
    params: Params, settings: Settings, as_of: datetime, report: DriftReport, missing_page: MissingPage
) -> rules.Facts:
    case, url = params.case, settings.ledger
    before = ledger.drift_state_before(url, case, as_of)
    judged_until = None
    page = None
    if before is not None:
        judged_until = datetime.fromisoformat(before["policy"]["end"])
        page = missing_page(datetime.fromisoformat(before["as_of"]))
    return rules.Facts(
        as_of=as_of,
        report=report,
        episode=ledger.asking_episode(url, case, as_of),
        champion_since=_trained(url, case, report.model_version),
        judged_until=judged_until,
        undelivered=ledger.undelivered(url, case),
        page=page,
    )


def _trained(url: str, case: str, version: int | None) -> datetime | None:
    """When a version was released first: the ``as_of`` of its training."""
    for release in ledger.releases(url, case):
        if release.champion == version and release.action != "rollback":
            return release.trained
    return None


def _last_alerts(rows: Sequence[Mapping[str, Any]]) -> list[Alert]:
    """The alerts after the newest of the ledger's rows; none without a row."""
    return [alert for row in rows[-1:] for alert in _alerts(row)]


def _alerts(row: Mapping[str, Any]) -> list[Alert]:
    return [Alert.model_validate_json(json.dumps(alert)) for alert in row["alerts"]]


def _notices(row: Mapping[str, Any]) -> list[Notice]:
    return [Notice.model_validate_json(json.dumps(notice)) for notice in row["notices"]]
