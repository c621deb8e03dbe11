"""Scores that a worker keeps for a while, by the version that gave them and by what its encoding read of the row.

Where a case declares it (``serving.cache``). A row whose score is kept is answered without Triton, and logged as any
other. Nothing else is kept: what a default answered is no score of a version, and a case whose fields change is another
case, with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from cachetools import TTLCache

from pipelines.encoding import Columns
from pipelines.fields import Fields
from pipelines.params import Cache
from serving.gateway.identity import digest


class Kept:
    """The scores of one case. Used by the event loop alone."""

    def __init__(self, declared: Cache, clock: Callable[[], float] = monotonic) -> None:
        self.declared = declared
        self._scores: TTLCache[tuple[int, bytes], list[float]] = TTLCache(declared.rows, declared.seconds, clock)

    def find(self, version: int, keys: Sequence[bytes]) -> list[list[float] | None]:
        """The scores that ``version`` gave to rows of these :func:`keys`, None where none are kept."""
        return [self._scores.get((version, key)) for key in keys]

    def keep(self, version: int, keys: Sequence[bytes], scores: Sequence[float]) -> list[list[float]]:
        """Keep the scores of rows in their order, as many of each as there are outputs; returns those of each row."""
        outputs = len(scores) // len(keys)
        each = [list(scores[start : start + outputs]) for start in range(0, len(scores), outputs)]
        self._scores.update(zip(((version, key) for key in keys), each, strict=True))
        return each


def keys(fields: Fields, columns: Columns) -> list[bytes]:
    """What stands for each row: all that its encoding reads."""
    return [digest(row) for row in zip(*(columns[name] for name in fields.reads), strict=True)]
