"""What there is to see in a window: what moved, since when, and what tells one kind of shift from another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import FeatureDrift
from pipelines.drift import stats
from pipelines.drift.evidence import LabelEvidence
from pipelines.drift.inputs.change import change_gains, coarse, outside
from pipelines.drift.labels.arrived import BINARY, classes_of, days_of
from pipelines.drift.labels.calibration import expected
from pipelines.drift.labels.performance import labelled
from pipelines.drift.labels.sequential import metric_drop
from pipelines.drift.profile.counts import Column, Profile, number_column
from pipelines.drift.reference import DAY_GROUPS, counts_between
from pipelines.drift.why.mixture import Mixture, explain
from pipelines.drift_report import Held, Movement, SliceFigures
from pipelines.feature_names import OUTPUTS, SCORE, served
from pipelines.fields import Number, Scale, Target
from pipelines.measures import row_errors, row_log_loss, row_squared_error
from pipelines.params import DriftParams

Ints = NDArray[np.int64]
EPOCH = date(1970, 1, 1)
MIN_GAIN = 5.0
"""Nats of likelihood that a change of the errors must gain before a day is named."""


@dataclass(frozen=True)
class Seen:
    """What a diagnosis is made of.

    ``days``: the profile of each day that is looked at, the newest of them the window's own. ``fresh``: rows of the
    champion whose label arrived since the last window that was judged; ``known``: all of the champion's that have a
    label (both as in performance.py). ``slices``: performance.by_slice's. ``log_e``: the e-CUSUM, in logs.
    """

    version: int
    reference: Profile
    window: Profile
    features: Sequence[FeatureDrift]
    labels: LabelEvidence
    problems: Sequence[str] = ()
    thin: bool = False
    days: Mapping[date, Profile] = field(default_factory=dict)
    fresh: pl.DataFrame | None = None
    known: pl.DataFrame | None = None
    slices: Sequence[SliceFigures] = ()
    log_e: float = 0.0

    @property
    def shares_told(self) -> str:
        """What moves with the labels, in words."""
        return "the labels' distribution" if "labels" in self.reference.baseline else "the share of the classes"


@dataclass(frozen=True)
class Findings:
    """What moved (``dates``: the days outside.

    ``since``: the first day of the change), and what decides of what kind that is.

    None or unknown where it cannot be told.
    """

    inputs: Movement
    outputs: Movement
    performance: Held
    dates: tuple[date, ...] = ()
    since: date | None = None
    mixture: Mixture | None = None
    shares: Movement = "unknown"
    """The arrived labels' shares of the classes."""
    given: Movement = "unknown"
    """P(score | y) of the arrived labels."""
    expected: bool | None = None
    """Whether the losses are those that the calibrated scores expected."""


def look(seen: Seen, params: DriftParams, target: Target = BINARY) -> Findings:
    """The row of the table that a window belongs to, with the dates of what moved.

    Nothing finer is looked at in rows that are wrong.
    """
    moved = [feature for feature in seen.features if feature.drifted]
    inputs = [feature for feature in moved if feature.feature not in OUTPUTS]
    dropped = performance(seen, params)
    dates, since = _moved_dates(seen, inputs or moved, params)
    if not moved and dropped == "dropped":
        dates, since = _error_dates(seen, params, target)
    sound = not seen.problems
    shares, given = _label_states(seen, since if moved else None, params, target) if sound else ("unknown", "unknown")
    return Findings(
        inputs=_state(seen, moved=bool(inputs)),
        outputs=_state(seen, moved=len(moved) > len(inputs)),
        performance=dropped,
        dates=tuple(dates),
        since=since,
        mixture=_mixture(seen, params) if inputs and sound else None,
        shares=shares,
        given=given,
        expected=_as_expected(seen, params, target) if inputs and sound and dropped == "dropped" else None,
    )


def performance(seen: Seen, params: DriftParams) -> Held:
    """Whether the metric dropped.

    It did if the log-loss rose by more than ``min_metric_drop`` with confidence, or the e-CUSUM stands at its
    threshold.
    """
    drop = seen.labels.drop
    if (drop is not None and drop.low > params.min_metric_drop) or seen.log_e >= math.log(params.cusum_threshold):
        return "dropped"
    return "unknown" if drop is None else "held"


def _state(seen: Seen, *, moved: bool) -> Movement:
    if moved:
        return "moved"
    return "unknown" if seen.thin else "steady"


# --- since when ---------------------------------------------------------------------------------


def _moved_dates(seen: Seen, moved: Sequence[FeatureDrift], params: DriftParams) -> tuple[list[date], date | None]:
    """Days on which a feature that moved was outside, and the likeliest day of one change of them all."""
    order = sorted(seen.days)
    gains, out = np.zeros(len(order)), np.zeros(len(order), np.bool_)
    for feature in moved:
        name = served(feature.feature, seen.version)
        before = seen.reference.columns[feature.feature]
        # A day without the feature has no counts, and so says nothing.
        columns = [seen.days[day].columns.get(name) for day in order]
        none = Column(np.empty(0, np.int64), np.empty(0, np.int64), vocabulary=before.vocabulary)
        own, days, _ = coarse(before, [column or none for column in columns], params.bins)
        gains = gains + change_gains(own, days) / feature.overdispersion
        out |= outside(own, days, feature.overdispersion, params.delta0, params.q)
    if not moved or not order:
        return [], None
    return [day for day, there in zip(order, out, strict=True) if there], order[int(np.argmax(gains))]


def _error_dates(seen: Seen, params: DriftParams, target: Target) -> tuple[list[date], date | None]:
    """Days of rows whose errors were more than the holdout's, and the likeliest day of the change."""
    if seen.known is None or not seen.reference.baseline:
        return [], None
    own, score = labelled(seen.known, target)
    if own.is_empty():
        return [], None
    label = own["label"].to_numpy()
    if isinstance(target, Number):
        wrong = row_squared_error(label, score) > seen.reference.baseline["large"]
    else:
        wrong = row_errors(label, score)
    order, into = np.unique(days_of(own), return_inverse=True)
    days = np.stack([np.bincount(into, weights=~wrong), np.bincount(into, weights=wrong)], axis=1).astype(np.int64)
    errors, rows = int(seen.reference.baseline["errors"]), int(seen.reference.baseline["rows"])
    before = np.array([rows - errors, errors])
    worse = days[:, 1] * rows > days.sum(axis=1) * errors
    out = outside(before, days, 1.0, params.delta0, params.q) & worse
    gains = change_gains(before, days)
    since = EPOCH + timedelta(days=int(order[int(np.argmax(gains))])) if gains.max() >= MIN_GAIN else None
    return [EPOCH + timedelta(days=int(day)) for day, there in zip(order, out, strict=True) if there], since


# --- what kind ----------------------------------------------------------------------------------


def _mixture(seen: Seen, params: DriftParams) -> Mixture | None:
    """Whether other shares of the reference's classes explain the window's features that take part in the test."""
    tables: dict[str, Ints] = {}
    now: dict[str, Ints] = {}
    phis: dict[str, float] = {}
    by_class = seen.reference.baseline.get("by_class", {})
    for feature in seen.features:
        name = feature.feature
        column = seen.window.columns.get(served(name, seen.version))
        if feature.ignored or name not in by_class or column is None or not seen.reference.columns[name].n:
            continue
        own = np.array(by_class[name], np.int64)
        before, counts, into = coarse(seen.reference.columns[name], [column], DAY_GROUPS)
        places = np.unique(into)
        if own.shape[1] != places.size:
            continue
        tables[name] = np.zeros((own.shape[0], before.size), np.int64)
        # A category's groups were counted over the values that the reference has, and new ones may lie between them.
        tables[name][:, places] = own
        now[name], phis[name] = counts[0], feature.overdispersion
    return explain(tables, now, phis, params)


def _label_states(seen: Seen, since: date | None, params: DriftParams, target: Target) -> tuple[Movement, Movement]:
    """Whether arrived labels' shares, and the score given the class, moved.

    Of rows from ``since`` on, else of fresh ones. Of numbers the shares are those of the training labels' tenths, and
    there is no class that a score could be given.
    """
    rows = (
        seen.fresh
        if since is None or seen.known is None
        else seen.known.filter(pl.col("event_time").dt.date() >= since)
    )
    baseline = seen.reference.baseline
    if rows is None or not {"class_rows", "labels"} & baseline.keys():
        return "unknown", "unknown"
    own, score = labelled(rows, target)
    if own.height < params.min_rows:
        return "unknown", "unknown"
    if isinstance(target, Number):
        groups = baseline["labels"]
        now = counts_between(own["label"].to_numpy(), np.array(groups["edges"]))
        return ("moved" if _differs(np.array(groups["counts"]), now, params) else "steady"), "unknown"
    before = np.array(baseline["class_rows"], np.int64)
    label = own["label"].to_numpy()
    shares = _differs(before, np.bincount(label, minlength=before.size)[: before.size], params)
    top = pl.Series(score.max(1) if classes_of(target) else score)
    tests = []
    for position, table in enumerate(baseline["by_class"].get("score", ())):
        mine = top.filter(pl.Series(label == position))
        if mine.len() >= params.min_rows:
            counts = _score_groups(seen.reference, mine, len(table))
            tests.append(_p(np.pad(np.array(table), (0, counts.size - len(table))), counts, params))
    given = stats.benjamini_hochberg(np.array(tests), params.q)
    told: Movement = "moved" if shares else "steady"
    if not tests:
        return told, "unknown"
    return told, "moved" if given.any() else "steady"


def _score_groups(reference: Profile, score: pl.Series, size: int) -> Ints:
    """Counts of scores in the groups that the reference's per-class counts are in, and one more if some lie outside."""
    _, counts, _ = coarse(reference.columns[SCORE], [number_column(score, Scale(0.0, 1.0))], DAY_GROUPS)
    return np.pad(counts[0], (0, max(0, size - counts.shape[1])))


def _p(before: Ints, now: Ints, params: DriftParams) -> float:
    ne = stats.effective_rows(int(before.sum()), int(now.sum()))
    return stats.minimum_effect_p(stats.psi(before, now), before.size, ne, params.delta0)


def _differs(before: Ints, now: Ints, params: DriftParams) -> bool:
    return _p(before, now, params) <= params.q


def _as_expected(seen: Seen, params: DriftParams, target: Target) -> bool | None:
    """Whether the fresh rows lost no more than their calibrated scores expected, give or take ``min_metric_drop``."""
    calibration = seen.reference.baseline.get("calibration")
    if not calibration or seen.fresh is None:
        return None
    own, score = labelled(seen.fresh, target)
    if own.height < params.min_rows:
        return None
    gap = row_log_loss(own["label"].to_numpy(), score) - expected(calibration, score)[0]
    return metric_drop(gap, days_of(own), 0.0, calibration["gap_se"], 1 - params.q).low <= params.min_metric_drop
