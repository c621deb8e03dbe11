"""A/B: is the challenger's outcome better? Always-valid, so that one may look at any time and stop.

Only mature units count: those whose age has reached the horizon, by what was known of them at that moment, once. The
sources: a declared end by the continuous O'Brien-Fleming boundary (O'Brien, Fleming, Biometrics 35(3), 1979: reject
where ``|z_n| sqrt(n / N)`` reaches the two-sided quantile of a Brownian motion's maximum, 2.2414 at .05); an open end
by a mixture of conditional likelihood ratios of 2 x 2 tables (cf. Turner, Ly, Grünwald, JSPI 2024), and for figures by
the mixture SPRT (Johari, Koomen, Pekelis, Walsh, Operations Research 70(3), 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.amounts import amount
from pipelines.contracts import Arm, Instant, Value
from pipelines.guard.evidence import Answer
from pipelines.measures import quantile

Floats = NDArray[np.float64]

LEAST = 100
"""Units of each arm from which on the mean of figures is taken to be normal."""
_SD, _POINTS = 0.2, 21
"""Bets on the log odds ratio: quantiles of a normal distribution around none."""
_REACH, _STEP = 3.0, 0.01
"""Log odds ratios that an interval is looked for in."""


class Plan(Value):
    """What an experiment asks.

    ``outcome`` is ``binary`` (0 or 1) or a ``number``. With ``units``, of both arms together, it ends there; without it
    goes on until there is an answer. ``effect``, in the outcome's unit, is the size of difference that an open end
    with numbers is tuned for: far from it the answer comes later, and is as sure.
    """

    outcome: Literal["binary", "number"]
    better: Literal["higher", "lower"] = "higher"
    units: int | None = Field(default=None, gt=0)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    effect: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.outcome == "number" and self.units is None and self.effect is None:
            raise ValueError(
                "an experiment on a number needs units, at which it ends, or effect, the size of difference that is "
                "looked for"
            )
        return self


class Unit(Value):
    """One unit: its arm, when it ``began``, and its ``outcome`` since ``known``; None: none has come."""

    arm: Arm
    began: Instant
    outcome: float | None = None
    known: Instant | None = None


class Sums(Value):
    """Units of an arm, the ``total`` of their outcomes (binary: how many are positive) and of their ``squares``."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(n=self.n + other.n, total=self.total + other.total, squares=self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean outcome; 0 without units."""
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """The sample variance of the outcomes; 0 for fewer than two units."""
        if self.n < 2:
            return 0.0
        return max(self.squares - self.n * self.mean**2, 0.0) / (self.n - 1)


class Look(Value):
    """What became mature between the look before and ``at``."""

    at: Instant
    champion: Sums = Sums()
    challenger: Sums = Sums()


class Result(Value):
    """What an experiment says at a look.

    ``estimate`` is the challenger's minus the champion's mean, or of the scale ``odds ratio`` its odds over the
    champion's; ``low`` and ``high`` hold the truth at all looks together with the declared confidence (None: no bound
    yet). ``p`` is always valid: that it is ever at most alpha has a chance of alpha if there is no difference.
    """

    verdict: Literal["better", "worse", "no difference yet", "ended without a difference", "stopped by the guard"]
    reason: str
    scale: Literal["difference", "odds ratio"]
    estimate: float
    low: float | None
    high: float | None
    p: float
    champion: Sums
    challenger: Sums
    looks: int


def mature(
    units: Iterable[Unit], *, horizon: timedelta, until: Instant, every: timedelta, missing: float | None = 0.0
) -> list[Look]:
    """Looks of units that are at least ``horizon`` old, those that became so in the same span of ``every`` in one.

    An outcome that was not known at that age counts as ``missing``, or not at all if that is None: for ever, so that a
    unit counts once. Spans are whole ones that ended by ``until``, so that a look never changes.
    """
    spans: dict[int, dict[Arm, list[float]]] = {}
    width = every.total_seconds()
    for unit in units:
        ripe = unit.began + horizon
        place = math.floor(ripe.timestamp() / width)
        if (place + 1) * width > until.timestamp():
            continue
        known = unit.outcome is not None and (unit.known is None or unit.known <= ripe)
        outcome = unit.outcome if known else missing
        if outcome is not None:
            spans.setdefault(place, {}).setdefault(unit.arm, []).append(outcome)
    return [
        Look(
            at=type(until).fromtimestamp((place + 1) * width, until.tzinfo),
            champion=_sums(arms.get("champion", [])),
            challenger=_sums(arms.get("challenger", [])),
        )
        for place, arms in sorted(spans.items())
    ]


def experiment(looks: Sequence[Look], plan: Plan, guard: Answer | None = None) -> Result:
    """The answer to ``plan`` after ``looks``, oldest first; the first look that decided stays the answer.

    ``guard`` is what the guard says of the same rollout: it stops an experiment, whatever its outcome is.
    """
    champion, challenger = _totals(looks)
    path, signs = course(looks, plan)
    over = path <= plan.alpha
    p = float(min(path.min(initial=1.0), 1.0))
    interval = _odds_interval(looks, plan) if _by_table(plan) else _interval(champion, challenger, plan)
    estimate = interval[0]
    low, high = (end if math.isfinite(end) else None for end in interval[1:])
    n = champion.n + challenger.n
    verdict: Literal["better", "worse", "no difference yet", "ended without a difference", "stopped by the guard"]
    verdict = "no difference yet"
    if guard is not None and guard.verdict == "fail":
        verdict = "stopped by the guard"
    elif over.any():
        up = signs[int(over.argmax())] > 0
        verdict = "better" if up == (plan.better == "higher") else "worse"
    elif plan.units is not None and n >= plan.units:
        verdict = "ended without a difference"
    told = (
        f"{amount(challenger.mean)} of {challenger.n:,} mature units beside the champion's {amount(champion.mean)} of "
        f"{champion.n:,}; {'odds ratio' if _by_table(plan) else 'difference'} {amount(estimate)} "
        f"({_end(low)} to {_end(high)}), p {p:.2g}"
    )
    if verdict == "stopped by the guard" and guard is not None:
        told = f"{guard.reason}; {told}"
    elif plan.units is not None:
        told += f", {n:,} of {plan.units:,} units"
    return Result(
        verdict=verdict,
        reason=told,
        scale="odds ratio" if _by_table(plan) else "difference",
        estimate=estimate,
        low=low,
        high=high,
        p=p,
        champion=champion,
        challenger=challenger,
        looks=len(looks),
    )


def course(looks: Sequence[Look], plan: Plan) -> tuple[Floats, Floats]:
    """After each look the value that is held against alpha, and the sign of the difference, ``[looks]`` each."""
    if _by_table(plan):
        return _tables(looks)
    champions = list(accumulate(look.champion for look in looks))
    challengers = list(accumulate(look.challenger for look in looks))
    n = np.array([[one.n for one in arm] for arm in (champions, challengers)], np.float64).reshape(2, -1)
    totals = np.array([[one.total for one in arm] for arm in (champions, challengers)]).reshape(2, -1)
    squares = np.array([[one.squares for one in arm] for arm in (champions, challengers)]).reshape(2, -1)
    return _means(n, totals, squares, plan)


def boundary(alpha: float) -> float:
    """What a Brownian motion on [0, 1] reaches, up or down, with a chance of at most alpha.

    By reflection the chance is at most 4 (1 - Phi(c)), and at .05 it is that to five digits.

    >>> round(boundary(0.05), 4)
    2.2414
    """
    return quantile(1 - alpha / 4)


def _by_table(plan: Plan) -> bool:
    return plan.units is None and plan.outcome == "binary"


def _end(value: float | None) -> str:
    return "?" if value is None else amount(value)


def _sums(outcomes: Sequence[float]) -> Sums:
    return Sums(n=len(outcomes), total=math.fsum(outcomes), squares=math.fsum(one * one for one in outcomes))


def _totals(looks: Sequence[Look]) -> tuple[Sums, Sums]:
    champion, challenger = Sums(), Sums()
    for look in looks:
        champion, challenger = champion + look.champion, challenger + look.challenger
    return champion, challenger


# --- means, and rates with a declared end -------------------------------------------------------


def _means(n: Floats, totals: Floats, squares: Floats, plan: Plan) -> tuple[Floats, Floats]:
    from scipy.special import ndtr

    rows = np.maximum(n, 1)
    mean = totals / rows
    gap = mean[1] - mean[0]
    if plan.outcome == "binary":
        rate = totals.sum(axis=0) / rows.sum(axis=0)
        variance = (rate * (1 - rate) / rows).sum(axis=0)
        told = (n > 0).all(axis=0) & (variance > 0)
    else:
        spread = np.maximum(squares - n * mean**2, 0) / np.maximum(n - 1, 1)
        variance = (spread / rows).sum(axis=0)
        told = (n >= LEAST).all(axis=0) & (variance > 0)
    variance = np.where(told, variance, 1.0)
    gap = np.where(told, gap, 0.0)
    if plan.units is not None:
        z = np.abs(gap) / np.sqrt(variance) * np.sqrt(np.minimum(n.sum(axis=0) / plan.units, 1))
        # What comes after the first look at or behind the end is no part of the experiment.
        late = np.concatenate([[False], n.sum(axis=0)[:-1] >= plan.units])[: len(z)]
        return np.where(late, 1.0, np.minimum(4 * ndtr(-z), 1.0)), np.sign(gap)
    assert plan.effect is not None
    wide = variance + plan.effect**2
    log_e = 0.5 * np.log(variance / wide) + plan.effect**2 * gap**2 / (2 * variance * wide)
    return np.where(told, np.exp(-np.maximum(log_e, 0)), 1.0), np.sign(gap)


def _interval(champion: Sums, challenger: Sums, plan: Plan) -> tuple[float, float, float]:
    gap = challenger.mean - champion.mean
    least = 2 if plan.units is not None else LEAST
    if min(champion.n, challenger.n) < least:
        return gap, -math.inf, math.inf
    variance = champion.variance / champion.n + challenger.variance / challenger.n
    if plan.units is not None:
        half = boundary(plan.alpha) * math.sqrt(variance * max(plan.units / (champion.n + challenger.n), 1))
    else:
        assert plan.effect is not None
        squared = plan.effect**2
        wide = variance + squared
        if not variance:
            return gap, gap, gap
        half = math.sqrt(2 * variance * wide / squared * (math.log(1 / plan.alpha) + 0.5 * math.log(wide / variance)))
    return gap, gap - half, gap + half


# --- rates without an end -----------------------------------------------------------------------


def _tables(looks: Sequence[Look]) -> tuple[Floats, Floats]:
    """``1 / E`` of "the odds are equal" after each look.

    Given how many of both arms are positive, how many of them are the challenger's is hypergeometric; each look is a
    table of its own, so that rates may change from one to the next.
    """
    bets = _bets()
    steps = np.zeros((len(looks), _POINTS))
    totals = np.zeros((2, len(looks)))
    rows = np.zeros((2, len(looks)))
    for place, look in enumerate(looks):
        a, b = look.champion, look.challenger
        totals[:, place], rows[:, place] = (a.total, b.total), (a.n, b.n)
        positives = round(a.total + b.total)
        if a.n and b.n and positives:
            steps[place] = bets * round(b.total) - _normaliser(a.n, b.n, positives)
    log_e = np.logaddexp.reduce(np.cumsum(steps, axis=0), axis=1) - math.log(_POINTS)
    rates = np.cumsum(totals, axis=1) / np.maximum(np.cumsum(rows, axis=1), 1)
    return np.asarray(np.exp(-np.maximum(log_e, 0.0))), np.asarray(np.sign(rates[1] - rates[0]))


@lru_cache
def _bets() -> Floats:
    from scipy.special import ndtri

    return np.asarray(_SD * ndtri((np.arange(_POINTS) + 0.5) / _POINTS), np.float64)


@lru_cache(maxsize=20_000)
def _normaliser(n: int, m: int, positives: int) -> Floats:
    return _log_sums(n, m, positives, _bets())


def _log_sums(n: int, m: int, positives: int, theta: Floats) -> Floats:
    """``ln sum_u C(m, u) C(n, K - u) e^(theta u) / C(n + m, K)`` for each log odds ratio ``theta``."""
    from scipy.special import gammaln

    u = np.arange(max(0, positives - n), min(m, positives) + 1)

    def chosen(of: int, k: NDArray[np.int64]) -> Floats:
        return np.asarray(gammaln(of + 1) - gammaln(k + 1) - gammaln(of - k + 1), np.float64)

    weight = chosen(m, u) + chosen(n, positives - u)
    base = np.logaddexp.reduce(weight)
    likely = weight > weight.max() - 800
    return np.asarray(np.logaddexp.reduce(weight[likely] + np.multiply.outer(theta, u[likely]), axis=-1) - base)


def _odds_interval(looks: Sequence[Look], plan: Plan) -> tuple[float, float, float]:
    """The odds ratio that is likeliest, and those that the same bets, laid around each, have never refused so far."""
    theta = np.arange(-_REACH - 1, _REACH + 1 + _STEP / 2, _STEP)
    likely = np.zeros(len(theta))
    for look in looks:
        a, b = look.champion, look.challenger
        positives = round(a.total + b.total)
        if a.n and b.n and positives:
            likely += theta * round(b.total) - _log_sums(a.n, b.n, positives, theta)
    own = np.abs(theta) <= _REACH + _STEP / 2
    around = np.interp(np.add.outer(theta[own], _bets()), theta, likely)
    log_e = np.logaddexp.reduce(around, axis=1) - math.log(_POINTS) - likely[own]
    held = np.flatnonzero(log_e < math.log(1 / plan.alpha))
    best = float(np.exp(theta[own][likely[own].argmax()])) if likely.any() else 1.0
    low = high = math.inf
    if len(held) and held[0]:
        low = math.exp(theta[own][held[0] - 1])
    if len(held) and held[-1] + 1 < own.sum():
        high = math.exp(theta[own][held[-1] + 1])
    return best, low, high
