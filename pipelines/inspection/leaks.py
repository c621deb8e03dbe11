"""Columns that know the answer: what a model must not be given, as nobody has it when the answer is asked for.

Each is judged alone, by a tree of limited depth that learns from the older rows and is held against the newest fifth;
and by where it is missing. The thresholds are far above what an honest column reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import measures
from pipelines.fields import Attribute, Binary, Categorical, Field, Flag, Moment, Number, Numeric, Target, Text, Vector

AUC, EXPLAINED = 0.985, 0.98
"""From here on a column alone tells the answer: the area under the ROC curve, or the share of what there is to tell."""
MOST_ROWS, LEAST_ROWS = 10_000, 100
"""So many rows, evenly spaced in time, are looked at; fewer than the second say nothing."""
DEPTH = 4
HOLES = 50
"""Fewer rows without a value say nothing of the labels beside them."""
SURE = -20.0
"""Logarithm of the chance that rows which hang together by chance only have one label: two in a billion."""


@dataclass(frozen=True)
class Leak:
    """A column, and in one sentence what it gives away."""

    column: str
    why: str


def found(
    frame: pl.DataFrame, fields: Iterable[Field], label: str, target: Target, shown: dict[str, str]
) -> list[Leak]:
    """The leaks among the declared fields of rows that are in order of time; ``shown``: each field's column.

    ``frame`` has ``event_time``, the fields as they are declared, and the label as it is learned, null where unknown.
    """
    known = frame.filter(pl.col(label).is_not_null())
    judged = _spread(known)
    answers = judged[label].to_numpy().astype(np.float64)
    leaks = []
    for field in fields:
        if isinstance(field, Attribute | Text | Vector):
            continue
        said = [*_unknown_together(frame, field, label), *_holes(judged, field, answers, target)]
        if not said:
            said = list(_alone(judged, field, answers, target))
        leaks += [Leak(shown[field.name], why) for why in said[:1]]
    return leaks


def _spread(rows: pl.DataFrame) -> pl.DataFrame:
    if rows.height <= MOST_ROWS:
        return rows
    return rows[[position * rows.height // MOST_ROWS for position in range(MOST_ROWS)]]


# --- where it is missing --------------------------------------------------------------------------


def _unknown_together(frame: pl.DataFrame, field: Field, label: str) -> Iterator[str]:
    """It is missing just where the label is: both are written down afterwards."""
    if not field.missing:
        return
    hole, unknown = frame[field.name].is_null(), frame[label].is_null()
    waiting = int(unknown.sum())
    if waiting < HOLES // 5 or waiting == frame.height:
        return
    where_unknown, where_known = (
        float((hole & unknown).sum()) / waiting,
        float((hole & ~unknown).sum()) / (frame.height - waiting),
    )
    if where_unknown >= 0.99 and where_known <= 0.01:
        yield (
            f"it is missing in {where_unknown:.0%} of the {waiting:,} rows whose label is unknown and in "
            f"{where_known:.1%} of the others: it is written down with the label"
        )


def _holes(rows: pl.DataFrame, field: Field, answers: NDArray[np.float64], target: Target) -> Iterator[str]:
    """Rows without a value all have one label, or hardly any other rows have theirs."""
    if not field.missing:
        return
    holes = rows[field.name].is_null().to_numpy()
    missing = int(holes.sum())
    for part, words in ((holes, "without"), (~holes, "with")):
        count = int(part.sum())
        if min(count, missing, len(holes) - missing) < HOLES:
            continue
        first = answers[part][0]
        usual = float((answers == first).mean())
        # What is as usual elsewhere is chance; what is only here is none.
        if (answers[part] == first).all() and usual < 1.0 and count * math.log(usual) < SURE:
            named = _answer(first, target)
            yield f"all {count:,} rows {words} a value have the label {named}, of all rows {usual:.1%}"
            return


def _answer(value: float, target: Target) -> str:
    names = getattr(target, "values", ())
    return repr(names[int(value)]) if names else f"{value:g}"


# --- what it says alone -----------------------------------------------------------------------------


def _alone(rows: pl.DataFrame, field: Field, answers: NDArray[np.float64], target: Target) -> Iterator[str]:
    if len(answers) < LEAST_ROWS:
        return
    cut = len(answers) - len(answers) // 5
    newest = f"the newest {len(answers) - cut:,}"
    for inputs, beside in _inputs(rows, field, answers[:cut], target):
        if isinstance(target, Number):
            share = _explained(inputs, answers, cut)
            if share >= EXPLAINED:
                yield f"{beside}alone it explains {share:.1%} of the label's variance (on {newest} rows)"
                return
        elif isinstance(target, Binary):
            auc = _auc(inputs, answers, cut)
            if auc is not None and auc >= AUC:
                yield f"{beside}alone it has a ROC-AUC of {auc:.3f} (on {newest} rows)"
                return
        else:
            share = _told(inputs, answers, cut)
            if share >= EXPLAINED:
                yield f"{beside}alone it tells {share:.1%} of the classes apart (on {newest} rows)"
                return


def _inputs(
    rows: pl.DataFrame, field: Field, older: NDArray[np.float64], target: Target
) -> Iterator[tuple[NDArray[np.float64], str]]:
    """The field as columns of numbers, NaN where it is missing; of a moment its time and its age."""
    values = rows[field.name]
    if isinstance(field, Numeric):
        yield _column(values.cast(pl.Float64, strict=False)), ""
    elif isinstance(field, Moment):
        since = (values - rows["event_time"]).dt.total_seconds().cast(pl.Float64)
        yield _column(since), "by its distance to the event "
    elif isinstance(field, Categorical | Flag):
        yield _means(values.cast(pl.String).fill_null(""), older, target), ""


def _column(values: pl.Series) -> NDArray[np.float64]:
    found = values.to_numpy().astype(np.float64, copy=True)
    found[np.isinf(found)] = np.nan
    return found[:, None]


def _means(values: pl.Series, older: NDArray[np.float64], target: Target) -> NDArray[np.float64]:
    """Each value as what the older rows say of it: its mean label, or the share of every class."""
    codes = values.rank("dense").to_numpy().astype(np.int64) - 1
    classes = len(getattr(target, "values", ()))
    known = np.eye(classes)[older.astype(np.int64)] if classes else older[:, None]
    old = codes[: len(older)]
    rows = np.bincount(old, minlength=codes.max() + 1)
    sums = np.stack([np.bincount(old, weights=part, minlength=codes.max() + 1) for part in known.T], axis=1)
    means = np.where(rows[:, None] > 0, sums / np.maximum(rows, 1)[:, None], known.mean(axis=0))
    found: NDArray[np.float64] = means[codes]
    return found


def _leaf(rows: int) -> dict[str, Any]:
    return {"max_depth": DEPTH, "min_samples_leaf": max(2, min(20, rows // 50)), "random_state": 0}


def _explained(inputs: NDArray[np.float64], answers: NDArray[np.float64], cut: int) -> float:
    """R squared on the newest rows. A straight line beside the tree: a tree of few leaves tells no line whole."""
    from sklearn.tree import DecisionTreeRegressor

    new = answers[cut:]
    spread = float(((new - new.mean()) ** 2).sum())
    if spread == 0.0:
        return 0.0
    tree = DecisionTreeRegressor(**_leaf(cut) | {"max_depth": 2 * DEPTH}).fit(inputs[:cut], answers[:cut])
    shares = [1 - float(((new - tree.predict(inputs[cut:])) ** 2).sum()) / spread]
    whole = np.isfinite(inputs[:, 0])
    if (
        inputs.shape[1] == 1
        and whole[:cut].sum() >= LEAST_ROWS // 2
        and whole[cut:].all()
        and np.ptp(inputs[:cut][whole[:cut], 0])
    ):
        slope, start = np.polyfit(inputs[:cut][whole[:cut], 0], answers[:cut][whole[:cut]], 1)
        shares.append(1 - float(((new - slope * inputs[cut:, 0] - start) ** 2).sum()) / spread)
    return max(shares)


def _auc(inputs: NDArray[np.float64], answers: NDArray[np.float64], cut: int) -> float | None:
    from sklearn.tree import DecisionTreeClassifier

    if len(np.unique(answers[:cut])) < 2:
        return None
    tree = DecisionTreeClassifier(**_leaf(cut)).fit(inputs[:cut], answers[:cut])
    return measures.roc_auc(answers[cut:], tree.predict_proba(inputs[cut:])[:, 1])


def _told(inputs: NDArray[np.float64], answers: NDArray[np.float64], cut: int) -> float:
    """How much of what the commonest class leaves untold is told on the newest rows."""
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(**_leaf(cut) | {"max_depth": 3 * DEPTH, "min_samples_leaf": 2})
    tree.fit(inputs[:cut], answers[:cut])
    new = answers[cut:]
    commonest = float(np.unique(new, return_counts=True)[1].max()) / len(new)
    if commonest == 1.0:
        return 0.0
    return (float((tree.predict(inputs[cut:]) == new).mean()) - commonest) / (1 - commonest)
