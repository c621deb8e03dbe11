"""The two models that Perennial is compared with: the frozen first champion, and retraining without a gate."""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cases
from pipelines.config import Settings, load_params
from pipelines.errors import TooFewRows
from pipelines.fields import encode

if TYPE_CHECKING:
    import polars as pl

UNGATED = ("ingest", "validate", "dataset", "train", "export")


def retrain_ungated(case: str, home: Path, as_of: datetime) -> Path | None:
    """Train on the rows that a run at ``as_of`` trains on, with the same steps, and no gate; returns the bundle.

    Where a run at ``as_of`` has already trained, every step is a no-op and its candidate is taken. None if
    too few labels have arrived to train at all.
    """
    params, settings = load_params(case), Settings(home=home)
    run_dir = settings.run_dir(case, as_of)
    try:
        for step in UNGATED:
            import_module(f"pipelines.steps.{step}").run(params, settings, run_dir, as_of)
    except TooFewRows:
        return None
    return run_dir / "export"


def scores(case: str, bundle: Path, frame: pl.DataFrame) -> list[float]:
    """Probabilities of a bundle for canonical rows, on the runtime that serves."""
    from pipelines import runtime

    fields = cases.load_fields(case)
    return [float(score) for score in runtime.score(bundle, encode(fields, {name: frame[name].to_list() for name in fields.names}))]


def metrics(labels: list[int], predicted: list[float] | None) -> dict[str, float | None]:
    """ROC-AUC and log-loss of one window, as the evaluate step computes them; None where undefined."""
    if predicted is None:
        return {"roc_auc": None, "log_loss": None}
    import numpy as np

    from pipelines.evaluation import metrics as evaluation

    found = evaluation.metrics(np.array(labels, np.int8), np.array(predicted))
    return {"roc_auc": found["roc_auc"], "log_loss": found["log_loss"]}


def unequal_answers(case: str, frame: pl.DataFrame, answers: dict[str, tuple[int, float]], bundles: dict[int, Path], tolerance: float = 1e-5) -> int:
    """How many answers differ from ONNX Runtime on the version that they name by more than ``tolerance``."""
    import polars as pl

    wrong = 0
    for version, bundle in bundles.items():
        rows = frame.filter(pl.col("id").is_in([id_ for id_, (named, _) in answers.items() if named == version]))
        if len(rows):
            expected = scores(case, bundle, rows)
            wrong += sum(abs(answers[id_][1] - score) > tolerance for id_, score in zip(rows["id"], expected, strict=True))
    return wrong


def summarise(months: list[dict[str, Any]], metric: str, *, higher_is_better: bool) -> dict[str, Any]:
    """A metric's table: per month, unweighted means and row-weighted means over the months that have all three."""
    table = [
        {"month": m["month"], "n": m["n"], "positives": m["positives"], **{name: m[name][metric] for name in ("frozen", "perennial", "ungated")}}
        for m in months
    ]
    out: dict[str, Any] = {"higher_is_better": higher_is_better, "per_month": table}
    for name in ("frozen", "perennial", "ungated"):
        known = [row for row in table if row[name] is not None]
        rows = sum(row["n"] for row in known)
        out[f"{name}_mean"] = sum(row[name] for row in known) / len(known) if known else None
        out[f"{name}_mean_weighted"] = sum(row[name] * row["n"] for row in known) / rows if rows else None
    return out
