"""Does the gate hold what it says? Null pairs and better ones, for every metric that it can decide by.

For every metric, size of the holdout and share of rows that differ, a population of paired answers is made in which the
two models are equally good, so that the true lift is 0: the challenger gains on some rows what it loses on others, with
heavy tails by many small gains and few large losses. Holdouts are drawn from it, and the gate's own comparison judges
each. A promotion is then wrong, and may come in at most 3% of the holdouts (nominal 2.5%). Power is the share that is
promoted where the challenger is better, by a lift that four in five normal intervals would see, or by the largest that
the rows that differ can bring. Beside the gate's rule
stands the plain percentile bound. The error of an AUC is checked against DeLong's, taken from all pairs of rows.
`make bench-metrics`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from benchmarks.record import goal, record
from pipelines.gating.compare import level
from pipelines.gating.paired import Paired, paired
from pipelines.measures import central, quantile, wilson
from pipelines.params import GateParams, Metric

SIZES = (300, 1_000, 5_000)
KINDS = {"2%": 0.02, "20%": 0.2, "all": 1.0, "heavy tails": 1.0}
"""What share of the rows the two models answer differently."""
NULLS, BETTER = 4_000, 1_000
"""Holdouts of a cell without and with a lift."""
POPULATION = 200_000
GOAL = 0.03
CONFIDENCE = 0.95
PLAIN_FROM = 1.0
"""The plain percentile bound is made where the lift is so many standard errors above 0; below it cannot clear."""
CLASSES = np.array([0.55, 0.25, 0.12, 0.08])
GATE = GateParams(
    metric="log_loss",
    min_lift=0.0,
    confidence=CONFIDENCE,
    draws=400,
    seed=0,
    slices=(),
    min_slice_rows=1,
    costs=((0.0, 1.0), (5.0, 0.0)),
    quantile=0.9,
)
NUMBERS: tuple[Metric, ...] = ("rmse", "mae", "pinball")
METRICS: tuple[Metric, ...] = (
    "log_loss",
    "brier",
    "roc_auc",
    "pr_auc",
    "macro_f1",
    "accuracy",
    "cost",
    *NUMBERS,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Labels and both models' answers of paired rows."""

    label: NDArray[Any]
    opponent: Floats
    challenger: Floats

    def drawn(self, generator: np.random.Generator, n: int) -> Rows:
        """A holdout of ``n`` rows."""
        own = generator.integers(0, len(self.label), n)
        return Rows(self.label[own], self.opponent[own], self.challenger[own])

    def compared(self, metric: Metric) -> Paired | None:
        """The gate's comparison of these rows."""
        return paired(metric, self.label, self.opponent, self.challenger, GATE)


Model = Callable[[float], Rows]
"""The population whose challenger is as good as a number says."""


# --- populations --------------------------------------------------------------------------------


def scores(generator: np.random.Generator, share: float, heavy: bool) -> Model:
    """A binary label. The challenger knows of another signal and has noise of its own, on a share of rows.

    With heavy tails the noise is Student's t at three degrees: few scores are far off, and sure. At two the variance of
    a loss is infinite, and no interval of a mean holds.
    """
    n = POPULATION
    known, other = generator.normal(size=(2, n))
    label = (generator.random(n) < expit(1.3 * known + 0.8 * other - 2.4)).astype(np.int8)
    logit = 1.3 * known - 2.3
    noise = 0.5 * generator.normal(size=n)
    if heavy:
        noise = 0.25 * generator.standard_t(3, n)
    moved = generator.random(n) < share

    def rows(knows: float) -> Rows:
        step = noise + knows * other
        return Rows(label, expit(logit), expit(logit + np.where(moved, step, 0.0)))

    return rows


def decisions(generator: np.random.Generator, share: float, heavy: bool) -> Model:
    """Four classes of unlike sizes, and decisions that are sure; the challenger decides anew on a share of rows.

    With heavy tails it does so among the two rare classes only, and is wrong about the common ones a little oftener.
    """
    n = POPULATION
    label = generator.choice(len(CLASSES), n, p=CLASSES).astype(np.int8)
    wrong = (label[None] + generator.integers(1, len(CLASSES), (2, n))) % len(CLASSES)
    first, again, luck = generator.random((3, n))
    opponent = np.where(first < 0.75, label, wrong[0])
    moved = (luck < share) & (~heavy | (label > 1) | (luck < 0.05 * share))

    def rows(right: float) -> Rows:
        challenger = np.where(moved, np.where(again < right, label, wrong[1]), opponent)
        return Rows(label, np.eye(len(CLASSES))[opponent], np.eye(len(CLASSES))[challenger])

    return rows


def numbers(generator: np.random.Generator, share: float, heavy: bool) -> Model:
    """Errors that are normal; the challenger's are in part its own, on a share of rows.

    With heavy tails its own ones are Student's t at two and a half degrees, so that it gains on most rows and loses
    much on few.
    """
    n = POPULATION
    common, own, other = generator.normal(size=(3, n))
    if heavy:
        other = generator.standard_t(2.5, n)
    label = generator.normal(20, 5, n)
    opponent = label + 0.6 * common + 0.8 * own
    moved = generator.random(n) < share

    def rows(spread: float) -> Rows:
        # Less is better here: a larger number is a smaller error.
        return Rows(label, opponent, np.where(moved, label + 0.6 * common - spread * other, opponent))

    return rows


RANGES: dict[Callable[[np.random.Generator, float, bool], Model], tuple[float, float]] = {
    scores: (-0.5, 0.8),
    decisions: (0.05, 0.999),
    numbers: (-2.0, -0.02),
}
"""Where the number that makes the challenger as good as the opponent is looked for."""


def family(metric: Metric) -> Callable[[np.random.Generator, float, bool], Model]:
    """The kind of population that a metric is tried on."""
    if metric in NUMBERS:
        return numbers
    return decisions if metric in {"macro_f1", "accuracy"} else scores


# --- a cell -------------------------------------------------------------------------------------


def verdicts(rows: Rows, metric: Metric, n: int, count: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Of ``count`` holdouts each whether the gate promotes, whether the plain percentile bound does, and the lift."""
    generator = np.random.default_rng(seed)
    found = np.zeros((3, count))
    own = level(metric, CONFIDENCE)
    z = quantile(0.5 + own / 2)
    for number in range(count):
        pair = rows.drawn(generator, n).compared(metric)
        if pair is None:
            continue
        found[2, number] = pair.lift
        if pair.lift <= PLAIN_FROM * pair.se or pair.lift <= 0:
            continue
        drawn = pair.resample(np.random.default_rng(number), GATE.draws, n)
        drawn = drawn[np.isfinite(drawn)]
        found[1, number] = central(drawn, CONFIDENCE)[0] > 0
        clears = pair.lift > z * pair.se and central(drawn, own)[0] > 0
        found[0, number] = clears and pair.differ >= GATE.min_differing
    return found[0], found[1], found[2]


def cell(metric: Metric, n: int, kind: str, nulls: int, better: int) -> dict[str, Any]:
    """One row of the result."""
    began = time.perf_counter()
    seed = [METRICS.index(metric), SIZES.index(n), list(KINDS).index(kind)]
    make = family(metric)
    model = make(np.random.default_rng(seed), KINDS[kind], kind == "heavy tails")

    def lift(number: float) -> float:
        pair = model(number).compared(metric)
        assert pair is not None
        return pair.lift

    equal = brentq(lift, *RANGES[make], xtol=1e-6)
    seeds = np.random.SeedSequence(seed).generate_state(2)
    promoted, plain, lifts = verdicts(model(equal), metric, n, nulls, int(seeds[0]))
    rate = wilson(int(promoted.sum()), nulls, 0.95)
    far = RANGES[make][1]
    wanted = min(2.8 * float(lifts.std()), 0.95 * lift(far))
    row = {
        "metric": metric,
        "n": n,
        "differ": kind,
        "promoted": round(rate.value, 4),
        "low": round(rate.low, 4),
        "high": round(rate.high, 4),
        "percentile": round(float(plain.mean()), 4),
    }
    if wanted > 0:
        number = brentq(lambda one: lift(one) - wanted, equal, far, xtol=1e-6)
        found, peer, _ = verdicts(model(number), metric, n, better, int(seeds[1]))
        row |= {"lift": round(wanted, 5), "power": round(float(found.mean()), 3)}
        row |= {"power_percentile": round(float(peer.mean()), 3)}
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def delong_gap(samples: int = 50) -> float:
    """The largest relative difference of an AUC lift's standard error from DeLong's, over samples with ties.

    The peer takes its components from all pairs of rows: ``psi(x, y) = [x > y] + [x = y] / 2``.
    """
    gap = 0.0
    for seed in range(samples):
        generator = np.random.default_rng(seed)
        rows = scores(generator, 1.0, heavy=False)(0.5).drawn(generator, 400)
        rounded = Rows(rows.label, rows.opponent.round(2), rows.challenger.round(2))
        pair = rounded.compared("roc_auc")
        assert pair is not None
        parts = [_components(rounded.label, scored) for scored in (rounded.challenger, rounded.opponent)]
        variance = sum(float(np.var(ours - theirs, ddof=1)) / len(ours) for ours, theirs in zip(*parts, strict=True))
        gap = max(gap, abs(pair.se / variance**0.5 - 1))
    return gap


def _components(label: NDArray[Any], scored: Floats) -> tuple[Floats, Floats]:
    high, low = scored[label > 0][:, None], scored[label <= 0][None]
    psi = (high > low) + (high == low) / 2
    return psi.mean(axis=1), psi.mean(axis=0)


# --- all of it ----------------------------------------------------------------------------------


def cells(metrics: list[Metric], sizes: list[int], nulls: int, better: int) -> Iterator[dict[str, Any]]:
    """The rows of the result, each told when it is there."""
    for metric in metrics:
        for n in sizes:
            for kind in KINDS:
                row = cell(metric, n, kind, nulls, better)
                print(row, flush=True)
                yield row


def goals(rows: list[dict[str, Any]], gap: float) -> list[dict[str, Any]]:
    """Per metric the worst cell: a rate passes if its lower 95% bound is at or below the goal."""
    found = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        worst = max((row for row in rows if row["metric"] == metric), key=lambda row: row["low"])
        name = f"{metric}: promoted at lift 0, worst cell ({worst['n']} rows, {worst['differ']}), lower bound"
        found.append(goal(name, worst["low"], GOAL))
    return [*found, goal("roc_auc: standard error against DeLong's, relative", gap, 1e-9)]


def main() -> None:
    """Play the cells and write benchmarks/results/metrics.json; --quick or a choice of cells writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="400 holdouts of 300 and 1,000 rows")
    parser.add_argument("--metrics", help="only these, e.g. log_loss,pr_auc")
    parser.add_argument("--sizes", help="only these numbers of rows, e.g. 300,1000")
    parser.add_argument("--nulls", type=int, default=NULLS, help="holdouts of a cell without a lift")
    asked = parser.parse_args()
    began = time.perf_counter()
    metrics = [metric for metric in METRICS if not asked.metrics or metric in asked.metrics.split(",")]
    sizes = [n for n in SIZES if not asked.sizes or str(n) in asked.sizes.split(",")]
    nulls, better = asked.nulls, BETTER
    if asked.quick:
        sizes, nulls, better = [n for n in sizes if n < SIZES[-1]], 400, 100
    rows = list(cells(metrics, sizes, nulls, better))
    record(
        "metrics",
        rows=rows,
        goals=goals(rows, delong_gap()),
        seconds=time.perf_counter() - began,
        packages=("numpy", "scipy"),
        more={"nulls": nulls, "better": better, "draws": GATE.draws, "confidence": CONFIDENCE},
        keep=not (asked.quick or asked.metrics or asked.sizes or asked.nulls != NULLS),
    )


if __name__ == "__main__":
    main()
