"""What is tried, and what follows from what was measured. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.params import Batching, Queue, ServingParams

INSTANCES = (1, 2)
BATCHINGS = (
    None,
    Batching(),
    Batching(window_ms=2),
    Batching(window_ms=2, preferred_rows=(8, 32)),
    Batching(window_ms=5),
)
CLIENTS = (1, 8, 32)
"""How many clients ask at a time, each for its next row as soon as it has its answer."""
LEAST_NOISE = 0.1
"""A smaller difference is none, however steady it is."""
MARGIN = 3.0
"""What is promised is so much longer than what was measured: no machine is always as idle as this one was.

A promise that is too tight turns people away whom nothing keeps from being answered.
"""
GATEWAY_MS = 10.0
"""What is promised beyond that, for what the gateway does around Triton: reading, checks, the log, a busy worker."""
DEADLINE = 20.0
"""A deadline is so much longer than the measured p99: it is for what hangs, not for what is slow."""
LEAST_DEADLINE_SECONDS, MOST_DEADLINE_SECONDS = 1.0, 60.0


@dataclass(frozen=True)
class Point:
    """What one load came to: requests/s, and how long one took (ms) of half, 95% and 99% of them at most."""

    rate: float
    p50: float
    p95: float
    p99: float


Points = Mapping[int, Sequence[Point]]
"""By the number of clients, a point for each round."""


@dataclass(frozen=True)
class Tried:
    """One way to serve, and what it came to."""

    serving: ServingParams
    points: Points

    @property
    def simplicity(self) -> tuple[int, bool, float, int]:
        """The lower, the less there is to understand."""
        batching = self.serving.batching
        if batching is None:
            return self.serving.instances, False, 0.0, 0
        return self.serving.instances, True, batching.window_ms, len(batching.preferred_rows)

    def of(self, clients: int, measure: str) -> float:
        """The median of a measure over the rounds."""
        return float(median(getattr(point, measure) for point in self.points[clients]))


@dataclass(frozen=True)
class Judged:
    """A way to serve beside the simplest one: ratios of throughput by clients, of the p50 of one client, and a word."""

    tried: Tried
    rates: Mapping[int, float]
    alone: float
    said: str


@dataclass(frozen=True)
class Judgement:
    """All of them in the order tried, the chosen one, and the noise: by how much ratios differ between rounds."""

    all: Sequence[Judged]
    chosen: Tried
    noise: float


def tried(serving: ServingParams) -> list[ServingParams]:
    """What is tried of a case that is served so, the simplest first; a queue that it declares is part of batching."""
    queue = Queue() if serving.batching is None else serving.batching.queue
    batchings = [batching and batching.model_copy(update={"queue": queue}) for batching in BATCHINGS]
    return [
        serving.model_copy(update={"instances": instances, "batching": batching})
        for instances in INSTANCES
        for batching in batchings
    ]


def name(serving: ServingParams) -> str:
    """A way to serve, for people."""
    batching, words = serving.batching, f"{serving.instances} instance{'s' if serving.instances > 1 else ''}"
    if batching is None:
        return f"{words}, no batching"
    if batching.preferred_rows:
        return f"{words}, {batching.window_ms:g} ms, rows {', '.join(map(str, batching.preferred_rows))}"
    return f"{words}, {batching.window_ms:g} ms"


def judge(found: Sequence[Tried]) -> Judgement:
    """Compare everything with the first, the simplest, round by round; the rounds of all are measured in turns.

    Something is faster if its throughput at the most clients is higher in every round, by :data:`LEAST_NOISE` at least,
    and in the median by more than the noise. It may not cost one client alone more than the noise of that. Among what
    is within the noise of the fastest the simplest is chosen; where nothing is faster, the simplest of all.
    """
    base, most, one = found[0], max(found[0].points), min(found[0].points)
    noise = _noise([_ratios(other, base, most, "rate") for other in found[1:]])
    noise_alone = _noise([_ratios(other, base, one, "p50") for other in found[1:]])
    judged, better = list[Judged](), list[tuple[float, Tried]]()
    for other in found:
        rates = {clients: median(_ratios(other, base, clients, "rate")) for clients in base.points}
        alone = median(_ratios(other, base, one, "p50"))
        worst = min(_ratios(other, base, most, "rate"))
        costs = alone > 1 + noise_alone
        said = "a tie"
        if other is base:
            said = "the simplest"
        elif worst > 1 + LEAST_NOISE and rates[most] > 1 + noise:
            said = "faster, but slower for one client" if costs else "faster"
        elif costs or rates[most] < 1 / (1 + noise):
            said = "slower"
        if said == "faster":
            better.append((rates[most], other))
        judged.append(Judged(other, rates, alone, said))
    chosen = base
    if better:
        best = max(rate for rate, _ in better)
        chosen = min(
            (other for rate, other in better if rate * (1 + noise) >= best), key=lambda other: other.simplicity
        )
    return Judgement(judged, chosen, noise)


def proposed(chosen: Tried, serving: ServingParams) -> ServingParams:
    """``serving`` with what was chosen, and a deadline and an SLO of what it came to at the most clients."""
    most = max(chosen.points)
    p95, p99 = chosen.of(most, "p95"), chosen.of(most, "p99")
    deadline = min(max(DEADLINE * p99 / 1000, LEAST_DEADLINE_SECONDS), MOST_DEADLINE_SECONDS)
    slo = serving.slo.model_copy(update={"p95_ms": promised(p95), "p99_ms": promised(max(p95, p99))})
    return serving.model_copy(
        update={
            "instances": chosen.serving.instances,
            "batching": chosen.serving.batching,
            "deadline_seconds": _up(deadline),
            "slo": slo,
        }
    )


def promised(measured: float) -> float:
    """What can be promised in ms of requests of which Triton's part was measured."""
    return _up(MARGIN * measured + GATEWAY_MS)


def block(serving: ServingParams) -> dict[str, Any]:
    """What `tune` decides of a block ``serving:``, without what is the default."""
    keys = {"instances", "batching", "deadline_seconds", "slo"}
    return serving.model_dump(mode="json", include=keys, exclude_defaults=True)


def _ratios(other: Tried, base: Tried, clients: int, measure: str) -> list[float]:
    return [
        getattr(mine, measure) / getattr(its, measure)
        for mine, its in zip(other.points[clients], base.points[clients], strict=True)
    ]


def _noise(ratios: Sequence[Sequence[float]]) -> float:
    """How much the ratio of two ways differs between rounds: of half of them by no more."""
    return max([LEAST_NOISE, *([median(max(one) / min(one) - 1 for one in ratios)] if ratios else [])])


def _up(value: float) -> float:
    """Two digits, rounded up."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(round(value / scale, 6)) * scale, 6)
