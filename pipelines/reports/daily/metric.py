"""The daily page's drawing of the metric as numbers: one time line of windows, versions, verdicts and estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.amounts import spread
from pipelines.contracts import Decision, Interval
from pipelines.drift_report import WindowFigures
from pipelines.moments import day
from pipelines.reports.daily.axes import FRAME, HEIGHT, WIDTH, Axes, Frame, Tick, dates, span, values
from pipelines.reports.daily.figures import count, window
from pipelines.reports.daily.view import View
from pipelines.reports.daily.words import rolling

CLOSE = 34
"""Labels of releases that are closer than this would lie on each other."""
MARKS: dict[Decision, tuple[str, str]] = {"reject": ("rejected", "cross"), "inconclusive": ("inconclusive", "ring")}


@dataclass(frozen=True)
class Point:
    """The metric of one version in one window; ``part``: less than half of its rows have a label."""

    x: float
    y: float
    low: float
    high: float
    version: int
    part: bool
    told: str


@dataclass(frozen=True)
class Guess:
    """What was estimated while labels were missing."""

    x: float
    y: float
    told: str


@dataclass(frozen=True)
class Began:
    """A line where another version began to serve; its label is ``raised`` where it would lie on the one before."""

    x: float
    label: str
    action: str
    raised: bool
    told: str


@dataclass(frozen=True)
class Said:
    """A verdict that let nothing serve."""

    x: float
    mark: str
    told: str


@dataclass(frozen=True)
class Chart:
    """The picture; right of ``waiting`` labels are not in yet."""

    points: tuple[Point, ...]
    lines: tuple[str, ...]
    guesses: tuple[Guess, ...]
    releases: tuple[Began, ...]
    verdicts: tuple[Said, ...]
    waiting: float | None
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    frame: Frame = FRAME


Known = tuple[WindowFigures, Interval]
"""Figures whose metric is known, and that."""


def draw(view: View) -> Chart | None:
    """The log-loss, or the RMSE, of every window with its interval, releases and verdicts on one time line.

    None without any labelled window.
    """
    found = rolling(view)
    known = [(one, loss) for one in found if (loss := one.main) is not None]
    if not known:
        return None
    low, high = span([loss for _, loss in known])
    axes = Axes(min(one.start for one in found), max(found[-1].end, view.report.window.end), low, high)
    points = tuple(_point(one, loss, axes, view) for one, loss in known)
    return Chart(
        points=points,
        lines=tuple(_lines(points)),
        guesses=tuple(_guesses(view, found, axes)),
        releases=tuple(_releases(view, axes)),
        verdicts=tuple(_verdicts(view, axes)),
        waiting=_waiting(known, axes),
        ticks_x=dates(found, axes, view.kind),
        ticks_y=values(axes),
    )


def _point(one: WindowFigures, loss: Interval, axes: Axes, view: View) -> Point:
    measure = view.report.measure
    rows = f"{count(one.labelled)} of {count(one.rows)} rows labelled"
    return Point(
        x=axes.middle(one),
        y=axes.y(loss.value),
        low=axes.y(loss.low),
        high=axes.y(loss.high),
        version=one.version,
        part=one.coverage is not None and one.coverage < 0.5,
        told=(f"{window(one.end, view.kind)}, v{one.version}: {measure.metric} {spread(loss, measure.unit)}, {rows}"),
    )


def _lines(points: Sequence[Point]) -> list[str]:
    """A line per version."""
    versions = dict.fromkeys(point.version for point in points)
    return [
        " ".join(f"{point.x:.1f},{point.y}" for point in points if point.version == version) for version in versions
    ]


def _waiting(known: Sequence[Known], axes: Axes) -> float | None:
    labelled = max(one.end for one, _ in known)
    if labelled < axes.end:
        return axes.x(labelled)
    return None


def _guesses(view: View, found: Sequence[WindowFigures], axes: Axes) -> list[Guess]:
    """What was estimated while labels were missing: of earlier windows, and of this one."""
    estimates = {one.end: one.estimated for past in view.history for one in past.report.performance.earlier}
    middles = {one.end: axes.middle(one) for one in found}
    guesses = [
        Guess(middles[when], axes.y(value), f"estimated before the labels came: {value:.3f}")
        for when, value in estimates.items()
        if when in middles
    ]
    guess = view.report.performance.estimate
    if guess is not None:
        told = f"estimated without labels: {guess.log_loss:.3f}"
        guesses.append(Guess(axes.middle(view.report.window), axes.y(guess.log_loss), told))
    return guesses


def _verdicts(view: View, axes: Axes) -> list[Said]:
    """What the gate said, where the time line has begun."""
    found = []
    for judged in view.verdicts:
        verdict = judged.verdict
        if verdict.decision in MARKS and judged.as_of >= axes.start:
            name, mark = MARKS[verdict.decision]
            found.append(Said(axes.x(judged.as_of), mark, f"{day(judged.as_of)}: {name}, {verdict.reason}"))
    return found


def _releases(view: View, axes: Axes) -> list[Began]:
    """Where the time line has begun; labels that would lie on each other take turns on two lines."""
    found: list[Began] = []
    for release in view.releases:
        if release.as_of < axes.start:
            continue
        at = axes.x(release.as_of)
        raised = bool(found) and at - found[-1].x < CLOSE and not found[-1].raised
        version = f"v{release.champion}"
        told = f"{day(release.as_of)}: {version}, {release.reason}"
        found.append(Began(at, version, release.action, raised, told))
    return found
