"""The demo's page: one self-contained HTML file that tells what the loop did and whether it paid."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

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
}
SHORT = {"roc_auc": "ROC-AUC", "macro_f1": "macro-F1", "log_loss": "log-loss", "accuracy": "accuracy"}
PANELS = 2
"""Of a case's metrics the first two are drawn; the table has all."""
_MARKS = {
    "promote": ("#188038", "^", "promoted"),
    "reject": ("#c5221f", "x", "rejected"),
    "inconclusive": ("#80868b", "o", "inconclusive"),
}


def page(summary: dict[str, Any]) -> str:
    """Render ``summary.json`` (embedded/demo) as HTML; nothing is loaded from elsewhere."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    return environment.from_string(_TEMPLATE).render(
        s=summary,
        chart=_chart(summary),
        series=SERIES,
        short=SHORT,
        worse=_worse(summary),
        headline=_headline(summary),
        first=next(iter(summary["metrics"])),
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _headline(summary: dict[str, Any]) -> str:
    name, first = next(iter(summary["metrics"].items()))
    loss = summary["metrics"]["log_loss"]
    promotions = len(summary["champions"]) - 1
    return (
        f"Over {len(first['per_month'])} {summary['tick']}s the frozen model reached a mean {SHORT[name]} of "
        f"{_number(first['frozen_mean'])} and a log-loss of "
        f"{_number(loss['frozen_mean'])}; Perennial, with {promotions} promotion{'s' if promotions != 1 else ''}, "
        f"reached {_number(first['perennial_mean'])} "
        f"and {_number(loss['perennial_mean'])}."
    )


def _worse(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The months in which retraining blindly did better than the gated loop, metric by metric."""
    return [
        {"metric": metric, **month}
        for metric in summary["metrics"]
        for month in summary["metrics"][metric]["per_month"]
        if month["ungated"] is not None
        and month["perennial"] is not None
        and (month["ungated"] - month["perennial"]) * (1 if summary["metrics"][metric]["higher_is_better"] else -1)
        > _TIE
    ]


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
    slanted = {"rotation": 45, "ha": "right", "fontsize": 8 if len(labels) <= 24 else 6} if len(labels) > 8 else {}
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
    panel.bar([0], [0], color="#c5221f", label="drift confirmed, retraining triggered")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), fontsize=9, ncols=4, frameon=False)
    panel.set_title(
        "Drift of the window (largest debiased PSI of any feature), and the verdicts after it", loc="left", fontsize=11
    )
    _plain(panel)


def _plain(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#eceff1", linewidth=0.8)
    panel.set_axisbelow(True)


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Perennial: {{ s.case }}</title>
<style>
 body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #202124; background: #f6f8fb; margin: 0; }
 main { max-width: 1140px; margin: 0 auto; padding: 28px 20px 60px; }
 h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 8px; }
 .lead { font-size: 17px; margin: 6px 0 20px; max-width: 860px; }
 .muted { color: #5f6368; }
 .card { background: #fff; border: 1px solid #e3e7ee; border-radius: 10px; padding: 16px; overflow-x: auto; }
 .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 18px 0; }
 .tile { background: #fff; border: 1px solid #e3e7ee; border-radius: 10px; padding: 12px 14px; }
 .tile b { display: block; font-size: 18px; white-space: nowrap; }
 .tile span { color: #5f6368; font-size: 13px; }
 svg { width: 100%; height: auto; }
 table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
 th { text-align: left; font-weight: 600; color: #5f6368; border-bottom: 1px solid #d6dbe3; padding: 6px 8px; vertical-align: bottom; }
 td { border-bottom: 1px solid #eef1f5; padding: 5px 8px; vertical-align: top; }
 .n { text-align: right; } th.n { white-space: nowrap; } .name { white-space: nowrap; }
 .promote { color: #188038; } .reject { color: #c5221f; } .inconclusive { color: #5f6368; }
 .best { font-weight: 600; }
</style></head><body><main>
<h1>Perennial, case {{ s.case }}</h1>
<div class="muted">{{ s.source_name }} ({{ s.source }} data) · {{ s.timeline[0].month }} to {{ s.timeline[-1].month }} · replayed in {{ s.seconds | round | int }} s</div>
<p class="lead">{{ headline }}</p>

<div class="tiles">
 <div class="tile"><b>{{ "{:,}".format(s.rows_acknowledged) }}</b><span>rows answered; {{ "{:,}".format(s.rows_logged) }} logged, {{ s.errors }} errors</span></div>
 <div class="tile"><b>{{ s.drift_runs }}</b><span>drift runs</span></div>
 <div class="tile"><b>{{ s.training_runs_by_trigger.values() | sum }}</b><span>training runs: {% for k, v in s.training_runs_by_trigger.items() if v %}{{ v }} {{ k }}{{ ", " if not loop.last }}{% endfor %}</span></div>
 <div class="tile"><b>{{ s.verdicts.promote }} / {{ s.verdicts.reject }} / {{ s.verdicts.inconclusive }}</b><span>promoted / rejected / inconclusive</span></div>
 <div class="tile"><b>{{ s.metrics[first].frozen_mean | number }} → {{ s.metrics[first].perennial_mean | number }}</b><span>mean {{ short[first] }}, frozen → Perennial</span></div>
 <div class="tile"><b>{{ s.metrics.log_loss.frozen_mean | number }} → {{ s.metrics.log_loss.perennial_mean | number }}</b><span>mean log-loss, frozen → Perennial</span></div>
</div>

<div class="card">{{ chart | safe }}</div>
<p class="muted">A point is a {{ s.tick }} with at least {{ s.min_month_rows }} rows and more than one class. Green lines: a new champion serves from there on.
 The frozen model is the first champion, never changed. The ungated one is retrained at every tick on the same rows and always deployed.</p>

<h2>What happened, and why</h2>
<div class="card"><table>
<tr><th>after</th><th class="n">rows</th><th class="n">champion</th><th>drift</th><th>verdicts</th></tr>
{% for t in s.timeline %}
<tr><td class="name">{{ t.month }}</td><td class="n">{{ "{:,}".format(t.rows) }}</td><td class="n">v{{ t.champion }}</td>
 <td>{{ t.drift.state | lower }}{% if t.drift.feature %}, largest in <b>{{ t.drift.feature }}</b> ({{ t.drift.max_psi | number(2) }}){% endif %}{% if t.drift.reason %}<br><span class="muted">{{ t.drift.reason }}</span>{% endif %}</td>
 <td>{% for v in t.verdicts %}<div><b class="{{ v.decision }}">{{ v.decision }}</b> ({{ v.trigger }}; {{ v.rule }}; n = {{ v.n }}{% if v.low is not none %}, lift {{ v.lift | number }} [{{ v.low | number }}, {{ v.high | number }}]{% endif %}){% if v.outcome not in ("promoted", "kept") %}, {{ v.outcome | replace("_", " ") }}{% endif %}</div>{% endfor %}</td></tr>
{% endfor %}
</table></div>

{% if s.scope.rows_per_training %}
<h2>The scope of this replay</h2>
<p>At most {{ s.scope.traffic_rows_per_month }} sampled rows of traffic a month; at most {{ "{:,}".format(s.scope.rows_per_training) }} rows and {{ s.scope.seconds_per_training }} s per training.
 Instead of the case's own parameters: {% for name, value in s.scope.params.items() %}<code>{{ name }}: {{ "none" if value is none else value | lower }}</code>{{ ", " if not loop.last }}{% endfor %}.</p>
<div class="card"><table>
<tr><th>trained as of</th><th class="n">rows</th><th class="n">seconds</th><th>ended</th><th>strategy</th></tr>
{% for t in s.trainings %}<tr><td>{{ t.as_of[:10] }}</td><td class="n">{{ "{:,}".format(t.rows) }}</td><td class="n">{{ t.seconds | number(1) }}</td><td>{{ "by its budget" if t.stopped == "budget" else t.stopped }}</td><td>{{ t.strategy }}</td></tr>{% endfor %}
</table></div>
{% endif %}

<h2>Champions</h2>
<div class="card"><table>
<tr><th>version</th><th>since</th><th>trigger</th><th>reason</th><th>MLflow run</th></tr>
{% for c in s.champions %}<tr><td>v{{ c.version }}</td><td>{{ c.since[:10] }}</td><td>{{ c.trigger }}</td><td>{{ c.reason }}</td><td><code>{{ c.mlflow_run }}</code></td></tr>{% endfor %}
</table></div>

<h2>{{ s.tick | capitalize }} by {{ s.tick }}</h2>
<div class="card"><table>
<tr><th></th><th class="n">rows</th><th class="n">{{ "positive" if s.classes == 2 else "not of the<br>largest class" | safe }}</th>{% for metric in s.metrics %}{% for name in series %}<th class="n">{{ short[metric] }}<br>{{ name }}</th>{% endfor %}{% endfor %}</tr>
{% for month in s.metrics[first].per_month %}{% set at = loop.index0 %}
<tr><td class="name">{{ month.month }}</td><td class="n">{{ "{:,}".format(month.n) }}</td><td class="n">{{ (100 * month.positives / month.n) | round(1) }}%</td>
{% for metric in s.metrics %}{% for name in series %}<td class="n">{{ s.metrics[metric].per_month[at][name] | number }}</td>{% endfor %}{% endfor %}</tr>
{% endfor %}
<tr class="best"><td>mean</td><td></td><td></td>{% for metric in s.metrics %}{% for name in series %}<td class="n">{{ s.metrics[metric][name ~ "_mean"] | number }}</td>{% endfor %}{% endfor %}</tr>
<tr><td class="name">row-weighted</td><td></td><td></td>{% for metric in s.metrics %}{% for name in series %}<td class="n">{{ s.metrics[metric][name ~ "_mean_weighted"] | number }}</td>{% endfor %}{% endfor %}</tr>
</table></div>

<h2>Where retraining blindly did better</h2>
{% if worse %}<div class="card"><table><tr><th>{{ s.tick }}</th><th>metric</th><th class="n">Perennial</th><th class="n">ungated</th></tr>
{% for row in worse %}<tr><td>{{ row.month }}</td><td>{{ short[row.metric] }}</td><td class="n">{{ row.perennial | number }}</td><td class="n">{{ row.ungated | number }}</td></tr>{% endfor %}</table></div>
<p class="muted">The gate waits for proof; where every retrained model happens to be better, waiting costs. It pays in the {{ s.tick }}s in which a retrained model is worse.</p>
{% else %}<p>In no {{ s.tick }}.</p>{% endif %}

<p class="muted">{{ s.notice }}</p>
</main></body></html>
"""


def month_label(moment: datetime, tick: str) -> str:
    """How a window is named on the page: its quarter, its month, or its day."""
    if tick == "quarter":
        return f"{moment.year} Q{(moment.month + 2) // 3}"
    return moment.strftime("%Y-%m" if tick == "month" else "%Y-%m-%d")
