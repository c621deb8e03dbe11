"""report: one page for people about the drift window, its past and what was done; nothing hangs on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest
from pipelines.drift import reference
from pipelines.drift.profile import counts
from pipelines.drift.profile.days import read_days
from pipelines.drift.profile.spec import load_spec
from pipelines.drift.why import shown
from pipelines.drift_report import Counted, DriftReport, read_report
from pipelines.errors import PerennialError
from pipelines.line.facts import ProfileFacts, ReportFacts
from pipelines.line.step import Read, Run, Work
from pipelines.registry import monitoring
from pipelines.reports import daily

log = logging.getLogger(__name__)

PAGE = "index.html"


def work(run: Run, read: Read) -> Work:
    """Write ``index.html``: self-contained, made from the drift report, earlier ones, the day profiles and the ledger.

    The key is made of what the page says: the verdict of a retraining that ended since, or an alert, gives another
    page.
    """
    report = read_report(run.dir / "drift")
    counted = _counted(run, report, ProfileFacts.of(read["profile"]))
    view = daily.gather(run.params, run.settings, run.dir, run.as_of, report, counted)

    def build(folder: Path, _key: str) -> ReportFacts:
        page = daily.page(view, daily.links(run.settings, report))
        (folder / PAGE).write_text(page, encoding="utf-8")
        return ReportFacts(state=report.state.value, headline=daily.headline(view), bytes=len(page.encode()))

    # The answer says where MLflow shows the page, the manifest does not: the page counts, wherever MLflow is.
    return Work(build, {"view": view.said()}, follow=partial(_publish, run, view))


def _counted(run: Run, report: DriftReport, made: ProfileFacts) -> Counted:
    """What the counts of the window and of the days before its end say."""
    settings = run.settings
    fields = load_fields(run.case)
    spec = load_spec(fields, settings.profile_file(run.case))
    current = counts.merge((counts.read(settings.root / day["path"]) for day in made.days), made.spec)
    learned = _reference(run)
    days: Mapping[date, counts.Profile] = {}
    if learned is not None and learned.spec == spec.version:
        days = read_days(run.dir, settings.root, shown.span(report), spec.version)
    return shown.counted(report, current, learned, days, fields, spec, run.params.drift)


def _reference(run: Run) -> counts.Profile | None:
    """What the champion of that time learned from; None: there was none."""
    champion = ledger.champion_before(run.settings.ledger, run.case, run.as_of)
    if champion is None:
        return None
    bundle = storage.find(run.settings.root / champion.bundle, champion.candidate_key, verify={reference.FILE})
    return counts.read(bundle / reference.FILE)


def _publish(run: Run, view: daily.View, manifest: Manifest) -> dict[str, str]:
    """The pages in MLflow, for people who come from there or from Airflow: ``{page, evidently}`` as addresses.

    Without MLflow nothing.
    """
    files = {"page": run.dir / "report" / PAGE}
    if (drawn := run.dir / "drift" / daily.DRAWN).exists():
        files["evidently"] = drawn
    try:
        home = monitoring.publish(
            run.settings,
            as_of=run.as_of,
            key=manifest.key,
            report=view.report,
            headline=ReportFacts.of(manifest).headline,
            files=list(files.values()),
            champion=None if view.champion is None else view.champion.mlflow_run,
        )
    except (PerennialError, OSError) as error:
        log.warning("the page of %s stays where it is, MLflow has no copy: %s", run.case, error)
        return {}
    place = f"{run.settings.mlflow_url.rstrip('/')}/{home}/artifacts"
    return {name: f"{place}/{path.name}" for name, path in files.items()}
