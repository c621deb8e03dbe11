"""What the scores of one holdout say of a challenger and of the champion: in all, by slice and by class.

Labels are positions of ``fields.classes``, 0 and 1, or numbers. Scores are ``[n]``, with classes ``[n, K]``; a
champion's are None where there is no champion. ``metrics`` are those that fit (evaluation/metrics.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.evaluation.metrics import Metrics
from pipelines.fields import Fields
from pipelines.measures import class_f1, confusion

Labels = NDArray[Any]
Scores = NDArray[np.float64]
BASELINE = "@baseline"
"""The column of a baseline's answers, which no field can be named."""


def with_class_names(rows: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """The rows with the names of their classes in place of positions: ``gate.slices`` may name the label."""
    if not fields.classes:
        return rows
    names = dict(enumerate(fields.classes))
    return rows.with_columns(pl.col(fields.label).replace_strict(names, return_dtype=pl.String))


def scored(
    rows: pl.DataFrame,
    fields: Fields,
    challenger: Scores,
    champion: Scores | None,
    baseline: Scores,
    columns: Sequence[str],
) -> pl.DataFrame:
    """What is kept of every row: ``id, label, challenger, champion`` and the ``columns`` of slices.

    Without a champion the answers of the ``baseline``, too.
    """
    named = with_class_names(rows, fields)
    nobody = [None] * rows.height
    return rows.select(
        "id",
        pl.col(fields.label).alias("label"),
        _column("challenger", challenger, fields),
        _column("champion", nobody if champion is None else champion, fields),
        *(named[name] for name in columns),
        *([_column(BASELINE, baseline, fields)] if champion is None else []),
    )


def _column(name: str, scores: Any, fields: Fields) -> pl.Series:
    kind: Any = pl.Float64()
    if fields.classes:
        kind = pl.Array(pl.Float64, fields.outputs)
    return pl.Series(name, scores, dtype=kind)


def measured(label: Labels, scores: Scores | None, metrics: Metrics) -> dict[str, float | None] | None:
    """The metrics of some scores; None of a champion that there is not."""
    if scores is None:
        return None
    return metrics(label, scores)


def positives(label: Labels, fields: Fields) -> int:
    """Rows of the positive class; with classes or numbers those of another one than the commonest."""
    if not len(label):
        return 0
    if fields.number is not None:
        return len(label) - int(np.unique(label, return_counts=True)[1].max())
    if not fields.classes:
        return int(label.sum())
    return len(label) - int(np.bincount(label).max())


def by_slice(
    label: Labels,
    challenger: Scores,
    champion: Scores | None,
    masks: Mapping[str, NDArray[np.bool_]],
    metrics: Metrics,
) -> dict[str, dict[str, Any]]:
    """Of every mask ``[n]`` by its name: how many rows there are (``n``), and the metrics of both."""
    found: dict[str, dict[str, Any]] = {}
    for name, mask in masks.items():
        ours = metrics(label[mask], challenger[mask])
        theirs = None
        if champion is not None:
            theirs = metrics(label[mask], champion[mask])
        found[name] = {"n": int(mask.sum()), "challenger": ours, "champion": theirs}
    return found


def by_class(label: Labels, challenger: Scores, fields: Fields) -> dict[str, Any]:
    """With classes the challenger's ``confusion`` and F1 of each of the ``classes``; nothing of other labels."""
    if not fields.classes:
        return {}
    table = confusion(label, challenger)
    return {"classes": list(fields.classes), "confusion": table.tolist(), "class_f1": class_f1(table)}
