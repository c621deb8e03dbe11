"""The experiment of a rollout: its units, counted as far as they are mature, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, get_args

import polars as pl

from pipelines.arms import WHOLE
from pipelines.contracts import Arm, Instant, Release, Value
from pipelines.data import units
from pipelines.data.units import Asked, Fold
from pipelines.fields import Fields
from pipelines.guard import bandit
from pipelines.guard import experiment as guard
from pipelines.guard.experiment import Look, Plan, Result, Sums
from pipelines.params import LABEL, ExperimentParams, RolloutParams
from pipelines.settings import Settings

FIRST = 0
"""The step of a rollout that lasts until its experiment has an answer."""
EVERY = timedelta(hours=1)
"""How far looks lie apart, if neither the horizon is shorter nor the guard's windows are longer."""
UNSPLIT = 1e-4
"""Arms whose units differ so surely from the declared split are not compared."""
NEVER = 1e-300
"""Chances below are taken to be so large."""
ARMS: tuple[Arm, ...] = get_args(Arm)


class Units(Value):
    """The units of an arm: how many have ``begun``, and of these how many wait to be mature, or had no label then."""

    begun: int = 0
    waiting: int = 0
    unlabelled: int = 0


class Compared(Value):
    """What an experiment says; ``looks`` are what it says it by, ``split`` is the chance of arms as unequal as these.

    ``weight`` is where a bandit has the challenger's weight by now, None: there is none.
    """

    result: Result
    looks: tuple[Look, ...]
    champion: Units
    challenger: Units
    split: float
    weight: int | None = None

    @property
    def unsplit(self) -> str:
        """Why the arms cannot be compared, in words; "": they can."""
        if self.split >= UNSPLIT:
            return ""
        return (
            f"{self.champion.begun:,} and {self.challenger.begun:,} units are not split as the weight says "
            f"(p {self.split:.1g}): somebody else decides who meets which arm, and no outcome is compared"
        )


class Stretch(NamedTuple):
    """A time of one weight."""

    since: datetime
    weight: int


def under_way(head: Release, plan: RolloutParams) -> bool:
    """Whether the rollout of the newest row waits for the answer of an experiment."""
    return (
        plan.experiment is not None and head.stage == "canary" and head.trial is not None and head.trial.step == FIRST
    )


def stretches(rows: Sequence[Release]) -> tuple[list[Stretch], datetime | None]:
    """The weights of a rollout's experiment, by its rows, and when it ended (None: it goes on)."""
    found: list[Stretch] = []
    for row in rows:
        if row.trial is None:
            continue
        if row.stage != "canary" or row.trial.step != FIRST:
            if found:
                return found, row.recorded_at
        elif not found or found[-1].weight != row.weight:
            found.append(Stretch(row.trial.since, row.weight))
    return found, None


def compare(
    settings: Settings, fields: Fields, rows: Sequence[Release], plan: RolloutParams, now: Instant
) -> Compared | None:
    """What the experiment of a rollout says at ``now``, by its rows, oldest first; None: it has not begun."""
    asked = plan.experiment
    weights, ended = stretches(rows)
    if asked is None or not weights:
        return None
    until = now if ended is None else min(now, ended)
    horizon = timedelta(hours=asked.horizon_hours)
    found = units.read(
        settings,
        fields.case,
        Asked(weights, plan.key, asked.outcome, horizon, _fold(asked, fields)),
        until,
    )
    looks = tuple(
        Look(at=one.at, champion=Sums(**one.champion._asdict()), challenger=Sums(**one.challenger._asdict()))
        for one in units.looks(found, every(plan), until)
    )
    what = plan_of(asked, fields)
    begun = {arm: _units(found.filter(pl.col("arm") == arm), until) for arm in ARMS}
    result = guard.experiment(looks, what)
    return Compared(
        result=result,
        looks=looks,
        split=_split(found, weights),
        weight=_weight(asked, what, result) if asked.bandit else None,
        **begun,
    )


def every(plan: RolloutParams) -> timedelta:
    """How far looks lie apart."""
    assert plan.guard is not None
    assert plan.experiment is not None
    horizon = timedelta(hours=plan.experiment.horizon_hours)
    return max(timedelta(minutes=plan.guard.window_minutes), min(EVERY, horizon))


def plan_of(asked: ExperimentParams, fields: Fields) -> Plan:
    """What an experiment asks."""
    return Plan(
        outcome=_kind(asked, fields),
        better=asked.better,
        units=asked.units,
        alpha=asked.alpha,
        effect=asked.effect,
    )


def _kind(asked: ExperimentParams, fields: Fields) -> Literal["binary", "number"]:
    return "binary" if asked.outcome == LABEL and fields.number is None else "number"


def _fold(asked: ExperimentParams, fields: Fields) -> Fold:
    if asked.outcome != LABEL:
        return "sum"
    return "any" if _kind(asked, fields) == "binary" else "mean"


def _units(found: pl.DataFrame, until: datetime) -> Units:
    waiting = pl.col("matured") > until
    unlabelled = ~waiting & pl.col("value").is_null()
    return Units(begun=found.height, waiting=found.filter(waiting).height, unlabelled=found.filter(unlabelled).height)


def _split(found: pl.DataFrame, weights: Sequence[Stretch]) -> float:
    """The chance of arms at least as unequal, if the weights split them.

    Binomial and two-sided in each stretch, as the first few units may all be of one arm; together by Fisher's method.
    """
    from scipy.special import bdtr, bdtrc, chdtrc

    total, several = 0.0, 0
    for stretch, n, own in found.group_by("stretch").agg(pl.len(), (pl.col("arm") == "challenger").sum()).iter_rows():
        share = weights[stretch].weight / WHOLE
        chance = min(1.0, 2 * min(bdtr(own, n, share), bdtrc(own - 1, n, share)))
        total -= 2 * math.log(max(chance, NEVER))
        several += 1
    return float(chdtrc(2 * several, total)) if several else 1.0


def _weight(asked: ExperimentParams, plan: Plan, result: Result) -> int:
    chance = bandit.chance_better(result.champion, result.challenger, outcome=plan.outcome, better=plan.better)
    least, most = asked.bounds
    return bandit.weight(chance, least=least, most=most)
