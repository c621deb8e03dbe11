"""The reference: what a champion was trained on, kept beside it for good, so that any later window can be compared.

Features come from its training rows, the score from its holdout (scores of training rows are too good).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import storage
from pipelines.drift.labels.arrived import days_of
from pipelines.drift.labels.calibration import fit_calibration
from pipelines.drift.labels.sequential import baseline_rate, baseline_share, capped
from pipelines.drift.profile.bits import Ints
from pipelines.drift.profile.counts import Profile, profile_frame, profile_outputs, to_bytes
from pipelines.drift.profile.spec import Spec
from pipelines.drift.stats import groups
from pipelines.encoding import unfolded
from pipelines.errors import NotKept
from pipelines.feature_names import OUTPUTS, PREDICTION, SCORE
from pipelines.fields import SCORES, Fields
from pipelines.measures import design_effect, row_errors, row_log_loss, row_squared_error, slices
from pipelines.params import SliceBy, edges_of, fields_of

Counted = Callable[[pl.DataFrame, Fields, Spec], Profile]
"""What is counted of rows: the declared fields with the model's outputs, or these alone."""
FILE = "reference.parquet"
LARGE = 0.9
"""A squared error above this quantile of the holdout's counts as an error where errors are counted by day."""
CAP = 0.99
"""Squared errors above this quantile of the holdout's count as it in the e-CUSUM."""
DAY_GROUPS = 10
"""Groups in which single days are kept: enough to see that days differ, and little beside the whole."""


@dataclass(frozen=True)
class Basis:
    """What a bundle's reference is made of: ``judged`` is the holdout with the labels of the champion's baseline.

    ``slices`` are those of the gate.
    """

    fields: Fields
    spec: Spec
    holdout: pl.DataFrame
    judged: pl.DataFrame
    slices: Sequence[SliceBy] = ()


def write_reference(folder: Path, train: Path, scores: NDArray[np.float64], basis: Basis) -> None:
    """Write a bundle's reference: the training rows in the file ``train``, and the model's ``scores`` of the holdout.

    Scores are ``[H]`` or ``[H, K]``.
    """
    rows = pl.read_parquet(train)
    reference = reference_profile(rows, scores, basis.fields, basis.spec, basis.judged, basis.slices)
    (folder / FILE).write_bytes(to_bytes(reference))


def learned_from(bundle: Path) -> Path | None:
    """The dataset that a bundle was trained on, a folder; None if it is gone: for most ends the reference is enough.

    Raises IntegrityError if it is damaged.
    """
    key = storage.read_manifest(bundle, verify=False).inputs.get("dataset")
    if not key:
        return None
    try:
        return storage.find(bundle.parent / "dataset", key)
    except NotKept:
        return None


def reference_profile(
    train: pl.DataFrame,
    scores: NDArray[np.float64],
    fields: Fields,
    spec: Spec,
    holdout: pl.DataFrame | None = None,
    sliced: Sequence[SliceBy] = (),
) -> Profile:
    """The reference of one bundle.

    Canonical training rows, and its scores ``[H]`` or ``[H, K]`` of the holdout (canonical, ``H`` rows). Of classes the
    likeliest one is the prediction and its probability the score, as in the prediction log. Kept per feature: the
    counts, and the counts of every day in ``DAY_GROUPS`` groups, of which the overdispersion is made. ``baseline``
    holds what labels are judged against: ``rows, errors, error_rate`` (its upper confidence bound, rows of a day being
    alike), ``loss`` and ``loss_se`` (mean log-loss and standard error), of the rows with a label
    (drift/labels/arrived.py says which label a row is judged by: :func:`~pipelines.drift.labels.arrived.as_counted`).
    Without ``holdout`` or with an empty one there is no baseline, and the score's days are unknown. The baseline
    further holds, since references are written with them, ``calibration`` (calibration.py), ``class_rows`` (training
    rows per class), ``by_class`` (a feature's counts ``[K][G]`` per class in ``DAY_GROUPS`` groups; of the outputs
    those of the holdout) and ``slices`` (``rows, loss, loss_se`` of the slices of every category and of what ``sliced``
    names, as ``field=value``). Of a number the baseline is another one, see :func:`_baseline_of_number`.
    """
    rows = train.drop(
        *OUTPUTS, SCORES, "version", strict=False
    )  # rows from the log carry the scores of whoever served then
    rows = unfolded(rows, fields)
    profile = profile_frame(rows, fields, spec)
    top = pl.DataFrame({SCORE: pl.Series(scores.max(1) if scores.ndim == 2 else scores, dtype=pl.Float64)})
    if scores.ndim == 2:
        top = top.with_columns(
            pl.Series(PREDICTION, scores.argmax(1), dtype=pl.Int64),
            pl.Series(SCORES, scores.tolist(), dtype=pl.List(pl.Float64)),
        )
    columns = profile.columns | profile_outputs(top, fields, spec).columns
    days = _by_day(rows, fields, spec)
    baseline: dict[str, Any] = {}
    if holdout is not None and holdout.height:
        outputs = holdout.select("event_time", fields.label).hstack(top)
        days |= _by_day(outputs, fields, spec, profile_outputs)
        told = holdout[fields.label].is_not_null()
        holdout = holdout.filter(told)
        outputs = outputs.filter(told)
        scores = scores[told.to_numpy()]
    if holdout is not None and holdout.height:
        holdout = unfolded(holdout, fields)
        if fields.number is not None:
            baseline = _baseline_of_number(rows[fields.label], holdout, scores, fields, sliced)
            return replace(profile, columns=columns, days=days, baseline=baseline)
        label = holdout[fields.label].cast(pl.Int64).to_numpy()
        losses = row_log_loss(label, scores)
        wrong = row_errors(label, scores).astype(np.float64)
        spread = design_effect(wrong, days_of(holdout))
        by_class = _by_class(rows, fields, spec) | _by_class(outputs, fields, spec, profile_outputs)
        baseline = {
            "rows": losses.size,
            "errors": int(wrong.sum()),
            "error_rate": baseline_rate(wrong.sum() / spread, losses.size / spread),
            "loss": float(losses.mean()),
            "loss_se": _error(losses),
            "calibration": fit_calibration(label, scores),
            "class_rows": [int((rows[fields.label] == position).sum()) for position in range(_classes(fields))],
            "by_class": {name: table.tolist() for name, table in by_class.items()},
            "slices": _by_slice(holdout, losses, fields, sliced),
        }
    return replace(profile, columns=columns, days=days, baseline=baseline)


def _baseline_of_number(
    trained: pl.Series,
    holdout: pl.DataFrame,
    scores: NDArray[np.float64],
    fields: Fields,
    sliced: Sequence[SliceBy],
) -> dict[str, Any]:
    """What labels of a number are judged against: ``rows, loss, loss_se`` (squared errors), ``mae`` and ``slices``.

    ``errors`` are those above the 90% quantile, ``large``. ``cap`` is the 99% quantile, and ``capped_rate`` an upper
    confidence bound of the mean of squared errors capped at it, as a share of it: what the e-CUSUM holds new rows
    against. ``labels`` says how the training rows' labels lie (:func:`label_groups`). There is no calibration, and
    nothing by class.
    """
    label = holdout[fields.label].cast(pl.Float64).to_numpy()
    losses = row_squared_error(label, scores)
    large, cap = (float(value) for value in np.quantile(losses, [LARGE, CAP]))
    shares = capped(losses, cap)
    return {
        "rows": losses.size,
        "errors": int((losses > large).sum()),
        "large": large,
        "loss": float(losses.mean()),
        "loss_se": _error(losses),
        "mae": float(np.abs(label - scores).mean()),
        "cap": cap,
        "capped_rate": baseline_share(shares, design_effect(shares, days_of(holdout))),
        "labels": label_groups(trained),
        "slices": _by_slice(holdout, losses, fields, sliced),
    }


def label_groups(labels: pl.Series) -> dict[str, list[Any]]:
    """``edges``, the inner tenths of labels that are numbers, and ``counts``, how many lie between (edges included).

    >>> label_groups(pl.Series([1.0, 2.0, 2.0, 9.0]))["counts"]
    [1, 2, 1]
    """
    values = labels.drop_nulls().cast(pl.Float64).to_numpy()
    edges = np.unique(np.quantile(values, np.arange(1, DAY_GROUPS) / DAY_GROUPS, method="lower"))
    return {"edges": edges.tolist(), "counts": counts_between(values, edges).tolist()}


def counts_between(values: NDArray[np.float64], edges: NDArray[np.float64]) -> Ints:
    """How many values lie up to each of the ascending ``edges`` ``[E]`` and beyond the last one, ``[E + 1]``."""
    return np.bincount(np.searchsorted(edges, values), minlength=edges.size + 1).astype(np.int64)


def _error(losses: NDArray[np.float64]) -> float:
    """Standard error of a mean, without infinity: it is kept as JSON."""
    if losses.size > 1:
        return float(losses.std(ddof=1)) / math.sqrt(losses.size)
    return 1e9


def _classes(fields: Fields) -> int:
    return len(fields.classes) or 2


def _by_slice(
    holdout: pl.DataFrame, losses: NDArray[np.float64], fields: Fields, sliced: Sequence[SliceBy]
) -> dict[str, dict[str, float]]:
    """The holdout's mean loss on every slice of every category, and of what is ``sliced`` but the label."""
    names = dict.fromkeys([*(field.name for field in fields.categorical), *fields_of(sliced)])
    there = [name for name in names if name in fields.names and name in holdout.columns]
    masks = slices(holdout, there, edges_of(sliced))
    own = {name: losses[mask] for name, mask in masks.items()}
    return {
        name: {"rows": part.size, "loss": float(part.mean()), "loss_se": _error(part)} for name, part in own.items()
    }


def _by_day(frame: pl.DataFrame, fields: Fields, spec: Spec, counted: Counted = profile_frame) -> dict[str, Ints]:
    """Counts ``[D, G]`` of each feature by UTC day (see :func:`_by`)."""
    return _by(
        frame,
        frame.with_columns(_day=pl.col("event_time").dt.date()).partition_by("_day", maintain_order=True),
        fields,
        spec,
        counted,
    )


def _by_class(frame: pl.DataFrame, fields: Fields, spec: Spec, counted: Counted = profile_frame) -> dict[str, Ints]:
    """Counts ``[K, G]`` of each feature by class (see :func:`_by`)."""
    return _by(
        frame,
        [frame.filter(pl.col(fields.label) == position) for position in range(_classes(fields))],
        fields,
        spec,
        counted,
    )


def _by(
    frame: pl.DataFrame, parts: list[pl.DataFrame], fields: Fields, spec: Spec, counted: Counted
) -> dict[str, Ints]:
    """Counts ``[len(parts), G]`` of each feature, in coarse groups.

    Groups are the whole's own quantiles (of a category: its values).
    """
    whole = counted(frame, fields, spec)
    single = [counted(part, fields, spec) for part in parts]
    found: dict[str, Ints] = {}
    for name, column in whole.columns.items():
        if not column.bins.size:
            continue
        into = groups(column.counts, DAY_GROUPS) if column.vocabulary is None else np.arange(column.bins.size)
        found[name] = np.zeros((len(single), int(into.max()) + 1), np.int64)
        for row, part in zip(found[name], single, strict=True):
            own = part.columns[name]
            np.add.at(row, into[np.searchsorted(column.bins, own.bins)], own.counts)
    return found
