"""What is measured of a challenger, each as an e-process, with its weight among them and its words for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.amounts import amount
from pipelines.guard.eprocess import (
    BAD,
    LAMBDAS,
    bad_windows,
    counts,
    e_values,
    matched,
    mean_above,
    share_above,
    tail,
    unless_burst,
)
from pipelines.guard.evidence import Seen
from pipelines.guard.tables import BINS, Counted, Table
from pipelines.params import GuardParams, Slo

Floats = NDArray[np.float64]
Told = Callable[[int], str]

LOSS = 1 / 3
"""The weight of the loss; the others share the rest."""
TWICE = frozenset({"errors", "errors_limit"})
"""What has twice the weight of others: errors are rare, and each window says little."""


@dataclass(frozen=True, eq=False)
class Measure:
    """One signal: log increments ``[T, bets]``, and figures in words of the windows from a position on.

    ``also`` are the increments of a second null that has to be refused as well: the smaller e-value counts, which is
    one for "either null holds".
    """

    name: str
    increments: Floats
    told: Told
    also: Floats | None = None

    def began(self) -> int:
        """The position of the window from which on the evidence is strongest."""
        rest = np.cumsum(self.increments[::-1], axis=0)[::-1]
        return int(np.unravel_index(rest.argmax(), rest.shape)[0])


def measures(windows: Sequence[Seen], limits: GuardParams, slo: Slo, bound: float) -> list[Measure]:
    """The signals that these limits allow; which they are never depends on what was seen."""
    table = Table(windows)
    found = _twice("errors", "rows failed", table.failed(), limits.errors, limits.tolerated)
    found += [
        _above(found[0], table.failed(), limits.errors, limits.tolerated),
        *_twice("refused", "rows were refused", table.refused(), limits.refused, limits.tolerated),
    ]
    for name, share, declared in (
        ("p95", 0.05, limits.p95_ms or slo.p95_ms),
        ("p99", 0.01, limits.p99_ms or slo.p99_ms),
    ):
        words = (
            f"requests took longer than {declared:g} ms" if declared else f"requests took over the champion's {name}"
        )
        slow = table.slow(share, declared, limits.tolerated, limits.min_requests)
        found += _twice(name, words, slow, share, limits.tolerated, both=True)
    if limits.disagreement is not None:
        found.append(_disagreement(windows, limits.disagreement))
    found.append(_scores(table, limits.scores))
    if limits.loss is not None:
        found.append(_loss(windows, limits.loss, bound))
    return found


def evidence(found: Sequence[Measure], prior: Floats) -> Floats:
    """The e-values ``[signals, T]``: of each signal the mean over its bets, all worked out at once."""
    nulls = [null for one in found for null in (one.increments, one.also) if null is not None]
    ends = np.cumsum([null.shape[1] for null in nulls])[:-1]
    means = iter(part.mean(axis=1) for part in np.split(e_values(np.hstack(nulls), prior), ends, axis=1))
    return np.array([next(means) if one.also is None else np.minimum(next(means), next(means)) for one in found])


def weights(found: Sequence[Measure]) -> Floats:
    """The weight of each signal, which add up to 1."""
    loss = np.array([one.name == "loss" for one in found])
    shares = np.where(loss, 0.0, [2.0 if one.name in TWICE else 1.0 for one in found])
    return np.asarray(np.where(loss, LOSS, (1 - LOSS * loss.sum()) * shares / shares.sum()), np.float64)


def _twice(
    name: str, words: str, seen: Counted, limit: float, tolerated: float, *, both: bool = False
) -> list[Measure]:
    """One kind of fault, compared with the concurrent champion row by row, and window by window.

    Row by row: of the hits of both arms, those of the challenger are as many as its share of the rows allows if it
    fails up to ``tolerated`` times as often (``both``, and where they were mirrored: or in at most a share ``limit`` of
    its rows). Window by window: one is bad if both are refused for it alone, each at level BAD.
    """
    n, m = tolerated * seen.n, seen.m
    share = n / np.where(n + m > 0, n + m, 1)
    all_hits = seen.hits + seen.champion_hits
    absolute = tail(seen.hits, seen.n, limit) <= BAD
    beside = (seen.m == 0) | (tail(seen.hits, all_hits, np.minimum(share, 1 - 1e-12)) <= BAD)

    def told(first: int) -> str:
        rows, at = seen.size[first:], seen.concurrent[first:]
        own = f"{_share(seen.hits[first:] * rows, seen.n[first:] * rows)} {words}"
        hits, asked = seen.champion_hits[first:] * rows, seen.m[first:] * rows
        if at.any():
            return f"{own}, of the champion's {_share(hits[at], asked[at])}"
        # Without a concurrent champion each window has the sum of all before.
        return f"{own}, of the champion's before {_share(hits[-1:], asked[-1:])}" if asked.any() else own

    by_row = counts(np.where(seen.concurrent, seen.hits, 0), np.where(seen.concurrent, all_hits, 0), share)
    alone = counts(seen.hits, seen.n, limit)
    # The smaller of two bets on a window is a fair one under either null.
    by_row = np.where(seen.mirrored[:, None], np.minimum(by_row, alone), by_row)
    by_window = bad_windows(absolute & beside, limit**seen.n <= BAD)
    return [Measure(name, by_row, told, alone if both else None), Measure(f"{name}_windows", by_window, told)]


def _above(beside: Measure, seen: Counted, limit: float, tolerated: float) -> Measure:
    """Row by row against the limit itself, which says more than a champion of few rows; but for bursts of both.

    A champion that is above the limit always, by its windows before, raises it.
    """
    here = np.where(seen.concurrent, seen.n, 0)
    share = np.clip(tolerated * seen.past, limit, 1)
    calm = counts(np.where(seen.concurrent, seen.hits, 0), here, share)
    return Measure(f"{beside.name}_limit", unless_burst(calm, beside.increments), beside.told)


def _disagreement(windows: Sequence[Seen], limit: float) -> Measure:
    hits = np.array([seen.mirrored.disagreed for seen in windows], np.float64)
    n = np.array([seen.mirrored.answered for seen in windows], np.float64)

    def told(first: int) -> str:
        return f"{_share(hits[first:], n[first:])} mirrored rows were decided differently, {limit:.1%} are allowed"

    return Measure("disagreement", counts(hits, n, limit), told)


def _scores(table: Table, margin: float) -> Measure:
    own, theirs = table.binned
    found = share_above(own, theirs, own.sum(axis=1), theirs.sum(axis=1), margin)

    def told(first: int) -> str:
        n, m = own[first:].sum(), theirs[first:].sum()
        if not n or not m:
            return "no scores to compare"
        gaps = own[first:].sum(axis=0) / n - theirs[first:].sum(axis=0) / m
        place = int(gaps.argmax())
        return (
            f"bin {place + 1} of {BINS} of the champion's scores holds {gaps[place]:.1%} more of the challenger's "
            f"{n:,.0f} rows, {margin:.1%} are allowed"
        )

    return Measure("scores", found, told)


def _loss(windows: Sequence[Seen], limit: float, bound: float) -> Measure:
    """Mirrored rows in pairs, the others by matched blocks of both arms, each window by itself."""
    found = np.zeros((len(windows), len(LAMBDAS)))
    means, rows = np.zeros(len(windows)), np.zeros(len(windows))
    for place, seen in enumerate(windows):
        alone = matched(np.array(seen.champion_losses), np.array(seen.challenger_losses))
        pairs = np.concatenate([np.array(seen.losses), alone])
        if len(pairs):
            found[place] = mean_above(np.clip(pairs, -bound, bound) - limit, bound + limit)
            means[place], rows[place] = pairs.mean(), len(pairs)

    def told(first: int) -> str:
        n = rows[first:].sum()
        if not n:
            return "no labels yet"
        mean = float((means[first:] * rows[first:]).sum() / n)
        return f"loss {amount(mean, signed=True)} beside the champion's on {n:,.0f} labelled rows"

    return Measure("loss", found, told)


def _share(hits: Floats, n: Floats) -> str:
    return f"{hits.sum() / max(n.sum(), 1):.1%} of {n.sum():,.0f}"
