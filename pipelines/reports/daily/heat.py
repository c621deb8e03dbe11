"""The daily page's heat map: what moved, day by day or window by window, gathered and drawn as numbers and colours.

The template writes it, so that every name is escaped once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby

from pipelines.drift_report import Counted, DayDrift, DriftReport
from pipelines.params import DriftParams
from pipelines.reports.daily.colour import colour
from pipelines.reports.daily.figures import count, psi, window_of
from pipelines.reports.daily.view import Heat, HeatColumn, HeatRow, Past, View

COLUMNS = 31
"""Windows side by side on the page; single days are as many as drift/why/shown.py counts."""
ROWS = 30
"""Features of a map of windows, of however many; those of single days are what was counted."""


# --- what it says -------------------------------------------------------------------------------


def gather(past: Sequence[Past], report: DriftReport, counted: Counted) -> Heat:
    """The heat map of single days where those were counted, else of whole windows."""
    features = [one.feature for one in report.features]
    if counted.days is None:
        return windows(past, features)
    return _days(counted.days, counted.features, report.model_version, len(features))


def windows(past: Sequence[Past], features: Sequence[str]) -> Heat:
    """Whole windows: what each run found against the champion that served then; ``features`` are this window's."""
    reports = [one.report for one in past]
    seen = [{feature.feature: feature.debiased_psi for feature in report.features} for report in reports]
    # Where this window has no values (it is empty), the order is that of the newest one that has.
    names = list(dict.fromkeys([*features, *(name for found in reversed(seen) for name in found)]))
    return Heat(
        unit="window",
        columns=tuple(
            HeatColumn(last=_last_day(report), rows=report.current_rows, version=report.model_version)
            for report in reports
        ),
        rows=tuple(HeatRow(feature=name, values=tuple(found.get(name) for found in seen)) for name in names[:ROWS]),
        of=len(names),
    )


def _last_day(report: DriftReport) -> date:
    return (report.window.end - timedelta(microseconds=1)).date()


def _days(days: Sequence[DayDrift], features: Sequence[str], version: int | None, of: int) -> Heat:
    """Single days, all against the reference of one version."""
    return Heat(
        unit="day",
        columns=tuple(HeatColumn(last=one.day, rows=one.rows, version=version) for one in days),
        rows=tuple(HeatRow(feature=name, values=tuple(one.psi.get(name) for one in days)) for name in features),
        of=of,
    )


# --- how it is drawn ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Columns of one month or year."""

    label: str
    span: int


@dataclass(frozen=True)
class Column:
    """The head of a column.

    ``volume``: its rows in percent of the busiest column's. ``change``: it is against another champion than the one
    before. ``moved``: the diagnosis names its day.
    """

    group: str
    label: str
    name: str
    told: str
    volume: int
    change: bool
    moved: bool


@dataclass(frozen=True)
class Cell:
    """One feature in one column; without a colour where there were too few rows."""

    told: str
    change: bool
    colour: str | None


@dataclass(frozen=True)
class Row:
    """One feature; ``ignored``: shown, never decides."""

    feature: str
    newest: str
    cells: tuple[Cell, ...]
    ignored: bool


@dataclass(frozen=True)
class Key:
    """What a colour means."""

    label: str
    colour: str


@dataclass(frozen=True)
class HeatMap:
    """The heat map: its head, and rows of cells, the strongest now first."""

    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    unit: str
    of: int
    legend: tuple[Key, ...]


def draw(view: View) -> HeatMap:
    """The heat map of a view."""
    found = view.heat
    ignored = {*view.policy.ignore, *(one.feature for one in view.report.features if one.ignored)}
    columns = tuple(_columns(view))
    return HeatMap(
        groups=tuple(Group(label, len(list(same))) for label, same in groupby(column.group for column in columns)),
        columns=columns,
        rows=tuple(_row(row, columns, view.policy, ignored=row.feature in ignored) for row in found.rows),
        unit=found.unit,
        of=found.of,
        legend=_legend(view.policy),
    )


def _columns(view: View) -> list[Column]:
    found = view.heat
    by_day = found.unit == "day"
    dates = view.report.diagnosis.dates
    busiest = max((column.rows for column in found.columns), default=0)
    columns = []
    before = None
    for column in found.columns:
        group, label, name = _head(column.last, "day" if by_day else view.kind)
        told = f"{name}: {count(column.rows)} rows"
        if column.version is not None:
            told += f", against v{column.version}'s reference"
        columns.append(
            Column(
                group=group,
                label=label,
                name=name,
                told=told,
                volume=round(100 * column.rows / max(busiest, 1)),
                change=not by_day and before is not None and column.version != before,
                moved=by_day and column.last in dates,
            )
        )
        before = column.version
    return columns


def _head(last: date, kind: str) -> tuple[str, str, str]:
    """The group, the short label and the name of a column of some ``kind`` of window, ``last`` its last day."""
    if kind == "quarter":
        return str(last.year), f"Q{(last.month + 2) // 3}", window_of(last, kind)
    if kind == "month":
        return str(last.year), f"{last:%b}", window_of(last, kind)
    return f"{last:%b %Y}", str(last.day), window_of(last, kind)


def _row(row: HeatRow, columns: Sequence[Column], policy: DriftParams, *, ignored: bool) -> Row:
    newest = row.values[-1] if row.values else None
    cells = tuple(_cell(row.feature, *one, policy) for one in zip(row.values, columns, strict=True))
    return Row(row.feature, psi(newest), cells, ignored)


def _cell(feature: str, value: float | None, column: Column, policy: DriftParams) -> Cell:
    if value is None:
        return Cell(f"{feature}, {column.name}: too few rows", column.change, None)
    told = f"{feature}, {column.name}: PSI {psi(value)}"
    return Cell(told, column.change, colour(value, policy.warn_psi, policy.severe_psi))


def _legend(policy: DriftParams) -> tuple[Key, ...]:
    warn = policy.warn_psi
    severe = policy.severe_psi
    values = (0.0, warn / 2, warn, severe, 4 * severe, 16 * severe)
    return tuple(Key(f"{value:g}", colour(value, warn, severe)) for value in values)
