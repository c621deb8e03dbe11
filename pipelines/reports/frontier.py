"""What a replay of policies showed: a picture, a page and the cells of a table, from its summary (pipelines/replay)."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")
STYLE = {
    "never": ("#9aa0a6", "s"),
    "monthly": ("#e8953a", "^"),
    "quarterly": ("#b3772a", "v"),
    "drift": ("#1a63d6", "o"),
    "performance": ("#7b4fc9", "D"),
    "oracle": ("#188038", "*"),
}
"""Colour and mark of each policy."""
METRICS = {"log_loss": "log-loss", "roc_auc": "ROC-AUC", "macro_f1": "macro-F1", "accuracy": "accuracy"}


def columns(summary: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The table's columns, and what they mean."""
    tick = summary["tick"]
    return (
        ("policy", "when it retrains"),
        ("mean log-loss", f"over the {tick}s that count, each alike; lower is better"),
        (f"worst {tick}", f"the {tick} with the largest log-loss"),
        (f"mean {METRICS[_quality(summary)]}", "higher is better"),
        ("retrains", "training runs after the first champion"),
        ("promoted", "of them, those that the gate let through"),
        ("training s", "seconds of training, measured"),
        ("loss + price", f"mean log-loss plus the price of the retrainings, spread over the {tick}s that count"),
        ("regret", "loss and price above the oracle's"),
        ("frontier", "no other policy is as good and as cheap"),
    )


def _quality(summary: dict[str, Any]) -> str:
    """The metric that is shown beside the loss."""
    first = next(iter(summary["policies"].values()))
    return next(name for name in ("macro_f1", "roc_auc", "log_loss") if name in first["means"])


def cells(summary: dict[str, Any]) -> list[list[str]]:
    """The table's rows as texts, the lowest loss and price first."""
    ordered = sorted(summary["policies"].items(), key=lambda item: item[1]["total"])
    return [_row(name, one, _quality(summary)) for name, one in ordered]


def _row(name: str, one: dict[str, Any], quality: str) -> list[str]:
    regret = one["regret"]
    on_frontier = "no"
    if name == "oracle":
        on_frontier = "-"
    elif one["on_frontier"]:
        on_frontier = "yes"
    return [
        name,
        f"{one['means']['log_loss']:.3f}",
        f"{one['worst']['log_loss']:.3f} ({one['worst']['tick']})",
        f"{one['means'][quality]:.3f}",
        _count(one["retrains"]),
        _count(one["promotions"]),
        f"{one['train_seconds']:.0f}",
        f"{one['total']:.3f}",
        "-" if regret is None else f"{regret:.3f}",
        on_frontier,
    ]


def _count(value: float) -> str:
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.1f}"


# --- the picture --------------------------------------------------------------------------------


def png(summary: dict[str, Any]) -> bytes:
    """The frontier and the log-loss over time, as a PNG of 1,300 x 520 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(summary)
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100, metadata={"Software": None})
    return out.getvalue()


def _svg(summary: dict[str, Any]) -> str:
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
    best = sorted((one["retrains"], one["means"]["log_loss"]) for one in found.values() if one["on_frontier"])
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
    places: dict[tuple[float, float], list[str]] = {}
    for name, one in found.items():
        colour, mark = STYLE[name]
        if len(summary["by_seed"]) > 1:
            seeds = [of[name] for of in summary["by_seed"].values()]
            panel.scatter(
                [of["retrains"] for of in seeds],
                [of["means"]["log_loss"] for of in seeds],
                color=colour,
                marker=mark,
                s=18,
                alpha=0.35,
                zorder=2,
            )
        panel.scatter(
            one["retrains"],
            one["means"]["log_loss"],
            color=colour,
            marker=mark,
            s=150 if name == "oracle" else 80,
            zorder=3,
        )
        places.setdefault((one["retrains"], round(one["means"]["log_loss"], 4)), []).append(name)
    for place, names in places.items():  # policies that did the same share a label
        panel.annotate(
            ", ".join(names), place, xytext=(8, 6), textcoords="offset points", fontsize=10, color=STYLE[names[0]][0]
        )
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlim(-0.04 * max(1, widest) - 0.3, widest * 1.18 + 0.6)
    panel.margins(y=0.12)
    panel.set_xlabel("retrainings")
    panel.set_title("mean log-loss (lower is better)", loc="left", fontsize=11)


def _time_panel(panel: Any, summary: dict[str, Any]) -> None:
    ticks = summary["ticks"]
    first = next(iter(summary["by_seed"].values()))
    for name, one in summary["policies"].items():
        colour, mark = STYLE[name]
        known = [(at, loss) for at, loss in enumerate(one["log_loss_by_tick"]) if loss is not None]
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
    panel.set_title(f"log-loss by {summary['tick']}; a mark: another model serves", loc="left", fontsize=11)
    panel.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    panel.set_ylim(top=panel.get_ylim()[1] * 1.1)


# --- the page -----------------------------------------------------------------------------------


def page(summary: dict[str, Any]) -> str:
    """One self-contained HTML file: what it cost and what it gave, policy by policy.

    Nothing is loaded from elsewhere.
    """
    from jinja2 import Environment, FileSystemLoader

    seed, first = next(iter(summary["by_seed"].items()))
    trainings = {
        name: [
            {"tick": tick["tick"], **tick["training"], "drift": tick.get("drift")}
            for tick in of["ticks"]
            if "training" in tick
        ]
        for name, of in first.items()
        if name != "oracle"
    }
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("frontier.html").render(
        s=summary,
        chart=_svg(summary),
        columns=columns(summary),
        rows=cells(summary),
        headline=headline(summary),
        trainings={name: of for name, of in trainings.items() if of},
        seed=seed,
        counted=sum(tick["counts"] for tick in summary["ticks"]),
    )


def headline(summary: dict[str, Any]) -> str:
    """What the replay says, in one or two sentences."""
    found = {name: one for name, one in summary["policies"].items() if name != "oracle"}
    least = min(found, key=lambda name: found[name]["means"]["log_loss"])
    paid = min(found, key=lambda name: found[name]["total"])
    one = found[least]
    text = (
        f"The lowest mean log-loss, {one['means']['log_loss']:.3f}, is that of {least} with "
        f"{_count(one['retrains'])} retrainings"
    )
    if paid == least:
        text += ", which also has the lowest loss and price together."
    else:
        best = found[paid]
        text += (
            f"; at {summary['price_per_retrain']:g} a retraining, {paid} pays best "
            f"({best['means']['log_loss']:.3f} with {_count(best['retrains'])})."
        )
    edge = [name for name, one in found.items() if one["on_frontier"]]
    return f"{text} On the frontier: {', '.join(edge)}.{_against_drift(summary, least)}"


def _against_drift(summary: dict[str, Any], least: str) -> str:
    """From which price on the drift policy pays better than the one with the lowest loss."""
    drift = summary["policies"].get("drift")
    other = summary["policies"][least]
    if drift is None or least == "drift" or not drift["retrains"] < other["retrains"]:
        return ""
    price = break_even(summary, "drift", least)
    return f" Where a retraining costs more than {price:.3f} {summary['price_unit']}, drift pays better than {least}."


def break_even(summary: dict[str, Any], cheap: str, good: str) -> float:
    """The price of a retraining at which two policies are worth the same.

    Loss saved over all ticks that count, per retraining more.
    """
    one = summary["policies"][cheap]
    other = summary["policies"][good]
    counted = sum(tick["counts"] for tick in summary["ticks"])
    saved: float = (
        (one["means"]["log_loss"] - other["means"]["log_loss"]) * counted / (other["retrains"] - one["retrains"])
    )
    return saved
