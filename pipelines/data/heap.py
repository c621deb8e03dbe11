"""Rows that come frame by frame and end in one Parquet file: held while they are few, else laid down beside it.

Those that lie in a file already stay there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

AT_ONCE = 32 << 20
"""Bytes of rows that are held at once."""


@dataclass
class Heap:
    """Rows in the order in which they were added, ``rows`` of them.

    Those that are not ``held`` lie in ``folder``, under ``name``, or in the file that they come from.
    """

    folder: Path
    name: str
    rows: int = 0
    held: list[pl.DataFrame] = field(default_factory=list)
    _size: float = 0.0
    _laid: list[pl.LazyFrame] = field(default_factory=list)

    def add(self, frame: pl.DataFrame) -> None:
        """Put rows behind the others."""
        self.held.append(frame)
        self.rows += frame.height
        self._size += frame.estimated_size()
        if self._size > AT_ONCE:
            self._lay_down()

    def refer(self, rows: pl.LazyFrame, count: int) -> None:
        """Put so many rows of a file behind the others; they are read when all are written."""
        self._lay_down()
        self._laid.append(rows)
        self.rows += count

    def _lay_down(self) -> None:
        if self.held:
            path = self.folder / f"{self.name}-{len(self._laid)}.arrow"
            _together(self.held).write_ipc(path, compression="uncompressed")
            self._laid.append(pl.scan_ipc(path))
            self.held, self._size = [], 0.0

    def lazy(self) -> pl.LazyFrame:
        """All rows, with the columns that any frame had."""
        frames = [*self._laid, *(frame.lazy() for frame in self.held)]
        return pl.concat(frames, how="diagonal_relaxed")

    def write(self, path: Path) -> None:
        """Write all rows as one Parquet file."""
        if self._laid:
            self.lazy().sink_parquet(path, compression="zstd")
        else:
            _together(self.held).write_parquet(path, compression="zstd")


def _together(frames: list[pl.DataFrame]) -> pl.DataFrame:
    if len(frames) == 1:
        return frames[0]
    return pl.concat(frames, how="diagonal_relaxed")
