"""The valid rows of a run, as they lie in ``rows.parquet``: looked at by a few columns, taken by their numbers.

Their order is that of time and id, so the number of a row stands for its id: it is smaller, and sorts alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data import repeats
from pipelines.data.heap import AT_ONCE, Heap

SAMPLE = 1000
"""Rows that tell how many bytes a row takes."""
_BATCH = 1 << 18


@dataclass(frozen=True)
class RowsFile:
    """``rows`` rows at ``path``, ``at_once`` of which may be held."""

    path: Path
    rows: int
    at_once: int

    def look(self, columns: Sequence[str]) -> pl.DataFrame:
        """Some columns of all rows, with each row's number as its ``id`` (uint32)."""
        return self._scan().select(columns).with_row_index("id").collect(engine="streaming")

    def take(self, numbers: pl.Series, into: Heap) -> None:
        """Put the rows of these ``numbers``, which ascend, into a heap."""
        wanted = numbers.to_numpy()
        for start in range(0, max(1, self.rows), self.at_once):
            own = _between(wanted, start, start + self.at_once)
            if not own.size and start:
                continue
            if own.size and own[-1] - own[0] == own.size - 1:  # as most are: rows that follow each other
                into.refer(self._scan().slice(int(own[0]), own.size), own.size)
            else:
                into.add(self._scan().slice(start, self.at_once).collect()[own - start])

    def ids(self, numbers: pl.Series) -> Iterator[pl.Series]:
        """The ids of the rows of these ``numbers``, which ascend, some at once."""
        wanted = numbers.to_numpy()
        for start, some in self._ids():
            yield some[_between(wanted, start, start + some.len()) - start]

    def numbers_of(self, hashes: NDArray[np.uint64]) -> pl.Series:
        """The numbers of the rows whose ids have one of the ``hashes``, which ascend."""
        found = [start + np.flatnonzero(_among(repeats.hash_of(some), hashes)) for start, some in self._ids()]
        return pl.Series("id", np.concatenate([np.zeros(0, np.int64), *found]), pl.UInt32)

    def _ids(self) -> Iterator[tuple[int, pl.Series]]:
        start = 0
        # polars' own batches (2.1) end without an error where one of its threads panics.
        for batch in pq.ParquetFile(self.path, pre_buffer=False).iter_batches(
            _BATCH, columns=["id"], use_threads=False
        ):
            yield start, pl.DataFrame(batch)["id"]
            start += batch.num_rows

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.path, hive_partitioning=False)


def rows_file(path: Path) -> RowsFile:
    """The file at ``path``."""
    scan = pl.scan_parquet(path, hive_partitioning=False)
    rows = scan.select(pl.len()).collect().item()
    sample = scan.head(SAMPLE).collect()
    width = sample.estimated_size() / max(1, sample.height)
    return RowsFile(path, rows, max(SAMPLE, int(AT_ONCE // max(1.0, width))))


def _between(numbers: NDArray[np.uint32], start: int, end: int) -> NDArray[np.int64]:
    low, high = np.searchsorted(numbers, [start, end])
    return numbers[low:high].astype(np.int64)


def _among(own: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not known.size:
        return np.zeros(own.size, bool)
    found: NDArray[np.bool_] = known[np.minimum(known.searchsorted(own), known.size - 1)] == own
    return found
