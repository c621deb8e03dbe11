"""Day partitions of canonical rows: named by what they hold, written once, never changed.

Late data gives a day another hash and so another file beside the first; whoever refers to the old one
still finds it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import objects
from pipelines.data import repeats
from pipelines.data.heap import AT_ONCE
from pipelines.data.rows_hash import rows_sha256
from pipelines.errors import IntegrityError
from pipelines.fields import AS_DELIVERED
from pipelines.files import write_atomic
from pipelines.settings import Settings

ZSTD = 1
"""The level of compression of a day: a fifth less time than at polars' own, 3, for 4% more bytes."""
MEND = "remove it and run the step 'ingest' again"


def content_sha256(frame: pl.DataFrame) -> str:
    """sha256 (hex) of the rows in their order, columns and types, by their JSON: of any types.

    Partitions are named by :func:`pipelines.data.rows_hash.rows_sha256`, which is faster.
    """
    found = _hash_of(frame)
    found.update(f"\n{_not_finite(frame)}".encode())
    return found.hexdigest()


def _hash_of(frame: pl.DataFrame) -> hashlib._Hash:
    """The hash of columns, types and rows, where JSON can tell their values apart."""
    schema = ",".join(f"{name}:{kind}" for name, kind in frame.schema.items())
    text = io.BytesIO()
    frame.write_ndjson(text)
    found = hashlib.sha256(f"{schema}\n".encode())
    found.update(text.getbuffer())
    return found


def _not_finite(frame: pl.DataFrame) -> str:
    """Where which number is none: JSON has one null for a missing value, NaN and both infinities."""
    numbers = frame.select(pl.selectors.float())
    if not any(numbers.select((~pl.all().is_finite()).any()).row(0) if numbers.width else ()):
        return ""
    numbers = numbers.with_row_index("row")
    wrong = (
        numbers.filter(~pl.all_horizontal(pl.exclude("row").is_finite().fill_null(value=True)))
        .unpivot(index="row", variable_name="column")
        .filter(~pl.col("value").is_finite())
        .sort("row", "column")
    )
    return wrong.with_columns(pl.col("value").cast(pl.String)).write_ndjson()


def _is(frame: pl.DataFrame, sha256: str) -> bool:
    """Whether these are the rows of that hash, also of one that partitions had before.

    That was the content's, and once one that did not tell null, NaN and infinity apart. No hash of today is one of
    those, so new rows never meet such a file.
    """
    with suppress(TypeError):  # of a type that our rows never have
        if rows_sha256(frame) == sha256:
            return True
    found = _hash_of(frame)
    before = found.hexdigest()
    found.update(f"\n{_not_finite(frame)}".encode())
    return sha256 in {found.hexdigest(), before}


def write_days(settings: Settings, case: str, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Write one partition per event day, ``lake/<case>/rows/date=D/<hash16>.parquet``, if it is not there yet.

    A day has the column ``as_delivered`` if one of its own rows has it: what is written does not hang on which days are
    in ``frame`` together. Returns the partitions by day: ``{date, path (relative to the state folder), rows, sha256 (of
    the rows)}``.
    """
    partitions = []
    days = frame.with_columns(pl.col("event_time").dt.date().alias("_date")).partition_by(
        "_date", as_dict=True, include_key=False
    )
    for (day,), rows in sorted(days.items()):
        part = rows
        if AS_DELIVERED in rows.columns and rows[AS_DELIVERED].null_count() == rows.height:
            part = rows.drop(AS_DELIVERED)
        sha256, path = _place(settings.lake_dir / case / "rows" / f"date={day}", part)
        if not path.exists():
            buffer = io.BytesIO()
            part.write_parquet(buffer, compression="zstd", compression_level=ZSTD)
            objects.put(path, buffer.getvalue())
            write_atomic(path, buffer.getvalue())
        partitions.append(
            {"date": str(day), "path": str(path.relative_to(settings.root)), "rows": part.height, "sha256": sha256}
        )
    return partitions


def _place(folder: Path, rows: pl.DataFrame) -> tuple[str, Path]:
    """The hash of a day's rows, and their file: the one of before if they lie there, so that a run keeps its key."""
    sha256 = rows_sha256(rows)
    path = folder / f"{sha256[:16]}.parquet"
    if not path.exists() and any(folder.glob("*.parquet")):
        before = content_sha256(rows)
        older = folder / f"{before[:16]}.parquet"
        if older.exists():
            return before, older
    return sha256, path


def read_days(settings: Settings, partitions: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """The rows of the given partitions, in their order; raises IntegrityError if one is missing or holds other rows."""
    return pl.concat([_read(settings, partition) for partition in partitions], how="diagonal_relaxed")


def some_days(settings: Settings, partitions: Sequence[dict[str, Any]]) -> Iterator[pl.DataFrame]:
    """What :func:`read_days` gives, as many days at once as may be held."""
    held: list[pl.DataFrame] = []
    size = 0.0
    for partition in partitions:
        frame = _read(settings, partition)
        size += frame.estimated_size()
        if held and size > AT_ONCE:
            yield pl.concat(held, how="diagonal_relaxed")
            held, size = [], frame.estimated_size()
        held.append(frame)
    yield pl.concat(held, how="diagonal_relaxed")


def _read(settings: Settings, partition: dict[str, Any]) -> pl.DataFrame:
    path = settings.root / partition["path"]
    objects.need(path)
    try:
        frame = pl.read_parquet(path, hive_partitioning=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}): {MEND}") from error
    if not _is(frame, partition["sha256"]):
        raise IntegrityError(f"{path} does not hold the rows that its manifest names: restore it, or {MEND}")
    return frame


def repeated_ids(settings: Settings, partitions: Sequence[dict[str, Any]]) -> pl.Series:
    """The ids that more than one row of the partitions has, in memory that hardly hangs on how many rows there are."""
    paths = [settings.root / partition["path"] for partition in partitions]
    objects.need(*paths)
    twice = repeats.repeated(paths, mend=MEND)
    if not twice.size:
        return pl.Series("id", [], pl.String)
    again = repeats.hashed().is_in(pl.Series(twice).implode())
    ids = pl.concat([pl.scan_parquet(path, hive_partitioning=False).select("id").filter(again) for path in paths])
    found = ids.collect(engine="streaming")["id"]
    return found.filter(found.is_duplicated()).unique()


def set_aside(settings: Settings, case: str, name: str, rows: pl.DataFrame | pl.LazyFrame) -> Path:
    """Keep rows that stopped a run, as ``lake/<case>/quarantine/rows/<name>.parquet``; returns the path."""
    path = settings.lake_dir / case / "quarantine" / "rows" / f"{name}.parquet"
    buffer = io.BytesIO()
    rows.lazy().sink_parquet(buffer)
    objects.put(path, buffer.getvalue())
    write_atomic(path, buffer.getvalue())
    return path
