"""What a replay of policies showed: a page and the cells of a table, from its summary (pipelines/replay)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.reports.frontier_chart import svg
from pipelines.reports.losses import mean_loss, named, worst

TEMPLATES = Path(__file__).with_name("templates")
METRICS = {
    "log_loss": "log-loss",
    "mse": "squared error",
    "roc_auc": "ROC-AUC",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "mae": "MAE",
}


def columns(summary: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The table's columns, and what they mean."""
    tick = summary["tick"]
    return (
        ("policy", "when it retrains"),
        (f"mean {named(summary)}", f"over the {tick}s that count, each alike; lower is better"),
        (f"worst {tick}", f"the {tick} with the largest {named(summary)}"),
        (f"mean {METRICS[_quality(summary)]}", _better(_quality(summary))),
        ("retrains", "training runs after the first champion"),
        ("promoted", "of them, those that the gate let through"),
        ("training s", "seconds of training, measured"),
        (
            "loss + price",
            f"mean {named(summary)} plus the price of the retrainings, spread over the {tick}s that count",
        ),
        ("regret", "loss and price above the oracle's"),
        (
            "to schedules",
            f"mean {named(summary)} minus that of fixed schedules with as many retrainings; below 0 is better",
        ),
        ("frontier", "no other policy is as good and as cheap"),
    )


def _quality(summary: dict[str, Any]) -> str:
    """The metric that is shown beside the loss."""
    first = next(iter(summary["policies"].values()))
    return next(name for name in ("macro_f1", "roc_auc", "rmse", "log_loss") if name in first["means"])


def _better(metric: str) -> str:
    return "lower is better" if metric in {"log_loss", "rmse"} else "higher is better"


def cells(summary: dict[str, Any]) -> list[list[str]]:
    """The table's rows as texts, the lowest loss and price first."""
    ordered = sorted(summary["policies"].items(), key=lambda item: item[1]["total"])
    return [_row(name, one, _quality(summary)) for name, one in ordered]


def _row(name: str, one: dict[str, Any], quality: str) -> list[str]:
    regret = one["regret"]
    line = one["by_schedule"]
    on_frontier = "no"
    if name == "oracle":
        on_frontier = "-"
    elif one["on_frontier"]:
        on_frontier = "yes"
    return [
        name,
        f"{mean_loss(one):.3f}",
        f"{worst(one):.3f} ({one['worst']['tick']})",
        f"{one['means'][quality]:.3f}",
        _count(one["retrains"]),
        _count(one["promotions"]),
        f"{one['train_seconds']:.0f}",
        f"{one['total']:.3f}",
        "-" if regret is None else f"{regret:.3f}",
        "-" if line is None else f"{mean_loss(one) - line:+.3f}",
        on_frontier,
    ]


def _count(value: float) -> str:
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.1f}"


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
        chart=svg(summary),
        columns=columns(summary),
        rows=cells(summary),
        headline=headline(summary),
        advice=summary["advice"],
        trainings={name: of for name, of in trainings.items() if of},
        seed=seed,
        counted=sum(tick["counts"] for tick in summary["ticks"]),
    )


def headline(summary: dict[str, Any]) -> str:
    """What the replay says, in one or two sentences."""
    found = {name: one for name, one in summary["policies"].items() if name != "oracle"}
    least = min(found, key=lambda name: mean_loss(found[name]))
    paid = min(found, key=lambda name: found[name]["total"])
    one = found[least]
    text = (
        f"The lowest mean {named(summary)}, {mean_loss(one):.3f}, is that of {least} with "
        f"{_count(one['retrains'])} retrainings"
    )
    if paid == least:
        text += ", which also has the lowest loss and price together."
    else:
        best = found[paid]
        text += (
            f"; at {summary['price_per_retrain']:g} a retraining, {paid} pays best "
            f"({mean_loss(best):.3f} with {_count(best['retrains'])})."
        )
    edge = [name for name, one in found.items() if one["on_frontier"]]
    return f"{text} On the frontier: {', '.join(edge)}."


def advice(summary: dict[str, Any]) -> str:
    """Which policy and which price for this case, why, and how that changes with the price, as sentences."""
    found, chosen = summary["policies"], summary["recommended"]
    name = chosen["policy"]
    one = found[name]
    text = (
        f"Recommended at {chosen['price']:g} {summary['price_unit']} a retraining: {name}. Loss and price together are "
        f"{one['total']:.3f} (mean {named(summary)} {mean_loss(one):.3f}, {_count(one['retrains'])} retrainings)"
    )
    if chosen["next"] is not None:
        text += f", {chosen['better_by']:.3f} less than with {chosen['next']}"
    return ". ".join([text, *_setting(summary, name), *_against_schedules(found, name), _by_price(chosen)]) + "."


def _setting(summary: dict[str, Any], name: str) -> list[str]:
    """What a case's parameters have to say for a policy."""
    if name == "headroom-alone":
        return ["To have it, set drift.triggers to [headroom]"]
    if name.startswith("headroom"):
        price = float(name.partition("@")[2] or summary["price_per_retrain"])
        return [f"To have it, set headroom.price to {price:g}, with headroom among drift.triggers"]
    if name in {"drift", "performance"}:
        heard = "[drift, performance]" if name == "drift" else "[performance]"
        return [f"To have it, set drift.triggers to {heard}"]
    return []


def _against_schedules(found: dict[str, Any], chosen: str) -> list[str]:
    """How the chosen policy, or else the best one with headroom, compares with schedules of as many retrainings."""
    probing = sorted((name for name in found if name.startswith("headroom")), key=lambda name: found[name]["total"])
    for name in (chosen, *probing):
        one = found[name]
        if (line := one["by_schedule"]) is not None:
            ahead = line - mean_loss(one)
            side = "better" if ahead > 0 else "worse"
            return [
                f"Fixed schedules with as many retrainings would lie at {line:.3f}: {name} is {abs(ahead):.3f} {side}"
            ]
    return []


def _by_price(chosen: dict[str, Any]) -> str:
    """Which policy pays best at which price."""
    steps = chosen["choices"]
    if len(steps) == 1:
        return f"At any price it is {steps[0]['policy']}"
    first, *between, last = steps
    parts = [f"{first['policy']} below {first['until']:.3f}"]
    parts += [f"{step['policy']} from there to {step['until']:.3f}" for step in between]
    parts.append(f"{last['policy']} above {last['since']:.3f}")
    return f"By the price of a retraining it is {', '.join(parts)}"
