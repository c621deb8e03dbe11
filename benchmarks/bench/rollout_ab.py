"""Experiments without and with a difference: false positives with a look at every step, and power (rollout.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipelines.guard.experiment import Look, Plan, Sums, Unit, course, mature
from pipelines.measures import wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RUNS = 10_000
POWER_RUNS = 4_000
LATE_RUNS = 500
LOOKS, A_LOOK = 50, 200
"""Looks until the declared end, and units of each arm between two."""
UNITS = 2 * LOOKS * A_LOOK
FIXED = 2.8015
"""Standard errors of a difference that a fixed two-sided test at 5% finds four times in five."""
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)

Draw = Callable[[np.random.Generator, float, int], list[Look]]


def binary(rate: float, generator: np.random.Generator, more: float, looks: int) -> list[Look]:
    """Looks of a 0/1 outcome of this rate, which the challenger raises by ``more``."""
    drawn = [generator.binomial(A_LOOK, one, looks).tolist() for one in (rate, rate + more)]
    return [
        Look(
            at=BEGIN + timedelta(hours=place),
            champion=Sums(n=A_LOOK, total=x, squares=x),
            challenger=Sums(n=A_LOOK, total=y, squares=y),
        )
        for place, (x, y) in enumerate(zip(*drawn, strict=True))
    ]


def numbers(generator: np.random.Generator, more: float, looks: int) -> list[Look]:
    """Looks of a skewed amount: exponential, of mean 1."""
    drawn = generator.exponential(size=(2, looks, A_LOOK))
    drawn[1] += more
    totals, squares = drawn.sum(axis=2).tolist(), (drawn**2).sum(axis=2).tolist()
    return [
        Look(
            at=BEGIN + timedelta(hours=place),
            champion=Sums(n=A_LOOK, total=totals[0][place], squares=squares[0][place]),
            challenger=Sums(n=A_LOOK, total=totals[1][place], squares=squares[1][place]),
        )
        for place in range(looks)
    ]


def z(looks: list[Look]) -> Floats:
    """The z of the difference of means after each look, ``[looks]``."""
    sums = np.array([[(one.n, one.total, one.squares) for one in (look.champion, look.challenger)] for look in looks])
    n, total, squares = np.moveaxis(np.cumsum(sums, axis=0), -1, 0)
    mean = total / n
    variance = ((squares - n * mean**2) / (n - 1) / n).sum(axis=1)
    return np.asarray((mean[:, 1] - mean[:, 0]) / np.sqrt(np.maximum(variance, 1e-12)), np.float64)


def firsts(plans: Sequence[Plan], draw: Draw, more: float, looks: int, runs: int, seed: int) -> tuple[Ints, Floats]:
    """The first look that decided, ``[plans, runs]`` (``looks``: none), and |z| of the peers ``[runs, looks]``."""
    found, peers = np.full((len(plans), runs), looks), np.zeros((runs, looks))
    for number in range(runs):
        drawn = draw(np.random.default_rng([seed, number]), more, looks)
        for place, plan in enumerate(plans):
            over = course(drawn, plan)[0] <= plan.alpha
            if over.any():
                found[place, number] = int(over.argmax())
        peers[number] = np.abs(z(drawn))
    return found, peers


def cases() -> dict[str, tuple[Draw, float, Plan, Plan]]:
    """Looks, a difference that the fixed test finds four times in five, a plan that ends, and one that does not."""
    found: dict[str, tuple[Draw, float, Plan, Plan]] = {
        f"rate {rate:.0%}": (
            partial(binary, rate),
            difference(rate),
            Plan(outcome="binary", units=UNITS),
            Plan(outcome="binary"),
        )
        for rate in (0.1, 0.02)
    }
    amount = FIXED * math.sqrt(2 / (LOOKS * A_LOOK))
    ends = Plan(outcome="number", units=UNITS)
    return found | {"amount, exponential": (numbers, amount, ends, Plan(outcome="number", effect=amount))}


def difference(rate: float) -> float:
    """The difference of rates that the fixed test finds four times in five; a higher rate varies more."""

    def over(more: float) -> float:
        spread = rate * (1 - rate) + (rate + more) * (1 - rate - more)
        return more - FIXED * math.sqrt(spread / (LOOKS * A_LOOK))

    return float(brentq(over, 0, 0.5))


def tried(name: str, quick: bool) -> list[dict[str, Any]]:
    """One outcome, by a plan that ends and one that does not."""
    runs, better = (200, 100) if quick else (RUNS, POWER_RUNS)
    draw, more, *plans = cases()[name]
    began = time.perf_counter()
    seed = len(name)
    null, z_null = firsts(plans, draw, 0.0, LOOKS, runs, seed)
    found, z_better = firsts(plans, draw, more, 2 * LOOKS, better, 100 + seed)
    rows = []
    for place, plan in enumerate(plans):
        rate = wilson(int((null[place] < LOOKS).sum()), runs, 0.95)
        row = {
            "part": "experiments",
            "what": name,
            "method": "declared end" if plan.units else "open end",
            "runs": runs,
            "false_positives": round(rate.value, 4),
            "high": round(rate.high, 4),
            "z_at_each_look": round(float((z_null > 1.96).any(axis=1).mean()), 4),
            "fixed_test": round(float((z_null[:, -1] > 1.96).mean()), 4),
            "power": round(float((found[place] < LOOKS).mean()), 3),
            "fixed_power": round(float((z_better[:, LOOKS - 1] > 1.96).mean()), 3),
            "mean_share_of_units": round(float(np.minimum(found[place] + 1, LOOKS).mean() / LOOKS), 3),
        }
        if not plan.units:
            row |= {"power_1.5": round(float((found[place] < 1.5 * LOOKS).mean()), 3)}
            row |= {"power_2": round(float((found[place] < 2 * LOOKS).mean()), 3)}
        rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
    return rows


# --- labels that come late ----------------------------------------------------------------------

DAYS, A_DAY, HORIZON, EARLY, RATE = 40, 50, 5, 2, 0.2
"""Days, units of each arm a day, days until one is mature, until the challenger's positives are known, their rate."""


def late(way: str, quick: bool) -> list[dict[str, Any]]:
    """Equal rates; the challenger's positives are known after two days, the champion's after five."""
    plan, runs, hits = Plan(outcome="binary"), 50 if quick else LATE_RUNS, 0
    began = time.perf_counter()
    for number in range(runs):
        positive = np.random.default_rng([7, number]).random((2, DAYS, A_DAY)) < RATE
        hits += bool((course(WAYS[way](positive), plan)[0] <= plan.alpha).any())
    rate = wilson(hits, runs, 0.95)
    # The peers show what happens otherwise; they are no goal.
    name = "false_positives" if way == MATURE else "false_positives_otherwise"
    return [
        {
            "part": "experiments",
            "what": "equal rates, the challenger's positives known earlier",
            "method": way,
            "runs": runs,
            name: round(rate.value, 4),
            "high": round(rate.high, 4),
            "seconds": round(time.perf_counter() - began, 1),
        }
    ]


def by_maturity(positive: NDArray[np.bool_]) -> list[Look]:
    """As experiments are counted."""
    units = []
    for arm, delay, own in zip(("champion", "challenger"), (HORIZON, EARLY), positive, strict=True):
        for day, hits in enumerate(own):
            start = BEGIN + timedelta(days=day)
            known = start + timedelta(days=delay)
            units += [
                Unit(arm=arm, began=start, outcome=1.0, known=known) if hit else Unit(arm=arm, began=start)
                for hit in hits.tolist()
            ]
    until = BEGIN + timedelta(days=DAYS)
    return mature(units, horizon=timedelta(days=HORIZON), until=until, every=timedelta(days=1))


def on_arrival(positive: NDArray[np.bool_]) -> list[Look]:
    """A positive counts when it is known, another one when it is old enough to be known as such."""
    hits = positive.sum(axis=2)
    return _looks([[_on(hits[arm], day - delay) for arm, delay in _DELAYS] for day in range(DAYS)], hits, arrival=True)


def unknown_is_none(positive: NDArray[np.bool_]) -> list[Look]:
    """A unit counts at once, as 0 until it is known to be positive."""
    hits = positive.sum(axis=2)
    return _looks([[_on(hits[arm], day - delay) for arm, delay in _DELAYS] for day in range(DAYS)], hits, arrival=False)


_DELAYS = ((0, HORIZON), (1, EARLY))


def _on(values: NDArray[np.int64], day: int) -> int:
    return int(values[day]) if day >= 0 else 0


def _looks(known: list[list[int]], hits: NDArray[np.int64], *, arrival: bool) -> list[Look]:
    found = []
    for day, both in enumerate(known):
        sides = []
        for arm, positives in enumerate(both):
            n = A_DAY
            if arrival:
                n = positives + (A_DAY - _on(hits[arm], day - HORIZON) if day >= HORIZON else 0)
            sides.append(Sums(n=n, total=positives, squares=positives))
        found.append(Look(at=BEGIN + timedelta(days=day), champion=sides[0], challenger=sides[1]))
    return found


MATURE = "mature units"
WAYS: dict[str, Callable[[NDArray[np.bool_]], list[Look]]] = {
    MATURE: by_maturity,
    "counted on arrival": on_arrival,
    "unknown counts as 0": unknown_is_none,
}
