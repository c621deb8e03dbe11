"""The guard: what both arms did since a rollout was opened in, answer out, and nothing else read.

All windows are looked at anew each time. The challenger is taken back when ``G = sum of weight * e-value`` has reached
1 / alpha after any window; signals, weights and bets are fixed before, so that this comes with a chance of at most
alpha over the whole rollout if the challenger is no worse than the limits allow, however often one looks
(docs/decisions/091-a-guard-bets-against-the-challenger.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.guard.eprocess import starts
from pipelines.guard.evidence import Answer, Seen, Signal
from pipelines.guard.signals import Measure, evidence, measures, weights
from pipelines.params import GuardParams, Slo

Floats = NDArray[np.float64]

LOG_LOSS = 4.6
"""The largest difference of two log-losses whose scores are within [.01, .99] (guard/losses.py)."""

NOTHING_PROMISED = Slo()


@dataclass(frozen=True, eq=False)
class Course:
    """How the evidence grew: e-values ``[signals, T]`` and their weighted sum ``total`` ``[T]``.

    What stands at a window depends on it and those before alone.
    """

    found: tuple[Measure, ...]
    weight: Floats
    e: Floats

    @property
    def total(self) -> Floats:
        """The weighted sum of e-values after each window."""
        return np.asarray(self.weight @ self.e, np.float64)

    def stopped(self, alpha: float) -> int | None:
        """The position of the first window after which the sum has reached 1 / alpha."""
        over = self.total >= 1 / alpha
        return int(over.argmax()) if over.any() else None


def course(
    windows: Sequence[Seen], limits: GuardParams, slo: Slo = NOTHING_PROMISED, bound: float = LOG_LOSS
) -> Course:
    """The evidence of windows in their order, after each of them; as :func:`decide` has it."""
    found = tuple(measures(windows, limits, slo, bound))
    prior = starts([seen.weight for seen in windows], limits.windows)
    return Course(found, weights(found), evidence(found, prior))


def decide(
    windows: Sequence[Seen], limits: GuardParams, *, slo: Slo = NOTHING_PROMISED, bound: float = LOG_LOSS
) -> Answer:
    """Whether a rollout goes on, by all complete windows since it was opened, in any order.

    ``slo`` are the case's promises, which count as limits of latency that ``limits`` do not have. ``bound`` is the
    largest difference of two rows' losses (losses.bound); larger ones count as that. ``hold`` comes until the
    challenger had ``limits.min_requests`` requests (in shadow: mirrored rows) in the windows of the last weight.
    In a soak the weight is 10,000 and all is the challenger's: its windows are held against the limits and the
    champion's windows before. Raises DataError if windows overlap.
    """
    windows = sorted(windows, key=lambda seen: seen.begin)
    for one, after in pairwise(windows):
        if after.begin < one.end:
            raise DataError(
                f"the window from {after.begin.isoformat()} begins before the one from {one.begin.isoformat()} ends: "
                "give each window once"
            )
    if not windows:
        return Answer(verdict="hold", reason="no window is complete yet", e_value=1.0, windows=0)
    seen = course(windows, limits, slo, bound)
    stopped = seen.stopped(limits.alpha)
    last = len(windows) - 1
    if stopped is not None and stopped < last:
        windows, last = windows[: stopped + 1], stopped
        seen = course(windows, limits, slo, bound)
    total = float(seen.total[last])
    signals = tuple(
        Signal(name=one.name, e_value=float(e), weight=float(weight), told=one.told(0))
        for one, e, weight in zip(seen.found, seen.e[:, last], seen.weight, strict=True)
    )
    evidence = f"e-value {_short(total)} of {1 / limits.alpha:g}"
    if stopped is not None:
        top = seen.found[int((seen.weight * seen.e[:, last]).argmax())]
        first = top.began()
        reason = f"{top.told(first)} since {windows[first].begin:%Y-%m-%d %H:%M}; {evidence}"
        return Answer(verdict="fail", reason=reason, e_value=total, windows=len(windows), signals=signals)
    had = _had(windows)
    if had < limits.min_requests:
        met = "mirrored rows" if not windows[-1].weight else "requests of the challenger"
        reason = f"{had:,} {met} in this stage, {limits.min_requests:,} are wanted; {evidence}"
        return Answer(verdict="hold", reason=reason, e_value=total, windows=len(windows), signals=signals)
    reason = f"nothing speaks against it: {signals[0].told}; {evidence} after {len(windows)} windows"
    return Answer(verdict="pass", reason=reason, e_value=total, windows=len(windows), signals=signals)


def _had(windows: Sequence[Seen]) -> int:
    """What the challenger was asked in the windows of the last weight."""
    found = 0
    for seen in reversed(windows):
        if seen.weight != windows[-1].weight:
            break
        both = seen.mirrored
        found += seen.challenger.requests if seen.weight else both.answered + both.challenger_failed
    return found


def _short(value: float) -> str:
    if value >= 1e6:
        return "over a million"
    return f"{value:,.0f}" if value >= 10 else f"{np.floor(value * 10) / 10:.1f}"
