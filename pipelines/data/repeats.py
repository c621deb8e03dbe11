"""Ids that are logged more than once, found in bounded memory.

So a day of millions of rows need not be read to count each row once. Hashes of all ids go to scratch files by their
value; within one of them, once sorted, equal ones are neighbours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.records import MEND
from pipelines.errors import IntegrityError

Hashes = NDArray[np.uint64]
AT_ONCE = 1 << 21
"""Hashes that are sorted at once: 16 MB."""
_BATCH = 1 << 17


def hashed() -> pl.Expr:
    """The hash of a row's id, uint64; the same within one process alone."""
    return pl.col("id").hash(seed=0)


def hash_of(ids: pl.Series) -> Hashes:
    """The hashes of ids."""
    return ids.to_frame("id").select(hashed()).to_series().to_numpy()


def hashes(file: Path, mend: str = MEND) -> Iterator[Hashes]:
    """The hashes of a partition's ``id`` column, batch by batch.

    Raises IntegrityError, which says how to ``mend`` it, if it cannot be read.
    """
    try:
        for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(_BATCH, columns=["id"], use_threads=False):
            yield hash_of(pl.DataFrame(batch)["id"])
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"a partition in {file.parent} cannot be read ({file.name}: {error}): {mend}") from error


def holds(files: Sequence[Path], wanted: Hashes) -> bool:
    """Whether a row of the files has one of the hashes."""
    return bool(wanted.size) and any(np.isin(own, wanted).any() for file in files for own in hashes(file))


def repeated(files: Sequence[Path], held: Sequence[Path] = (), mend: str = MEND) -> Hashes:
    """The hashes that more than one row of the files has, and all those of ``held``, ascending, uint64.

    Two ids of one hash are among them too (one pair of a hundred million ids, once in about 4,000 times): ask the ids
    themselves. Memory hardly hangs on the rows; scratch space is 8 bytes for each.
    """
    # A logged row has some tens of bytes when compressed. No more files than a process may open.
    buckets = min(256, sum(file.stat().st_size for file in files) // (16 * AT_ONCE) + 1)
    bounds = (np.arange(1, buckets, dtype=np.float64) * (2.0**64 / buckets)).astype(np.uint64)
    with tempfile.TemporaryDirectory(prefix="perennial-ids-") as folder, ExitStack() as stack:
        parts = [stack.enter_context((Path(folder) / str(number)).open("w+b")) for number in range(buckets)]
        for file in files:
            for own in hashes(file, mend):
                ordered = np.sort(own)
                for part, piece in zip(parts, np.split(ordered, ordered.searchsorted(bounds)), strict=True):
                    piece.tofile(part)
        found = []
        for part in parts:
            part.seek(0)
            ordered = np.sort(np.fromfile(part, np.uint64))
            found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    if not held:
        return np.concatenate(found)
    return np.unique(np.concatenate([*found, *(own for file in held for own in hashes(file, mend))]))
