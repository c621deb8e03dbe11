"""What the demo did, told from the records of the systems themselves: Airflow, the ledger, the log."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from embedded.demo import scoring
from embedded.demo.plan import scope
from embedded.demo.replay import Replay
from pipelines import cases, ledger
from pipelines.contracts import Trigger, Window
from pipelines.drift_report import read_report
from pipelines.fields import Binary
from pipelines.line.order import DRIFT, ROLLOUT, TRAIN
from pipelines.reports.replay import month_label
from pipelines.settings import Settings
from pipelines.storage import MANIFEST, read_manifest

if TYPE_CHECKING:
    import polars as pl


def tick_record(replay: Replay, window: Window, month: pl.DataFrame) -> dict[str, Any]:
    """What happened at one tick, from the drift report and the ledger."""
    case = replay.plan.case
    settings = replay.settings
    head = ledger.head(settings.ledger, case)
    served = sorted({replay.tally.answers[id_][0] for id_ in month["id"] if id_ in replay.tally.answers})
    record: dict[str, Any] = {
        "month": month_label(window.start, replay.plan.tick),
        "as_of": window.end.isoformat(),
        "rows": len(month),
        "champion": served[-1] if served else None,
        "champion_after": head.champion if head else None,
        "drift": _drift(settings, case, window.end),
        "verdicts": _verdicts(settings, case, window.end),
    }
    said = [f"{verdict['decision']} ({verdict['trigger']})" for verdict in record["verdicts"]]
    verdicts = ""
    if said:
        verdicts = "  " + ", ".join(said)
    after = ""
    if record["champion_after"] != record["champion"]:
        after = f"  -> v{record['champion_after']}"
    record["line"] = (
        f"{record['month']}  {len(month):>6,} rows  champion v{record['champion']}  drift: "
        f"{record['drift']['state'].lower():<12}"
        f"{verdicts}{after}"
    )
    return record


def _drift(settings: Settings, case: str, as_of: datetime) -> dict[str, Any]:
    report = read_report(settings.run_dir(case, as_of) / DRIFT.name)
    found: dict[str, Any] = {
        "state": report.state.value,
        "action": report.action,
        "reason": report.reason,
        "episode": report.episode,
        "max_psi": None,
        "feature": None,
    }
    worst = max(report.features, key=lambda feature: feature.debiased_psi, default=None)
    if worst:
        found["max_psi"] = worst.debiased_psi
        found["feature"] = worst.feature
    return found


def _verdicts(settings: Settings, case: str, as_of: datetime) -> list[dict[str, Any]]:
    found = []
    for row in ledger.verdicts(settings.ledger, case):
        if row["as_of"][:19] == as_of.isoformat()[:19]:
            lift = row["verdict"]["evidence"]["lift"] or {}
            found.append(
                {
                    "trigger": row["trigger"],
                    "decision": row["verdict"]["decision"],
                    "rule": row["verdict"]["rule"],
                    "reason": row["verdict"]["reason"],
                    "n": row["verdict"]["evidence"]["n"],
                    "lift": lift.get("value"),
                    "low": lift.get("low"),
                    "high": lift.get("high"),
                    "outcome": read_manifest(settings.run_dir(case, as_of) / ROLLOUT.name).facts["outcome"],
                }
            )
    return found


def build_summary(replay: Replay, rows: pl.DataFrame) -> dict[str, Any]:
    """The content of summary.json but for the times; the counts come from Airflow, the ledger and the log."""
    from pipelines.data import log

    case = replay.plan.case
    settings = replay.settings
    history = ledger.releases(settings.ledger, case)
    bundles = {release.champion: settings.root / release.bundle for release in history}
    log.compact(settings, case)
    logged = log.read_predictions(
        settings, case, Window(start=replay.plan.windows[0].start, end=replay.plan.windows[-1].end)
    )
    runs = {dag: replay.airflow.runs(f"{case}_{dag}") for dag in ("training", "drift")}
    triggers = Counter(run["conf"].get("trigger", "manual") for run in runs["training"])
    decisions = Counter(row["verdict"]["decision"] for row in ledger.verdicts(settings.ledger, case))
    fields = cases.load_fields(case)
    known: scoring.Known = {}
    for compared in replay.compared:
        for bundle, answers in compared.result().items():
            known.setdefault(bundle, {}).update(answers)
    months = _months(replay, rows, logged, bundles[history[0].champion], known)
    return {
        "case": case,
        "tick": replay.plan.tick,
        "min_month_rows": replay.plan.min_month_rows,
        "source": replay.source.kind,
        "source_name": replay.source.name,
        "source_why": replay.source.why,
        "notice": replay.source.notice,
        "scope": scope(replay.plan, replay.params),
        "trainings": _trainings(settings, case, runs["training"]),
        "classes": None if fields.number is not None else len(fields.classes) or 2,
        "ticks": len(replay.ticks),
        "requests": replay.tally.requests,
        "rows_sent": replay.tally.rows_sent,
        "rows_acknowledged": len(replay.tally.answers),
        "rows_logged": len(logged),
        "answers_unequal": scoring.unequal_answers(case, rows, replay.tally.answers, bundles, known),
        "errors": replay.tally.errors,
        "labels": replay.tally.labels,
        "drift_runs": len(runs["drift"]),
        "training_runs_by_trigger": {name: triggers.get(name, 0) for name in get_args(Trigger)},
        "verdicts": {name: decisions.get(name, 0) for name in ("promote", "reject", "inconclusive")},
        "champions": [
            {
                "version": r.champion,
                "since": r.as_of.isoformat(),
                "trigger": r.trigger,
                "mlflow_run": r.mlflow_run,
                "reason": r.reason,
            }
            for r in history
        ],
        "metrics": {
            name: scoring.summarise(months, name, higher_is_better=higher)
            for name, higher in scoring.metric_names(fields).items()
        },
        "airflow": {
            "dag_runs": {dag: len(found) for dag, found in runs.items()},
            "dag_runs_failed": sum(run["state"] != "success" for found in runs.values() for run in found),
        },
        "timeline": replay.ticks,
    }


def _trainings(settings: Settings, case: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each training run really trained: rows, seconds, and what ended it."""
    moments = sorted({run["conf"]["as_of"] for run in runs if "as_of" in run["conf"]})
    found = []
    for moment in moments:
        folder = settings.run_dir(case, datetime.fromisoformat(moment)) / TRAIN.name
        if (folder / MANIFEST).exists():
            facts = read_manifest(folder).facts
            found.append(
                {
                    "as_of": moment,
                    **{name: facts.get(name) for name in ("rows", "seconds", "stopped", "strategy", "ranks")},
                }
            )
    return found


def _months(
    replay: Replay, rows: pl.DataFrame, logged: pl.DataFrame, first: Path, known: scoring.Known
) -> list[dict[str, Any]]:
    """Every window with enough rows and more than one class, scored by the three models on its true labels.

    What was served is taken from the log.
    """
    import polars as pl

    case = replay.plan.case
    fields = cases.load_fields(replay.plan.case)
    served = dict(zip(logged["id"], logged["scores" if fields.classes else "score"], strict=True))
    months = []
    newest = first
    windows = {month_label(window.start, replay.plan.tick): window for window in replay.plan.windows}
    for tick, retrained in zip_longest(replay.ticks, replay.ungated):
        window = windows[tick["month"]]
        frame = rows.filter(pl.col("event_time").is_between(window.start, window.end, closed="left"))
        frame = frame.drop_nulls(fields.label)
        labels = [value if fields.number is not None else int(value) for value in frame[fields.label]]
        if len(labels) >= replay.plan.min_month_rows and len(set(labels)) > 1:
            answered = [served[id_] for id_ in frame["id"]] if set(frame["id"]) <= served.keys() else None
            outside = len(labels) - max(Counter(labels).values())
            months.append(
                {
                    "month": tick["month"],
                    "n": len(labels),
                    "positives": sum(labels) if isinstance(fields.target, Binary) else outside,
                    "frozen": scoring.metrics(fields, labels, scoring.scores(case, first, frame, known)),
                    "perennial": scoring.metrics(fields, labels, answered),
                    "ungated": scoring.metrics(fields, labels, scoring.scores(case, newest, frame, known)),
                }
            )
        newest = (retrained and retrained.result()) or newest
    return months
