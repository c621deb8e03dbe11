"""The two models that Perennial is compared with: the frozen first champion, and retraining without a gate."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cases
from pipelines.errors import TooFewRows
from pipelines.fields import Fields
from pipelines.line import runner
from pipelines.line.order import DATASET, EXPORT, INGEST, TRAIN, VALIDATE
from pipelines.line.step import Run
from pipelines.params_file import load_params
from pipelines.settings import read_settings

if TYPE_CHECKING:
    import polars as pl

Known = dict[Path, dict[str, Any]]
"""Scores by bundle and row id."""
UNGATED = (INGEST, VALIDATE, DATASET, TRAIN, EXPORT)


def retrain_ungated(case: str, home: Path, as_of: datetime) -> Path | None:
    """Train on the rows that a run at ``as_of`` trains on, with the same steps, and no gate; returns the bundle.

    Where a run at ``as_of`` has already trained, every step is a no-op and its candidate is taken. None if
    too few labels have arrived to train at all.
    """
    params, settings = load_params(case), read_settings(home=home)
    run = Run(params, settings, as_of)
    try:
        for step in UNGATED:
            runner.run(step, run)
    except TooFewRows:
        return None
    return run.dir / EXPORT.name


def metric_names(fields: Fields) -> dict[str, bool]:
    """The metrics a case is shown by, the first one first, and whether more of it is better."""
    if fields.number is not None:
        return {"rmse": False, "mae": False}
    if fields.classes:
        return {"macro_f1": True, "log_loss": False, "accuracy": True}
    return {"roc_auc": True, "log_loss": False}


def compare(case: str, home: Path, moments: list[datetime], frame: pl.DataFrame) -> Known:
    """What the frozen model and the newest of the ungated ones answer to ``frame``.

    Their trainings ended at ``moments``, the frozen one's at the first; some have no bundle, as too few labels had
    arrived.
    """
    bundles = [
        bundle
        for moment in moments
        if (bundle := read_settings(home=home).run_dir(case, moment) / EXPORT.name).exists()
    ]
    known: Known = {}
    for bundle in {bundles[0], bundles[-1]}:
        scores(case, bundle, frame, known)
    return known


def scores(case: str, bundle: Path, frame: pl.DataFrame, known: Known, threads: int = 1) -> list[Any]:
    """Probabilities ``[n]`` or ``[n][K]`` of a bundle for canonical rows, on the runtime that serves.

    ``known`` holds what was scored before and takes what is new: the frozen model, the champion and the newest
    candidate are often one and the same, and a text costs a core some 20 ms.
    """
    import polars as pl

    from pipelines import runtime

    fields = cases.load_fields(case)
    mine = known.setdefault(bundle.resolve(), {})
    new = frame.filter(~pl.col("id").is_in(list(mine)))
    found = runtime.score_rows(bundle, fields, {name: new[name].to_list() for name in fields.reads}, threads=threads)
    mine.update(zip(new["id"], found, strict=True))
    return [mine[id_] for id_ in frame["id"]]


def metrics(fields: Fields, labels: list[float], predicted: Any) -> dict[str, float | None]:
    """The case's metrics of one window, as the evaluate step computes them.

    None where undefined, or without ``predicted``.
    """
    names = metric_names(fields)
    if predicted is None:
        return dict.fromkeys(names)
    import numpy as np

    from pipelines.evaluation import metrics as evaluation

    kind = np.int16 if fields.number is None else np.float64
    found = evaluation.metrics_of(fields)(np.array(labels, kind), np.array(predicted))
    return {name: found[name] for name in names}


def unequal_answers(
    case: str,
    frame: pl.DataFrame,
    answers: dict[str, tuple[int, float, int | str]],
    bundles: dict[int, Path],
    known: Known,
    tolerance: float = 1e-5,
) -> int:
    """How many answers are not those of ONNX Runtime on the version that they name.

    A score may differ by ``tolerance``, as texts are padded to other lengths and batches are cut otherwise;
    the prediction must be one whose score is the highest within it.
    """
    import polars as pl

    fields = cases.load_fields(case)
    if fields.number is not None:
        return _unequal_numbers(case, frame, answers, bundles, known, tolerance)
    names = {name: position for position, name in enumerate(fields.classes or (0, 1))}
    threads = 1 if fields.text is None else os.cpu_count() or 1
    wrong = 0
    for version, bundle in bundles.items():
        rows = frame.filter(pl.col("id").is_in([id_ for id_, (named, *_) in answers.items() if named == version]))
        for id_, expected in zip(rows["id"], scores(case, bundle, rows, known, threads), strict=True):
            _, score, prediction = answers[id_]
            own = expected
            best = expected
            if fields.classes:
                own = expected[names[prediction]]
                best = expected.max()
            right = abs(score - own) <= tolerance and best - own <= tolerance
            wrong += not (right and (fields.classes or names[prediction] == (score >= 0.5)))
    return wrong


def _unequal_numbers(
    case: str,
    frame: pl.DataFrame,
    answers: dict[str, tuple[int, float, int | str]],
    bundles: dict[int, Path],
    known: Known,
    tolerance: float,
) -> int:
    """The same of predicted numbers, which may differ by ``tolerance`` times the largest of them."""
    import polars as pl

    wrong = 0
    for version, bundle in bundles.items():
        rows = frame.filter(pl.col("id").is_in([id_ for id_, (named, *_) in answers.items() if named == version]))
        expected = scores(case, bundle, rows, known)
        allowed = tolerance * max((abs(own) for own in expected), default=0.0)
        missed = [abs(answers[id_][1] - own) for id_, own in zip(rows["id"], expected, strict=True)]
        wrong += len([by for by in missed if by > allowed])
    return wrong


def summarise(months: list[dict[str, Any]], metric: str, *, higher_is_better: bool) -> dict[str, Any]:
    """A metric's table: per month, unweighted means and row-weighted means over the months that have all three."""
    table = [
        {
            "month": m["month"],
            "n": m["n"],
            "positives": m["positives"],
            **{name: m[name][metric] for name in ("frozen", "perennial", "ungated")},
        }
        for m in months
    ]
    out: dict[str, Any] = {"higher_is_better": higher_is_better, "per_month": table}
    for name in ("frozen", "perennial", "ungated"):
        known = [row for row in table if row[name] is not None]
        rows = sum(row["n"] for row in known)
        out[f"{name}_mean"] = sum(row[name] for row in known) / len(known) if known else None
        out[f"{name}_mean_weighted"] = sum(row[name] * row["n"] for row in known) / rows if rows else None
    return out
