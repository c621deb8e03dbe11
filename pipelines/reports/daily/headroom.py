"""What the daily page says of what a retraining would gain: in words, and drawn over time beside its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.amounts import amount, spread
from pipelines.contracts import Interval, Window
from pipelines.drift_report import DriftReport, Headroom
from pipelines.moments import day
from pipelines.reports.daily.axes import FRAME, HEIGHT, WIDTH, Axes, Frame, Tick, dates, span_of_gains, values
from pipelines.reports.daily.figures import count, interval, window
from pipelines.reports.daily.view import Past, View
from pipelines.reports.daily.words import ASKED_BY

FEW = 0.9
"""With labels for a smaller share of the rows it is said that the figure is of those rows."""


# --- words --------------------------------------------------------------------------------------


def gain(found: Headroom) -> str:
    """The figure beside its price, as a sentence; empty where nothing was asked.

    >>> gain(Headroom(code="measured", gain=Interval(value=0.08, low=0.05, high=0.11), price=0.02))
    'A retraining now would gain 0.080 nats (0.050 to 0.110), it costs 0.02: it pays.'
    >>> gain(Headroom(code="one_class", why="all labels of the window are of one class"))
    'What a retraining would gain is not known: all labels of the window are of one class.'
    """
    if found.code == "not_measured":
        return ""
    known = found.decides
    if known is None:
        return f"What a retraining would gain is not known: {found.why}."
    figure = found.told(known)
    if found.pays:
        return f"A retraining now would gain {figure}: it pays."
    if known.value > found.price:
        return f"A retraining now would gain {figure}: it is not sure that it pays."
    if known.value < 0:
        lost = Interval(value=-known.value, low=-known.high, high=-known.low)
        return f"A retraining now would lose {spread(lost, found.unit)}."
    return f"A retraining now would gain {figure}: it does not pay."


def basis(report: DriftReport) -> str:
    """What the figure rests on, and what is known beside it; empty where there is none."""
    found = report.headroom
    if found.decides is None or found.window is None:
        return ""
    before = ", and on the window before" if found.pooled_of > 1 else ""
    version = f"v{report.model_version}"
    of = f"that {version} answered"
    if found.against == "past":
        of = f"that are newer than what {version} was trained on,"
    where = (
        f"Measured by a probe ({found.family}, learned from {count(found.learned)} older labelled rows) on "
        f"{count(found.rows)} rows {of} from {day(found.window.start)} to {day(found.window.end)}{before}."
    )
    said = [where]
    if found.coverage is not None and found.coverage < FEW:
        said.append(f"Only {found.coverage:.0%} of the rows have a label: it is the gain on those.")
    if found.against == "past":
        said.append(
            "It is held against another of its kind that learned from what the champion was trained on: the difference "
            "is due to newer rows."
        )
        if found.gain is not None:
            against = f"Against the champion's own answers, on {count(found.answered)} rows,"
            said.append(f"{against} it is {interval(found.gain)} {found.unit}.")
    elif (own := found.own_pooled or found.own_past) is not None:
        said.append(f"Held against a probe that learned what the champion did, it is {interval(own)} {found.unit}.")
    if found.errors is not None:
        wrong = "fewer" if found.errors.value >= 0 else "more"
        said.append(f"Of 1,000 answers {abs(1000 * found.errors.value):.0f} {wrong} would be wrong.")
    said += [f"{one.metric}: {amount(one.probe)}, the champion's {amount(one.champion)}." for one in found.metrics]
    return " ".join(said)


def compared(report: DriftReport) -> str:
    """What had reason to open an episode in this window, whether the case listens to it or not."""
    if not report.policy.would:
        return ""
    return f"Reason to retrain had: {', '.join(report.policy.would)}."


# --- the picture --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """The gain in one window, under one champion."""

    x: float
    y: float
    low: float
    high: float
    version: int | None
    told: str


@dataclass(frozen=True)
class Done:
    """A window that asked for a retraining."""

    x: float
    told: str


@dataclass(frozen=True)
class Chart:
    """The picture: ``price`` and ``zero`` are the heights of these two levels."""

    points: tuple[Point, ...]
    lines: tuple[str, ...]
    done: tuple[Done, ...]
    price: float
    zero: float
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    frame: Frame = FRAME


def draw(view: View) -> Chart | None:
    """The gain of every window with its interval, the price, and what was done; None without any figure."""
    known = [(past, one, of) for past in view.history if (one := _own(past)) and (of := past.report.headroom.window)]
    if not known:
        return None
    price = known[-1][0].report.headroom.price
    low, high = span_of_gains([one for _, one, _ in known], price)
    start, end = min(of.start for _, _, of in known), max(view.report.window.end, known[-1][2].end)
    axes = Axes(start, end, low, high)
    points = tuple(_point(past, one, of, axes, view.kind) for past, one, of in known)
    return Chart(
        points=points,
        lines=tuple(_lines(points)),
        done=tuple(_done(view, axes)),
        price=axes.y(price),
        zero=axes.y(0.0),
        # Windows that lie a label delay earlier begin and end on any day.
        ticks_x=dates([of for _, _, of in known], axes, kind=None),
        ticks_y=values(axes),
    )


def _own(past: Past) -> Interval | None:
    """The gain of a window alone, as it is held against the price."""
    found = past.report.headroom
    return found.own_past if found.against == "past" else found.gain


def _point(past: Past, one: Interval, of: Window, axes: Axes, kind: str) -> Point:
    report, unit = past.report, past.report.headroom.unit
    told = (
        f"judged with {window(report.window.end, kind)}, v{report.model_version}: a retraining would gain "
        f"{spread(one, unit)} on {count(report.headroom.rows)} rows"
    )
    return Point(axes.middle(of), axes.y(one.value), axes.y(one.low), axes.y(one.high), report.model_version, told)


def _lines(points: Sequence[Point]) -> list[str]:
    """A line per champion."""
    versions = dict.fromkeys(point.version for point in points)
    return [
        " ".join(f"{point.x:.1f},{point.y}" for point in points if point.version == version) for version in versions
    ]


def _done(view: View, axes: Axes) -> list[Done]:
    """The retrainings that were asked for, where the time line has begun."""
    asked = [past.report for past in view.history if past.report.action == "retrain"]
    return [
        Done(axes.x(one.window.end), f"{day(one.window.end)}: retrained {ASKED_BY[one.policy.trigger or 'drift']}")
        for one in asked
        if one.window.end > axes.start
    ]
