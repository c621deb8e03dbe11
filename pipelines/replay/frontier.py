"""What each policy's history was worth: loss, cost, the sum of both, and which policy to take at which price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from pipelines.reports.losses import loss_key, mean_loss

Figures = dict[str, Any]
METRICS = {
    "log_loss": False,
    "mse": False,
    "roc_auc": True,
    "macro_f1": True,
    "accuracy": True,
    "rmse": False,
    "mae": False,
}
"""What is shown where it is defined, and whether more is better; the first one decides, here as in the gate."""


def figures(
    records: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, float | None] | None], price: float
) -> Figures:
    """One policy's figures.

    ``records`` are as play.py tells them, ``scored[t]`` the served model's metrics in tick ``t`` (None: it does not
    count). ``means`` weigh ticks alike, ``weighted`` weighs rows; ``total`` is the mean loss (log-loss, or of a number
    squared error) plus ``price`` for every retraining, spread over the ticks that count: per row and tick. Trainings
    that were skipped cost nothing.
    """
    counted = [(record, found) for record, found in zip(records, scored, strict=True) if found is not None]
    trainings = [record["training"] for record in records if record["training"] is not None]
    ran = [training for training in trainings if training["outcome"] != "skipped"]
    names = [name for name in METRICS if counted and counted[0][1].get(name) is not None]
    means = {name: fmean(float(found[name] or 0.0) for _, found in counted) for name in names}
    rows = sum(record["rows"] for record, _ in counted)
    return {
        "means": means,
        "weighted": {
            name: sum(float(found[name] or 0.0) * record["rows"] for record, found in counted) / rows for name in names
        },
        "retrains": len(ran),
        "promotions": sum(training["outcome"] == "promoted" for training in ran),
        "skipped": len(trainings) - len(ran),
        "verdicts": dict(Counter(training["decision"] for training in ran)),
        "train_seconds": round(sum(training["seconds"] for training in ran), 1),
        "total": means[loss_key(means)] + price * len(ran) / len(counted),
    }


def over_seeds(found: Sequence[Figures], losses: Sequence[Sequence[float | None]], labels: Sequence[str]) -> Figures:
    """The mean of a policy's figures over training seeds.

    The worst tick is that of the mean losses ``losses[seed][tick]``.
    """
    by_tick = [
        fmean(float(loss) for loss in column if loss is not None) if column[0] is not None else None
        for column in zip(*losses, strict=True)
    ]
    worst = max((loss, label) for loss, label in zip(by_tick, labels, strict=True) if loss is not None)
    numbers = {
        name: fmean(one[name] for one in found)
        for name in ("retrains", "promotions", "skipped", "train_seconds", "total")
    }
    name = loss_key(found[0]["means"])
    blocks = {
        block: {name: fmean(one[block][name] for one in found) for name in found[0][block]}
        for block in ("means", "weighted")
    }
    return {**blocks, **numbers, "worst": {"tick": worst[1], name: worst[0]}, f"{name}_by_tick": by_tick}


def on_frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names whose ``(cost, loss)`` no other point equals or beats in both and beats in one (Pareto).

    >>> on_frontier({"never": (0, 1.0), "often": (9, 0.8), "well": (3, 0.8), "ill": (4, 0.9)})
    ['never', 'well']
    """
    return [
        name
        for name, (cost, loss) in points.items()
        if not any(
            other_cost <= cost and other_loss <= loss and (other_cost, other_loss) != (cost, loss)
            for other_cost, other_loss in points.values()
        )
    ]


def by_schedule(fixed: Sequence[tuple[float, float]], retrains: float) -> float | None:
    """The mean log-loss that a fixed schedule with so many retrainings would have had.

    On the line through ``(retrainings, mean log-loss)`` of ``fixed`` schedules, straight from one to the next; of two
    with as many retrainings, the better one. None beyond them, or if they are fewer than two.

    >>> by_schedule([(0, 1.2), (40, 0.9), (10, 1.0)], 5), by_schedule([(0, 1.2), (40, 0.9)], 41)
    (1.1, None)
    """
    best: dict[float, float] = {}
    for count, loss in fixed:
        best[count] = min(loss, best.get(count, loss))
    counts = sorted(best)
    if len(counts) < 2 or not counts[0] <= retrains <= counts[-1]:
        return None
    return float(np.interp(retrains, counts, [best[count] for count in counts]))


@dataclass(frozen=True)
class Choice:
    """The policy of least loss and price for prices from ``since`` (nats of one tick) up to ``until`` (None: any)."""

    policy: str
    since: float
    until: float | None


def choices(points: Mapping[str, tuple[float, float]], ticks: int) -> list[Choice]:
    """Which of the policies with ``(retrainings, mean log-loss)`` costs least, as the price of a retraining rises.

    The lower envelope of the lines ``loss + price * retrainings / ticks``. Of policies that cost the same the one with
    fewer retrainings is taken, then the earlier one.

    >>> points = {"never": (0, 1.2), "monthly": (40, 0.9), "quarterly": (13, 1.15), "headroom": (5, 0.95)}
    >>> [(choice.policy, round(choice.since, 3)) for choice in choices(points, 42)]
    [('monthly', 0.0), ('headroom', 0.06), ('never', 2.1)]
    """
    found: list[Choice] = []
    price = 0.0
    now = min(points, key=lambda name: (points[name][1], points[name][0]))
    while True:
        count, loss = points[now]
        # Every line that rises less crosses this one at some price: the first to do so goes on.
        crossings = [
            ((other_loss - loss) * ticks / (count - fewer), fewer, name)
            for name, (fewer, other_loss) in points.items()
            if fewer < count
        ]
        if not crossings:
            return [*found, Choice(now, price, None)]
        at, _, cheaper = min(crossings, key=lambda crossing: crossing[:2])
        found.append(Choice(now, price, at))
        price, now = at, cheaper


def recommended(found: Mapping[str, Figures], price: float, ticks: int) -> dict[str, Any]:
    """Which policy to take at ``price``, the next best, and how the choice changes with the price.

    ``found`` are the policies that can be had, hindsight is none of them; ``ticks`` is how many counted.
    """
    totals = {name: (one["total"], one["retrains"]) for name, one in found.items()}
    ordered = sorted(totals, key=totals.__getitem__)
    # One that did the same, like performance beside drift, is no other choice.
    other = next((name for name in ordered if totals[name] != totals[ordered[0]]), None)
    points = {name: (one["retrains"], mean_loss(one)) for name, one in found.items()}
    return {
        "policy": ordered[0],
        "price": price,
        "next": other,
        "better_by": None if other is None else totals[other][0] - totals[ordered[0]][0],
        "choices": [vars(choice) for choice in choices(points, ticks)],
    }
