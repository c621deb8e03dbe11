"""A window's profile against the champion's reference.

One FeatureDrift per feature, and what is wrong with the data.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from pipelines.contracts import FeatureDrift, Window
from pipelines.drift import stats
from pipelines.drift.inputs import divergence
from pipelines.drift.inputs.refused import remarks
from pipelines.drift.profile.bits import Floats, Ints, bounds
from pipelines.drift.profile.counts import Column, Profile
from pipelines.drift.profile.spec import Spec, numbers, scale_of
from pipelines.drift_report import Quality, Refused, Remark
from pipelines.feature_names import BY_VERSION, MISSING, OTHER, SHARES, is_output, is_share, read, served, shown_only
from pipelines.fields import Fields, Numeric, Scale
from pipelines.params import DriftParams


def compare(
    reference: Profile, current: Profile, fields: Fields, spec: Spec, params: DriftParams, version: int | None = None
) -> tuple[FeatureDrift, ...]:
    """Drift of every declared field, of what comes out of the model and of what is shown beside, strongest first.

    Of what the model gave only what champion ``version`` gave is compared (None: all). Features with fewer
    than ``min_rows`` values in the window are left out, and so is the score if it was not given that often.
    Ignored fields, and features that are for people only (feature_names.shown_only), are measured and take no part in
    the test.
    """
    integers = set(numbers(fields)) - {
        column.name for column in fields.columns if isinstance(column, Numeric) and not column.integer
    }
    pairs: dict[str, tuple[Column, Column]] = {}
    for name, before in reference.columns.items():
        now = current.columns.get(served(name, version))
        if now is not None and before.n and min(now.n, current.rows) >= params.min_rows:  # a row has many words
            pairs[name] = (before, now)
    phis = {name: stats.overdispersion(reference.days[name]) for name in pairs if name in reference.days}
    usual = [phi for name, phi in phis.items() if not shown_only(name)]
    typical = float(np.median(usual)) if usual else 1.0
    measured = {
        name: _measure(before, now, phis.get(name, typical), params, scale_of(spec, name), whole=name in integers)
        for name, (before, now) in pairs.items()
    }
    effect, groups, ne = (
        np.array([values.pop(key) for values in measured.values()]) for key in ("effect", "groups", "ne")
    )
    p_values = dict(zip(measured, stats.minimum_effect_ps(effect, groups, ne, params.delta0).tolist(), strict=True))
    ignored = {name for name in measured if name in params.ignore or shown_only(name)}
    tested = [name for name in measured if name not in ignored]
    fallen = stats.benjamini_hochberg(np.array([p_values[name] for name in tested]), params.q)
    drifted = {name for name, fell in zip(tested, fallen, strict=True) if fell}
    found = (
        FeatureDrift(feature=name, p_value=p_values[name], drifted=name in drifted, ignored=name in ignored, **values)
        for name, values in measured.items()
    )
    return tuple(sorted(found, key=lambda feature: (-feature.debiased_psi, feature.feature)))


def _measure(
    before: Column, now: Column, phi: float, params: DriftParams, scale: Scale | None, *, whole: bool
) -> dict[str, Any]:
    size = 1 + int(max(column.bins[-1] for column in (before, now)))
    m, n = (_spread(column, size) for column in (before, now))
    bins = np.flatnonzero((m + n) > 0)
    m, n = m[bins], n[bins]
    into = stats.groups(m, params.bins) if before.vocabulary is None else np.arange(bins.size)
    size = int(into.max()) + 1
    ne = stats.effective_rows(before.n, now.n, phi)
    coarse = stats.fold(m, into), stats.fold(n, into)
    value = stats.psi(*coarse)
    debiased = stats.debiased_psi(value, size, ne)
    distance = error = moved = inexact = None
    if scale is not None:
        low, high = _ends(bins, scale, whole=whole)
        distance, error = stats.ks(m, n, single=low == high)
        moved, inexact = divergence.wasserstein(m, n, low, high)
    return {
        "psi": value,
        "debiased_psi": debiased,
        "ks": distance,
        "ks_error": error,
        # Where few rows are worth anything (sessions), empty bins alone would make PSI significant.
        "effect": min(value, stats.pearson(*coarse)),
        "groups": size,
        "ne": ne,
        "severity": _severity(debiased, params),
        "overdispersion": phi,
        "js": divergence.jensen_shannon(*coarse),
        "kl": divergence.kullback_leibler(*coarse),
        "wasserstein": moved,
        "wasserstein_error": inexact,
        "chi2_p": divergence.chi_square(*coarse, phi)[1],
    }


def _severity(debiased: float, params: DriftParams) -> str:
    if debiased > params.severe_psi:
        return "severe"
    return "warn" if debiased > params.warn_psi else "info"


def _spread(column: Column, size: int) -> Ints:
    counts = np.zeros(size, np.int64)
    counts[column.bins] = column.counts
    return counts


def _ends(bins: Ints, scale: Scale, *, whole: bool) -> tuple[Floats, Floats]:
    """Smallest and largest value of each bin.

    The same where it holds one at most: a single whole number, or no more than a float resolves.
    """
    low, high = bounds(bins, scale)
    # Of the distance from the middle, not of the value: a time in seconds is far from zero for how little it varies.
    slack = 1e-9 * np.maximum(min(1.0, 1 / scale.scale), np.abs(low - scale.loc)) + 1e-14 * np.abs(low)
    if whole:
        # A whole number that rounding put just outside its bin counts as inside: the bound must hold.
        first, last = np.ceil(low - slack), np.floor(high + slack)
        low, high = (
            np.where(first <= last, first, low),
            np.where(first <= last, last, low),
        )  # of a bin without any, one end will do
    return low, np.where(high - low <= slack, low, high)


def quality(
    reference: Profile | None,
    current: Profile,
    window: Window,
    params: DriftParams,
    since: datetime | None = None,
    unread: int = 0,
    per_day: float | None = None,
    refused: Refused | None = None,
) -> Quality:
    """What is wrong with the window's rows; where some are ``unread`` nothing is said that hangs on how many there are.

    ``since`` is when the case served its first row: in the window of that moment only the time after it can have rows.
    ``per_day`` is how many rows came on a day when the reference's rows did; None (not recorded): as many as it has.
    ``refused`` are those of the window that never became rows of the log.

    Problems (block, never retrain): a field's share of missing values or of undeclared categories is more
    than ``max_null_share`` above the reference's, unless it declares to have such (then the share drifts, or does not,
    as a feature); no rows at all where the case declares that there always are some; ``block_refused_share`` of the
    rows refused. Warnings: ``warn_refused_share`` of them; rows per day outside ``volume_band`` times the reference's;
    too few rows to compare.
    """
    problems, warnings = [], []
    shares: dict[str, float] = {}
    for name, column in current.columns.items():
        if is_output(name) or shown_only(name) or is_share(name):
            continue
        if share := _bad_share(column, current.rows):
            shares[name] = share
        declared = {share for share in SHARES if read(name).of + share in current.columns}
        before = 0.0
        if reference is not None and name in reference.columns:
            before = _bad_share(reference.columns[name], reference.rows, declared)
        share = _bad_share(column, current.rows, declared)
        if share > before + params.max_null_share:
            told = f"{name}: {share:.1%} missing or undeclared values ({before:.1%} in the reference)"
            problems.append(Remark(code="missing_values", field=name, message=told))
    if unread:
        told = f"{unread:,} rows of the window lie in open segments of the log and could not be read"
        again = Remark(code="unread", message=f"{told}: run again, and it is judged again")
        return Quality(problems=tuple(problems), warnings=(again,), missing=shares, unread=unread)
    if current.rows == 0 and not params.allow_empty:
        told = "no rows in the window, and the case declares that there always are some"
        problems.append(Remark(code="no_rows", message=told))
    elif current.rows < params.min_rows:
        told = f"{current.rows} rows are too few to compare (min_rows {params.min_rows})"
        warnings.append(Remark(code="few_rows", message=told))
    turned_away = refused or Refused()
    blocking, telling = remarks(turned_away, params)
    problems += blocking
    warnings += telling
    usual = _rows_per_day(reference) if per_day is None and reference is not None else per_day or 0.0
    expected = _expected_rows(usual, window, since) if usual else 0.0
    volume = current.rows / expected if expected else None
    low, high = params.volume_band
    if volume is not None and current.rows and not low <= volume <= high:
        told = f"{current.rows} rows are {volume:.2g} times the reference's volume (band {low:g} to {high:g})"
        warnings.append(Remark(code="volume", message=told))
    return Quality(
        problems=tuple(problems), warnings=tuple(warnings), missing=shares, volume=volume, refused=turned_away
    )


def _bad_share(column: Column, rows: int, declared: Collection[str] = ()) -> float:
    """The share of missing and undeclared values, without the kinds that the field is ``declared`` to have."""
    null, nan, above, below = column.missing
    bad = above + below
    if MISSING not in declared:
        bad += null + nan
    if OTHER not in declared:
        bad += column.beyond
    return bad / rows if rows else 0.0


def _expected_rows(per_day: float, window: Window, since: datetime | None) -> float:
    """The usual rows of a time as long as the window.

    From a first row within it on, that row and those of the time left.
    """
    if since is None or since <= window.start:
        return per_day * (window.end - window.start).days
    return 1 + per_day * max(timedelta(), window.end - since) / timedelta(days=1)


def _rows_per_day(reference: Profile) -> float:
    """Rows per day with rows; calendar days without any are the case's habit and not known here."""
    days = max((counts.shape[0] for name, counts in reference.days.items() if name not in BY_VERSION), default=0)
    return reference.rows / days if days else 0.0
