"""What the policies of a replay are compared by, read from its summary: log-loss, or of a number squared error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOSSES = {"log_loss": "log-loss", "mse": "squared error"}
"""By their keys, which are also those of a tick's metrics; a case has one of them."""


def loss_key(found: Mapping[str, Any]) -> str:
    """The key of the loss among some metrics.

    >>> loss_key({"rmse": 2.0, "mse": 4.0}), loss_key({"log_loss": 0.5})
    ('mse', 'log_loss')
    """
    return next(name for name in LOSSES if name in found)


def mean_loss(one: Mapping[str, Any]) -> float:
    """The mean loss of a policy."""
    means: Mapping[str, float] = one["means"]
    return means[loss_key(means)]


def worst(one: Mapping[str, Any]) -> float:
    """The loss of a policy's worst tick."""
    found: Mapping[str, float] = one["worst"]
    return found[loss_key(found)]


def by_tick(one: Mapping[str, Any]) -> list[float | None]:
    """The loss of a policy in every tick, None where it does not count."""
    found: list[float | None] = one[f"{loss_key(one['means'])}_by_tick"]
    return found


def named(summary: Mapping[str, Any]) -> str:
    """The loss in words."""
    first = next(iter(summary["policies"].values()))
    return LOSSES[loss_key(first["means"])]
