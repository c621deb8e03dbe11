"""Equal arms whose rate drifts while a bandit moves the weight: why units of one weight are compared alone.

When the rate rises and the challenger has most keys later on, its mean is the higher one though it is no better.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from pipelines.arms import WHOLE
from pipelines.guard import bandit
from pipelines.guard.experiment import Look, Plan, Sums, course
from pipelines.measures import wilson

RUNS = 400
DAYS, A_DAY, HORIZON = 28, 400, 3
"""Days, units of both arms a day, and days until one is mature. The weight moves once a day."""
RATES = (0.05, 0.4)
"""The rate of both arms drifts from the first to the second, or back."""
BOUNDS = (0.1, 0.9)
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
METHODS = {
    "bandit, by weight": Plan(outcome="binary"),
    "bandit, means over all weights": Plan(outcome="number", effect=0.03),
}
"""As experiments compare arms under a bandit, and as they do at one weight."""


def drifting(quick: bool) -> list[dict[str, Any]]:
    """False positives of both ways."""
    began = time.perf_counter()
    runs = 20 if quick else RUNS
    hits = dict.fromkeys(METHODS, 0)
    for number in range(runs):
        looks = month(np.random.default_rng([11, number]), *RATES[:: 1 if number % 2 else -1])
        for method, plan in METHODS.items():
            hits[method] += bool((course(looks, plan)[0] <= plan.alpha).any())
    seconds = round((time.perf_counter() - began) / len(METHODS), 1)
    rows = []
    for method, found in hits.items():
        rate = wilson(found, runs, 0.95)
        # The peer shows what happens otherwise; it is no goal.
        name = "false_positives" if method == "bandit, by weight" else "false_positives_otherwise"
        rows.append(
            {
                "part": "experiments",
                "what": f"equal rates that drift between {RATES[0]:.0%} and {RATES[1]:.0%}",
                "method": method,
                "runs": runs,
                name: round(rate.value, 4),
                "high": round(rate.high, 4),
                "seconds": seconds,
            }
        )
    return rows


def month(generator: np.random.Generator, first: float, last: float) -> list[Look]:
    """A look for each day, at the weight of that day: what is known by then is mature."""
    weight, looks = WHOLE // 2, list[Look]()
    for day in range(DAYS):
        rate = first + (last - first) * day / DAYS
        n = int(generator.binomial(A_DAY, weight / WHOLE))
        sides = [(rows, int(generator.binomial(rows, rate))) for rows in (A_DAY - n, n)]
        champion, challenger = (Sums(n=rows, total=positives, squares=positives) for rows, positives in sides)
        looks.append(Look(at=BEGIN + timedelta(days=day), champion=champion, challenger=challenger))
        mature = looks[: max(0, day + 1 - HORIZON)]
        if mature:
            sums = [sum((getattr(look, arm) for look in mature), Sums()) for arm in ("champion", "challenger")]
            weight = bandit.weight(bandit.chance_better(*sums), least=BOUNDS[0], most=BOUNDS[1])
    return looks
