"""The demo's page: one self-contained HTML file that tells what the loop did and whether it paid."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")
SERIES = {
    "frozen": ("frozen first champion", "#9aa0a6"),
    "ungated": ("ungated, retrained at every tick", "#e8953a"),
    "perennial": ("Perennial", "#1a63d6"),
}
_TIE = 1e-3
"""Differences below this are no difference on a page with three digits."""
METRICS = {
    "roc_auc": "ROC-AUC (higher is better)",
    "macro_f1": "macro-F1 (higher is better)",
    "log_loss": "log-loss (lower is better)",
    "accuracy": "accuracy (higher is better)",
    "rmse": "RMSE (lower is better)",
    "mae": "MAE (lower is better)",
}
SHORT = {
    "roc_auc": "ROC-AUC",
    "macro_f1": "macro-F1",
    "log_loss": "log-loss",
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "mae": "MAE",
}
PANELS = 2
"""Of a case's metrics the first two are drawn; the table has all."""
_MARKS = {
    "promote": ("#188038", "^", "promoted"),
    "reject": ("#c5221f", "x", "rejected"),
    "inconclusive": ("#80868b", "o", "inconclusive"),
}


def page(summary: dict[str, Any]) -> str:
    """Render ``summary.json`` (embedded/demo) as HTML; nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    return environment.get_template("replay.html").render(
        s=summary,
        chart=_chart(summary),
        series=SERIES,
        short=SHORT,
        worse=_worse(summary),
        headline=_headline(summary),
        first=next(iter(summary["metrics"])),
        second=list(summary["metrics"])[1],
    )


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}"


def _article(metric: str) -> str:
    return "an" if metric == "mae" else "a"


def _headline(summary: dict[str, Any]) -> str:
    (name, first), (other, loss) = list(summary["metrics"].items())[:2]
    promotions = len(summary["champions"]) - 1
    told = f"{promotions} promotions"
    if promotions == 1:
        told = "1 promotion"
    return (
        f"Over {len(first['per_month'])} {summary['tick']}s the frozen model reached a mean {SHORT[name]} of "
        f"{_number(first['frozen_mean'])} and {_article(other)} {SHORT[other]} of "
        f"{_number(loss['frozen_mean'])}; Perennial, with {told}, "
        f"reached {_number(first['perennial_mean'])} "
        f"and {_number(loss['perennial_mean'])}."
    )


def _worse(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The months in which retraining blindly did better than the gated loop, metric by metric."""
    found = []
    for metric, of in summary["metrics"].items():
        sign = -1
        if of["higher_is_better"]:
            sign = 1
        known = (one for one in of["per_month"] if one["ungated"] is not None and one["perennial"] is not None)
        found += [
            {"metric": metric, **month} for month in known if sign * (month["ungated"] - month["perennial"]) > _TIE
        ]
    return found


def _chart(summary: dict[str, Any]) -> str:
    """Three panels on one time line: both metrics with promotions and verdicts marked, and the drift scores (SVG)."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ticks = summary["timeline"]
    labels = [tick["month"] for tick in ticks]
    at = {label: position for position, label in enumerate(labels)}
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    for panel, metric in zip(panels[:PANELS], list(summary["metrics"])[:PANELS], strict=True):
        _metric_panel(panel, summary["metrics"][metric]["per_month"], at, METRICS[metric])
        for position, tick in enumerate(ticks):
            if any(verdict["outcome"] == "promoted" for verdict in tick["verdicts"]):
                panel.axvline(position + 0.5, color="#188038", linewidth=1.2, alpha=0.6)
    _drift_panel(panels[2], ticks)
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3, frameon=False, fontsize=10)
    slanted: dict[str, Any] = {}
    if len(labels) > 8:
        slanted = {"rotation": 45, "ha": "right", "fontsize": 8 if len(labels) <= 24 else 6}
    panels[2].set_xticks(range(len(labels)), labels, **slanted)
    panels[2].set_xlim(-0.6, len(labels) - 0.1)
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _metric_panel(panel: Any, months: list[dict[str, Any]], at: dict[str, int], title: str) -> None:
    for name, (label, colour) in SERIES.items():
        known = [(at[month["month"]], month[name]) for month in months if month[name] is not None]
        panel.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=2.2 if name == "perennial" else 1.5,
            label=label,
        )
    panel.set_title(title, loc="left", fontsize=11)
    _plain(panel)


def _drift_panel(panel: Any, ticks: list[dict[str, Any]]) -> None:
    scores = [tick["drift"].get("max_psi") or 0.0 for tick in ticks]
    colours = ["#c5221f" if tick["drift"].get("action") == "retrain" else "#c9d7f0" for tick in ticks]
    panel.bar(range(len(ticks)), scores, color=colours, width=0.6)
    top = max([1.0, *scores])
    panel.set_ylim(0, top * 1.3)
    for position, tick in enumerate(ticks):
        for order, verdict in enumerate(tick["verdicts"]):
            colour, mark, _ = _MARKS[verdict["decision"]]
            panel.scatter(position + 0.5, top * (1.18 - 0.14 * order), color=colour, marker=mark, s=45, zorder=3)
    for colour, mark, label in _MARKS.values():
        panel.scatter([], [], color=colour, marker=mark, s=45, label=label)
    panel.bar([0], [0], color="#c5221f", label="asked for a retraining")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), fontsize=9, ncols=4, frameon=False)
    panel.set_title(
        "Drift of the window (largest debiased PSI of any feature), and the verdicts after it", loc="left", fontsize=11
    )
    _plain(panel)


def _plain(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#eceff1", linewidth=0.8)
    panel.set_axisbelow(True)


def month_label(moment: datetime, tick: str) -> str:
    """How a window is named on the page: its quarter, its month, or its day."""
    if tick == "quarter":
        return f"{moment.year} Q{(moment.month + 2) // 3}"
    if tick == "month":
        return f"{moment:%Y-%m}"
    return f"{moment:%Y-%m-%d}"
