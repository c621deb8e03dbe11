"""The daily page of a case: one self-contained HTML file.

It says whether the model got worse, why, and what was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.drift_report import JUDGED, State
from pipelines.moments import parse_utc as moment
from pipelines.reports import daily_charts as charts
from pipelines.reports import daily_metric, figures
from pipelines.reports import daily_questions as questions
from pipelines.reports import daily_words as words
from pipelines.reports.daily_page import TEMPLATE
from pipelines.reports.daily_words import View, headline

__all__ = ["headline", "page"]

BARS = 30
"""Features with a bar."""
WINDOWS = 12
"""Windows in the tables of figures and decisions."""
SEVERITIES = ("critical", "warning", "info")
STATES = tuple(state for state in JUDGED if state != State.BLOCKED_DATA_QUALITY)


def page(view: View, links: Mapping[str, str]) -> str:
    """Render the page: nothing is loaded from elsewhere, and every name and value from the data is escaped.

    ``view`` is what steps/report.py gathers; ``links`` are addresses by name: ``model, training, history, evidently``.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "day": figures.day,
        "count": figures.count,
        "quantity": figures.quantity,
        "psi": figures.psi,
        "interval": figures.interval,
        "safe_link": _link,
    }
    return environment.from_string(TEMPLATE).render(
        v=view,
        r=view["report"],
        links=links,
        headline=headline(view),
        tone=words.tone(view),
        answers=questions.answers(view),
        coverage=questions.coverage(view),
        window=lambda end: figures.window(end, view["kind"]),
        heat=charts.heat(view),
        bars=charts.bars(view, BARS),
        metric=daily_metric.metric(view),
        figures=_figures(view),
        decisions=_decisions(view),
        alerts=sorted(view["alerts"], key=lambda alert: (SEVERITIES.index(alert["severity"]), alert["first_seen"])),
        states=STATES,
        blocked=State.BLOCKED_DATA_QUALITY,
        meaning=words.STATES,
        asked_by=words.ASKED_BY,
        confidence=f"{1 - view['policy']['q']:.0%}",
    )


def _link(text: str) -> str | None:
    """An address that may be a link: whatever else a case declares is shown as text."""
    return text if text.startswith(("http://", "https://", "../")) else None


def _figures(view: View) -> dict[str, Any]:
    """The metric's figures of the last windows, newest first, and the third metric's name."""
    rows = words.rolling(view)[::-1][:WINDOWS]
    third = next((name for name in ("macro_f1", "roc_auc") if any(row.get(name) is not None for row in rows)), None)
    return {"rows": rows, "third": third, "name": {"macro_f1": "macro-F1", "roc_auc": "ROC-AUC"}.get(third or "")}


def _decisions(view: View) -> list[dict[str, Any]]:
    """What the policy did in the last windows, newest first, with the verdict that each retraining got."""
    found = []
    verdicts = {moment(row["as_of"]): row["verdict"] for row in view["verdicts"]}
    for report in view["history"][::-1][:WINDOWS]:
        strongest = next((one for one in report["features"] if not one["ignored"]), None)
        found.append({**report, "strongest": strongest, "verdict": verdicts.get(moment(report["as_of"]))})
    return found
