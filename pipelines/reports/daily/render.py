"""The daily page, rendered: nothing is loaded from elsewhere, and every name and value from the data is escaped."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.amounts import amount
from pipelines.contracts import FeatureDrift, Verdict
from pipelines.drift_report import JUDGED, DriftReport, State, WindowFigures
from pipelines.moments import day
from pipelines.reports.daily import bars, figures, headroom, heat, kept, labels, metric, questions, words
from pipelines.reports.daily.template import TEMPLATE
from pipelines.reports.daily.view import Links, View

WINDOWS = 12
"""Windows in the tables of figures and decisions."""
SEVERITIES = ("critical", "warning", "info")
STATES = tuple(state for state in JUDGED if state != State.BLOCKED_DATA_QUALITY)


def page(view: View, links: Links) -> str:
    """The page of one view as HTML."""
    from jinja2 import Environment

    promises = kept.kept(view)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "day": day,
        "amount": amount,
        "count": figures.count,
        "quantity": figures.quantity,
        "psi": figures.psi,
        "interval": figures.interval,
        "lift": figures.lift,
        "safe_link": _link,
    }
    return environment.from_string(TEMPLATE).render(
        v=view,
        r=view.report,
        links=links,
        headline=words.headline(view),
        tone=words.tone(view),
        answers=questions.answers(view),
        coverage=labels.coverage(view),
        window=lambda end: figures.window(end, view.kind),
        heat=heat.draw(view),
        bars=bars.bars(view),
        metric=metric.draw(view),
        gain=headroom.gain(view.report.headroom),
        basis=headroom.basis(view.report),
        compared=headroom.compared(view.report),
        gains=headroom.draw(view),
        gain_confidence=f"{view.report.headroom.confidence:.0%}",
        promise=kept.newest(view),
        honesty=kept.honesty(promises),
        kept=promises[: kept.ROWS],
        honest=kept.draw(promises),
        figures=_figures(view),
        decisions=_decisions(view),
        alerts=sorted(view.alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.first_seen)),
        states=STATES,
        blocked=State.BLOCKED_DATA_QUALITY,
        meaning=words.STATES,
        asked_by=words.ASKED_BY,
        moved=words.moved,
        confidence=f"{1 - view.policy.q:.0%}",
    )


def _link(text: str) -> str | None:
    """An address that may be a link: whatever else a case declares is shown as text."""
    return text if text.startswith(("http://", "https://", "../")) else None


# --- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A metric with its interval, where it is known."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FiguresRow:
    """How one version did in one window: a cell for each column of its table."""

    of: WindowFigures
    cells: tuple[Figure, ...]


@dataclass(frozen=True)
class FiguresTable:
    """The figures of the last windows, newest first, with the names of their ``columns``."""

    rows: tuple[FiguresRow, ...]
    columns: tuple[str, ...]


def _figures(view: View) -> FiguresTable:
    newest = words.rolling(view)[::-1][:WINDOWS]
    unit = view.report.measure.unit
    if not view.report.measure.estimable:
        own = [
            (Figure(row.rmse, row.rmse_low, row.rmse_high), Figure(row.mae, row.mae_low, row.mae_high))
            for row in newest
        ]
        pairs = zip(newest, own, strict=True)
        return FiguresTable(tuple(FiguresRow(*pair) for pair in pairs), (f"RMSE, {unit}", f"MAE, {unit}"))
    losses = [Figure(row.log_loss, row.low, row.high) for row in newest]
    accuracies = [Figure(row.accuracy, row.accuracy_low, row.accuracy_high) for row in newest]
    columns, names = [losses, accuracies], ["log-loss, nats", "accuracy"]
    if any(row.macro_f1 is not None for row in newest):
        names.append("macro-F1")
        columns.append([Figure(row.macro_f1, row.macro_f1_low, row.macro_f1_high) for row in newest])
    elif any(row.roc_auc is not None for row in newest):
        names.append("ROC-AUC")
        columns.append([Figure(row.roc_auc, row.roc_auc_low, row.roc_auc_high) for row in newest])
    cells = zip(*columns, strict=True)
    return FiguresTable(tuple(FiguresRow(row, own) for row, own in zip(newest, cells, strict=True)), tuple(names))


@dataclass(frozen=True)
class Decided:
    """What the policy did in one window, and the verdict that a retraining got."""

    report: DriftReport
    strongest: FeatureDrift | None
    verdict: Verdict | None


def _decisions(view: View) -> list[Decided]:
    """The last windows, newest first."""
    verdicts = {judged.as_of: judged.verdict for judged in view.verdicts}
    found = []
    for past in view.history[::-1][:WINDOWS]:
        strongest = next((one for one in past.report.features if not one.ignored), None)
        found.append(Decided(past.report, strongest, verdicts.get(past.as_of)))
    return found
