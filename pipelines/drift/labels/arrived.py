"""What the labels that are known say about the rows that were served: pure functions on frames of the log.

``served``: ``id, event_time, version, score``, and with classes ``prediction`` (a position) and ``scores`` (a list of
all their probabilities). ``labels``: ``id, label, label_time`` (the time that was stated), any number of lines per id,
of an id the one that counts first.

A label is counted once, when it is *mature*: it is known, and its row has the age that the case declares
(``label_delay_days``). What is corrected later is reported and not counted again: both ways to correct a running
e-value, to swap a counted label and to count it again, break its guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import Window
from pipelines.drift.evidence import LabelEvidence
from pipelines.drift.labels.sequential import capped, log_e_of_shares, log_e_value, metric_drop
from pipelines.drift_report import Corrections
from pipelines.fields import Binary, Classes, Number, Target
from pipelines.measures import design_effect, row_errors, row_log_loss, row_squared_error
from pipelines.params import DriftParams

BINARY = Binary()


def classes_of(target: Target) -> int:
    """How many classes there are; 0: the target has none."""
    return len(target.values) if isinstance(target, Classes) else 0


def days_of(rows: pl.DataFrame) -> NDArray[np.int64]:
    """The UTC day of each row ``[n]``, in days since 1970."""
    return rows["event_time"].dt.date().to_physical().cast(pl.Int64).to_numpy()


def mature(served: pl.DataFrame, labels: pl.DataFrame, until: datetime, age: timedelta) -> pl.DataFrame:
    """The served rows of at least ``age`` at ``until``, of those whose label was known by then, with it."""
    known = labels.filter(pl.col("label_time") <= until).unique("id", keep="first", maintain_order=True)
    old = served.filter(pl.col("event_time") <= until - age)
    return old.join(known.select("id", "label", "label_time"), on="id", how="inner").sort("event_time", "id")


def counted(
    served: pl.DataFrame, labels: pl.DataFrame, since: datetime, age: timedelta, taken_over: datetime | None = None
) -> pl.DataFrame:
    """What runs up to the one whose window ended at ``since`` have counted.

    ``id, label``, the label as it was known then.

    Only the lines that are marked ``before`` count, where there is such a column. Runs before ``taken_over`` counted by
    the stated time alone, however young the row was: of those marked ``taken_over`` every label stated by then.
    """
    known = mature(_marked(served, "before"), _marked(labels, "before"), since, timedelta(0))
    old = pl.col("event_time") <= since - age
    if taken_over is not None:
        theirs = mature(_marked(served, "taken_over"), _marked(labels, "taken_over"), taken_over, timedelta(0))
        old |= pl.col("id").is_in(theirs["id"].implode())
    return known.filter(old).select("id", "label")


def fresh(
    served: pl.DataFrame, labels: pl.DataFrame, until: datetime, age: timedelta, counted: pl.DataFrame
) -> pl.DataFrame:
    """The rows whose label counts in the window that ends at ``until``: mature now, and not ``counted`` before."""
    return mature(served, labels, until, age).join(counted.select("id"), on="id", how="anti")


def corrected(served: pl.DataFrame, labels: pl.DataFrame, until: datetime, counted: pl.DataFrame) -> pl.DataFrame:
    """The rows that were ``counted`` before and have another label since then.

    ``label`` now, ``counted`` what was counted.
    """
    then = counted.select("id", counted="label")
    return (
        mature(served, labels, until, timedelta(0))
        .join(then, on="id", how="inner")
        .filter(pl.col("label") != pl.col("counted"))
    )


def _marked(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    return frame.filter(name) if name in frame.columns else frame


def as_counted(
    rows: pl.DataFrame, labels: pl.DataFrame, label: str, until: datetime, age: timedelta, least: int
) -> pl.DataFrame:
    """Canonical ``rows`` with the ``label`` that a drift run would count of them.

    As it was when it was mature, null where it is not yet.

    A champion is then judged against labels of the same age. A row without a line in ``labels`` has the label that it
    came with. Fewer than ``least`` mature ones (labels come sooner than was declared) are no baseline: then all count
    as they are.
    """
    lines = labels.join(rows.select("id", "event_time"), on="id", how="inner")
    ripe = pl.max_horizontal(pl.col("label_time").min().over("id"), pl.col("event_time") + age)
    then = (
        lines.filter(pl.col("label_time") <= ripe)
        .unique("id", keep="first", maintain_order=True)
        .select("id", _then="label")
    )
    old = pl.when(pl.col("event_time") <= until - age).then(pl.coalesce("_then", label))
    found = (
        rows.join(then, on="id", how="left", maintain_order="left")
        .with_columns(old.cast(rows[label].dtype).alias(label))
        .drop("_then")
    )
    return found if found[label].count() >= least else rows


def possible(labels: pl.DataFrame, target: Target) -> pl.DataFrame:
    """Labels that are one: 0 and 1, the position of a class, or a number within the target's bounds.

    Others say nothing about a model.
    """
    if isinstance(target, Number):
        numbers = labels.with_columns(pl.col("label").cast(pl.Float64))
        return numbers.filter(pl.col("label").is_finite() & pl.col("label").is_between(*target.bounds))
    label = pl.col("label")
    found = labels.filter(label.is_between(0, (classes_of(target) or 2) - 1))
    if not labels.schema["label"].is_float():
        return found
    return found.filter(label == label.round()).with_columns(label.cast(pl.Int16))


def not_early(labels: pl.DataFrame, served: pl.DataFrame) -> pl.DataFrame:
    """Without the labels that are stated to be of before their row: nobody can have known them.

    Training refuses them too.
    """
    times = served.select("id", _row="event_time")
    joined = labels.join(times, on="id", how="left", maintain_order="left")
    return joined.filter(pl.col("_row").is_null() | (pl.col("label_time") >= pl.col("_row"))).drop("_row")


def judge(
    rows: pl.DataFrame, version: int, baseline: dict[str, Any], params: DriftParams, target: Target = BINARY
) -> LabelEvidence:
    """Errors and metric drop of champion ``version`` on newly labelled ``rows``, against its holdout's ``baseline``.

    The drop needs at least ``min_rows`` labels; without a baseline there is no evidence. Its confidence is
    ``1 - q``. With classes the error is ``prediction`` against label, and the loss is that of the rows whose
    ``scores`` were logged: without enough of them errors speak alone. Of a number the loss is the squared error, an
    error is one that only a tenth of the holdout's were above, and the sequential test is of squared errors as shares
    of their cap. Rows of one day are alike: of an e-value's evidence so many count as one.
    """
    own = rows.filter(pl.col("version") == version).drop_nulls("score")
    if own.is_empty() or not baseline:
        return LabelEvidence(rows=own.height)
    if isinstance(target, Number):
        scored, loss = own, "squared error"
        losses = row_squared_error(own["label"].to_numpy(), own["score"].to_numpy())
        errors, usual = int((losses > baseline["large"]).sum()), baseline["capped_rate"]
        shares = capped(losses, baseline["cap"])
        log_e = log_e_of_shares(shares, usual)
    else:
        classes, loss = classes_of(target), "log-loss"
        scored, losses = _log_losses(own, classes)
        shares = _wrong(own, "label", classes)
        errors, usual = int(shares.sum()), baseline["error_rate"]
        log_e = log_e_value(errors, own.height, usual)
    drop = None
    if scored.height >= params.min_rows:
        drop = metric_drop(losses, days_of(scored), baseline["loss"], baseline["loss_se"], 1 - params.q)
    spread = design_effect(shares, days_of(own))
    return LabelEvidence(rows=own.height, errors=errors, baseline=usual, drop=drop, log_e=log_e / spread, loss=loss)


def _log_losses(own: pl.DataFrame, classes: int) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """The rows that a log-loss can be computed of, with classes those whose ``scores`` were logged, and it ``[n]``."""
    if not classes:
        return own, row_log_loss(own["label"].to_numpy(), own["score"].to_numpy())
    if "scores" not in own.columns:
        return own.clear(), np.empty(0)
    scored = own.filter(pl.col("scores").list.len() == classes)
    scores = np.array(scored["scores"].to_list(), np.float64).reshape(-1, classes)
    return scored, row_log_loss(scored["label"].to_numpy(), scores)


def corrections(rows: pl.DataFrame, version: int, target: Target = BINARY) -> Corrections:
    """Labels of champion ``version`` that were :func:`corrected`.

    ``rows``, and how many more ``errors`` there are by them (of numbers none are counted). Counted nowhere.
    """
    own = rows.filter(pl.col("version") == version).drop_nulls("score")
    if isinstance(target, Number):
        return Corrections(rows=own.height)
    classes = classes_of(target)
    return Corrections(
        rows=own.height, errors=int((_wrong(own, "label", classes) - _wrong(own, "counted", classes)).sum())
    )


def _wrong(rows: pl.DataFrame, label: str, classes: int) -> NDArray[np.float64]:
    """1 where the answer is another than the ``label``, else 0 ``[n]``."""
    if classes:
        return (rows["prediction"] != rows[label]).cast(pl.Float64).to_numpy()
    return row_errors(rows[label].to_numpy(), rows["score"].to_numpy()).astype(np.float64)


def coverage(
    served: pl.DataFrame, labels: pl.DataFrame, windows: Iterable[Window], until: datetime, age: timedelta
) -> dict[str, float]:
    """By window end (ISO): the share of the window's rows whose label is mature at ``until``.

    Windows without rows are left out.
    """
    spoken = served.join(mature(served, labels, until, age).select("id", "label_time"), on="id", how="left")
    found = {}
    for window in windows:
        rows = spoken.filter((pl.col("event_time") >= window.start) & (pl.col("event_time") < window.end))
        if rows.height:
            found[window.end.isoformat()] = 1 - rows["label_time"].null_count() / rows.height
    return found
