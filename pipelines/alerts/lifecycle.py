"""From findings to notices: what is found run after run is one alert, told of once and once more when it is over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal, get_args

from pipelines.contracts import Alert, Notice, Severity
from pipelines.params import AlertParams

RANK = {severity: rank for rank, severity in enumerate(get_args(Severity))}
"""The higher, the worse."""


def takes(sink: str, severity: Severity, push: Severity) -> bool:
    """Whether a sink gets notices of this severity: the log gets all, others those from ``push`` up."""
    return sink == "log" or RANK[severity] >= RANK[push]


def step(
    before: Sequence[Alert],
    found: Sequence[Alert],
    silenced: Collection[str],
    told: Iterable[datetime],
    params: AlertParams,
    as_of: datetime,
    revision: int = 1,
) -> tuple[tuple[Alert, ...], tuple[Notice, ...]]:
    """The alerts after the run at ``as_of``, those that it resolved among them, and the notices that it has to send.

    ``before`` are the alerts after the run before it, ``silenced`` the rules that nobody is told of now, ``told`` the
    times of the notices so far. Pure: no clock, no input or output. An alert is told of when it opens, when it gets
    more severe, and when it is resolved if it was told of at all; one whose silence or whose rate limit ends is told of
    then, if it is still open. ``revision`` tells the notices of a window that is judged again from those of its first
    judgement.
    """
    known = {alert.key: alert for alert in before if alert.state != "resolved"}
    alerts = [_seen(known.get(alert.key), alert, silenced) for alert in found]
    here = {alert.key for alert in alerts}
    alerts += [_missed(alert, silenced, params) for alert in known.values() if alert.key not in here]
    recent = sum(moment > as_of - timedelta(hours=params.per_hours) for moment in told)
    opened = [
        alert
        for alert in alerts
        if alert.state == "open"
        and alert.quiet == 0
        and (alert.notified is None or RANK[alert.severity] > RANK[alert.notified])
    ]
    resolved = [alert for alert in alerts if alert.state == "resolved" and alert.notified is not None]
    sent = _grouped(opened, as_of, revision)[: max(0, params.max_notices - recent)]
    now_told = {alert.key: alert.severity for notice in sent for alert in notice.alerts}
    after = (
        alert.model_copy(update={"notified": now_told[alert.key]}) if alert.key in now_told else alert
        for alert in alerts
    )
    # The end of what was told is always told: it is no more often than its beginning.
    return tuple(sorted(after, key=lambda alert: alert.key)), (*sent, *_grouped(resolved, as_of, revision))


def taken_back(before: Sequence[Alert], first: Sequence[Alert], params: AlertParams) -> tuple[Alert, ...]:
    """What a window that is judged again goes on from.

    The alerts ``before`` its ``first`` judgement, and those that this one opened. The latter end with the next step if
    it does not find them, with a ``count`` of 0. What people were told meanwhile stays told.
    """
    known = {alert.key for alert in before if alert.state != "resolved"}
    told = {alert.key: alert.notified for alert in first}
    kept = [
        alert.model_copy(update={"notified": told.get(alert.key, alert.notified)})
        for alert in before
        if alert.key in known
    ]
    opened = [alert for alert in first if alert.key not in known and alert.state != "resolved"]
    return (*kept, *(alert.model_copy(update={"count": 0, "quiet": params.resolve_after - 1}) for alert in opened))


def _seen(before: Alert | None, now: Alert, silenced: Collection[str]) -> Alert:
    state = "open"
    if now.rule in silenced:
        state = "silenced"
    if before is None:
        return now.model_copy(update={"state": state})
    kept = {
        "group": before.group,
        "first_seen": before.first_seen,
        "count": before.count + 1,
        "notified": before.notified,
    }
    return now.model_copy(update={**kept, "state": state})


def _missed(alert: Alert, silenced: Collection[str], params: AlertParams) -> Alert:
    quiet = alert.quiet + 1
    state = "open"
    if quiet >= params.resolve_after:
        state = "resolved"
    elif alert.rule in silenced:
        state = "silenced"
    return alert.model_copy(update={"quiet": quiet, "state": state})


def _grouped(alerts: Sequence[Alert], as_of: datetime, revision: int) -> list[Notice]:
    """One notice per group, the worst first."""
    notices = []
    for group in dict.fromkeys(alert.group for alert in alerts):
        own = sorted(
            (alert for alert in alerts if alert.group == group), key=lambda alert: (-RANK[alert.severity], alert.key)
        )
        kind: Literal["opened", "raised", "resolved"] = "raised"
        if own[0].state == "resolved":
            kind = "resolved"
        elif any(alert.notified is None for alert in own):
            kind = "opened"
        case = own[0].case
        # One row of the ledger per run, so that this names the notice for good.
        run = f"{as_of:%Y%m%dT%H%M%SZ}"
        if revision > 1:
            run = f"{run}-{revision}"
        name = f"{run}/{kind}/{group}"
        notices.append(
            Notice(id=name, case=case, at=as_of, group=group, kind=kind, severity=own[0].severity, alerts=tuple(own))
        )
    return sorted(notices, key=lambda notice: -RANK[notice.severity])
