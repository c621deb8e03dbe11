"""What the labels that have arrived say about the rows that were served: pure functions on frames of the log.

``served``: ``id, event_time, version, score``, and with classes ``prediction`` (a position) and ``scores`` (a list
of all their probabilities); ``labels``: ``id, label, label_time`` (one row per id).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import numpy as np
import polars as pl

from pipelines.config import DriftParams
from pipelines.contracts import Window
from pipelines.drift.policy import LabelEvidence
from pipelines.drift.sequential import metric_drop, row_errors, row_losses


def arrived(served: pl.DataFrame, labels: pl.DataFrame, since: datetime, until: datetime) -> pl.DataFrame:
    """Served rows whose label arrived in ``(since, until]``: each label is in exactly one window."""
    fresh = labels.filter((pl.col("label_time") > since) & (pl.col("label_time") <= until))
    return served.join(fresh.select("id", "label", "label_time"), on="id", how="inner").sort("event_time", "id")


def possible(labels: pl.DataFrame, classes: int) -> pl.DataFrame:
    """Labels that are one: 0 and 1, or with ``classes`` the position of one of them. Others say nothing about a model."""
    return labels.filter(pl.col("label").is_between(0, (classes or 2) - 1))


def judge(rows: pl.DataFrame, version: int, baseline: dict[str, float], params: DriftParams, classes: int = 0) -> LabelEvidence:
    """Errors and metric drop of champion ``version`` on newly labelled ``rows``, against its holdout's ``baseline``.

    The drop needs at least ``min_rows`` labels; without a baseline there is no evidence. Its confidence is
    ``1 - q``. With ``classes`` (how many) the error is ``prediction`` against label, and the loss is that of the
    rows whose ``scores`` were logged: without enough of them errors speak alone.
    """
    own = rows.filter(pl.col("version") == version).drop_nulls("score")
    if own.is_empty() or not baseline:
        return LabelEvidence(rows=own.height)
    wrong = own["prediction"] != own["label"] if classes else pl.Series(row_errors(own["label"].to_numpy(), own["score"].to_numpy()))
    scored = own if not classes else own.filter(pl.col("scores").list.len() == classes) if "scores" in own.columns else own.clear()
    drop = None
    if scored.height >= params.min_rows:
        days = scored["event_time"].dt.date().to_physical().cast(pl.Int64).to_numpy()
        score = np.array(scored["scores"].to_list()) if classes else scored["score"].to_numpy()
        drop = metric_drop(row_losses(scored["label"].to_numpy(), score), days, baseline["loss"], baseline["loss_se"], 1 - params.q)
    return LabelEvidence(rows=own.height, errors=int(wrong.sum()), baseline=baseline["error_rate"], drop=drop)


def coverage(served: pl.DataFrame, labels: pl.DataFrame, windows: Iterable[Window], until: datetime) -> dict[str, float]:
    """By window end (ISO): the share of the window's rows whose label arrived by ``until``; windows without rows are left out."""
    known = served.join(labels.filter(pl.col("label_time") <= until).select("id", "label_time"), on="id", how="left")
    found = {}
    for window in windows:
        rows = known.filter((pl.col("event_time") >= window.start) & (pl.col("event_time") < window.end))
        if rows.height:
            found[window.end.isoformat()] = 1 - rows["label_time"].null_count() / rows.height
    return found
