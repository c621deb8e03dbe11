"""The windows of a rollout as arrays, and which rows of them say something about the challenger."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipelines.arms import LATENCY_MS, WHOLE, latency_bin
from pipelines.errors import DataError
from pipelines.guard.evidence import Seen, Side

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 10
"""Bins of scores, of about as many of the champion's rows each."""
_STEP = math.log(1.15)


@dataclass(frozen=True, eq=False)
class Counted:
    """Of each window ``[T]`` how many of the challenger's ``n`` are ``hits``, and of the champion's ``m``.

    The champion is the concurrent one; where there is none, all of its windows before, of which ``past`` is the share.
    Where ``mirrored``, most of the challenger's were asked after the reply, in the time that was left over.
    """

    hits: Floats
    n: Floats
    champion_hits: Floats
    m: Floats
    concurrent: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    past: Floats
    size: Floats
    """Rows that count as one."""

    def per(self, size: Floats) -> Counted:
        """The same as counts of requests of ``size`` rows ``[T]``, as the rows of one are answered or fail together."""
        return replace(
            self,
            size=size,
            hits=self.hits / size,
            n=self.n / size,
            champion_hits=self.champion_hits / size,
            m=self.m / size,
        )


class Table:
    """The arrays ``[T]`` and ``[T, bins]`` of windows in their order."""

    def __init__(self, windows: Sequence[Seen]) -> None:
        self.windows = windows
        self.weight = np.array([seen.weight for seen in windows])

    def failed(self) -> Counted:
        """Rows that had no answer of the version that they were meant for.

        The challenger's are those of its arm and the champion's that were mirrored. What the champion has not answered
        is not mirrored, so that its own are those of its arm alone.
        """
        hits, n = self._of(_failed, "challenger"), self._of(_asked, "challenger")
        theirs, m = self._of(_failed, "champion"), self._of(_asked, "champion")
        missed = np.array([seen.mirrored.challenger_failed for seen in self.windows], np.float64)
        answered = np.array([seen.mirrored.answered for seen in self.windows], np.float64)
        # Mirrored rows of the challenger's own arm are among those that it answered.
        more = missed + np.maximum(answered - self._of(_answered, "challenger"), 0)
        found = self._beside(hits + missed, n + more, theirs, m).per(self._rows_a_request)
        return replace(found, mirrored=more > n)

    def refused(self) -> Counted:
        """Rows that were not as declared."""
        hits, theirs = (self._of(_refused, side) for side in ("challenger", "champion"))
        n, m = (self._of(_asked, side) for side in ("challenger", "champion"))
        return self._beside(hits, n + hits, theirs, m + theirs).per(self._rows_a_request)

    def slow(self, share: float, declared: float | None, tolerated: float, least: int) -> Counted:
        """Requests that took longer than ``declared`` milliseconds.

        If none are declared: than ``tolerated`` times what all but ``share`` of the champion's took in the windows
        before, of which there must be ``least``; until then nothing is counted. Limits are rounded up to a bin's end.
        """
        own, theirs = self._latency["challenger"], self._latency["champion"]
        before = np.cumsum(theirs, axis=0) - theirs
        if declared is None:
            reached = np.cumsum(before, axis=1) >= (1 - share) * before.sum(axis=1, keepdims=True)
            limit = reached.argmax(axis=1) + math.ceil(math.log(tolerated) / _STEP - 1e-9)
            known = before.sum(axis=1) >= least
        else:
            limit = np.full(len(own), latency_bin(declared))
            known = np.ones(len(own), np.bool_)
        slow = np.arange(len(LATENCY_MS)) > limit[:, None]

        def over(counts: Floats) -> tuple[Floats, Floats]:
            return (counts * slow).sum(axis=1) * known, counts.sum(axis=1) * known

        return self._beside(*over(own), *over(theirs), before=over(before))

    @cached_property
    def binned(self) -> tuple[Floats, Floats]:
        """Rows of challenger and champion ``[T, bins]`` by score, in about BINS bins of as many of the champion's.

        The bins come from the first windows in which the champion answered a hundred rows; what those and the windows
        before hold is not compared.
        """
        theirs = [seen.champion.scores for seen in self.windows]
        sofar = np.cumsum([sum(scores.values()) for scores in theirs])
        shape = (len(self.windows), BINS + 1)
        if not len(sofar) or sofar[-1] < 100:
            return np.zeros(shape), np.zeros(shape)
        first = int((sofar >= 100).argmax())
        places = np.unique([place for seen in self.windows for side in _sides(seen) for place in side.scores])
        bins = np.searchsorted(_edges(theirs[: first + 1]), places)
        into = (bins[:, None] == np.arange(BINS + 1)).astype(np.float64)
        own = _dense([seen.challenger.scores for seen in self.windows], places) @ into
        champion = _dense(theirs, places) @ into
        own[: first + 1] = champion[: first + 1] = 0
        return own, champion

    @cached_property
    def _latency(self) -> dict[str, Floats]:
        top = len(LATENCY_MS) - 1
        for seen in self.windows:
            for place in (place for side in _sides(seen) for place in side.latency if not 0 <= place <= top):
                raise DataError(
                    f"bins of latencies are 0 to {top}, the window from {seen.begin.isoformat()} has {place}: count "
                    "them by arms.latency_bin"
                )
        places = np.arange(len(LATENCY_MS))
        return {
            "champion": _dense([seen.champion.latency for seen in self.windows], places),
            "challenger": _dense([seen.challenger.latency for seen in self.windows], places),
        }

    @cached_property
    def _rows_a_request(self) -> Floats:
        answered = self._of(_answered, "champion") + self._of(_answered, "challenger")
        requests = self._latency["champion"].sum(axis=1) + self._latency["challenger"].sum(axis=1)
        return np.asarray(np.where(requests > 0, np.maximum(answered / np.maximum(requests, 1), 1), 1), np.float64)

    def _of(self, of: Callable[[Side], int], side: str) -> Floats:
        return np.array([of(getattr(seen, side)) for seen in self.windows], np.float64)

    def _beside(
        self, hits: Floats, n: Floats, theirs: Floats, m: Floats, before: tuple[Floats, Floats] | None = None
    ) -> Counted:
        past, rows = before or (np.cumsum(theirs) - theirs, np.cumsum(m) - m)
        concurrent = (m > 0) & (self.weight < WHOLE)
        return Counted(
            hits=hits,
            n=n,
            champion_hits=np.where(concurrent, theirs, past),
            m=np.where(concurrent, m, rows),
            concurrent=concurrent,
            mirrored=np.zeros(len(n), np.bool_),
            size=np.ones(len(n)),
            past=past / np.maximum(rows, 1),
        )


def _sides(seen: Seen) -> tuple[Side, Side]:
    return seen.champion, seen.challenger


def _dense(counts: Sequence[Mapping[int, int]], places: Ints) -> Floats:
    """Counts ``[T, places]``, of rising places that hold all of them."""
    found = np.zeros((len(counts), len(places)))
    row = np.repeat(np.arange(len(counts)), [len(one) for one in counts])
    place = np.array([place for one in counts for place in one], np.int64)
    found[row, np.searchsorted(places, place)] = [rows for one in counts for rows in one.values()]
    return found


def _edges(scores: Sequence[Mapping[int, int]]) -> Ints:
    """The last old bin of each new one but the last."""
    total: dict[int, int] = {}
    for one in scores:
        for place, rows in one.items():
            total[place] = total.get(place, 0) + rows
    places = sorted(total)
    reached = np.cumsum([total[place] for place in places])
    cuts = np.searchsorted(reached, np.arange(1, BINS) / BINS * reached[-1])
    return np.asarray(np.array(places, np.int64)[np.unique(cuts)], np.int64)


def _answered(side: Side) -> int:
    return side.answered


def _failed(side: Side) -> int:
    return side.failed


def _refused(side: Side) -> int:
    return side.refused


def _asked(side: Side) -> int:
    return side.answered + side.failed
