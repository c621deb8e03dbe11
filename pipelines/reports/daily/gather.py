"""What the daily page shows, gathered: reports of earlier runs, the ledger, and what the window's counts say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from pipelines import ledger, storage
from pipelines.contracts import CHANGES, Alert, Release
from pipelines.drift_report import Counted, DriftReport, read_report
from pipelines.params import Params
from pipelines.reports.daily import heat
from pipelines.reports.daily.view import Judged, Links, Past, Served, View
from pipelines.reports.promises import drift_runs, promised
from pipelines.settings import Settings

DRAWN = "drift.html"
"""Evidently's page, in the drift step's folder."""


def gather(
    params: Params, settings: Settings, run_dir: Path, as_of: datetime, report: DriftReport, counted: Counted
) -> View:
    """The view of the window that the run in ``run_dir`` judged with ``report``; ``counted``: what its counts say."""
    past = history(run_dir)
    rows = [row for row in ledger.chain(settings.ledger, params.case) if row.as_of <= as_of]
    releases = [row for row in rows if row.action in CHANGES]
    return View(
        as_of=as_of,
        report=report,
        policy=params.drift,
        label_delay_days=params.label_delay_days,
        history=past,
        releases=tuple(releases),
        champion=_champion(releases, report),
        stages=tuple(row for row in rows if row.action not in CHANGES),
        verdicts=tuple(_verdicts(settings, params.case, as_of, releases)),
        alerts=tuple(_open_alerts(settings, params.case, as_of)),
        served=tuple(Served(version=version, rows=rows) for version, rows in sorted(counted.served.items())),
        changes=counted.changes,
        heat=heat.gather(past, report, counted),
    )


def history(run_dir: Path) -> tuple[Past, ...]:
    """The newest reports of this run and of earlier ones, one per window, oldest first."""
    found: dict[datetime, Past] = {}
    for folder in drift_runs(run_dir):
        made = storage.read_manifest(folder)
        report = read_report(folder)
        found.setdefault(report.window.end, Past(as_of=made.as_of, report=report))
        if len(found) == heat.COLUMNS:
            break
    return tuple(found[end] for end in sorted(found))


def _verdicts(settings: Settings, case: str, as_of: datetime, releases: Sequence[Release]) -> Iterator[Judged]:
    for row in ledger.verdicts(settings.ledger, case):
        when = datetime.fromisoformat(row["as_of"])
        if when <= as_of:
            # Strictly before, as the gate's opponent is.
            opponent = next((one.champion for one in reversed(releases) if one.as_of < when), None)
            promise = promised(settings.run_dir(case, when), row["trigger"], opponent)
            yield Judged(as_of=when, trigger=row["trigger"], hash=row["hash"], verdict=row["verdict"], promise=promise)


def _open_alerts(settings: Settings, case: str, as_of: datetime) -> Iterator[Alert]:
    """The alerts that were open at ``as_of``, or were resolved then."""
    for alert in ledger.alerts(settings.ledger, case):
        # Of those without a count only the first judgement of a window knew, which another one has taken the place of.
        stands = alert.count and alert.first_seen <= as_of
        if stands and (alert.state != "resolved" or alert.last_seen >= as_of):
            yield alert


def _champion(releases: Sequence[Release], report: DriftReport) -> Release | None:
    """The newest release of the version that the window was compared with."""
    return next((release for release in reversed(releases) if release.champion == report.model_version), None)


def links(settings: Settings, report: DriftReport) -> Links:
    """Where to read on, as far as MLflow and Airflow have an address."""
    case = report.case
    mlflow = settings.mlflow_url.rstrip("/")
    airflow = settings.airflow_url.rstrip("/")
    model = training = history = evidently = None
    if mlflow and report.model_version is not None:
        model = f"{mlflow}/#/models/{case}/versions/{report.model_version}"
    if airflow:
        history = f"{airflow}/dags/{case}_drift"
    if airflow and report.episode is not None:
        training = f"{airflow}/dags/{case}_training/runs/drift__{report.episode}"
    if report.quality.page == DRAWN:
        evidently = f"../drift/{DRAWN}"
    return Links(model, training, history, evidently)
