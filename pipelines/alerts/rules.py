"""What a person must be told of: one pure rule per alert, on one drift run's report and a few facts of the ledger.

A rule answers with findings, one for each thing that is wrong: the field with missing values, the episode that is open.
Its severity says how soon somebody should look (``alerts.response_hours``): *critical* users get worse answers now, or
nobody knows whether they do; *warning* the loop needs a person; *info* worth knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import Field

from pipelines.amounts import spread
from pipelines.contracts import Alert, AlertRule, Instant, Severity, Value
from pipelines.drift_report import UNJUDGED, DriftReport, HeldBy, Policy, Retrained, State
from pipelines.moments import day
from pipelines.params import Params


class Facts(Value):
    """What the rules may look at beside the report.

    ``episode`` is the newest one opened by ``as_of``; ``champion_since`` the time of the champion's training;
    ``judged_until`` the end of the window that was judged before; ``undelivered`` the notices that no try could send,
    by sink; ``page`` says what became of a page that is missing; ``skew`` what was wrong when logged rows were scored
    again.
    """

    as_of: Instant
    report: DriftReport
    episode: str | None = None
    champion_since: Instant | None = None
    judged_until: Instant | None = None
    undelivered: dict[str, int] = Field(default_factory=dict)
    page: str | None = None
    skew: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: ``about`` tells apart what one rule finds at once.

    ``severity`` replaces the rule's own.
    """

    about: str
    summary: str
    severity: Severity | None = None


Check = Callable[[Facts, Params], Iterable[Finding]]
HELD_BACK_WINDOWS = 2
"""In so many windows in a row a retraining must have paid, and none been asked for, before people are told."""


def _drift_confirmed(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    report = facts.report
    if report.episode is not None:
        trigger = report.policy.trigger or "drift"
        severity: Severity | None = None
        if trigger == "volume":  # more rows to learn from are no reason to worry
            severity = "info"
        yield Finding(report.episode, f"episode {report.episode} ({trigger}) is open: {report.reason}", severity)


def _retrain_kept(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    what = "gave no new champion (not promoted, or taken back on trial): the drift goes on under the old model"
    yield from _retrained(facts, "kept", what)


def _retrain_missing(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    yield from _retrained(facts, "missing", "gave no verdict in time: it has failed, or it hangs")


def _retrained(facts: Facts, verdict: Retrained, what: str) -> Iterable[Finding]:
    """In the window in which the verdict became known, and as long as the cooldown after it lasts."""
    policy = facts.report.policy
    if policy.verdict == verdict and State.COOLDOWN in {facts.report.state, *policy.path}:
        yield Finding(facts.episode or "unknown", f"the retraining of {facts.episode} {what}")


def _quality_blocked(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    for problem in facts.report.quality.problems:
        if problem.code != "refused":
            yield Finding(problem.field or "window", problem.message)


def _rows_refused(facts: Facts, params: Params) -> Iterable[Finding]:
    """Told of once: also where it blocks, as nothing else is wrong with the window's rows then."""
    del params
    quality = facts.report.quality
    for remark in (*quality.problems, *quality.warnings):
        if remark.code == "refused":
            severity: Severity = "critical" if remark in quality.problems else "warning"
            yield Finding(remark.field or "rows", remark.message, severity)


def _scores_differ(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    if facts.skew:
        yield Finding("log", f"logged scores do not come out again: {'; '.join(facts.skew)}")


def _performance_dropped(facts: Facts, params: Params) -> Iterable[Finding]:
    report, why = facts.report, []
    drop = report.labels.drop
    rate = "error rate" if report.measure.estimable else "mean of capped squared errors"
    if report.policy.alarmed:
        why.append(f"the {rate} is above the holdout's (e-CUSUM e^{report.policy.log_e:.1f})")
    if drop is not None and drop.low > params.drift.min_metric_drop:
        why.append(f"the {report.measure.loss} rose by {spread(drop)}")
    if not why and report.diagnosis.performance == "dropped":
        why.append(report.diagnosis.why)
    if why:
        yield Finding("champion", f"version {report.model_version} is worse than it was: {'; '.join(why)}")


def _headroom_blocked(facts: Facts, params: Params) -> Iterable[Finding]:
    report, policy = facts.report, facts.report.policy
    gain = report.headroom.decides
    if gain is not None and policy.held_by is not None and policy.held_back >= HELD_BACK_WINDOWS:
        yield Finding(
            "champion",
            f"a retraining would gain {report.headroom.told(gain)}, and did so in {policy.held_back} windows in a row, "
            f"but none is asked for: {_in_the_way(policy.held_by, policy, params)}",
        )


def _in_the_way(held_by: HeldBy, policy: Policy, params: Params) -> str:
    """What a code of the policy means, as the end of a sentence."""
    drift = params.drift
    until = "" if policy.cooldown_until is None else f" until {day(policy.cooldown_until)}"
    asked = "" if policy.retrained_at is None else f" of {day(policy.retrained_at)}"
    budget = f"drift.max_retrains allows {drift.max_retrains} in {drift.max_retrains_days:g} days"
    said: dict[HeldBy, str] = {
        "trigger_off": "drift.triggers does not name headroom",
        "cooldown": f"it is the cooldown after the last retraining{until}",
        "labels": "too few labels are new",
        "budget": f"the budget is spent ({budget})",
        "verdict": f"the training{asked} that was asked for has no verdict yet",
        "data_quality": "the rows of this window are wrong",
    }
    return said[held_by]


def _labels_late(facts: Facts, params: Params) -> Iterable[Finding]:
    report, wanted = facts.report, params.alerts.min_coverage
    due = facts.report.window.end - timedelta(days=params.alerts.late_after * params.label_delay_days)
    known = report.coverage()
    old = [end for end in known if end <= due]
    if old and known[max(old)] < wanted:
        newest = max(old)
        days = (report.window.end - newest).days
        yield Finding(
            "coverage",
            f"{known[newest]:.0%} of the rows up to {day(newest)} have a label after {days} days "
            f"(at least {wanted:.0%} were declared)",
        )


def _volume_out_of_band(facts: Facts, params: Params) -> Iterable[Finding]:
    volume, (low, high) = facts.report.quality.volume, params.drift.volume_band
    # A window without rows is either allowed or blocks.
    if volume is not None and facts.report.current_rows and not low <= volume <= high:
        yield Finding(
            "window",
            f"{facts.report.current_rows:,} rows are {volume:.2g} times the reference's volume "
            f"(band {low:g} to {high:g})",
        )


def _champion_old(facts: Facts, params: Params) -> Iterable[Finding]:
    limit = params.alerts.max_champion_days
    if (
        limit is not None
        and facts.champion_since is not None
        and (facts.as_of - facts.champion_since) > timedelta(days=limit)
    ):
        days = (facts.as_of - facts.champion_since).days
        yield Finding(
            "champion",
            f"version {facts.report.model_version} was trained {days} days ago (at most {limit:g} were declared)",
        )


def _windows_unjudged(facts: Facts, params: Params) -> Iterable[Finding]:
    report, limit = facts.report, params.alerts.max_unjudged_windows
    if report.state in UNJUDGED:
        return
    length = report.window.end - report.window.start
    if facts.judged_until is not None and (gap := (report.window.start - facts.judged_until) / length) >= limit:
        yield Finding(
            "runs",
            f"no drift run between {day(facts.judged_until)} and {day(report.window.start)}: "
            f"{gap:.0f} windows were never looked at",
        )
    marks = [mark.end for mark in report.policy.marks]
    begun = [moment for moment in (facts.champion_since, report.served_since) if moment is not None]
    since = max([*marks, *begun], default=report.window.end)
    if (empty := (report.window.end - since) / length) > limit:
        yield Finding(
            "rows",
            f"no window since {day(since)} could be compared ({empty:.0f} windows): too few rows, "
            "or a reference of other features",
        )


def _page_broken(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    error = facts.report.quality.page_error
    if error is not None:
        yield Finding("drift.html", f"the drift page {error}: see the drift task's log")
    if facts.page is not None:
        yield Finding("report", facts.page)


def _sink_broken(facts: Facts, params: Params) -> Iterable[Finding]:
    del params
    for sink, count in sorted(facts.undelivered.items()):
        yield Finding(
            sink,
            f"{count} notice{'s' if count > 1 else ''} could not be sent by the {sink}: "
            "people may not know of the alerts there are",
        )


@dataclass(frozen=True)
class Rule:
    """A rule by its name: how bad what it finds is, and how it finds it."""

    name: AlertRule
    severity: Severity
    check: Check


RULES: tuple[Rule, ...] = (
    Rule("drift_confirmed", "warning", _drift_confirmed),
    Rule("retrain_kept", "warning", _retrain_kept),
    Rule("retrain_missing", "critical", _retrain_missing),
    Rule("quality_blocked", "critical", _quality_blocked),
    Rule("rows_refused", "warning", _rows_refused),
    Rule("scores_differ", "critical", _scores_differ),
    Rule("performance_dropped", "critical", _performance_dropped),
    Rule("headroom_blocked", "warning", _headroom_blocked),
    Rule("labels_late", "warning", _labels_late),
    Rule("volume_out_of_band", "warning", _volume_out_of_band),
    Rule("champion_old", "warning", _champion_old),
    Rule("windows_unjudged", "warning", _windows_unjudged),
    Rule("page_broken", "info", _page_broken),
    Rule("sink_broken", "warning", _sink_broken),
)


def find(facts: Facts, params: Params, runbooks: str, rules: Sequence[Rule] = RULES) -> tuple[Alert, ...]:
    """What the rules find at ``facts.as_of``, as alerts that were seen once.

    Those switched off by ``alerts.off`` are not looked for.

    Whatever is found while an episode is open belongs to its group. ``runbooks`` is where the sections are.
    """
    asked = params.alerts
    return tuple(
        Alert(
            case=params.case,
            key=f"{rule.name}:{finding.about}",
            rule=rule.name,
            group=_group(rule.name, finding, facts.report.episode),
            severity=asked.severities.get(rule.name, finding.severity or rule.severity),
            owner=asked.owners.get(rule.name, asked.owner),
            runbook=f"{runbooks}#{rule.name.replace('_', '-')}",
            summary=finding.summary,
            first_seen=facts.as_of,
            last_seen=facts.as_of,
        )
        for rule in rules
        if rule.name not in asked.off
        for finding in rule.check(facts, params)
    )


def _group(rule: AlertRule, finding: Finding, episode: str | None) -> str:
    """What an alert is told of together with: the episode that it is about, else the open one, else nothing."""
    if rule.startswith("retrain_"):
        return finding.about
    return episode or rule
