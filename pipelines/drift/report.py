"""The report of one window: what was decided, what was seen, and what explains it. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from pipelines.contracts import Release, Window
from pipelines.drift import policy
from pipelines.drift.evidence import PolicyState
from pipelines.drift.judge import Decision, Inputs, Judged
from pipelines.drift.labels import performance
from pipelines.drift.profile.counts import Profile
from pipelines.drift.profile.spec import numbers
from pipelines.drift.run import Run
from pipelines.drift.why.diagnosis import diagnose, nothing_seen
from pipelines.drift.why.findings import Seen
from pipelines.drift_report import DriftReport, Headroom, Labels, Measure, Policy, Quality, Remark, Shift
from pipelines.fields import Fields
from pipelines.measures import around
from pipelines.params import DriftParams

LOOK_BACK = timedelta(days=31)
"""How far back days are looked at for the first one that moved; three windows where those are longer."""
MAX_PANELS = 8


def unjudged(
    case: str,
    window: Window,
    rows: int,
    decision: Decision,
    champion: Release | None = None,
    served_since: datetime | None = None,
    quality: Quality | None = None,
) -> DriftReport:
    """The report of a window of ``rows`` rows that is not judged."""
    return DriftReport(
        case=case,
        window=window,
        model_version=None if champion is None else champion.champion,
        reference_rows=0,
        current_rows=rows,
        overdispersion=1.0,
        features=(),
        labels=Labels(),
        quality=quality or Quality(),
        state=decision.state,
        action=decision.action,
        reason=decision.reason,
        served_since=served_since,
        policy=Policy(rule=decision.rule),
        diagnosis=nothing_seen(decision.reason),
    )


def days_before(judged: Judged) -> Window:
    """The days in which the first one that moved is looked for."""
    window = judged.run.window
    back = max(LOOK_BACK, 3 * (window.end - window.start))
    return Window(start=max(judged.run.champion.as_of, window.end - back), end=window.end)


def report(judged: Judged, days: Mapping[date, Profile]) -> DriftReport:
    """The report of a judged window; ``days`` are the profiles of :func:`days_before`."""
    run, served, evidence, decision = judged.run, judged.served, judged.evidence, judged.decision
    drift, baseline, gate = run.params.drift, run.reference.baseline, run.params.gate
    seen_as = performance.summary(
        served.rows, served.windows, run.version, baseline, gate.slice_fields, drift, run.target, gate.bins
    )
    after = decision.after
    own = (pl.col("version") == run.version) & pl.col("label").is_not_null()
    seen = Seen(
        version=run.version,
        reference=run.reference,
        window=run.current,
        features=evidence.features,
        labels=evidence.labels,
        problems=evidence.problems,
        thin=evidence.thin,
        days=days,
        fresh=served.fresh,
        known=served.rows.filter(own),
        slices=seen_as.slices,
        log_e=0.0 if after is None else after.log_e,
    )
    found = diagnose(seen, drift, run.target)
    labels = evidence.labels
    overdispersion = (feature.overdispersion for feature in evidence.features if not feature.ignored)
    return DriftReport(
        case=run.params.case,
        window=run.window,
        model_version=run.version,
        reference_rows=run.reference.rows,
        current_rows=run.current.rows,
        overdispersion=max(overdispersion, default=1.0),
        features=evidence.features,
        labels=Labels(
            rows=labels.rows,
            errors=labels.errors,
            baseline=labels.baseline,
            drop=labels.drop,
            labelled=evidence.labelled,
            fresh_labels=evidence.fresh_labels,
            training_rows=evidence.training_rows,
            corrections=served.corrections,
            young=served.young,
        ),
        quality=_quality(run, judged.inputs, decision),
        state=decision.state,
        action=decision.action,
        reason=decision.reason,
        episode=decision.episode,
        served_since=run.served_since,
        policy=_policy(decision, found.kind),
        diagnosis=found,
        performance=seen_as,
        headroom=_headroom(run, after),
        measure=measure_of(run.fields),
    )


def measure_of(fields: Fields) -> Measure:
    """What a case is measured by: log-loss in nats, or of a number squared errors, shown as RMSE in its unit."""
    if fields.number is None:
        return Measure()
    unit = fields.number.unit
    return Measure(loss="squared error", loss_unit=f"{unit}²", metric="RMSE", unit=unit)


def _headroom(run: Run, after: PolicyState | None) -> Headroom:
    """What a probe found, with what the policy made of it and of the windows before."""
    found = run.headroom
    if after is None:
        return found
    gain, own = policy.pooled_gains(after.gains, found.confidence)
    deciding = found.deciding(gain, own)
    return found.model_copy(
        update={
            "pooled": None if gain is None else around(gain, found.confidence),
            "own_pooled": None if own is None else around(own, found.confidence),
            "pooled_of": len(policy.together(after.gains, found.confidence)[found.against == "past"]),
            "least": None if deciding is None else policy.least(deciding),
            "grown": after.grown,
        }
    )


def _quality(run: Run, inputs: Inputs, decision: Decision) -> Quality:
    found, now = inputs.quality, run.current.rows
    if decision.rows in {None, now}:
        return found
    told = f"the decision was made on {decision.rows:,} rows of the window; {now:,} are there now"
    remark = Remark(code="decided_on_other_rows", message=told)
    return found.model_copy(update={"warnings": (*found.warnings, remark)})


def _policy(decision: Decision, kind: Shift) -> Policy:
    after = decision.after
    if after is None:
        return Policy(rule=decision.rule, kind=kind)
    return Policy(
        rule=decision.rule,
        kind=kind,
        path=after.path,
        trigger=after.trigger,
        verdict=after.verdict,
        log_e=after.log_e,
        alarmed=after.alarmed,
        clean=after.clean,
        marks=after.marks,
        drops=after.drops,
        would=after.would,
        held_back=after.held_back,
        held_by=after.held_by,
        retrained_at=after.retrained_at,
        cooldown_days=after.cooldown_days,
        cooldown_until=after.cooldown_until,
        judged_again=decision.judged_again,
        revision=decision.revision,
    )


def opened_by(report: DriftReport) -> dict[str, Any]:
    """What the ledger keeps of the window that opened an episode, as JSON values."""
    seen = report.model_dump(mode="json", include={"window", "model_version", "reason", "labels"})
    why = report.diagnosis.model_dump(mode="json", include={"kind", "why", "since"})
    drifted = [feature.feature for feature in report.features if feature.drifted]
    return {"trigger": report.policy.trigger, **seen, "features": drifted, **why}


def facts(report: DriftReport) -> dict[str, Any]:
    """What later steps and people read of a report without opening it."""
    return {
        "state": report.state.value,
        "action": report.action,
        "episode": report.episode,
        "reason": report.reason,
        "rule": report.policy.rule,
        "trigger": report.policy.trigger if report.episode is not None else None,
        "kind": report.diagnosis.kind,
        "why": report.diagnosis.why,
        "page": report.quality.page or report.quality.page_error,
    }


def drawn(report: DriftReport, fields: Fields, params: DriftParams) -> list[str]:
    """The columns that a page is drawn of: the strongest drifted fields (daily: the strongest ones).

    None where no page is wanted.

    An alarm or a decision is worth a page; one of every quiet window costs seconds and megabytes.
    """
    daily = params.evidently == "daily"
    wanted = daily or (params.evidently == "alert" and report.action != "none")
    if not wanted or not report.current_rows:
        return []
    shown = {*fields.feature_names, *numbers(fields), *fields.shares}
    found = (feature for feature in report.features if daily or feature.drifted)
    return [feature.feature for feature in found if feature.feature in shown][:MAX_PANELS]


def moved(report: DriftReport) -> bool:
    """Whether something moved or is to be done.

    Then it is worth asking what tells the window from the training rows.
    """
    return report.action != "none" or any(feature.drifted for feature in report.features)
