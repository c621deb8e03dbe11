"""drift: compare the window with what the champion was trained on, step the policy once, and say what to do."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import DriftReport, Manifest, Release, Window
from pipelines.data import log as prediction_log
from pipelines.drift import policy, reference
from pipelines.drift.evidence import Action, DriftEvidence, Outcome, PolicyState
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.labels import arrived as label_evidence
from pipelines.drift.labels import performance
from pipelines.drift.profile.counts import Profile, merge, read
from pipelines.drift.profile.days import read_days
from pipelines.drift.profile.spec import OUTPUTS, count_words, load_spec, numbers
from pipelines.drift.profile.windows import drift_window, last_windows
from pipelines.drift.why.diagnosis import diagnose, nothing_seen
from pipelines.drift.why.explain import explain
from pipelines.drift.why.findings import Seen
from pipelines.errors import NotKept, Overtaken
from pipelines.fields import SCORES, Fields
from pipelines.params import Params
from pipelines.reports import evidently
from pipelines.settings import Settings

STEP_VERSION = 10
ROOMS = (
    "pipelines.drift",
    "pipelines.data.log",
    "pipelines.fields",
    "pipelines.measures",
    "pipelines.segments",
    "pipelines.reports.evidently",
)
MAX_PANELS = 8
ROUNDS = 3
"""How often a run looks again because another try of the same window was first."""
FAILPOINTS = ("decided", "opened")
"""Beyond those of a commit: state in the ledger, episode in the ledger."""
WINDOWS = 8
"""Windows whose performance is shown, beside those whose labels cannot have arrived yet."""
LOOK_BACK = timedelta(days=31)
"""How far back days are looked at for the first one that moved; three windows where those are longer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Past:
    """What one read of the ledger said of the case's windows: everything that this run does hangs on that read.

    ``states``: every state of the policy, oldest first. ``base``: the one that this window is judged from. ``stands``: the
    decision of this run, if it was made before. ``first``: the judgement on fewer rows whose place this run takes.
    """

    states: tuple[dict[str, Any], ...]
    base: dict[str, Any] | None = None
    stands: dict[str, Any] | None = None
    first: dict[str, Any] | None = None

    @property
    def policy(self) -> PolicyState | None:
        """The policy's state before this window."""
        return _policy(self.base)

    @property
    def known(self) -> tuple[dict[str, Any], ...]:
        """The states up to the one that the window is judged from."""
        return _up_to(self.states, self.base)


@dataclass(frozen=True)
class Served:
    """What the log says of the windows that count, as frames of drift/labels/performance.py.

    ``rows``: what was served in ``windows`` (oldest first, the newest is the run's own), with the labels that are known; ``fresh``:
    the champion's rows whose label counts in this window. ``evidence``: what the policy gets of it; ``told``: what only people get:
    ``corrections`` of labels that were counted before, and ``young``, the champion's labels that count once their rows are old enough.
    ``record``: the segments that no earlier run had seen.
    """

    rows: pl.DataFrame
    fresh: pl.DataFrame
    windows: list[Window]
    evidence: dict[str, Any]
    told: dict[str, Any]
    record: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """The policy's answer for this run, as it stands in the ledger, or why there is none."""

    state: str
    action: Action = "none"
    reason: str = ""
    episode: str | None = None
    about: Mapping[str, Any] | None = None
    rows: int | None = None
    """How many rows of the window were there when it was made."""


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write ``report.json`` (and ``drift.html`` when somebody should look) to ``run_dir/drift``; keep state and episode in the ledger.

    The first decision of a window stands: running again finds it in the ledger, with the segments of the log that it was made
    on, and gives the same report, with the same action and episode, so that a trigger can be tried again. There is one
    exception: a window that was judged on too few rows, or while some could not be read, is judged again once there are
    more, if it opened no episode and no later window was judged. What the first judgement saw is forgotten then: nothing counts twice.
    A run for a window that was judged before, or older than the newest one that was, reports and does not step.
    A window that ended before the case's first champion or its first served row is not judged: the report says so, and nothing
    enters the ledger.
    """
    made = storage.read_manifest(run_dir / "profile")
    window = Window.model_validate(made.facts["window"])
    fields = load_fields(params.case)
    current = merge((read(settings.root / day["path"]) for day in made.facts["days"]), made.facts["spec"])
    champion = ledger.champion_before(settings.ledger, params.case, as_of)
    if champion is None:
        reason = "no champion yet: nothing to compare with"
        return _commit(
            params,
            settings,
            run_dir,
            as_of,
            made,
            _report(params.case, window, None, None, current, Decision("NO_CHAMPION", reason=reason)),
            None,
        )
    served_since = prediction_log.first_row(settings, params.case)
    unread = made.facts.get("unread", 0)
    early = None if unread else _too_early(params, settings, window, served_since)
    if early is not None:
        unjudged = _report(
            params.case,
            window,
            champion,
            None,
            current,
            Decision("NOT_SERVED", reason=early),
            served_since=served_since,
        )
        return _commit(params, settings, run_dir, as_of, made, unjudged, None)
    bundle = storage.find(settings.root / champion.bundle, champion.candidate_key, verify={reference.FILE})
    before = read(bundle / reference.FILE)
    learned_from = _learned_from(bundle)
    usual = None if learned_from is None else storage.read_manifest(learned_from).facts.get("rows_per_day")
    checks = quality(before, current, window, params.drift, served_since, unread, usual)
    spec = load_spec(fields, settings.profile_file(params.case))
    same_spec = before.spec == current.spec == spec.version
    if not same_spec:
        checks["warnings"].append(
            f"champion {champion.champion}'s reference has feature spec {before.spec}, the window {current.spec}: not compared"
        )
    comparable = same_spec and current.rows and not unread
    features = compare(before, current, fields, spec, params.drift, champion.champion) if comparable else ()
    for _ in range(ROUNDS):
        past = _past(settings, params.case, as_of, window, current.rows, unread)
        served = _served(params, settings, champion, before, window, past, fields)
        evidence = DriftEvidence(
            champion=champion.champion,
            training_rows=before.rows,
            thin=not features or current.rows < params.drift.min_rows,
            unread=unread,
            problems=tuple(checks["problems"]),
            features=features,
            **served.evidence,
            outcome=_outcome(params, settings, past.policy, as_of),
        )
        decision = _decide(params, settings, as_of, window, evidence, past, served, current.rows)
        if decision is not None:
            break
    else:
        raise Overtaken(
            f"{params.case}: other tries of the window of {as_of.isoformat()} were first {ROUNDS} times; run the step again"
        )
    if decision.rows not in {None, current.rows}:
        checks["warnings"].append(
            f"the decision was made on {decision.rows:,} rows of the window; {current.rows:,} are there now"
        )
    first = max(champion.as_of, window.end - max(LOOK_BACK, 3 * (window.end - window.start)))
    days = read_days(run_dir, settings.root, Window(start=first, end=window.end), before.spec)
    about = _explain(params, champion, before, current, evidence, decision, served, days, fields)
    report = _report(
        params.case, window, champion, before, current, decision, evidence, checks, served_since, served.told
    )
    report = report.model_copy(update=about)
    if decision.episode is not None:
        opened = report.model_dump(mode="json", include={"window", "model_version", "reason", "labels"})
        more = {
            "features": [feature.feature for feature in features if feature.drifted],
            **{name: report.diagnosis[name] for name in ("kind", "why", "since")},
        }
        storage.failpoint("drift", "decided")
        found = {"trigger": report.policy.get("trigger"), **opened, **more}
        ledger.open_episode(settings.ledger, case=params.case, episode=decision.episode, as_of=as_of, evidence=found)
        storage.failpoint("drift", "opened")
    return _commit(params, settings, run_dir, as_of, made, report, learned_from and learned_from / "train.parquet")


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


def _learned_from(bundle: Path) -> Path | None:
    """The champion's dataset, which also says how many rows a day were usual then; None if it is gone: the reference is enough for everything else.

    Raises IntegrityError if it is damaged.
    """
    key = storage.read_manifest(bundle, verify=False).inputs.get("dataset")
    try:
        return storage.find(bundle.parent / "dataset", key) if key else None
    except NotKept:
        return None


# --- what was judged before -----------------------------------------------------------------------


def _past(settings: Settings, case: str, as_of: datetime, window: Window, rows: int, unread: int) -> Past:
    """Read the case's states, once; whether the window is judged again, now that it has so many ``rows``, is found in them."""
    states = tuple(ledger.drift_states(settings.ledger, case))
    times = [datetime.fromisoformat(state["as_of"]) for state in states]
    own = next((state for state, time in zip(states[::-1], times[::-1], strict=True) if time == as_of), None)
    earlier = next((state for state, time in zip(states[::-1], times[::-1], strict=True) if time < as_of), None)
    same = own or (earlier if earlier is not None and _end(earlier) == window.end else None)
    if (
        same is not None
        and same is states[-1]
        and same.get("short")
        and (rows > same["rows"] or unread < same["unread"])
    ):
        base = _base(states, same)
        if same["policy"]["action"] != "retrain" and same["policy"]["episode"] in {
            None,
            base and base["policy"]["episode"],
        }:
            return Past(states, base, first=same)
    if own is not None:
        return Past(states, _base(states, own), stands=own)
    return Past(states, earlier)


def _base(states: Sequence[dict[str, Any]], state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that ``state`` was made from: the one before it, unless it took the place of another."""
    older = [one for one in states if datetime.fromisoformat(one["as_of"]) < datetime.fromisoformat(state["as_of"])]
    if "base" not in state:
        return older[-1] if older else None
    return next((one for one in older if _name(one) == state["base"]), None)


def _up_to(states: tuple[dict[str, Any], ...], last: Mapping[str, Any] | None) -> tuple[dict[str, Any], ...]:
    return () if last is None else states[: 1 + [_name(state) for state in states].index(_name(last))]


def _name(state: Mapping[str, Any] | None) -> str:
    """What the ledger's chain calls a state."""
    if state is None:
        return ""
    return str(state["as_of"]) if state.get("revision", 1) == 1 else f"{state['as_of']}#{state['revision']}"


def _end(state: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(state["policy"]["end"])


def _policy(found: Mapping[str, Any] | None) -> PolicyState | None:
    return None if found is None else PolicyState.model_validate(found["policy"])


def _recorded(states: Sequence[Mapping[str, Any]]) -> prediction_log.Segments:
    """The segments that the runs of ``states`` have seen."""
    own = [state["segments"] for state in states if "segments" in state]
    return {kind: [name for record in own for name in record[kind]] for kind in prediction_log.KINDS}


# --- labels ---------------------------------------------------------------------------------------


def _served(
    params: Params, settings: Settings, champion: Release, before: Profile, window: Window, past: Past, fields: Fields
) -> Served:
    """Read what was served and labelled, in the segments that this run is about: all that are there, or those it saw when it decided.

    A label counts in the first window after it became known, which its stated time cannot say: known is what stands in
    the run's segments and is stated no later than the window's end, and new what no earlier run knew.
    """
    kind, classes, delay = params.drift.window, len(fields.classes), timedelta(days=params.label_delay_days)
    base, stands = past.policy, past.stands
    seen = _recorded(past.known)
    if stands is not None and "segments" in stands:
        now: prediction_log.Segments = _recorded([*past.known, stands])
        record = stands["segments"]
    else:
        now = there = prediction_log.compacted(settings, params.case)
        record = prediction_log.beyond(there, seen)
    # Runs of releases that kept no record counted by the stated time, of whatever age the row was. What they left to be known
    # is taken over once: it may lack a label that came late to them, and counts none twice.
    unmarked = base is not None and not any("segments" in state for state in past.known)
    age = delay if stands is None or "segments" in stands else timedelta(0)
    since = champion.as_of if base is None else base.end
    taken = next((state for state in [*past.known, *([stands] if stands else [])] if "taken_over" in state), None)
    taken_over = datetime.fromisoformat(taken["taken_over"]) if taken is not None else since if unmarked else None
    learned = [
        state
        for state in past.known
        if "segments" in state and datetime.fromisoformat(state["as_of"]) <= champion.as_of
    ]
    segments = {
        "now": now,
        "before": now if base is None or unmarked else seen,
        "taken_over": now if taken is None else _recorded([taken]),
        "learned": _recorded(learned) if learned else now,
    }
    marks = [] if base is None else [drift_window(mark.end, kind) for mark in base.marks]
    # Room for labels that took twice their usual time.
    start = min(
        [
            champion.as_of - timedelta(days=2 * params.label_delay_days + 1),
            window.start,
            *(mark.start for mark in marks),
        ]
    )
    late = math.ceil(delay / (window.end - window.start))
    windows = last_windows(window, kind, WINDOWS + late)
    oldest = min(start, windows[0].start)
    logged = prediction_log.read_predictions(
        settings, params.case, Window(start=oldest, end=window.end), marks=segments
    )
    extra = [name for name in (SCORES, *params.gate.slices) if name in logged.columns]
    everything = logged.select("id", "event_time", "version", *OUTPUTS, *extra, *segments)
    lines = prediction_log.read_label_lines(settings, params.case, window.end, since=oldest, within=now, marks=segments)
    labels = label_evidence.not_early(label_evidence.possible(lines, classes), everything)
    rows = performance.known(everything.drop(*segments), prediction_log.best(labels), window.end)
    served = everything.filter(pl.col("now") & (pl.col("event_time") >= start))
    counted = label_evidence.counted(served, labels, since, age, taken_over)
    fresh = label_evidence.fresh(served, labels, window.end, age, counted)
    known = label_evidence.mature(served, labels, window.end, timedelta(0))
    learned_from = label_evidence.mature(served, labels.filter("learned"), champion.as_of, timedelta(0))
    evidence = {
        "labels": label_evidence.judge(fresh, champion.champion, before.baseline, params.drift, classes),
        "labelled": label_evidence.coverage(served, labels, [*marks, window], window.end, age),
        "fresh_labels": known.join(learned_from.select("id"), on="id", how="anti").height,
    }
    own = pl.col("version") == champion.champion
    changed = label_evidence.corrected(served, labels, window.end, counted)
    told = {
        "corrections": label_evidence.corrections(changed, champion.champion, classes),
        "young": known.filter(own & (pl.col("event_time") > window.end - age)).height,
    }
    kept = {"segments": record} | ({"taken_over": since.isoformat()} if unmarked and stands is None else {})
    return Served(rows, fresh.filter(own), windows, evidence, told, kept)


def _explain(
    params: Params,
    champion: Release,
    before: Profile,
    current: Profile,
    evidence: DriftEvidence,
    decision: Decision,
    served: Served,
    days: Mapping[date, Profile],
    fields: Fields,
) -> dict[str, Any]:
    """``diagnosis`` and ``performance`` of the report, made once the decision stands."""
    classes, version = len(fields.classes), champion.champion
    seen_as = performance.summary(
        served.rows, served.windows, version, before.baseline, params.gate.slices, params.drift, classes
    )
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


def _outcome(params: Params, settings: Settings, earlier: PolicyState | None, as_of: datetime) -> Outcome:
    """What became of the retraining that was asked for last, seen from before ``as_of``."""
    if earlier is None or earlier.retrained_at is None:
        return "none"
    asked = earlier.retrained_at
    if any(
        release.action == "promote" and asked <= release.as_of < as_of
        for release in ledger.releases(settings.ledger, params.case)
    ):
        return "promoted"
    verdicts = (datetime.fromisoformat(row["as_of"]) for row in ledger.verdicts(settings.ledger, params.case))
    return "kept" if any(asked <= moment < as_of for moment in verdicts) else "pending"


def _decide(
    params: Params,
    settings: Settings,
    as_of: datetime,
    window: Window,
    evidence: DriftEvidence,
    past: Past,
    served: Served,
    rows: int,
) -> Decision | None:
    """The decision that stands, or a new one from the state that ``past`` read; None if another try of this window was first."""
    state, recorded = past.policy, past.stands
    if recorded is None:
        newest = past.states[-1] if past.states else None
        late = newest is not None and datetime.fromisoformat(newest["as_of"]) > as_of
        if late or (state is not None and state.end >= window.end):
            reason = (
                "this window was judged before"
                if not late
                else f"a later window, of {newest['as_of'] if newest else ''}, was judged before"
            )
            return Decision("STABLE" if state is None else state.name, reason=f"{reason}: reported only")
        after, _ = policy.step(state, evidence, params.drift, as_of, params.case, window.end)
        value = {
            "as_of": as_of.isoformat(),
            "policy": after.model_dump(mode="json"),
            "base": _name(past.base),
            "rows": rows,
            **served.record,
        }
        value |= {"unread": evidence.unread, "short": evidence.unread > 0 or rows < params.drift.min_rows}
        if past.first is not None:
            value |= _in_place_of(past.first, as_of)
        recorded = ledger.record_drift_state(
            settings.ledger,
            case=params.case,
            as_of=as_of,
            state=value,
            evidence_hash=storage.digest(evidence),
            previous=_name(past.first or past.base),
            revision=value.get("revision", 1),
        )
        if storage.canonical_json(recorded) != storage.canonical_json(value):
            return None
    stands = PolicyState.model_validate(recorded["policy"])
    about = stands.model_dump(
        mode="json",
        include={
            "path",
            "trigger",
            "verdict",
            "log_e",
            "alarmed",
            "clean",
            "marks",
            "drops",
            "retrained_at",
            "cooldown_days",
            "cooldown_until",
        },
    )
    again = {name: recorded[name] for name in ("revision", "judged_again") if name in recorded}
    found = Decision(stands.name, stands.action, stands.reason, stands.episode, about | again, recorded.get("rows"))
    if not recorded.get("short") or recorded["rows"] == rows:
        return found
    # Else a page would speak of rows that are missing, beside those that came since.
    return replace(found, reason=f"{found.reason} (decided on {recorded['rows']:,} rows; {rows:,} are there now)")


def _in_place_of(first: Mapping[str, Any], as_of: datetime) -> dict[str, Any]:
    """What a judgement keeps of the one on fewer rows whose place it takes."""
    kept: dict[str, Any] = {"judged_again": {"as_of": first["as_of"], "rows": first["rows"]}}
    if datetime.fromisoformat(first["as_of"]) == as_of:
        kept["revision"] = first.get("revision", 1) + 1
    return kept


def _report(
    case: str,
    window: Window,
    champion: Release | None,
    before: Profile | None,
    current: Profile,
    decision: Decision,
    evidence: DriftEvidence | None = None,
    checks: Mapping[str, Any] | None = None,
    served_since: datetime | None = None,
    told: Mapping[str, Any] | None = None,
) -> DriftReport:
    features = () if evidence is None else evidence.features
    seen = (
        {}
        if evidence is None
        else evidence.model_dump(mode="json", include={"labels", "labelled", "fresh_labels", "training_rows"})
    )
    return DriftReport(
        case=case,
        window=window,
        model_version=None if champion is None else champion.champion,
        reference_rows=0 if before is None else before.rows,
        current_rows=current.rows,
        overdispersion=max((feature.overdispersion for feature in features if not feature.ignored), default=1.0),
        features=features,
        labels={**seen.pop("labels", {}), **seen, **(told or {})},
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


def _commit(
    params: Params,
    settings: Settings,
    run_dir: Path,
    as_of: datetime,
    made: Manifest,
    report: DriftReport,
    trained_on: Path | None,
) -> Manifest:
    inputs = {"profile": made.key}
    key = storage.step_key(
        "drift",
        STEP_VERSION,
        inputs,
        {"drift": params.drift.model_dump(mode="json"), "report": report.model_dump(mode="json")},
    )

    def build(folder: Path) -> Mapping[str, Any]:
        # An alarm or a decision is worth a page; one of every quiet window costs seconds and megabytes, and is drawn where it is asked for.
        wanted = params.drift.evidently == "daily" or (params.drift.evidently == "alert" and report.action != "none")
        page = (
            _draw(params, settings, report, folder / "drift.html", trained_on)
            if wanted and trained_on is not None and report.current_rows
            else None
        )
        apart = _tell_apart(params, settings, report, trained_on)
        written = report.model_copy(update={"quality": {**report.quality, "page": page}, "explanation": apart})
        (folder / "report.json").write_text(storage.canonical_json(written))
        about = {
            "trigger": report.policy.get("trigger") if report.episode is not None else None,
            "kind": report.diagnosis["kind"],
            "why": report.diagnosis["why"],
        }
        return {
            "state": report.state,
            "action": report.action,
            "episode": report.episode,
            "reason": report.reason,
            **about,
            "page": page,
        }

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
    columns = [
        feature.feature for feature in report.features if (daily or feature.drifted) and feature.feature in shown
    ][:MAX_PANELS]
    if not columns:
        return None
    try:
        rows = prediction_log.read_predictions(settings, params.case, report.window)
        before = pl.read_parquet(trained_on, columns=list(fields.names))
        if fields.text is not None:
            rows, before = (frame.with_columns(count_words(frame[fields.text.name])) for frame in (rows, before))
        limit = params.drift.report_rows
        evidently.draw(
            path,
            evidently.sample(rows, limit),
            evidently.sample(before, limit),
            columns,
            fields,
            params.drift.severe_psi,
        )
    except Exception as error:
        log.exception("%s: the drift page could not be drawn", params.case)
        path.unlink(missing_ok=True)
        return f"could not be drawn ({type(error).__name__})"
    return path.name
