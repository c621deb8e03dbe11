"""The picture of a replay of policies: loss against cost, and loss over time."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

from pipelines.reports.losses import by_tick, mean_loss, named

STYLE = {
    "never": ("#9aa0a6", "s"),
    "monthly": ("#e8953a", "^"),
    "quarterly": ("#b3772a", "v"),
    "half-yearly": ("#7d5a2f", "<"),
    "drift": ("#1a63d6", "o"),
    "performance": ("#7b4fc9", "D"),
    "headroom": ("#d1345b", "P"),
    "headroom-alone": ("#8c1d3f", "X"),
    "oracle": ("#188038", "*"),
}
"""Colour and mark of each policy; headroom at another price looks like headroom, and paler."""


def _style(name: str) -> tuple[str, str]:
    if name.startswith("headroom@"):
        return "#e39aae", STYLE["headroom"][1]
    return STYLE[name]


def png(summary: dict[str, Any]) -> bytes:
    """The frontier and the log-loss over time, as a PNG of 1,300 x 520 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(summary)
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100, metadata={"Software": None})
    return out.getvalue()


def svg(summary: dict[str, Any]) -> str:
    """The same as SVG, to stand in a page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure = _figure(summary)
    FigureCanvasSVG(figure)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _figure(summary: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), layout="constrained")
    frontier, time = figure.subplots(1, 2, width_ratios=[4, 6])
    _frontier_panel(frontier, summary)
    _time_panel(time, summary)
    for panel in (frontier, time):
        panel.grid(visible=True, color="#eceff3", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _frontier_panel(panel: Any, summary: dict[str, Any]) -> None:
    found = summary["policies"]
    best = sorted((one["retrains"], mean_loss(one)) for one in found.values() if one["on_frontier"])
    widest = max(one["retrains"] for one in found.values())
    edge = [*best, (widest, best[-1][1])]
    panel.step(
        [x for x, _ in edge],
        [y for _, y in edge],
        where="post",
        color="#c3cad5",
        linewidth=1.2,
        linestyle="--",
        zorder=1,
    )
    schedules = sorted((found[name]["retrains"], mean_loss(found[name])) for name in summary["fixed"])
    panel.plot(
        [x for x, _ in schedules], [y for _, y in schedules], color="#b3772a", linewidth=1.2, alpha=0.5, zorder=1
    )
    places: dict[tuple[float, float], list[str]] = {}
    for name, one in found.items():
        colour, mark = _style(name)
        if len(summary["by_seed"]) > 1:
            seeds = [of[name] for of in summary["by_seed"].values()]
            panel.scatter(
                [of["retrains"] for of in seeds],
                [mean_loss(of) for of in seeds],
                color=colour,
                marker=mark,
                s=18,
                alpha=0.35,
                zorder=2,
            )
        panel.scatter(
            one["retrains"],
            mean_loss(one),
            color=colour,
            marker=mark,
            s=150 if name == "oracle" else 80,
            zorder=3,
        )
        places.setdefault((one["retrains"], round(mean_loss(one), 4)), []).append(name)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlim(-0.04 * max(1, widest) - 0.3, widest * 1.18 + 0.6)
    panel.margins(y=0.12)
    _label(panel, places)
    panel.set_xlabel("retrainings")
    panel.set_title(f"mean {named(summary)} (lower is better)", loc="left", fontsize=11)


def _label(panel: Any, places: dict[tuple[float, float], list[str]]) -> None:
    """Names beside the marks, those of policies that did the same together; none lies on another, from above down."""
    width, height = (abs(high - low) for low, high in (panel.get_xlim(), panel.get_ylim()))
    line, letter = 0.042 * height, 0.017 * width
    taken: list[tuple[float, float, float]] = []
    for (x, y), names in sorted(places.items(), key=lambda one: -one[0][1]):
        text, start, base = ", ".join(names), x + 0.022 * width, y + 0.015 * height
        end = start + letter * len(text)
        for left, right, other in taken:
            if left < end and start < right and base > other - line:
                base = other - line
        taken.append((start, end, base))
        panel.text(start, base, text, fontsize=10, color=_style(names[0])[0])


def _time_panel(panel: Any, summary: dict[str, Any]) -> None:
    ticks = summary["ticks"]
    first = next(iter(summary["by_seed"].values()))
    for name, one in summary["policies"].items():
        colour, mark = _style(name)
        known = [(at, loss) for at, loss in enumerate(by_tick(one)) if loss is not None]
        # Policies may do the same for a while: a broad pale line is seen below a dashed one.
        forms: dict[str, dict[str, Any]] = {
            "drift": {"linewidth": 4, "alpha": 0.5},
            "performance": {"linestyle": (0, (4, 3)), "linewidth": 1.4},
        }
        form = forms.get(name, {"linewidth": 1.3})
        panel.plot([at for at, _ in known], [loss for _, loss in known], color=colour, label=name, zorder=2, **form)
        losses = dict(known)
        served = [tick["candidate"] for tick in first[name]["ticks"]]
        # A change in a month that does not count is seen in the next one that does.
        changed = [now for before, now in pairwise(losses) if served[now] != served[before]]
        panel.scatter(changed, [losses[at] for at in changed], color=colour, marker=mark, s=26, zorder=4)
    labels = [tick["tick"] for tick in ticks]
    every = max(1, len(labels) // 14)
    panel.set_xticks(range(0, len(labels), every), labels[::every], rotation=45, ha="right", fontsize=8)
    panel.set_title(f"{named(summary)} by {summary['tick']}; a mark: another model serves", loc="left", fontsize=11)
    panel.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    panel.set_ylim(top=panel.get_ylim()[1] * 1.1)
