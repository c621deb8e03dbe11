"""What each policy's history was worth: loss, cost, the sum of both, and which policies no other one beats on both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Figures = dict[str, Any]
METRICS = {"log_loss": False, "roc_auc": True, "macro_f1": True, "accuracy": True}
"""What is shown where it is defined, and whether more is better; the first one decides, here as in the gate."""


def figures(
    records: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, float | None] | None], price: float
) -> Figures:
    """One policy's figures.

    ``records`` are as play.py tells them, ``scored[t]`` the served model's metrics in tick ``t`` (None: it does not
    count). ``means`` weigh ticks alike, ``weighted`` weighs rows; ``total`` is the mean log-loss plus ``price`` for
    every retraining, spread over the ticks that count: nats per row and tick. Trainings that were skipped cost nothing.
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
        "total": means["log_loss"] + price * len(ran) / len(counted),
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
    blocks = {
        block: {name: fmean(one[block][name] for one in found) for name in found[0][block]}
        for block in ("means", "weighted")
    }
    return {**blocks, **numbers, "worst": {"tick": worst[1], "log_loss": worst[0]}, "log_loss_by_tick": by_tick}


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
