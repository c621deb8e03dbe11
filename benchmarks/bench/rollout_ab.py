"""Experiments without and with a difference: false positives with a look at every step, and power (rollout.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench.rollout_bandit import RUNS as DRIFTING_RUNS
from benchmarks.bench.rollout_bandit import drifting
from pipelines.guard.experiment import Look, Plan, Sums, Unit, course, mature
from pipelines.measures import wilson

Floats = NDArray[np.float64]

RUNS = 10_000
POWER_RUNS = 4_000
LATE_RUNS = 1_000
LOOKS, A_LOOK = 50, 200
"""Looks until the declared end, and units of each arm between two."""
UNITS = 2 * LOOKS * A_LOOK
FIXED = 2.8015
"""Standard errors of a difference that a fixed two-sided test at 5% finds four times in five."""
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)

Draw = Callable[[np.random.Generator, float, int], list[Look]]


def binary(rate: float) -> Draw:
    """Looks of a 0/1 outcome whose rate the challenger raises by so many."""

    def draw(generator: np.random.Generator, more: float, looks: int) -> list[Look]:
        a = generator.binomial(A_LOOK, rate, looks).tolist()
        b = generator.binomial(A_LOOK, rate + more, looks).tolist()
        return [
            Look(
                at=BEGIN + timedelta(hours=place),
                champion=Sums(n=A_LOOK, total=x, squares=x),
                challenger=Sums(n=A_LOOK, total=y, squares=y),
            )
            for place, (x, y) in enumerate(zip(a, b, strict=True))
        ]

    return draw


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


def decided(plan: Plan, draw: Draw, more: float, looks: int, runs: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Of each run the first look that decided (``looks``: none), and |z| of the peers ``[runs, looks]``."""
    firsts, peers = np.full(runs, looks), np.zeros((runs, looks))
    for number in range(runs):
        drawn = draw(np.random.default_rng([seed, number]), more, looks)
        over = course(drawn, plan)[0] <= plan.alpha
        if over.any():
            firsts[number] = int(over.argmax())
        peers[number] = np.abs(z(drawn))
    return firsts, peers


def experiments(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows by outcome and method."""
    runs, better = (200, 100) if quick else (RUNS, POWER_RUNS)
    cases: dict[str, tuple[Draw, float, Plan, Plan]] = {
        f"rate {rate:.0%}": (
            binary(rate),
            FIXED * math.sqrt(2 * rate * (1 - rate) / (LOOKS * A_LOOK)),
            Plan(outcome="binary", units=UNITS),
            Plan(outcome="binary"),
        )
        for rate in (0.1, 0.02)
    }
    amount = FIXED * math.sqrt(2 / (LOOKS * A_LOOK))
    cases["amount, exponential"] = (
        numbers,
        amount,
        Plan(outcome="number", units=UNITS),
        Plan(outcome="number", effect=amount),
    )
    for seed, (name, (draw, more, ending, open_end)) in enumerate(cases.items()):
        for method, plan in (("declared end", ending), ("open end", open_end)):
            began = time.perf_counter()
            firsts, peers = decided(plan, draw, 0.0, LOOKS, runs, seed)
            rate = wilson(int((firsts < LOOKS).sum()), runs, 0.95)
            looks = LOOKS if plan.units else 2 * LOOKS
            found, z_better = decided(plan, draw, more, looks, better, 100 + seed)
            row = {
                "part": "experiments",
                "what": name,
                "method": method,
                "runs": runs,
                "false_positives": round(rate.value, 4),
                "high": round(rate.high, 4),
                "z_at_each_look": round(float((peers > 1.96).any(axis=1).mean()), 4),
                "fixed_test": round(float((peers[:, -1] > 1.96).mean()), 4),
                "power": round(float((found < LOOKS).mean()), 3),
                "fixed_power": round(float((z_better[:, LOOKS - 1] > 1.96).mean()), 3),
                "mean_share_of_units": round(float(np.minimum(found + 1, LOOKS).mean() / LOOKS), 3),
            }
            if not plan.units:
                row |= {"power_1.5": round(float((found < 1.5 * LOOKS).mean()), 3)}
                row |= {"power_2": round(float((found < 2 * LOOKS).mean()), 3)}
            yield row | {"seconds": round(time.perf_counter() - began, 1)}
    yield from late(50 if quick else LATE_RUNS)
    yield from drifting(20 if quick else DRIFTING_RUNS)


# --- labels that come late ----------------------------------------------------------------------

DAYS, A_DAY, HORIZON, EARLY, RATE = 40, 50, 5, 2, 0.2
"""Days, units of each arm a day, days until one is mature, until the challenger's positives are known, their rate."""


def late(runs: int) -> Iterator[dict[str, Any]]:
    """Equal rates; the challenger's positives are known after two days, the champion's after five."""
    plan = Plan(outcome="binary")
    ways: dict[str, Callable[[NDArray[np.bool_]], list[Look]]] = {
        "mature units": by_maturity,
        "counted on arrival": on_arrival,
        "unknown counts as 0": unknown_is_none,
    }
    for method, way in ways.items():
        began = time.perf_counter()
        hits = 0
        for number in range(runs):
            positive = np.random.default_rng([7, number]).random((2, DAYS, A_DAY)) < RATE
            hits += bool((course(way(positive), plan)[0] <= plan.alpha).any())
        rate = wilson(hits, runs, 0.95)
        # The peers show what happens otherwise; they are no goal.
        name = "false_positives" if way is by_maturity else "false_positives_otherwise"
        yield {
            "part": "experiments",
            "what": "equal rates, the challenger's positives known earlier",
            "method": method,
            "runs": runs,
            name: round(rate.value, 4),
            "high": round(rate.high, 4),
            "seconds": round(time.perf_counter() - began, 1),
        }


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
