"""The metric on delayed labels: window by window, by slice, and estimated where labels are missing.

Pure functions on frames.

``known``: every served row with what is known of it (:func:`known`), as in labels.py and with ``label`` and
``label_time``, which are null until the label has arrived, in order of event time. With every figure goes how many rows
have a label, and how long labels took. Intervals are of confidence ``1 - q``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import Interval, Window
from pipelines.drift import stats
from pipelines.drift.labels.arrived import classes_of, days_of
from pipelines.drift.labels.calibration import estimate, expected
from pipelines.drift_report import Estimate, Figures, PastEstimate, Performance, SliceFigures, WindowFigures
from pipelines.fields import Number, Target
from pipelines.measures import (
    around,
    clustered_mean,
    confusion,
    macro_f1_interval,
    quantile,
    roc_auc_interval,
    row_errors,
    row_log_loss,
    row_loss,
    row_squared_error,
    slices,
    wilson,
)
from pipelines.params import DriftParams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def summary(
    rows: pl.DataFrame,
    windows: Sequence[Window],
    version: int,
    baseline: dict[str, Any],
    columns: Sequence[str],
    params: DriftParams,
    target: Target,
    bins: Mapping[str, Sequence[float]],
) -> Performance:
    """All of this module. ``rows`` are :func:`known`, ``windows`` oldest first.

    ``rolling`` is of every version, the rest of champion ``version``: ``slices`` of its last ``out_of`` windows with
    labels, ``estimate`` of the newest window, ``earlier`` of all windows.
    """
    own = rows.filter(pl.col("version") == version)
    parts = within(own, windows)
    told = [part for part in parts if part["label"].count()]
    newest = pl.concat([own.clear(), *told[-params.out_of :]])
    return Performance(
        rolling=tuple(rolling(rows, windows, params, target)),
        slices=tuple(by_slice(newest, columns, baseline, params, target, bins)),
        estimate=estimated(parts[-1], baseline, params, target),
        earlier=tuple(earlier(own, windows, baseline, params, target)),
    )


def known(served: pl.DataFrame, labels: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """The served rows with the label of those whose label arrived by ``until``.

    Of several lines of an id the first counts.
    """
    arrived = labels.filter(pl.col("label_time") <= until).unique("id", keep="first", maintain_order=True)
    return served.join(arrived.select("id", "label", "label_time"), on="id", how="left").sort("event_time", "id")


def labelled(rows: pl.DataFrame, target: Target) -> tuple[pl.DataFrame, Floats]:
    """Rows with a label and a full score, and the scores ``[n]``, or ``[n, K]`` with classes."""
    own = scored(rows.filter(pl.col("label").is_not_null()), target)
    return own, scores(own, target)


def scored(rows: pl.DataFrame, target: Target) -> pl.DataFrame:
    """Rows that a loss can be computed of: with classes those whose ``scores`` were logged."""
    classes = classes_of(target)
    if not classes:
        return rows.filter(pl.col("score").is_not_null())
    return rows.filter(pl.col("scores").list.len() == classes) if "scores" in rows.columns else rows.clear()


def scores(rows: pl.DataFrame, target: Target) -> Floats:
    """Scores ``[n]``, or ``[n, K]`` with classes, of rows that have them."""
    classes = classes_of(target)
    if not classes:
        return rows["score"].cast(pl.Float64).to_numpy()
    return np.array(rows["scores"].to_list(), np.float64) if rows.height else np.empty((0, classes))


def within(rows: pl.DataFrame, windows: Sequence[Window]) -> list[pl.DataFrame]:
    """The rows with event time in each window; ``rows`` are in order of it."""
    times = rows["event_time"].dt.epoch("us").to_numpy()
    places = [
        [np.searchsorted(times, (moment - EPOCH) // timedelta(microseconds=1)) for moment in (window.start, window.end)]
        for window in windows
    ]
    return [rows[int(first) : int(last)] for first, last in places]


def figures(rows: pl.DataFrame, params: DriftParams, target: Target) -> Figures:
    """How a version did on rows whose labels may be missing; metrics are None of fewer than two labels.

    ``delay_days`` is the median, ``log_loss`` has ``low`` and ``high`` (rows of one day are one cluster), ``accuracy``
    Wilson's interval; ``roc_auc`` is of a binary label, ``macro_f1`` of classes. Of a number there are ``rmse`` and
    ``mae`` in its unit, and none of these.
    """
    own, score = labelled(rows, target)
    # The label of a row without a full score has arrived all the same.
    arrived = rows.height - rows["label"].null_count()
    delay = (rows["label_time"] - rows["event_time"]).dt.total_seconds().median()
    found: dict[str, float | None] = {}
    if own.height >= 2:
        label, confidence = own["label"].to_numpy(), 1 - params.q
    if own.height >= 2 and isinstance(target, Number):
        found = _of_numbers(label, score, days_of(own), confidence)
    elif own.height >= 2:
        loss = clustered_mean(row_log_loss(label, score), days_of(own))
        half = quantile(0.5 + confidence / 2, loss.freedom) * loss.se
        right = own.height - int(row_errors(label, score).sum())
        found = {"log_loss": loss.value, "low": loss.value - half, "high": loss.value + half}
        found |= _named("accuracy", wilson(right, own.height, confidence))
        if classes_of(target):
            found |= _named("macro_f1", macro_f1_interval(confusion(label, score), confidence))
        else:
            found |= _named("roc_auc", roc_auc_interval(label, score, confidence))
    return Figures(
        rows=rows.height,
        labelled=arrived,
        coverage=arrived / rows.height if rows.height else None,
        delay_days=None if delay is None else float(delay) / 86_400,  # type: ignore[arg-type]
        **found,
    )


def _of_numbers(label: Floats, predicted: Floats, days: Ints, confidence: float) -> dict[str, float | None]:
    """RMSE and MAE with their intervals, rows of one day being one cluster; RMSE's ends are roots of the mean's."""
    squared = around(clustered_mean(row_squared_error(label, predicted), days), confidence)
    absolute = around(clustered_mean(np.abs(label - predicted), days), confidence)
    ends = (math.sqrt(max(0.0, value)) for value in (squared.value, squared.low, squared.high))
    root = dict(zip(("rmse", "rmse_low", "rmse_high"), ends, strict=True))
    return {**root, **_named("mae", absolute.model_copy(update={"low": max(0.0, absolute.low)}))}


def _named(name: str, found: Interval | None) -> dict[str, float]:
    return {} if found is None else {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def rolling(rows: pl.DataFrame, windows: Sequence[Window], params: DriftParams, target: Target) -> list[WindowFigures]:
    """The :func:`figures` of every version in every window of event time, oldest first; ``rows`` are :func:`known`."""
    found = []
    for window, every in zip(windows, within(rows, windows), strict=True):
        for (version,), part in sorted(every.partition_by("version", as_dict=True).items()):
            own = dict(figures(part, params, target))
            found.append(WindowFigures(start=window.start, end=window.end, version=version, **own))
    return found


# --- by slice -----------------------------------------------------------------------------------


def by_slice(
    rows: pl.DataFrame,
    columns: Sequence[str],
    baseline: dict[str, Any],
    params: DriftParams,
    target: Target,
    bins: Mapping[str, Sequence[float]],
) -> list[SliceFigures]:
    """The loss of every slice of the declared ``columns``, and whether it dropped from the holdout's.

    Slices are those of the gate (measures.slices). Where the baseline knows one it has a ``drop``, and it is
    ``dropped`` if that exceeds ``min_metric_drop``, by one-sided tests under Benjamini-Hochberg at ``q`` over all
    slices. Those with fewer than ``min_rows`` labels make no claim.
    """
    found: list[SliceFigures] = []
    tested: dict[int, float] = {}
    for name, mask in slices(rows, [column for column in columns if column in rows.columns], bins).items():
        part = rows.filter(mask)
        drop = None
        before = baseline.get("slices", {}).get(name)
        own, score = labelled(part, target)
        if before is not None and own.height >= max(2, params.min_rows):
            now = clustered_mean(_losses(own["label"].to_numpy(), score, target), days_of(own))
            rise, error = now.value - before["loss"], math.hypot(now.se, before["loss_se"])
            half = quantile(1 - params.q / 2, now.freedom) * error
            drop = Interval(value=rise, low=rise - half, high=rise + half)
            tested[len(found)] = _p_beyond(rise - params.min_metric_drop, error, now.freedom)
        column, _, value = name.partition("=")
        found.append(SliceFigures(field=column, value=value, drop=drop, **dict(figures(part, params, target))))
    fallen = stats.benjamini_hochberg(np.array(list(tested.values())), params.q)
    fell = {place for place, one in zip(tested, fallen, strict=True) if one}
    return [one.model_copy(update={"dropped": place in fell}) for place, one in enumerate(found)]


def _losses(label: NDArray[Any], score: Floats, target: Target) -> Floats:
    return row_loss(label, score, number=isinstance(target, Number))


def _p_beyond(beyond: float, error: float, freedom: int) -> float:
    """The p-value of a rise ``beyond`` what is allowed; without any doubt its sign decides."""
    if error:
        return _tail(beyond / error, freedom)
    return _tail(math.copysign(math.inf, beyond) if beyond else 0.0, freedom)


def _tail(z: float, freedom: int) -> float:
    from scipy.stats import norm, t

    return float(t.sf(z, freedom) if freedom else norm.sf(z))


# --- without labels -----------------------------------------------------------------------------


def estimated(rows: pl.DataFrame, baseline: dict[str, Any], params: DriftParams, target: Target) -> Estimate | None:
    """What the loss of these rows will be if only the inputs have moved (calibration.py).

    None without scores or calibration.

    Blind to concept drift: see ``earlier``.
    """
    own = scored(rows, target)
    if own.is_empty() or not baseline.get("calibration"):
        return None
    loss, error = estimate(baseline["calibration"], scores(own, target), 1 - params.q)
    arrived = own.height - own["label"].null_count()
    return Estimate(
        rows=own.height,
        labelled=arrived,
        coverage=arrived / own.height,
        log_loss=loss.value,
        error_rate=error,
        low=loss.low,
        high=loss.high,
    )


def earlier(
    rows: pl.DataFrame, windows: Sequence[Window], baseline: dict[str, Any], params: DriftParams, target: Target
) -> list[PastEstimate]:
    """What was estimated of past windows beside what their labels then said.

    ``error`` is realised minus estimated. The estimate is of all rows of the window, the truth of those with a label,
    whose ``coverage`` and ``delay_days`` go with it: the interval is as wide as labels of so few rows, taken as a
    random sample of the window, make it. Windows with fewer than ``min_rows`` labels are left out.
    """
    found = []
    for window, part in zip(windows, within(rows, windows), strict=True):
        said = estimated(part, baseline, params, target)
        truth = figures(part, params, target)
        realised = truth.log_loss
        if said is None or realised is None or truth.labelled < params.min_rows:
            continue
        value = said.log_loss
        given = labelled(part, target)[1]
        of_labelled = estimate(baseline["calibration"], given, 1 - params.q)[0]
        of_sample = float(expected(baseline["calibration"], given)[0].std()) * math.sqrt(
            (1 - len(given) / said.rows) / len(given)
        )
        half = math.hypot(of_labelled.high - of_labelled.value, quantile(1 - params.q / 2, 0) * of_sample)
        found.append(
            PastEstimate(
                end=window.end,
                rows=truth.rows,
                labelled=truth.labelled,
                coverage=truth.coverage,
                delay_days=truth.delay_days,
                estimated=value,
                low=max(0.0, value - half),
                high=value + half,
                realised=realised,
                error=realised - value,
                inside=abs(realised - value) <= half,
            )
        )
    return found
