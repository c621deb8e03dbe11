"""What the daily page says of promises: what a probe said that trainings would gain, and what candidates delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pipelines.contracts import Interval
from pipelines.moments import day
from pipelines.reports.daily.axes import Tick, rounded, span_of_gains
from pipelines.reports.daily.view import Judged, View
from pipelines.reports.promises import Promise, delivered, told

ROWS = 12
"""Trainings in the table."""
SIDE = 230
LEFT = 46
TOP = 24
BOTTOM = 42


@dataclass(frozen=True)
class Kept:
    """A training of which something was promised, and what its candidate delivered on the holdout."""

    judged: Judged
    promise: Promise
    delivered: Interval


def kept(view: View) -> list[Kept]:
    """The trainings with a promise and a measured candidate, newest first."""
    pairs = ((judged, judged.promise, delivered(judged.verdict.evidence)) for judged in view.verdicts[::-1])
    return [Kept(judged, promise, came) for judged, promise, came in pairs if promise is not None and came is not None]


def newest(view: View) -> str:
    """What was promised of the last training, and what came; empty where nothing was ever asked of a probe."""
    asked = view.report.headroom.code != "not_measured" or any(judged.promise for judged in view.verdicts)
    if not view.verdicts or not asked:
        return ""
    last = view.verdicts[-1]
    return f"The training of {day(last.as_of)}: {_small(told(last.promise, last.verdict.evidence))}"


def _small(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def honesty(found: Sequence[Kept]) -> str:
    """How far promises were kept so far; empty where there is none."""
    if not found:
        return ""
    paid = sum(one.delivered.value > one.promise.price for one in found)
    mean = fmean(one.promise.gain.value for one in found)
    came = fmean(one.delivered.value for one in found)
    trainings = "The one training" if len(found) == 1 else f"Of {len(found)} trainings"
    many = f"{trainings} with a promise {'gained' if paid else 'did not gain'} more than it cost"
    if len(found) > 1:
        many = f"{trainings} with a promise {paid} gained more than they cost"
    return f"{many}; on average {mean:.3f} nats were promised and {came:.3f} delivered."


# --- the picture --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A training: what was promised along ``x``, what was delivered along ``y``, both with their intervals."""

    x: float
    left: float
    right: float
    y: float
    low: float
    high: float
    decision: str
    told: str


@dataclass(frozen=True)
class Chart:
    """A square with one scale on both sides, so that a promise that was kept lies on its diagonal."""

    points: tuple[Point, ...]
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    left: int = LEFT
    right: int = LEFT + SIDE
    top: int = TOP
    bottom: int = TOP + SIDE
    width: int = LEFT + SIDE + 12
    height: int = TOP + SIDE + BOTTOM


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def part(self, value: float) -> float:
        """Where a value lies, from 0 to 1; not beyond the ends."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def x(self, value: float) -> float:
        return round(LEFT + SIDE * self.part(value), 1)

    def y(self, value: float) -> float:
        return round(TOP + SIDE * (1 - self.part(value)), 1)


def draw(found: Sequence[Kept]) -> Chart | None:
    """Promised against delivered; None of fewer than two trainings."""
    if len(found) < 2:
        return None
    scale = _Scale(*span_of_gains([one.promise.gain for one in found] + [one.delivered for one in found]))
    marks = rounded(scale.low, scale.high)
    return Chart(
        points=tuple(_point(one, scale) for one in found),
        ticks_x=tuple(Tick(scale.x(value), label) for value, label in marks),
        ticks_y=tuple(Tick(scale.y(value), label) for value, label in marks),
    )


def _point(one: Kept, scale: _Scale) -> Point:
    gain, came, decision = one.promise.gain, one.delivered, one.judged.verdict.decision
    said = f"{day(one.judged.as_of)}, {decision}: {gain.value:.3f} nats promised, {came.value:.3f} delivered"
    across = scale.x(gain.value), scale.x(gain.low), scale.x(gain.high)
    return Point(*across, scale.y(came.value), scale.y(came.low), scale.y(came.high), decision, said)
