"""What a window's counts say beside its report, for people to read: who answered, how values changed, single days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from pipelines.contracts import Window
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.counts import Profile
from pipelines.drift.profile.spec import Spec, scale_of
from pipelines.drift.why.describe import describe
from pipelines.drift_report import CategoryChange, Counted, DayDrift, DriftReport, NumberChange
from pipelines.feature_names import BY_VERSION, SCORE, read, served
from pipelines.fields import Fields
from pipelines.params import DriftParams

DAYS = 31
"""Single days that are looked at, up to the window's end."""
FEATURES = 30
"""Features that are compared day by day: the strongest ones."""
DESCRIBED = 8
"""Features whose values are told, before and now."""


def span(report: DriftReport) -> Window:
    """The days that are looked at one by one."""
    end = datetime.combine(report.window.end.date(), datetime.min.time(), UTC)
    return Window(start=end - timedelta(days=DAYS), end=end)


def counted(
    report: DriftReport,
    current: Profile,
    reference: Profile | None,
    days: Mapping[date, Profile],
    fields: Fields,
    spec: Spec,
    params: DriftParams,
) -> Counted:
    """What ``current``, the window's counts, say beside ``report``, and those of the single ``days`` in :func:`span`.

    Without a champion's ``reference``, or with one that was counted by another spec, only who answered.
    """
    answered = _answered(current)
    if reference is None or reference.spec != spec.version:
        return Counted(served=answered)
    version = report.model_version
    order = [feature.feature for feature in report.features]
    changes = tuple(_changes(order[:DESCRIBED], reference, current, spec, version))
    in_a_row = list(_in_a_row(days, span(report), Profile(spec.version, 0, {})))
    if params.window != "day" and _few(in_a_row, params.min_rows):
        return Counted(served=answered, changes=changes)
    features = order[:FEATURES] or [name for name in reference.columns if name not in BY_VERSION][:FEATURES]
    narrow = replace(reference, columns={name: reference.columns[name] for name in features})
    drifts = []
    for day, profile in in_a_row:
        found = compare(narrow, profile, fields, spec, params, version)
        psi = {one.feature: one.debiased_psi for one in found}
        drifts.append(DayDrift(day=day, rows=profile.rows, psi=psi))
    return Counted(served=answered, changes=changes, features=tuple(features), days=tuple(drifts))


def _answered(current: Profile) -> dict[int, int]:
    """How many rows each version answered; those that have no score were answered by none."""
    found = {}
    for name, column in current.columns.items():
        feature = read(name)
        given = column.n + sum(column.missing[1:])
        if feature.of == SCORE and feature.version is not None and given:
            found[feature.version] = given
    return found


def _changes(
    features: Sequence[str], reference: Profile, current: Profile, spec: Spec, version: int | None
) -> Iterator[NumberChange | CategoryChange]:
    """How the values of these features changed, where both sides have some."""
    for name in features:
        now = current.columns.get(served(name, version))
        change = None
        if now is not None:
            change = describe(name, reference.columns[name], now, scale_of(spec, name))
        if change is not None:
            yield change


def _in_a_row(days: Mapping[date, Profile], within: Window, empty: Profile) -> Iterator[tuple[date, Profile]]:
    """Every day from the first that has rows on; those without a profile are ``empty``."""
    end = within.end.date()
    day = max(within.start.date(), min(days, default=end))
    while day < end:
        yield day, days.get(day, empty)
        day += timedelta(days=1)


def _few(days: Sequence[tuple[date, Profile]], least: int) -> bool:
    """Whether at most half of the days with rows have so many that they can be compared."""
    rows = [profile.rows for _, profile in days if profile.rows]
    return 2 * sum(one >= least for one in rows) <= len(rows)
