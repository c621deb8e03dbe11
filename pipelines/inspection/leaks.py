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
FEW = 3
"""Of fewer rows of one label on either side chance makes a curve like a leak's, in one column of some dozens."""
GROUPS = 100
"""A column of more values is none of groups."""
HOLES = 50
"""Fewer rows without a value say nothing of the labels beside them."""
SURE = -20.0
"""Logarithm of the chance that rows which hang together by chance only have one label: two in a billion."""


@dataclass(frozen=True)
class Leak:
    """A column, and in one sentence what it gives away. ``with_label``: a time that is written down with the label."""

    column: str
    why: str
    with_label: bool = False


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
        if isinstance(field, Attribute | Vector):
            continue
        together = list(_unknown_together(frame, field, label))
        said = next(iter(together), None) or next(_told_by(judged, field, answers, target), None)
        if said is not None:
            leaks.append(Leak(shown[field.name], said, bool(together) and isinstance(field, Moment)))
    return leaks


def _told_by(rows: pl.DataFrame, field: Field, answers: NDArray[np.float64], target: Target) -> Iterator[str]:
    """What a field's holes say, what its values say alone, and whether they are made of the label; of a text its words.

    Asked for one by one: the first that says something is enough.
    """
    if isinstance(field, Text):
        yield from _words(rows[field.name], answers, target)
        return
    yield from _holes(rows, field, answers, target)
    yield from _alone(rows, field, answers, target)
    yield from _made_of_label(rows[field.name], field, answers, target)


def by_time(frame: pl.DataFrame, label: str, target: Target) -> str:
    """How the event's time alone tells a yes from a no, or the classes apart, or "".

    Judged on every fifth row: that the newest rows all have one label is what it looks for.
    """
    rows = _spread(frame.filter(pl.col(label).is_not_null()))
    if isinstance(target, Number) or rows.height < LEAST_ROWS:
        return ""
    # The rows that judge stand behind the others, as everywhere here.
    fifth = np.arange(rows.height) % 5 == 0
    order = np.concatenate([np.flatnonzero(~fifth), np.flatnonzero(fifth)])
    answers = rows[label].to_numpy().astype(np.float64)[order]
    since = rows["event_time"].dt.timestamp("us").to_numpy().astype(np.float64)[order][:, None]
    cut = int((~fifth).sum())
    if isinstance(target, Binary):
        auc = _auc(since, answers, cut)
        return f"alone it has a ROC-AUC of {auc:.3f}" if auc is not None and auc >= AUC else ""
    share = _told(since, answers, cut)
    return f"alone it tells {share:.1%} of the classes apart" if share >= EXPLAINED else ""


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


# --- what is made of the label ---------------------------------------------------------------------


def _made_of_label(values: pl.Series, field: Field, answers: NDArray[np.float64], target: Target) -> Iterator[str]:
    """Every label has one value of the column, which has fewer: a group of classes, a range of a number.

    Such a column does not tell the label whole, and no other column hangs on it like this by chance.
    """
    if not isinstance(field, Categorical | Flag | Numeric):
        return
    pairs = pl.DataFrame({"value": values.cast(pl.String), "label": answers}).drop_nulls()
    groups = pairs.group_by("value").agg(
        pl.len().alias("rows"), pl.col("label").min().alias("low"), pl.col("label").max().alias("high")
    )
    if not 2 <= groups.height <= GROUPS or pairs.height < LEAST_ROWS:
        return
    if isinstance(target, Number):
        ordered = groups.sort("low")
        apart = bool((ordered["high"][:-1] < ordered["low"][1:]).all())
        # Of all orders of the rows those in which the groups stand one behind another.
        chance = sum(math.lgamma(rows + 1) for rows in groups["rows"]) - math.lgamma(pairs.height + 1)
        if apart and chance + math.lgamma(groups.height + 1) < SURE:
            yield f"each of its {groups.height} values has a range of the label of its own: it is made of the label"
        return
    by_label = pairs.group_by("label").agg(pl.col("value").n_unique().alias("values"), pl.len().alias("rows"))
    usual = math.log(int(groups["rows"].max()) / pairs.height)  # type: ignore[arg-type] # a number
    chance = sum((rows - 1) * usual for rows in by_label["rows"])
    if (by_label["values"] == 1).all() and chance < SURE:
        yield f"each label has one of its {groups.height} values in all {pairs.height:,} rows: it is made of the label"


def _words(texts: pl.Series, answers: NDArray[np.float64], target: Target) -> Iterator[str]:
    """A word that alone tells a yes from a no."""
    if not isinstance(target, Binary) or len(answers) < LEAST_ROWS:
        return
    words = pl.DataFrame({"word": texts.str.to_lowercase().str.extract_all(r"\w+").list.unique(), "label": answers})
    yes, no = float(answers.sum()), float((1 - answers).sum())
    counts = words.explode("word").drop_nulls().group_by("word").agg(pl.col("label").sum().alias("yes"), pl.len())
    share = counts.select(
        "word", auc=0.5 + 0.5 * (pl.col("yes") / yes - (pl.col("len") - pl.col("yes")) / no).abs()
    ).sort("auc", "word", descending=True)
    if share.height and share["auc"][0] >= AUC:
        yield f"its word {share['word'][0]!r} alone has a ROC-AUC of {share['auc'][0]:.3f} (in {len(answers):,} rows)"


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

    yes = int(answers[cut:].sum())
    if len(np.unique(answers[:cut])) < 2 or min(yes, len(answers) - cut - yes) < FEW:
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
