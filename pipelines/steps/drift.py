"""drift: compare the window with what the champion was trained on, step the policy once, and say what to do."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.contracts import DriftReport, Manifest, Release, Window
from pipelines.data import log as prediction_log
from pipelines.drift import labels as label_evidence
from pipelines.drift import performance, policy, reference
from pipelines.drift.compare import compare, quality
from pipelines.drift.days import read_days
from pipelines.drift.diagnosis import diagnose, nothing_seen
from pipelines.drift.explain import explain
from pipelines.drift.findings import Seen
from pipelines.drift.profile import Profile, merge, read
from pipelines.drift.spec import OUTPUTS, count_words, load_spec, numbers
from pipelines.drift.windows import drift_window, last_windows
from pipelines.fields import SCORES, Fields
from pipelines.reports import evidently

STEP_VERSION = 6
ROOMS = ("pipelines.drift", "pipelines.data.log", "pipelines.fields", "pipelines.reports.evidently")
MAX_PANELS = 8
FAILPOINTS = ("decided", "opened")
"""Beyond those of a commit: state in the ledger, episode in the ledger."""
WINDOWS = 8
"""Windows whose performance is shown, beside those whose labels cannot have arrived yet."""
LOOK_BACK = timedelta(days=31)
"""How far back days are looked at for the first one that moved; three windows where those are longer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What the log says of the windows that count, as frames of drift/performance.py.

    ``rows``: what was served in ``windows`` (oldest first, the newest is the run's own), with the labels that have arrived; ``fresh``:
    the champion's rows whose label arrived since the last window that was judged. ``evidence``: what the policy gets of it.
    """

    rows: pl.DataFrame
    fresh: pl.DataFrame
    windows: list[Window]
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """The policy's answer for this run, as it stands in the ledger, or why there is none."""

    state: str
    action: policy.Action = "none"
    reason: str = ""
    episode: str | None = None
    about: Mapping[str, Any] | None = None


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write ``report.json`` (and ``drift.html`` when somebody should look) to ``run_dir/drift``; keep state and episode in the ledger.

    The first decision of a window stands: running again finds it in the ledger and gives the same report, with
    the same action and episode, so that a trigger can be tried again. A run for a window that was judged
    before, or older than the newest one that was, reports and does not step. A window that ended before the case's first
    champion or its first served row is not judged: the report says so, and nothing enters the ledger.
    """
    made = storage.read_manifest(run_dir / "profile")
    window = Window.model_validate(made.facts["window"])
    fields = load_fields(params.case)
    current = merge((read(settings.root / day["path"]) for day in made.facts["days"]), made.facts["spec"])
    champion = ledger.champion_before(settings.ledger, params.case, as_of)
    if champion is None:
        reason = "no champion yet: nothing to compare with"
        return _commit(params, settings, run_dir, as_of, made, _report(params.case, window, None, None, current, Decision("NO_CHAMPION", reason=reason)), None)
    served_since = prediction_log.first_row(settings, params.case)
    early = _too_early(params, settings, window, served_since)
    if early is not None:
        unjudged = _report(params.case, window, champion, None, current, Decision("NOT_SERVED", reason=early), served_since=served_since)
        return _commit(params, settings, run_dir, as_of, made, unjudged, None)
    bundle = storage.find(settings.root / champion.bundle, champion.candidate_key)
    before = read(bundle / reference.FILE)
    checks = quality(before, current, window, params.drift, served_since)
    same_spec = before.spec == current.spec == load_spec(fields).version
    if not same_spec:
        checks["warnings"].append(f"champion {champion.champion}'s reference has feature spec {before.spec}, the window {current.spec}: not compared")
    features = compare(before, current, fields, load_spec(fields), params.drift, champion.champion) if same_spec and current.rows else ()
    served = _served(params, settings, champion, before, window, as_of, fields)
    evidence = policy.DriftEvidence(
        champion=champion.champion,
        training_rows=before.rows,
        thin=not features or current.rows < params.drift.min_rows,
        problems=tuple(checks["problems"]),
        features=features,
        **served.evidence,
        outcome=_outcome(params, settings, as_of),
    )
    decision = _decide(params, settings, as_of, window, evidence)
    first = max(champion.as_of, window.end - max(LOOK_BACK, 3 * (window.end - window.start)))
    days = read_days(run_dir, settings.root, Window(start=first, end=window.end), before.spec)
    about = _explain(params, champion, before, current, evidence, decision, served, days, fields)
    report = _report(params.case, window, champion, before, current, decision, evidence, checks, served_since).model_copy(update=about)
    if decision.episode is not None:
        opened = report.model_dump(mode="json", include={"window", "model_version", "reason", "labels"})
        more = {"features": [feature.feature for feature in features if feature.drifted], **{name: report.diagnosis[name] for name in ("kind", "why", "since")}}
        storage.failpoint("drift", "decided")
        found = {"trigger": report.policy.get("trigger"), **opened, **more}
        ledger.open_episode(settings.ledger, case=params.case, episode=decision.episode, as_of=as_of, evidence=found)
        storage.failpoint("drift", "opened")
    return _commit(params, settings, run_dir, as_of, made, report, bundle.parent / "dataset" / "train.parquet")


def _too_early(params: Params, settings: Settings, window: Window, served_since: datetime | None) -> str | None:
    """Why nobody could have been served in the window yet, if that is so: then there is nothing to judge, and nothing is wrong."""
    if served_since is None:
        return "nothing has been served yet: there is nothing to judge"
    if window.end <= served_since:
        return f"the first row was served on {served_since:%Y-%m-%d}, after this window: there is nothing to judge"
    first = ledger.releases(settings.ledger, params.case)[0].as_of
    if window.end <= first:
        return f"the first champion is of {first:%Y-%m-%d}, after this window: there is nothing to judge"
    return None


def _served(params: Params, settings: Settings, champion: Release, before: Profile, window: Window, as_of: datetime, fields: Fields) -> Served:
    """Read what was served and labelled: label evidence is what arrived since the last window that was judged, how much of the history has labels, how many are new."""
    kind, classes = params.drift.window, len(fields.classes)
    earlier = _state(ledger.drift_state_before(settings.ledger, params.case, as_of))
    marks = [] if earlier is None else [drift_window(mark.end, kind) for mark in earlier.marks]
    # Room for labels that took twice their usual time.
    start = min([champion.as_of - timedelta(days=2 * params.label_delay_days + 1), window.start, *(mark.start for mark in marks)])
    late = math.ceil(timedelta(days=params.label_delay_days) / (window.end - window.start))
    windows = last_windows(window, kind, WINDOWS + late)
    oldest = min(start, windows[0].start)
    logged = prediction_log.read_predictions(settings, params.case, Window(start=oldest, end=window.end))
    extra = [name for name in (SCORES, *params.gate.slices) if name in logged.columns]
    everything = logged.select("id", "event_time", "version", *OUTPUTS, *extra)
    labels = label_evidence.possible(prediction_log.read_labels(settings, params.case, window.end, since=oldest), classes)
    rows = performance.known(everything, labels, window.end)
    served = everything.filter(pl.col("event_time") >= start)
    since = champion.as_of if earlier is None else earlier.end
    fresh = label_evidence.arrived(served, labels, since, window.end)
    evidence = {
        "labels": label_evidence.judge(fresh, champion.champion, before.baseline, params.drift, classes),
        "labelled": label_evidence.coverage(served, labels, [*marks, window], window.end),
        "fresh_labels": label_evidence.arrived(served, labels, champion.as_of, window.end).height,
    }
    return Served(rows, fresh.filter(pl.col("version") == champion.champion), windows, evidence)


def _explain(
    params: Params,
    champion: Release,
    before: Profile,
    current: Profile,
    evidence: policy.DriftEvidence,
    decision: Decision,
    served: Served,
    days: Mapping[date, Profile],
    fields: Fields,
) -> dict[str, Any]:
    """``diagnosis`` and ``performance`` of the report, made once the decision stands."""
    classes, version = len(fields.classes), champion.champion
    seen_as = performance.summary(served.rows, served.windows, version, before.baseline, params.gate.slices, params.drift, classes)
    seen = Seen(
        version=version,
        reference=before,
        window=current,
        features=evidence.features,
        labels=evidence.labels,
        problems=evidence.problems,
        thin=evidence.thin,
        days=days,
        fresh=served.fresh,
        known=served.rows.filter((pl.col("version") == version) & pl.col("label").is_not_null()),
        slices=seen_as["slices"],
        log_e=float((decision.about or {}).get("log_e", 0.0)),
    )
    found = diagnose(seen, params.drift, classes)
    return {"diagnosis": found, "performance": seen_as, "policy": {"kind": found["kind"], **(decision.about or {})}}


def _state(found: Mapping[str, Any] | None) -> policy.PolicyState | None:
    return None if found is None else policy.PolicyState.model_validate(found["policy"])


def _outcome(params: Params, settings: Settings, as_of: datetime) -> policy.Outcome:
    """What became of the retraining that was asked for last, seen from before ``as_of``."""
    earlier = _state(ledger.drift_state_before(settings.ledger, params.case, as_of))
    if earlier is None or earlier.retrained_at is None:
        return "none"
    asked = earlier.retrained_at
    if any(release.action == "promote" and asked <= release.as_of < as_of for release in ledger.releases(settings.ledger, params.case)):
        return "promoted"
    verdicts = (datetime.fromisoformat(row["as_of"]) for row in ledger.verdicts(settings.ledger, params.case))
    return "kept" if any(asked <= moment < as_of for moment in verdicts) else "pending"


def _decide(params: Params, settings: Settings, as_of: datetime, window: Window, evidence: policy.DriftEvidence) -> Decision:
    case, url = params.case, settings.ledger
    earlier = ledger.drift_state_before(url, case, as_of)
    newest = ledger.drift_state_before(url, case, datetime.max.replace(tzinfo=UTC))
    found = ledger.drift_state_before(url, case, as_of + timedelta(microseconds=1))
    recorded = found if found is not None and datetime.fromisoformat(found["as_of"]) == as_of else None
    state = _state(earlier)
    if recorded is None:
        late = newest is not None and datetime.fromisoformat(newest["as_of"]) > as_of
        if late or (state is not None and state.end >= window.end):
            reason = "this window was judged before" if not late else f"a later window, of {newest['as_of'] if newest else ''}, was judged before"
            return Decision("STABLE" if state is None else state.name, reason=f"{reason}: reported only")
        after, _ = policy.step(state, evidence, params.drift, as_of, case, window.end)
        value = {"as_of": as_of.isoformat(), "policy": after.model_dump(mode="json")}
        recorded = ledger.record_drift_state(
            url, case=case, as_of=as_of, state=value, evidence_hash=storage.digest(evidence), previous=earlier["as_of"] if earlier else ""
        )
    stands = policy.PolicyState.model_validate(recorded["policy"])
    about = stands.model_dump(
        mode="json", include={"path", "trigger", "verdict", "log_e", "alarmed", "clean", "marks", "drops", "retrained_at", "cooldown_days", "cooldown_until"}
    )
    return Decision(stands.name, stands.action, stands.reason, stands.episode, about)


def _report(
    case: str,
    window: Window,
    champion: Release | None,
    before: Profile | None,
    current: Profile,
    decision: Decision,
    evidence: policy.DriftEvidence | None = None,
    checks: Mapping[str, Any] | None = None,
    served_since: datetime | None = None,
) -> DriftReport:
    features = () if evidence is None else evidence.features
    seen = {} if evidence is None else evidence.model_dump(mode="json", include={"labels", "labelled", "fresh_labels", "training_rows"})
    return DriftReport(
        case=case,
        window=window,
        model_version=None if champion is None else champion.champion,
        reference_rows=0 if before is None else before.rows,
        current_rows=current.rows,
        overdispersion=max((feature.overdispersion for feature in features if not feature.ignored), default=1.0),
        features=features,
        labels={**seen.pop("labels", {}), **seen},
        quality=dict(checks or {}),
        state=decision.state,
        action=decision.action,
        reason=decision.reason,
        episode=decision.episode,
        served_since=served_since,
        policy=dict(decision.about or {}),
        diagnosis=nothing_seen(decision.reason),
        performance=performance.NOTHING,
    )


def _commit(params: Params, settings: Settings, run_dir: Path, as_of: datetime, made: Manifest, report: DriftReport, trained_on: Path | None) -> Manifest:
    inputs = {"profile": made.key}
    key = storage.step_key("drift", STEP_VERSION, inputs, {"drift": params.drift.model_dump(mode="json"), "report": report.model_dump(mode="json")})

    def build(folder: Path) -> Mapping[str, Any]:
        # An alarm or a decision is worth a page; one of every quiet window costs seconds and megabytes, and is drawn where it is asked for.
        wanted = params.drift.evidently == "daily" or (params.drift.evidently == "alert" and report.action != "none")
        page = _draw(params, settings, report, folder / "drift.html", trained_on) if wanted and trained_on is not None and report.current_rows else None
        apart = _tell_apart(params, settings, report, trained_on)
        written = report.model_copy(update={"quality": {**report.quality, "page": page}, "explanation": apart})
        (folder / "report.json").write_text(storage.canonical_json(written))
        about = {
            "trigger": report.policy.get("trigger") if report.episode is not None else None,
            "kind": report.diagnosis["kind"],
            "why": report.diagnosis["why"],
        }
        return {"state": report.state, "action": report.action, "episode": report.episode, "reason": report.reason, **about, "page": page}

    return storage.commit(run_dir / "drift", case=params.case, as_of=as_of, key=key, inputs=inputs, build=build)


def _tell_apart(params: Params, settings: Settings, report: DriftReport, trained_on: Path | None) -> dict[str, Any]:
    """What tells the window from the training rows, where something moved or is to be done; an error as a sentence, as no decision hangs on it."""
    if trained_on is None or not (report.action != "none" or any(feature.drifted for feature in report.features)):
        return {}
    fields = load_fields(params.case)
    try:
        rows = prediction_log.read_predictions(settings, params.case, report.window)
        return explain(pl.read_parquet(trained_on, columns=list(fields.names)), rows, fields, params.drift.ignore)
    except Exception as error:
        log.exception("%s: the window could not be explained", params.case)
        return {"about": f"could not be explained ({type(error).__name__})"}


def _draw(params: Params, settings: Settings, report: DriftReport, path: Path, trained_on: Path) -> str | None:
    """The page of the strongest drifted fields (daily: of the strongest ones), as ``drift.html``; None if there are none; an error as a sentence, as no decision hangs on it."""
    fields: Fields = load_fields(params.case)
    shown = {*fields.names, *numbers(fields)}
    daily = params.drift.evidently == "daily"
    columns = [feature.feature for feature in report.features if (daily or feature.drifted) and feature.feature in shown][:MAX_PANELS]
    if not columns:
        return None
    try:
        rows = prediction_log.read_predictions(settings, params.case, report.window)
        before = pl.read_parquet(trained_on, columns=list(fields.names))
        if fields.text is not None:
            rows, before = (frame.with_columns(count_words(frame[fields.text.name])) for frame in (rows, before))
        limit = params.drift.report_rows
        evidently.draw(path, evidently.sample(rows, limit), evidently.sample(before, limit), columns, fields, params.drift.severe_psi)
    except Exception as error:
        log.exception("%s: the drift page could not be drawn", params.case)
        path.unlink(missing_ok=True)
        return f"could not be drawn ({type(error).__name__})"
    return path.name
