"""What Prometheus may know of a case: its newest drift report and what the ledger says, in the text format.

Gauges, made anew at every scrape from what is stored: nothing is counted in a process, so that any number
of exporters, or a file for node_exporter's textfile collector, tell the same. The rules on them are in
``pipelines/alerts/prometheus.rules.yaml``.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import get_args

from pipelines import case_files, ledger
from pipelines.arms import WHOLE
from pipelines.contracts import CHANGES, Action, EpisodeTrigger, Release, Severity, Stage
from pipelines.drift_report import JUDGED, DriftReport, HeldBy, State, read_report
from pipelines.errors import DatabaseDamaged, PerennialError, Unavailable
from pipelines.params import Params
from pipelines.reports import exporter
from pipelines.settings import Settings
from pipelines.storage import MANIFEST

PREFIX = "perennial_"
SERIES = {
    "case_broken": "1 if the case's folder cannot be used, or what is stored of the case cannot be read",
    "case_retired": "1 if somebody has retired the case: then there is nothing else of it",
    "case_gone": "1 for a case that has a champion and no folder, and that nobody has retired",
    "case_live": "1 if the case follows today's clock, 0 if it replays history",
    "threshold": "limits that the case declares, by name",
    "window_end_timestamp_seconds": "end of the newest window that was judged",
    "window_seconds": "length of a drift window",
    "window_rows": "rows in the newest window",
    "volume_ratio": "rows of the newest window against the reference's volume",
    "quality_problems": "what is wrong with the newest window's rows and blocks it",
    "refused_ratio": "share of the rows that came that the gateway refused: of the newest window, of its worst hours",
    "drift_psi": "debiased PSI of a feature against the champion's reference, in nats",
    "drift_detected": "1 if the test says that the feature moved by more than the minimum effect",
    "drift_severity": "of a feature: 0 info, 1 warn, 2 severe",
    "policy_state": "1 for the state that the policy is in",
    "episode_open": "1 while an episode is open, by what opened it",
    "retrain_unanswered": "1 in the cooldown after a retraining that was not promoted, by its verdict",
    "labels_coverage_ratio": "share of labelled rows in the newest window whose labels should have arrived",
    "log_loss": "of the newest window with labels, in nats",
    "log_loss_estimated": "of rows whose labels are missing, in nats",
    "log_loss_rise": "over the holdout's, of the labels that arrived last, in nats",
    "rmse": "of the newest window with labels of a number, in its unit",
    "mae": "of the newest window with labels of a number, in its unit",
    "squared_error_rise": "over the holdout's, of the labels of a number that arrived last, in squared units",
    "headroom_measured": "1 if a probe measured in the newest window what a retraining would gain",
    "headroom_gain": "of a retraining, over the last windows, in nats (of a number: squared units)",
    "headroom_log_e": "log of the e-CUSUM of the gain against its price",
    "headroom_held_back_windows": "windows in a row in which a retraining would have paid, by what held it back",
    "performance_alarm": "1 while the e-CUSUM of the error rate is above its threshold",
    "champion_version": "the version that serves",
    "champion_trained_timestamp_seconds": "as_of of the champion's training",
    "champion_age_days": "from the champion's training to the end of the newest window",
    "rollout_stage": "1 for the stage that the newest row of the releases is in",
    "rollout_weight": "share of keys that a rollout's challenger answers; 0 where none is under way",
    "rollout_version": "the version that a rollout is about, also in its soak; 0: none is under way",
    "rollout_e_value": "the evidence against a rollout's challenger when its stage began, held against 1 / alpha",
    "rollout_moves": "rows of rollouts so far that changed no champion, by what they did",
    "releases": "releases so far",
    "trainings": "verdicts so far, by what asked for the training",
    "training_cost": (
        "what all trainings with a verdict used so far: hours of processors, of GPUs and of the clock, "
        "and money at the declared price"
    ),
    "episodes": "episodes so far, by what opened them",
    "alerts_open": "open alerts that are not silenced",
    "alert_open": "1 for a rule with an open alert that is not silenced",
    "notices_undelivered": "notices that a sink has not taken",
}
"""Every series by its name behind the prefix; all are gauges with the label ``case``."""
STATES = JUDGED
STAGES = get_args(Stage)
MOVES = tuple(action for action in get_args(Action) if action not in CHANGES)
COSTS = ("cpu_hours", "gpu_hours", "wall_hours", "money")
DRIFT_SEVERITIES = ("info", "warn", "severe")
BOUNDS = ("value", "low", "high")

log = logging.getLogger(__name__)
Sample = exporter.Sample
Cases = tuple[Sequence[Params], Mapping[str, str]]
"""The cases whose parameters can be read, and by case what is wrong with those that cannot work."""


def render(settings: Settings, cases: Iterable[Params], broken: Mapping[str, str] = MappingProxyType({})) -> str:
    """The series of these cases.

    A case without a drift report has those of its ledger, a ``broken`` one at least that it is. What is stored of one
    case and cannot be read costs the others nothing. Raises Unavailable if the ledger does not answer, ConfigError or
    DatabaseDamaged if it cannot be opened: then nothing is known of any case.
    """
    ledger.check(settings.ledger)
    retired = ledger.retired(settings.ledger).now
    gone = ledger.gone(settings.ledger, case_files.case_names())
    gauges: list[exporter.Sample] = [("case_gone", {"case": case}, 1) for case in gone]
    states = dict.fromkeys(broken, 1)
    for params in cases:
        own = {"case": params.case}
        gauges += [("case_retired", own, params.case in retired), ("case_gone", own, 0)]
        try:
            found = [] if params.case in retired else list(samples(settings, params))
        except (Unavailable, DatabaseDamaged):
            raise
        except (PerennialError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: what is stored of it cannot be read: %s", params.case, error)
            found = []
            states[params.case] = 1
        gauges += [(name, {"case": params.case, **labels}, value) for name, labels, value in found]
        states.setdefault(params.case, 0)
    gauges += [("case_broken", {"case": case}, states[case]) for case in sorted(states)]
    return exporter.exposition(PREFIX, SERIES, gauges).decode()


def serve(
    settings: Settings,
    cases: Callable[[], Cases],
    host: str,
    port: int,
    ready: Callable[[int], None] = lambda _port: None,
) -> None:
    """Answer ``GET /metrics`` on ``host:port`` (0: a free one, told to ``ready``) until the process is ended.

    503 while the ledger cannot be read. ``cases`` is asked at every scrape: cases come, go, break and are mended.
    """
    exporter.serve(lambda: render(settings, *cases()).encode(), host, port, ready)


def samples(settings: Settings, params: Params) -> Iterator[Sample]:
    """What there is to say of a case: series, labels beside the case, value."""
    releases = ledger.releases(settings.ledger, params.case)
    report = newest_report(settings, params.case)
    yield from _declared(params)
    yield from _loop(settings, params, releases)
    yield from _alerts(settings, params)
    if report is not None:
        yield from _window(report)
        yield from _headroom(report)
        yield from _performance(params, report)
    trained = [
        release.trained
        for release in releases
        if release.champion == releases[-1].champion and release.action != "rollback"
    ]
    if trained:
        yield "champion_trained_timestamp_seconds", {}, trained[0].timestamp()
        if report is not None:
            yield "champion_age_days", {}, max(0.0, (report.window.end - trained[0]).total_seconds() / 86_400)


def newest_report(settings: Settings, case: str) -> DriftReport | None:
    """The report of the newest window that the policy judged; None where there is none (any more)."""
    newest = ledger.drift_state_before(settings.ledger, case, datetime.max.replace(tzinfo=UTC))
    if newest is None:
        return None
    try:
        return read_report(settings.run_dir(case, datetime.fromisoformat(newest["as_of"])) / "drift")
    except FileNotFoundError:
        return None


def _declared(params: Params) -> Iterator[Sample]:
    drift = params.drift
    alerts = params.alerts
    yield "case_live", {}, params.schedule.live
    limits = {
        "psi_warn": drift.warn_psi,
        "psi_severe": drift.severe_psi,
        "refused_warn": drift.warn_refused_share,
        "refused_block": drift.block_refused_share,
        "volume_low": drift.volume_band[0],
        "volume_high": drift.volume_band[1],
        "log_loss_rise": drift.min_metric_drop,
        "squared_error_rise": drift.min_metric_drop,
        "headroom_price": params.headroom.price,
        "headroom_log_e": math.log(drift.cusum_threshold),
        "coverage": alerts.min_coverage,
        "unjudged_windows": alerts.max_unjudged_windows,
    }
    if alerts.max_champion_days is not None:
        limits["champion_days"] = alerts.max_champion_days
    for name, value in limits.items():
        yield "threshold", {"name": name}, value


def _loop(settings: Settings, params: Params, releases: Sequence[Release]) -> Iterator[Sample]:
    if releases:
        yield "champion_version", {}, releases[-1].champion
        head = ledger.head(settings.ledger, params.case) or releases[-1]
        for stage in STAGES:
            yield "rollout_stage", {"stage": stage}, stage == head.stage
        version = head.champion if head.stage == "soak" else head.challenger
        yield "rollout_version", {}, version or 0
        yield "rollout_weight", {}, head.weight / WHOLE if version else 0.0
        said = {} if head.trial is None or version is None else head.trial.evidence
        yield "rollout_e_value", {}, float(said.get("e_value", 0.0))
    moves = Counter(row.action for row in ledger.chain(settings.ledger, params.case) if row.action not in CHANGES)
    for move in MOVES:
        yield "rollout_moves", {"action": move}, moves[move]
    for action, count in Counter(release.action for release in releases).items():
        yield "releases", {"action": action}, count
    judged = ledger.verdicts(settings.ledger, params.case)
    for (trigger, decision), count in Counter((row["trigger"], row["verdict"]["decision"]) for row in judged).items():
        yield "trainings", {"trigger": trigger, "decision": decision}, count
    spent = _spent(settings, params.case, {row["as_of"] for row in judged})
    for what in COSTS:
        yield "training_cost", {"what": what}, spent[what]
    opened = Counter(row["evidence"].get("trigger") for row in ledger.episodes(settings.ledger, params.case))
    for trigger in get_args(EpisodeTrigger):
        yield "episodes", {"trigger": trigger}, opened[trigger]


def _spent(settings: Settings, case: str, runs: Iterable[str]) -> Counter[str]:
    """The cost of every training that is kept, summed; a run whose folder is gone counts nothing."""
    spent: Counter[str] = Counter()
    for as_of in runs:
        path = settings.run_dir(case, datetime.fromisoformat(as_of)) / "train" / MANIFEST
        if path.exists():
            cost = json.loads(path.read_bytes())["facts"].get("cost") or {}
            spent.update({what: cost.get(what) or 0 for what in COSTS})
    return spent


def _alerts(settings: Settings, params: Params) -> Iterator[Sample]:
    newest = ledger.alert_runs(settings.ledger, params.case, last=1)
    told = [alert for alert in newest[0]["alerts"] if alert["state"] == "open"] if newest else []
    for severity in get_args(Severity):
        yield "alerts_open", {"severity": severity}, sum(alert["severity"] == severity for alert in told)
    for rule, severity in sorted({(alert["rule"], alert["severity"]) for alert in told}):
        yield "alert_open", {"rule": rule, "severity": severity}, 1
    for sink, count in ledger.undelivered(settings.ledger, params.case).items():
        yield "notices_undelivered", {"sink": sink}, count


def _window(report: DriftReport) -> Iterator[Sample]:
    policy = report.policy
    yield "window_end_timestamp_seconds", {}, report.window.end.timestamp()
    yield "window_seconds", {}, (report.window.end - report.window.start).total_seconds()
    yield "window_rows", {}, report.current_rows
    yield "quality_problems", {}, sum(problem.code != "refused" for problem in report.quality.problems)
    refused = report.quality.refused
    yield "refused_ratio", {"of": "window"}, refused.share
    yield "refused_ratio", {"of": "worst_hours"}, 0.0 if refused.worst is None else refused.worst.share
    if (volume := report.quality.volume) is not None:
        yield "volume_ratio", {}, volume
    for feature in report.features:
        labels = {"feature": feature.feature}
        yield "drift_psi", labels, feature.debiased_psi
        yield "drift_detected", labels, feature.drifted
        yield "drift_severity", labels, DRIFT_SEVERITIES.index(feature.severity)
    for state in STATES:
        yield "policy_state", {"state": state}, state == report.state
    for trigger in get_args(EpisodeTrigger):
        yield "episode_open", {"trigger": trigger}, report.episode is not None and trigger == policy.trigger
    cooling = State.COOLDOWN in {report.state, *policy.path}
    for verdict in ("kept", "missing"):
        yield "retrain_unanswered", {"verdict": verdict}, cooling and policy.verdict == verdict
    yield "performance_alarm", {}, policy.alarmed
    if (drop := report.labels.drop) is not None:
        rise = "log_loss_rise" if report.measure.estimable else "squared_error_rise"
        yield from _bounds(rise, drop.value, drop.low, drop.high)


def _headroom(report: DriftReport) -> Iterator[Sample]:
    found, policy = report.headroom, report.policy
    yield "headroom_measured", {}, found.decides is not None
    yield "headroom_log_e", {}, found.grown
    for held_by in get_args(HeldBy):
        windows = policy.held_back if held_by == policy.held_by else 0
        yield "headroom_held_back_windows", {"held_by": held_by}, windows
    if (gain := found.decides) is not None:
        yield from _bounds("headroom_gain", gain.value, gain.low, gain.high)


def _performance(params: Params, report: DriftReport) -> Iterator[Sample]:
    rolling = sorted((row for row in report.performance.rolling if row.rows), key=lambda row: row.end)
    measured = [row for row in rolling if row.log_loss is not None]
    if measured:
        yield from _bounds("log_loss", measured[-1].log_loss, measured[-1].low, measured[-1].high)
    numbers = [row for row in rolling if row.rmse is not None]
    if numbers:
        newest = numbers[-1]
        yield from _bounds("rmse", newest.rmse, newest.rmse_low, newest.rmse_high)
        yield from _bounds("mae", newest.mae, newest.mae_low, newest.mae_high)
    if (guess := report.performance.estimate) is not None:
        yield from _bounds("log_loss_estimated", guess.log_loss, guess.low, guess.high)
    due = report.window.end - timedelta(days=params.alerts.late_after * params.label_delay_days)
    old = {end: share for end, share in report.coverage().items() if end <= due}
    if old:
        yield "labels_coverage_ratio", {}, old[max(old)]


def _bounds(name: str, *found: float | None) -> Iterator[Sample]:
    """A figure and its interval's ends, as far as they are known."""
    for bound, value in zip(BOUNDS, found, strict=True):
        if value is not None:
            yield name, {"bound": bound}, value
