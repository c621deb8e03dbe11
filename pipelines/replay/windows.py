"""How far back should a training look? A probe per window length, month after month, judged on the rows that followed.

`python -m pipelines windows`. As it would have been: at the start of every tick each probe learns from what a training
of that moment would choose (labels that had arrived, the case's own least and most), and answers the tick's rows. A
length is compared with the declared one tick by tick, so that good and bad months cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl

from pipelines.amounts import spread
from pipelines.cases import load_fields, part
from pipelines.contracts import Interval, Window
from pipelines.data import dataset
from pipelines.drift.report import measure_of
from pipelines.errors import DataError
from pipelines.fields import Fields
from pipelines.headroom import probe
from pipelines.measures import around, clustered_mean, row_loss
from pipelines.params import Params
from pipelines.replay import ticks
from pipelines.settings import Settings


@dataclass(frozen=True)
class Length:
    """What a window of so many ``days`` gave.

    ``loss`` is the mean log-loss over the ticks in nats, or of a number the mean squared error. ``saves`` is how much
    less that is than the declared length's, with an interval that holds for all lengths together; None for the
    declared one.
    """

    days: int
    loss: float
    saves: Interval | None


def windows(
    params: Params,
    settings: Settings,
    lengths: Sequence[int],
    since: date | None = None,
    until: date | None = None,
    months: int | None = None,
) -> dict[str, Any]:
    """Compare the lengths on the case's own history; the answer is plain data with the ``advice`` as a sentence.

    Raises ConfigError for times that the case does not have, DataError if no tick can be judged.
    """
    first, last = ticks.stretch(params.case, params.replay, since, until, months)
    seen = ticks.cut(first, last, params.drift)
    source_of = part(params.case, "source")
    history = Window(start=params.period[0], end=seen[-1].window.end)
    rows = source_of.rows(source_of.resolve(settings, params), history, params)
    declared = params.dataset.window_days
    family = probe.family_of(load_fields(params.case), params.headroom.family)
    by_tick = list(_losses(rows, params, family, sorted({*lengths, declared}), seen))
    if not by_tick:
        of = f"{len(seen)} ticks from {seen[0].label} to {seen[-1].label}"
        raise DataError(
            f"{params.case}: none of the {of} has {_least(params)} labelled rows with different labels to judge, and "
            "rows before them to learn from: choose other times"
        )
    found = compared(by_tick, declared, params.headroom.confidence)
    return {
        "case": params.case,
        "from": seen[0].label,
        "until": seen[-1].label,
        "ticks": len(by_tick),
        "family": family,
        "declared_days": declared,
        "advice": advice(found, declared, measure_of(load_fields(params.case)).loss_unit),
        "lengths": [_plain(one) for one in found],
    }


def _plain(one: Length) -> dict[str, Any]:
    ends: dict[str, float | None] = {"saves": None, "low": None, "high": None}
    if one.saves is not None:
        ends = {"saves": one.saves.value, "low": one.saves.low, "high": one.saves.high}
    return {"days": one.days, "loss": one.loss, **ends}


def compared(by_tick: Sequence[Mapping[int, float]], declared: int, confidence: float) -> list[Length]:
    """Every length's mean over the ticks, and what it saves over the ``declared`` one; shortest first.

    ``by_tick`` holds the mean log-loss of each tick by length. Ticks are the observations of a paired t interval; its
    level is that of Bonferroni, ``1 - (1 - confidence) / (lengths - 1)``.

    >>> ticks = [{30: 0.5, 90: 0.6}, {30: 0.52, 90: 0.61}, {30: 0.49, 90: 0.6}]
    >>> [(one.days, round(one.loss, 3), one.saves and round(one.saves.value, 3)) for one in compared(ticks, 90, 0.95)]
    [(30, 0.503, 0.1), (90, 0.603, None)]
    """
    lengths = sorted(by_tick[0])
    level = 1 - (1 - confidence) / max(1, len(lengths) - 1)
    losses = {days: np.array([tick[days] for tick in by_tick]) for days in lengths}
    found = []
    for days in lengths:
        saves = None
        if days != declared:
            saves = around(clustered_mean(losses[declared] - losses[days], np.arange(len(by_tick))), level)
        found.append(Length(days, round(float(losses[days].mean()), 6), saves))
    return found


def advice(found: Sequence[Length], declared: int, unit: str = "nats") -> str:
    """What to do about ``dataset.window_days``, as sentences; losses are in the ``unit``.

    >>> advice([Length(90, 0.6, None), Length(365, 0.5, Interval(value=0.1, low=0.05, high=0.15))], 90)
    'Set dataset.window_days to 365: it saves 0.100 nats (0.050 to 0.150) over the declared 90.'
    >>> advice([Length(90, 9.0, None), Length(30, 8.0, Interval(value=1, low=0.5, high=1.5))], 90, "min²")
    'Set dataset.window_days to 30: it saves 1.000 min² (0.500 to 1.500) over the declared 90.'
    >>> advice([Length(90, 0.6, None), Length(365, 0.59, Interval(value=0.01, low=-0.02, high=0.04))], 90)
    'Leave dataset.window_days at 90: no other length saves anything for sure (365 by 0.010, -0.020 to 0.040).'
    """
    others = [(one.days, one.saves) for one in found if one.saves is not None]
    if not others:
        return f"Leave dataset.window_days at {declared}: it is compared with no other length."
    sure = [(days, saves) for days, saves in others if saves.low > 0]
    if sure:
        days, saves = max(sure, key=lambda one: one[1].value)
        told = spread(saves, unit)
        return f"Set dataset.window_days to {days}: it saves {told} over the declared {declared}."
    days, saves = max(others, key=lambda one: one[1].value)
    told = f"{days} by {saves.value:.3f}, {saves.low:.3f} to {saves.high:.3f}"
    return f"Leave dataset.window_days at {declared}: no other length saves anything for sure ({told})."


def _losses(
    rows: pl.DataFrame, params: Params, family: str, lengths: Sequence[int], seen: Sequence[ticks.Tick]
) -> Iterator[dict[int, float]]:
    """Of every tick that can be judged the mean log-loss by length."""
    fields = load_fields(params.case)
    for tick in seen:
        start, end = tick.window.start, tick.window.end
        known = dataset.known_at(rows.filter(pl.col("event_time") < start), fields.label, start)
        learned = {days: _chosen(known, fields, start, params, days) for days in lengths}
        judged = rows.filter(
            pl.col("event_time").is_between(start, end, closed="left") & pl.col(fields.label).is_not_null()
        )
        if fields.repeats:
            known_rows = dataset.known_rows(learned.values(), fields.repeats)
            judged = dataset.without_repeats(judged, fields.repeats, known_rows)
        classes = min(frame[fields.label].n_unique() for frame in (judged, *learned.values()))
        if judged.height >= _least(params) and classes > 1:
            yield _of_tick(judged, learned, fields, family)


def _of_tick(
    judged: pl.DataFrame, learned: Mapping[int, pl.DataFrame], fields: Fields, family: str
) -> dict[int, float]:
    number = fields.number is not None
    label = judged[fields.label].cast(pl.Float64 if number else pl.Int64).to_numpy()
    asked = judged.select(fields.reads)
    found: dict[int, float] = {}
    before: pl.DataFrame | None = None
    loss = 0.0
    for days, frame in learned.items():
        if before is None or not frame["id"].equals(before["id"]):
            loss = float(row_loss(label, probe.answers(frame, asked, fields, family), number=number).mean())
        found[days], before = loss, frame
    return found


def _chosen(known: pl.DataFrame, fields: Fields, as_of: datetime, params: Params, days: int) -> pl.DataFrame:
    of_length = params.dataset.model_copy(update={"window_days": days, "max_rows": params.headroom.max_rows})
    return dataset.choose(known, fields.label, as_of, of_length)[0]


def _least(params: Params) -> int:
    return params.replay.min_rows if params.replay else params.headroom.min_rows
