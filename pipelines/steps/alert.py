"""alert: tell people what a drift run found, once; nothing hangs on it, least of all a retraining."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import get_args

from pipelines import ledger, storage
from pipelines.alerts import decision, delivery, sinks
from pipelines.contracts import Severity
from pipelines.drift_report import read_report
from pipelines.line.facts import AlertFacts
from pipelines.line.order import DRIFT, REPORT
from pipelines.line.step import Read, Run, Work
from pipelines.rescoring import daily

log = logging.getLogger(__name__)


def work(run: Run, _read: Read) -> Work:
    """Write ``alerts.json`` (the alerts after this run, and its notices).

    A sample of the window's rows is scored again first: what does not come out is an alert. Keep both in the ledger,
    and send the notices. The first run of an ``as_of`` decides; running again sends what no sink has taken yet and
    nothing else. A run that is older than the newest one finds nothing. A sink that fails is a fact (``undelivered``)
    and the next run's alert, not an error.
    """
    params, settings, case = run.params, run.settings, run.case
    report = read_report(run.dir / DRIFT.name)
    # What it found is no part of the folder but for its alert: a run that has decided leaves the same again.
    skew = daily.check(params, settings, report.window)
    log.info("%s: %d logged rows were scored again, %d scores did not come out", case, skew.rows, skew.differ)

    def missing_page(earlier: datetime) -> str | None:
        return _missing_page(settings.run_dir(case, earlier))

    alerts, fresh = decision.decide(params, settings, run.as_of, report, missing_page, skew.problems)
    earlier = decision.unsent(settings.ledger, case)
    configured = sinks.configured(settings, params.alerts)
    delivery.deliver(settings.ledger, case, fresh, earlier, configured, params.alerts.push)
    left = ledger.undelivered(settings.ledger, case)
    counts = Counter(alert.severity for alert in alerts if alert.state != "resolved")

    def build(folder: Path, _key: str) -> AlertFacts:
        (folder / "alerts.json").write_text(storage.canonical_json({"alerts": alerts, "notices": fresh}))
        by_severity = {severity: counts[severity] for severity in get_args(Severity)}
        return AlertFacts(**by_severity, notices=len(fresh), undelivered=sum(left.values()))

    return Work(build, {"alerts": alerts, "notices": fresh, "undelivered": left})


def _missing_page(earlier: Path) -> str | None:
    """What became of the page of the run before, if that run has judged a window and left none."""
    if (earlier / DRIFT.name).exists() and not (earlier / REPORT.name / storage.MANIFEST).exists():
        return f"the run before left no page in {earlier.name}/{REPORT.name}: see its {REPORT.name} task"
    return None
