"""Every logged row, scored again by the version that answered it: a proof of log, encoding, bundle and runtime.

The log does not say which rows shared an inference. A table's row has the same bits alone and beside others; a text's
may differ in the last ones, as its matrix products are cut otherwise. So scores are the same within ``TOLERANCE``, and
how many are the same bit by bit is counted beside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import ELSEWHERE
from pipelines.errors import DataError, PerennialError
from pipelines.params import Params
from pipelines.rescoring.versions import Version, beside, decisions, load, logged, scores
from pipelines.settings import Settings

TOLERANCE = 1e-6
"""Largest difference of a probability that is none; of a number times the largest one, as float32 rounds by that."""
ON_GPU = 1e-5
"""The same where a GPU may have answered: what a version's handshake allows (deploy/rollout.py)."""
KEPT = 200
"""Rows of a version that are kept to find out why their scores differ."""


@dataclass
class Replayed:
    """What became of a version's rows.

    ``identical`` rows have the same bits, ``differ`` those beyond the tolerance, ``unfit`` those that cannot be scored:
    ``why`` says why. ``contradict`` counts rows whose logged decision is not that of their own logged score.
    ``largest`` is the largest difference; of numbers as a share of the largest one. ``examples`` are some of the rows
    that differ, with ``rescored``.
    """

    number: int
    version: Version | None = None
    rows: int = 0
    identical: int = 0
    differ: int = 0
    contradict: int = 0
    unfit: int = 0
    largest: float = 0.0
    why: PerennialError | None = None
    unit: float = 1.0
    examples: list[pl.DataFrame] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every logged score came out again."""
        return not (self.differ or self.contradict or self.unfit)

    def note(self, rows: pl.DataFrame, found: NDArray[np.float64], tolerance: float) -> None:
        """Compare ``found`` ``[n, outputs]`` with what was logged of ``rows``."""
        assert self.version is not None
        fields = self.version.fields
        told = logged(rows, fields.outputs)
        apart = np.abs(beside(found, told) - told).max(axis=1)
        if fields.number is not None:
            self.unit = max(self.unit, float(np.abs(told).max()))
            apart /= self.unit
        own = decisions(told, fields) if told.shape[1] == fields.outputs else decisions(found, fields)
        contradict = rows["prediction"].to_numpy() != own
        if told.shape[1] == fields.outputs > 1:
            contradict |= rows["score"].to_numpy() != told.max(axis=1)
        wrong = ~(apart <= tolerance) | contradict
        self.identical += int((apart == 0).sum())
        self.differ += int((~(apart <= tolerance)).sum())
        self.contradict += int((contradict & (apart <= tolerance)).sum())
        self.largest = max(self.largest, float(apart.max(initial=0.0)))
        kept = sum(one.height for one in self.examples)
        if wrong.any() and kept < KEPT:
            some = rows.filter(pl.Series(wrong)).head(KEPT - kept)
            self.examples.append(some.with_columns(rescored=pl.Series(found[wrong][: some.height].tolist())))


def tolerance_of(params: Params) -> float:
    """How far a logged score may be from the one that comes out on the CPU, where rows are scored again."""
    return ON_GPU if params.serving.device == "gpu" else TOLERANCE


def replay(
    settings: Settings, case: str, batches: Iterable[pl.DataFrame], tolerance: float, only: int | None = None
) -> tuple[dict[int, Replayed], int]:
    """Score the rows of all ``batches`` again by the versions that answered them (``only``: those of one version).

    And how many lines no model of ours answered: imported ones, and those of a declared default. What is in the way of
    a version is said in its ``why``, and the others go on.
    """
    found: dict[int, Replayed] = {}
    left = 0
    for batch in batches:
        answered = batch.filter((pl.col("version") != ELSEWHERE) & pl.col("score").is_not_null())
        left += batch.height - answered.height
        if only is not None:
            answered = answered.filter(pl.col("version") == only)
        for (number,), rows in answered.partition_by("version", as_dict=True).items():
            one = found.get(number) or found.setdefault(number, _opened(settings, case, number))
            _add(one, rows, tolerance)
    return dict(sorted(found.items())), left


def _opened(settings: Settings, case: str, number: int) -> Replayed:
    try:
        return Replayed(number, load(settings, case, number))
    except PerennialError as error:
        return Replayed(number, why=error)


def _add(one: Replayed, rows: pl.DataFrame, tolerance: float) -> None:
    one.rows += rows.height
    if one.version is None:
        one.unfit += rows.height
        return
    try:
        one.note(rows, scores(one.version, rows), tolerance)
    except DataError as error:
        if rows.height > 1:  # one row may be the reason
            middle = rows.height // 2
            one.rows -= rows.height
            for half in (rows.head(middle), rows.tail(rows.height - middle)):
                _add(one, half, tolerance)
            return
        one.unfit += 1
        one.why = one.why or error
    except PerennialError as error:
        one.unfit += rows.height
        one.why = one.why or error
