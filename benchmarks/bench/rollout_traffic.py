"""Made-up windows of rollouts: what two arms do, with faults and bursts, as the guard is shown them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr

from pipelines.arms import LATENCY_MS, SCORE_BINS, WHOLE
from pipelines.guard.evidence import Mirrored, Seen, Side
from pipelines.guard.losses import row_losses
from pipelines.params import GateParams

Floats = NDArray[np.float64]

WINDOWS = 40
RAMP = (500,) * 12 + (2500,) * 12 + (5000,) * 16
"""The weights of the windows: 5%, 25%, 50%."""
SHADOWED = (0,) * 4 + (500,) * 12 + (2500,) * 12 + (5000,) * 12
"""The same after a shadow of four windows."""
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
MINUTES = 5
ERRORS, REFUSED, DISAGREE = 0.003, 0.005, 0.02
MEDIAN_MS, SPREAD = 18.0, 0.35
"""Latencies are lognormal: a p99 of 41 ms."""
SLOW_MS = 240.0
BURST = 0.1
"""The share of windows in which both arms have ten times the errors and five times the latency."""
HARM, PAIRED_SD = 0.05, 0.32


@dataclass(frozen=True)
class Arm:
    """What an arm does to a request: shares of rows that fail or are refused, the median latency, the scores' shift."""

    errors: float = ERRORS
    refused: float = REFUSED
    median_ms: float = MEDIAN_MS
    more_scores: float = 0.0
    """So much more of its scores are in the bin where most are, so much less in the others."""


@dataclass(frozen=True)
class Scenario:
    """A rollout: ``requests`` of both arms in each window, its weights, and what the challenger does from ``begin`` on.

    ``labels``: how losses are known, on ``rows`` a window, ``late`` windows after; None: not at all.
    """

    requests: int
    weights: Sequence[int] = RAMP
    fault: Arm = Arm()
    begin: int = 0
    bursts: bool = False
    disagree: float = DISAGREE
    labels: Literal["paired", "arms"] | None = None
    rows: int = 1000
    late: int = 0
    losses: tuple[Floats, Floats] = field(default=(np.zeros(1), np.zeros(1)), repr=False)
    """Champion's and challenger's losses of the same rows, to draw from."""


def play(scenario: Scenario, generator: np.random.Generator) -> Iterator[Seen]:
    """The windows of one rollout."""
    drawn: list[dict[str, tuple[float, ...]]] = []
    for place, weight in enumerate(scenario.weights):
        begin = BEGIN + timedelta(minutes=MINUTES * place)
        arm = scenario.fault if place >= scenario.begin else Arm()
        burst = scenario.bursts and bool(generator.random() < BURST)
        drawn.append(_losses(scenario, weight, generator))
        known = drawn[place - scenario.late] if place >= scenario.late else {}
        n = int(generator.binomial(scenario.requests, weight / WHOLE))
        champion = _side(Arm(), scenario.requests - n, burst, generator)
        challenger = _side(arm, n, burst, generator)
        mirrored = Mirrored()
        if not weight:
            mirrored = _mirror(arm, champion.answered, scenario.disagree, burst, generator)
        yield Seen(
            begin=begin,
            end=begin + timedelta(minutes=MINUTES),
            weight=weight,
            champion=champion,
            challenger=challenger,
            mirrored=mirrored,
            **known,
        )


def _side(arm: Arm, n: int, burst: bool, generator: np.random.Generator) -> Side:
    if not n:
        return Side()
    failed = int(generator.binomial(n, arm.errors * (10 if burst else 1)))
    refused = int(generator.binomial(n - failed, arm.refused))
    answered = n - failed - refused
    return Side(
        answered=answered,
        failed=failed,
        refused=refused,
        latency=_counted(n, latencies(arm.median_ms * (5 if burst else 1)), generator),
        scores=_counted(answered, scores(arm.more_scores), generator),
    )


def _mirror(arm: Arm, asked: int, disagree: float, burst: bool, generator: np.random.Generator) -> Mirrored:
    """What a shadow shows of the rows that the champion answered."""
    missed = int(generator.binomial(asked, arm.errors * (10 if burst else 1)))
    return Mirrored(
        answered=asked - missed,
        disagreed=int(generator.binomial(asked - missed, disagree)),
        challenger_failed=missed,
    )


def _losses(scenario: Scenario, weight: int, generator: np.random.Generator) -> dict[str, tuple[float, ...]]:
    if scenario.labels is None:
        return {}
    champion, challenger = scenario.losses
    rows = generator.integers(0, len(champion), scenario.rows)
    if scenario.labels == "paired":
        return {"losses": tuple((challenger[rows] - champion[rows]).tolist())}
    own = generator.random(scenario.rows) < weight / WHOLE
    return {
        "champion_losses": tuple(champion[rows[~own]].tolist()),
        "challenger_losses": tuple(challenger[rows[own]].tolist()),
    }


def _counted(n: int, shares: Floats, generator: np.random.Generator) -> dict[int, int]:
    drawn = generator.multinomial(n, shares)
    return {int(place): int(drawn[place]) for place in np.flatnonzero(drawn)}


@lru_cache
def latencies(median: float) -> Floats:
    """The share of each bin of latencies."""
    below: Floats = ndtr(np.log(np.array(LATENCY_MS) / median) / SPREAD)
    below[-1] = 1.0
    return np.asarray(np.diff(below, prepend=0.0), np.float64)


@lru_cache
def scores(more: float = 0.0) -> Floats:
    """The share of each bin of scores, whose logit is normal; ``more`` of them in the fullest one."""
    edges = np.linspace(-5, 5, SCORE_BINS + 1)[1:-1]
    shares: Floats = np.diff(ndtr((edges + 1.5) / 1.2), prepend=0.0, append=1.0)
    shares *= (1 - shares.max() - more) / (1 - shares.max())
    shares[shares.argmax()] = 1 - (shares.sum() - shares.max())
    return shares


def population(
    harm: float, generator: np.random.Generator, gate: GateParams, n: int = 200_000
) -> tuple[Floats, Floats]:
    """Champion's and challenger's losses of the same rows: ``harm`` more in the mean.

    Harm is noise on the true logit, as much as makes it; a harm of .05 nats has differences of sd .33. Without harm
    both have noise of their own of one size, such that the differences have PAIRED_SD, and one mean.
    """
    z, own, other = generator.normal(size=(3, n))
    true = 1.3 * z - 1.0
    label = (generator.random(n) < expit(true)).astype(np.int8)

    def losses(noise: float) -> tuple[Floats, Floats]:
        scored = (true + (0 if harm else noise) * own, true + noise * other)
        champion, challenger = (row_losses(label, expit(one), gate) for one in scored)
        return champion, challenger

    def missed(noise: float) -> float:
        gap = np.subtract(*losses(noise)[::-1])
        return float(gap.mean() - harm if harm else gap.std() - PAIRED_SD)

    champion, challenger = losses(brentq(missed, 0.01, 3.0, xtol=1e-4))
    return champion, challenger - float((challenger - champion).mean()) + harm
