"""What the labels that have arrived say about the rows that were served: pure functions on frames of the log.

``served``: ``id, event_time, version, score``, and with classes ``scores`` (a list of all their probabilities);
``labels``: ``id, label, label_time`` (one row per id).
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


def judge(rows: pl.DataFrame, version: int, baseline: dict[str, float], params: DriftParams) -> LabelEvidence:
    """Errors and metric drop of champion ``version`` on newly labelled ``rows``, against its holdout's ``baseline``.

    The drop needs at least ``min_rows`` labels; without a baseline there is no evidence. Its confidence is
    ``1 - q``.
    """
    own = rows.filter(pl.col("version") == version).drop_nulls("scores" if "scores" in rows.columns else "score")
    if own.is_empty() or not baseline:
        return LabelEvidence(rows=own.height)
    label = own["label"].cast(pl.Int64).to_numpy()
    score = np.stack(own["scores"].to_list()) if "scores" in own.columns else own["score"].to_numpy()
    drop = None
    if own.height >= params.min_rows:
        days = own["event_time"].dt.date().to_physical().cast(pl.Int64).to_numpy()
        drop = metric_drop(row_losses(label, score), days, baseline["loss"], baseline["loss_se"], 1 - params.q)
    return LabelEvidence(rows=own.height, errors=int(row_errors(label, score).sum()), baseline=baseline["error_rate"], drop=drop)


def coverage(served: pl.DataFrame, labels: pl.DataFrame, windows: Iterable[Window], until: datetime) -> dict[str, float]:
    """By window end (ISO): the share of the window's rows whose label arrived by ``until``; windows without rows are left out."""
    known = served.join(labels.filter(pl.col("label_time") <= until).select("id", "label_time"), on="id", how="left")
    found = {}
    for window in windows:
        rows = known.filter((pl.col("event_time") >= window.start) & (pl.col("event_time") < window.end))
        if rows.height:
            found[window.end.isoformat()] = 1 - rows["label_time"].null_count() / rows.height
    return found
