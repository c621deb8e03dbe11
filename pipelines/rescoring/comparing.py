"""A candidate on rows that others answered: what it would have said, how often it would have decided otherwise.

And where labels have arrived, how much better it is: the gate's metric of both on the same rows, with the gate's own
interval. A row counts once. What is kept of a row are both scores, its day and the columns that slices are cut by.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import measures
from pipelines.contracts import ELSEWHERE, Window
from pipelines.data import log as prediction_log
from pipelines.drift.labels.arrived import not_early, possible
from pipelines.evaluation.holdout import with_class_names
from pipelines.fields import Fields, as_kind, frame_schema
from pipelines.gating.compare import fewest, level, lift
from pipelines.gating.paired import paired
from pipelines.params import Params
from pipelines.rescoring.versions import Version, beside, decisions, logged, scores
from pipelines.settings import Settings

QUANTILES = (0.05, 0.5, 0.95)
EVER = datetime(9999, 12, 31, tzinfo=UTC)
Scores = NDArray[np.float64]


def kept(params: Params, version: Version, batches: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Of each row that another version answered: ``id, event_time, received_at, version``, both scores, decisions.

    ``theirs`` and ``ours`` are lists of scores, ``decided`` and ``would`` what they decide; beside them the columns of
    ``gate.slices``. Raises DataError if the rows are not what the candidate was trained for.
    """
    frames = []
    for batch in batches:
        others = batch.filter(
            (pl.col("version") != ELSEWHERE) & (pl.col("version") != version.number) & pl.col("score").is_not_null()
        )
        if others.height:
            frames.append(_scored(params, version, others))
    if not frames:
        return pl.DataFrame()
    rows = pl.concat(frames, how="diagonal_relaxed")
    return rows.sort("received_at", "event_time").unique("id", keep="first", maintain_order=True)


def _scored(params: Params, version: Version, rows: pl.DataFrame) -> pl.DataFrame:
    fields = version.fields
    ours = scores(version, rows)
    theirs = logged(rows, fields.outputs)
    kinds = frame_schema(fields)
    cut_by = [name for name in params.gate.slice_fields if name in rows.columns and name in kinds]
    return rows.select(
        "id",
        "event_time",
        "received_at",
        "version",
        pl.Series("theirs", theirs.tolist(), pl.List(pl.Float64)),
        pl.Series("ours", ours.tolist(), pl.List(pl.Float64)),
        pl.col("prediction").cast(pl.Float64).alias("decided"),
        pl.Series("would", decisions(ours, fields), pl.Float64),
        *(as_kind(pl.col(name), kinds[name]).alias(name) for name in cut_by),
    )


def report(params: Params, settings: Settings, fields: Fields, rows: pl.DataFrame, window: Window) -> dict[str, Any]:
    """The differences in all, by slice and by day, with the labels that have arrived since.

    ``{metric, confidence, all, slices, days}``; a part is ``{name, rows, mean, p05, p50, p95, disagree, labelled,
    theirs, ours, lift}``: of the difference candidate minus logged (of classes of the largest score) its mean and
    quantiles, the share of rows decided otherwise (null of numbers), how many have a label, the gate's
    metric of both on these, and the paired ``lift``, positive where the candidate is better; null where the metric is
    not defined, or too few rows differ to be sure of anything.
    """
    rows = _labelled(settings, fields, rows, window)
    ours, theirs = (np.array(rows[name].to_list(), np.float64) for name in ("ours", "theirs"))
    named = with_class_names(rows, fields)
    there = [name for name in params.gate.slice_fields if name in rows.columns]
    bins = {name: edges for name, edges in params.gate.bins.items() if name in there}
    masks = measures.slices(named, there, bins)
    days = rows["event_time"].dt.date()
    by_day = {str(day): (days == day).to_numpy() for day in days.unique().sort().to_list()}
    part = partial(_part, params, fields, rows, ours, theirs)
    return {
        "metric": params.gate.metric,
        "confidence": params.gate.confidence,
        "all": part("all", np.ones(rows.height, bool)),
        "slices": [part(name, mask) for name, mask in masks.items()],
        "days": [part(name, mask) for name, mask in by_day.items()],
    }


def _labelled(settings: Settings, fields: Fields, rows: pl.DataFrame, window: Window) -> pl.DataFrame:
    labels = prediction_log.read_labels(settings, fields.case, EVER, since=window.start)
    known = not_early(possible(labels, fields.target), rows)
    return rows.join(
        known.select("id", pl.col("label").alias(fields.label)), on="id", how="left", maintain_order="left"
    )


def _part(
    params: Params,
    fields: Fields,
    rows: pl.DataFrame,
    ours: Scores,
    theirs: Scores,
    name: str,
    mask: NDArray[np.bool_],
) -> dict[str, Any]:
    told = theirs[mask]
    apart = beside(ours[mask], told).max(axis=1) - told.max(axis=1)
    own = rows.filter(pl.Series(mask))
    label = own[fields.label]
    has = label.is_not_null().to_numpy()
    low, middle, high = np.quantile(apart, QUANTILES) if len(apart) else (np.nan,) * 3
    found: dict[str, Any] = {
        "name": name,
        "rows": len(apart),
        "mean": float(apart.mean()),
        "p05": float(low),
        "p50": float(middle),
        "p95": float(high),
        "disagree": None if fields.number else float((own["decided"] != own["would"]).to_numpy().mean()),
        "labelled": int(has.sum()),
    }
    return found | _metric(params, label.drop_nulls().to_numpy(), told[has], ours[mask][has])


def _metric(params: Params, label: NDArray[Any], theirs: Scores, ours: Scores) -> dict[str, Any]:
    """The gate's metric of both, and the lift with its interval."""
    nothing: dict[str, Any] = {"theirs": None, "ours": None, "lift": None}
    if theirs.shape != ours.shape:  # of earlier rows the likeliest class's score alone was logged
        return nothing
    if ours.shape[1] == 1:
        theirs, ours = theirs[:, 0], ours[:, 0]
    gate = params.gate
    pair = paired(gate.metric, label, theirs, ours, gate)
    if pair is None:
        return nothing
    confidence = level(gate.metric, gate.confidence)
    interval = None
    if not 0 < pair.differ < fewest(confidence):
        interval = lift(pair, confidence=confidence, draws=gate.draws, seed=gate.seed).model_dump()
    return {"theirs": pair.opponent, "ours": pair.challenger, "lift": interval}
