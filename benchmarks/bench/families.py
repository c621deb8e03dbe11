"""Families of models on real rows: through the loop on `bank`, and on two small tables beside scikit-learn by hand.

On `bank` the network as it ships, LightGBM, XGBoost and logistic regression, each with settings that were chosen on
what was known before August 2009: trained at the dates at which the demo trains, and through the whole replay under
the case's drift policy. The small cases are 2,000 short texts of `triage`, and 3,000 rows with holes of `flights_late`.
`make bench-families`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.bench.flights import metrics, named
from benchmarks.record import goal, record
from pipelines import measures, runtime
from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields, part
from pipelines.contracts import Window
from pipelines.data.dataset import spread
from pipelines.encoding import find_scales
from pipelines.estimators import fitting
from pipelines.export.bundle import write_bundle
from pipelines.export.onnx import of_estimator
from pipelines.fields import Fields
from pipelines.line import runner
from pipelines.line.order import DATASET, INGEST, VALIDATE
from pipelines.line.step import Run
from pipelines.params import EstimatorParams, Params, TrainParams, WordsParams
from pipelines.params_file import load_params
from pipelines.replay import candidates, ticks
from pipelines.replay.play import play
from pipelines.replay.policies import HEADROOM, ORACLE, POLICIES
from pipelines.replay.world import World, build
from pipelines.settings import read_settings
from pipelines.training import estimator

CASE = "bank"
HOME = Path("runs/bench-families")
REST = "2009-08"
"""Settings were chosen on the months before."""
NEAR = 0.01
"""Nats by which the best family may be behind scikit-learn by hand."""
QUICKLY = 10.0
"""Seconds of a core that a training of a small case may take."""
Floats = NDArray[np.float64]
ByHand = Callable[[Fields, pl.DataFrame, pl.DataFrame], Floats]
"""Answers to the rows of the second frame by what was fitted to the first."""


ONE_CORE = TrainParams(seed=0, threads=1)
XGBOOST_DAYS = 180
XGBOOST = EstimatorParams(
    kind="estimator",
    family="xgboost",
    parameters={
        "n_estimators": 50,
        "learning_rate": 0.05,
        "max_depth": 3,
        "min_child_weight": 3,
        "colsample_bynode": 0.3,
    },
)
"""Tried: 30 days to a year; depth 2 or 3; 50 or 100 trees; every column, two of five, or three of ten at a split."""


@dataclass(frozen=True)
class Played:
    """A family's models in service: ``keys`` of the candidates, tick by tick, ``trainings`` and how many served."""

    how: str
    keys: list[str]
    trainings: list[dict[str, Any]]


def main() -> None:
    """Play `bank`, fit the small cases, and write benchmarks/results/families.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.families", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="eight months of bank; nothing is written")
    options = parser.parse_args()
    began = time.perf_counter()
    rows = on_bank(months=8 if options.quick else None)
    found = [of_texts(), of_table()]
    goals = []
    for one in found:
        name = one[0]["case"]
        ours, by_hand = _best(one, ours=True), _best(one, ours=False)
        chosen = next(row for row in one if row.get("chosen"))
        goals += [
            goal(f"{name}: log-loss of the chosen family over that by hand", chosen["log_loss"] - by_hand, NEAR),
            goal(f"{name}: log-loss of the best family over that by hand", ours - by_hand, NEAR),
            goal(f"{name}: seconds of the chosen family's training", chosen["seconds"], QUICKLY),
        ]
    record(
        "families",
        rows=[*rows, *(row for one in found for row in one)],
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("torch", "onnxruntime", "lightgbm", "xgboost-cpu", "scikit-learn", "skl2onnx", "onnxmltools"),
        more={"ships": named(load_params(CASE))},
        keep=not options.quick,
    )


# --- bank ---------------------------------------------------------------------------------------


def families() -> list[Params]:
    """What `bank` ships, its variants, and XGBoost, which has no file of its own."""
    own = load_params(CASE)
    variants = [load_params(CASE, path) for path in sorted((CASES_ROOT / CASE).glob(f"variants/*/{CASE}.yaml"))]
    dataset = own.dataset.model_copy(update={"window_days": XGBOOST_DAYS})
    return [own, *variants, own.model_copy(update={"model": XGBOOST, "dataset": dataset, "train": ONE_CORE})]


def on_bank(months: int | None) -> list[dict[str, Any]]:
    """A row for every family and both ways of using it: metrics over all months that count, and over the rest."""
    found = []
    dates: set[str] = set()
    for params in families():
        since, until = ticks.stretch(CASE, params.replay, None, None, months)
        world = build(params, read_settings(home=HOME), ticks.cut(since, until, params.drift))
        family = named(params)
        asked = play(world, POLICIES[HEADROOM], partial(_told, family))
        if not dates:  # of what ships: the demo trains at the same dates
            dates = {one["training"]["as_of"] for one in asked if one["training"] is not None}
        ends = [tick.window.end for tick in world.ticks[:-1]]
        fresh = [_trained(world, end) if end.isoformat() in dates else None for end in ends]
        ways = (
            in_turn("at the demo's dates, without a gate", [asked[0]["first"], *fresh]),
            _served("when the drift policy asks", asked),
        )
        found += [{"case": CASE, "family": family, "how": way.how, **_judged(world, way)} for way in ways]
    return found


def _told(family: str, word: str) -> None:
    print(f"{family}: {word}", flush=True)


def _trained(world: World, as_of: datetime) -> dict[str, Any]:
    """The candidate of a training at ``as_of``, whoever serves, as a replay records it."""
    settings = world.home(POLICIES[ORACLE])
    for step in (INGEST, VALIDATE, DATASET):
        runner.run(step, Run(world.params, settings, as_of))
    run_dir = settings.run_dir(world.params.case, as_of)
    candidate = candidates.trained(world, settings, run_dir, as_of)
    if not candidates.has_bundle(world, candidate.key):
        candidates.exported(world, settings, run_dir, as_of)
    return {"candidate": candidate.key, "seconds": candidate.seconds}


def in_turn(how: str, trained: Sequence[dict[str, Any] | None]) -> Played:
    """The newest model serves. ``trained`` are the trainings before each tick, the first one's included."""
    keys: list[str] = []
    for one in trained:
        keys.append(keys[-1] if one is None else one["candidate"])
    return Played(how, keys, [one for one in trained if one is not None])


def _served(how: str, records: Sequence[dict[str, Any]]) -> Played:
    """Whom a replay let serve."""
    done = [records[0]["first"], *(one["training"] for one in records if one["training"] is not None)]
    return Played(how, [one["candidate"] for one in records], [one for one in done if one["candidate"] is not None])


def _judged(world: World, way: Played) -> dict[str, Any]:
    """Means of the months with enough rows, the worst of them, and the same from ``REST`` on."""
    least = world.params.replay.min_rows if world.params.replay else 100
    months: dict[str, dict[str, float]] = {}
    for tick, key in zip(world.ticks, way.keys, strict=True):
        label = world.of(tick)[world.fields.label]
        if label.len() - label.null_count() >= least and label.n_unique() > 1:
            months[tick.label] = metrics(world.fields, label, candidates.scores(world, key, tick))
    rest = {label: one for label, one in months.items() if label >= REST}
    means = {**_means(months), **{f"{name} from {REST}": value for name, value in _means(rest).items()}}
    return {
        **means,
        "trainings": len(way.trainings),
        "seconds": round(sum(one["seconds"] for one in way.trainings), 1),
        "by_month": {label: round(one["log_loss"], 3) for label, one in months.items()},
    }


def _means(months: dict[str, dict[str, float]]) -> dict[str, Any]:
    if not months:
        return {}
    worst = max(months, key=lambda label: months[label]["log_loss"])
    return {
        **{name: round(float(np.mean([one[name] for one in months.values()])), 4) for name in ("log_loss", "roc_auc")},
        "worst": f"{months[worst]['log_loss']:.3f} ({worst})",
        "least roc_auc": round(min(one["roc_auc"] for one in months.values()), 3),
    }


# --- two small cases ----------------------------------------------------------------------------


VALIDATED = 0.2
"""Newest share of the training rows by which the family is chosen; then it is fitted to all of them."""


def of_texts() -> list[dict[str, Any]]:
    """Is a report one of the largest team's? Its first 200 characters, 2,000 reports, judged on the next 1,000."""
    fields, rows = short_texts()
    words = WordsParams(min_rows=1)
    ours = [
        EstimatorParams(kind="estimator", family=family, parameters=parameters, words=words)
        for family, parameters in (
            ("sklearn:LogisticRegression", {"max_iter": 300}),
            ("sklearn:LogisticRegression", {"C": 10.0, "max_iter": 300}),
            ("lightgbm", {"n_estimators": 100, "learning_rate": 0.05, "num_leaves": 7}),
        )
    ]
    return _compared(fields, rows.head(2000), rows.tail(1000), ours, {"TF-IDF + logistic regression": _tfidf})


def short_texts() -> tuple[Fields, pl.DataFrame]:
    """The newest 3,000 reports of 2013 of `triage`, cut to 200 characters, and whether they are the largest team's."""
    params, fields = load_params("triage"), load_fields("triage")
    assert fields.text is not None
    rows = source_rows(params, params.period[0], datetime(2014, 1, 1, tzinfo=UTC)).drop_nulls(fields.label).tail(3000)
    largest = rows[fields.label].mode()[0]
    theirs = (pl.col(fields.label) == largest).cast(pl.Int8).alias("theirs")
    rows = rows.with_columns(pl.col(fields.text.name).str.slice(0, 200), theirs)
    return Fields("short_texts", (fields.text,), "theirs"), rows


def of_table() -> list[dict[str, Any]]:
    """Is a flight late? 3,000 flights spread over January to March, judged on 3,000 of April."""
    params, fields = load_params("flights_late"), load_fields("flights_late")
    start, april, end = params.period[0], datetime(2013, 4, 1, tzinfo=UTC), datetime(2013, 5, 1, tzinfo=UTC)
    rows = source_rows(params, start, end).drop_nulls(fields.label)
    before = spread(rows.filter(pl.col("event_time") < april), 3000)
    after = spread(rows.filter(pl.col("event_time") >= april), 3000)
    ours = [
        EstimatorParams(kind="estimator", family=family, parameters=parameters)
        for family, parameters in (
            ("lightgbm", {"n_estimators": 60, "learning_rate": 0.05, "num_leaves": 7, "min_child_samples": 50}),
            ("xgboost", {"n_estimators": 60, "learning_rate": 0.05, "max_depth": 3, "min_child_weight": 20}),
            ("sklearn:HistGradientBoostingClassifier", {"max_iter": 60, "learning_rate": 0.05, "max_leaf_nodes": 7}),
            ("sklearn:RandomForestClassifier", {"n_estimators": 100, "min_samples_leaf": 20}),
            ("sklearn:LogisticRegression", {"C": 0.1, "max_iter": 300}),
        )
    ]
    by_hand: dict[str, ByHand] = {"histogram gradient boosting": _boosting, "imputer + logistic regression": _imputed}
    return _compared(replace(fields, case="small_table"), before, after, ours, by_hand)


def source_rows(params: Params, start: datetime, end: datetime) -> pl.DataFrame:
    """A case's canonical rows of a stretch, in order."""
    source = part(params.case, "source")
    found = source.resolve(read_settings(home=HOME), params)
    rows: pl.DataFrame = source.rows(found, Window(start=start, end=end), params)
    return rows.sort("event_time", "id")


def _compared(
    fields: Fields,
    train: pl.DataFrame,
    judge: pl.DataFrame,
    ours: Sequence[EstimatorParams],
    by_hand: dict[str, ByHand],
) -> list[dict[str, Any]]:
    """A row for every family of ours and every one by hand; ``chosen`` is ours of the least loss on newest rows."""
    newest = round(train.height * VALIDATED)
    older, newer = train.head(train.height - newest), train.tail(newest)
    rows: list[dict[str, Any]] = []
    for model in ours:
        validation, _ = _ours(model, fields, older, newer)
        log_loss, seconds = _ours(model, fields, train, judge)
        about = f"{model.family} {model.parameters}"
        rows.append({"family": about, "log_loss": log_loss, "validation": validation, "seconds": seconds})
    least = min(rows, key=lambda row: row["validation"])
    least["chosen"] = True
    for name, fit in by_hand.items():
        began = time.process_time()
        answers = fit(fields, train, judge)
        took = time.process_time() - began
        rows.append(
            {"family": f"by hand: {name}", "log_loss": _loss(fields, judge, answers), "seconds": round(took, 2)}
        )
    return [{"case": fields.case, **row} for row in rows]


def _ours(model: EstimatorParams, fields: Fields, train: pl.DataFrame, judge: pl.DataFrame) -> tuple[float, float]:
    """Log-loss of a family as it is served, and the processor seconds of its training."""
    columns = train.select(*fields.reads, fields.label).to_dict(as_series=False)
    scales = find_scales(fields, columns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.process_time()
        estimator.train(model, ONE_CORE, fields, columns, scales, folder, nullcontext)
        took = time.process_time() - began
        about = {"scales": {field: asdict(scale) for field, scale in scales.items()}}
        write_bundle(of_estimator(fitting.load(folder / fitting.FILE), fields), fields, folder, about)
        answers = runtime.score_rows(folder, fields, judge.select(fields.reads).to_dict(as_series=False))
    return _loss(fields, judge, answers), round(took, 2)


def _loss(fields: Fields, judge: pl.DataFrame, answers: Floats) -> float:
    return round(float(measures.row_log_loss(judge[fields.label].to_numpy(), answers).mean()), 4)


def _best(rows: Iterable[dict[str, Any]], *, ours: bool) -> float:
    return min(float(row["log_loss"]) for row in rows if ("validation" in row) == ours)


def _tfidf(fields: Fields, train: pl.DataFrame, judge: pl.DataFrame) -> Floats:
    """What a user would write; of two strengths of regularisation the one that is better on the rows judged."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    assert fields.text is not None
    label = train[fields.label].to_numpy()
    texts, asked = (frame[fields.text.name].fill_null("").to_list() for frame in (train, judge))
    answers = []
    for strength in (1.0, 10.0):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        model = make_pipeline(vectorizer, LogisticRegression(C=strength, max_iter=300))
        answers.append(model.fit(texts, label).predict_proba(asked)[:, 1])
    return min(answers, key=lambda own: _loss(fields, judge, own))


def _boosting(fields: Fields, train: pl.DataFrame, judge: pl.DataFrame) -> Floats:
    """Histogram gradient boosting with native categories and missing values, stopped early on rows of its own."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.preprocessing import OrdinalEncoder

    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    categories = [field.name for field in fields.categorical]
    numbers = [field.name for field in fields.numeric]

    def matrix(frame: pl.DataFrame, known: Any) -> Floats:
        return np.hstack(
            [known(frame.select(categories).to_numpy()), frame.select(numbers).cast(pl.Float64).to_numpy()]
        )

    model = HistGradientBoostingClassifier(
        categorical_features=list(range(len(categories))), early_stopping=True, learning_rate=0.05, random_state=0
    )
    model.fit(matrix(train, codes.fit_transform), train[fields.label].to_numpy())
    answers: Floats = model.predict_proba(matrix(judge, codes.transform))[:, 1]
    return answers


def _imputed(fields: Fields, train: pl.DataFrame, judge: pl.DataFrame) -> Floats:
    """Logistic regression on numbers that an imputer filled, and a column per category."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    categories = len(fields.categorical)
    names = [field.name for field in (*fields.categorical, *fields.numeric)]

    def matrix(frame: pl.DataFrame) -> Any:
        return frame.select(names).to_numpy().astype(object)

    layout = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), list(range(categories))),
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), list(range(categories, len(names)))),
    )
    model = make_pipeline(layout, LogisticRegression(C=0.1, max_iter=300))
    model.fit(matrix(train), train[fields.label].to_numpy())
    answers: Floats = model.predict_proba(matrix(judge))[:, 1]
    return answers


if __name__ == "__main__":
    main()
