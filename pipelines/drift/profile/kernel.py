"""Profiles of Parquet files, streamed: the counts of ``profile_frame`` at about the price of reading the rows.

A task is one column of one file: batches of it are decoded, counted and forgotten, so memory depends on the
columns and threads, not on the rows. What is not a float64 or a declared category takes the way of frames, batch
by batch; either way the profile is that of ``profile_frame`` on the same rows, to the bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import derived
from pipelines.drift.profile.bits import BATCH, BINS, Floats, Ints, Missing, count, tally
from pipelines.drift.profile.counts import (
    VERSION,
    Column,
    Profile,
    added,
    dense_column,
    merge,
    profile_frame,
    profile_outputs,
    scored,
    shares,
    typed,
)
from pipelines.drift.profile.spec import Spec
from pipelines.errors import DataError
from pipelines.feature_names import OUTPUTS
from pipelines.fields import SCORES, Binary, Categorical, Fields, Numeric, Scale, frame_schema

Batches = Iterator[Any]
"""Arrow record batches."""
Work = Callable[[Batches, int], Iterator[tuple[str, Column]]]
"""Batches of one file, and how many rows it has, to counts by feature."""


_READ = 1 << 17
"""Bytes read at once: pages of a column one after the other, instead of whole chunks.

So they lie in memory that stays in the processor's cache.
"""


class _Opened(threading.local):
    """The file that a thread reads at the moment, so that its next column costs no second look at the footer."""

    path: Path | None = None
    file: Any = None


@dataclass
class _Total:
    """Running counts of one feature, a number for every bin."""

    counts: Ints
    missing: Missing
    vocabulary: tuple[str, ...] | None


_MEND = "restore the damaged file; one of the log's can be removed, the next run makes it again"


def profile_parquet(paths: Sequence[Path], fields: Fields, spec: Spec, threads: int = 2) -> Profile:
    """Count the declared fields and the model's outputs of all rows in ``paths``: files, or folders of ``*.parquet``.

    The same counts as ``profile_frame`` gives of the same rows, in whatever files they lie. A column that a file lacks
    is null in its rows; a value that is not of its field's type counts as missing, and so do ``scores`` that a file of
    classes lacks. Memory: per thread a page of a column and 3 MB, and 0.5 MB per number. Raises DataError if a file
    cannot be read.
    """
    files = [file for path in paths for file in _files(path)]
    texts = [declared.name for declared in fields.categorical if isinstance(declared, Categorical)]
    opened = _Opened()

    def run(task: tuple[Path, tuple[str, ...], Work]) -> list[tuple[str, Column]]:
        path, columns, work = task
        if opened.path != path:
            names = set(footers[path].schema.to_arrow_schema().names)
            as_codes = [name for name in texts if name in names]
            opened.file = pq.ParquetFile(
                path, metadata=footers[path], read_dictionary=as_codes, pre_buffer=False, buffer_size=_READ
            )
            opened.path = path
        batches: Batches = iter(())
        if columns:
            batches = opened.file.iter_batches(batch_size=BATCH, columns=list(columns), use_threads=False)
        return list(work(batches, opened.file.metadata.num_rows))

    totals: dict[str, _Total] = {}
    try:
        footers = {file: pq.read_metadata(file) for file in files}
        tasks = [task for file, footer in footers.items() for task in _tasks(file, footer, fields, spec)]
        with ThreadPoolExecutor(threads) as pool:
            for counted in pool.map(run, tasks):
                for name, column in counted:
                    _add(totals, name, column)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{', '.join(map(str, paths))} cannot be read ({error}): {_MEND}") from error
    rows = sum(footer.num_rows for footer in footers.values())
    if not rows:
        return profile_frame(pl.DataFrame(schema=dict.fromkeys(fields.names, pl.Null)), fields, spec)
    columns = {name: dense_column(total.counts, total.missing, total.vocabulary) for name, total in totals.items()}
    return Profile(spec.version, rows, columns | shares(columns, fields))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    return [path]


def profile_where(files: Sequence[Path], where: pl.Expr, fields: Fields, spec: Spec) -> Profile:
    """The profile of those rows of the files alone for which ``where`` holds.

    In frames, a batch at a time, and so slower. Raises DataError if a file cannot be read.
    """
    try:
        batches = (
            batch
            for file in files
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(BATCH, use_threads=False)
        )
        return merge(
            (
                profile_frame(scored(typed(pl.DataFrame(batch).filter(where), fields), fields), fields, spec)
                for batch in batches
            ),
            spec.version,
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{', '.join(map(str, files))} cannot be read ({error}): {_MEND}") from error


def _add(totals: dict[str, _Total], name: str, column: Column) -> None:
    if name not in totals:
        size = BINS
        if column.vocabulary is not None:
            size = len(column.vocabulary) + 1
        totals[name] = _Total(np.zeros(size, np.int64), (0, 0, 0, 0), column.vocabulary)
    total = totals[name]
    total.counts[column.bins] += column.counts
    total.missing = added(total.missing, column.missing)


def _tasks(path: Path, footer: Any, fields: Fields, spec: Spec) -> Iterator[tuple[Path, tuple[str, ...], Work]]:
    """What is to be done for one file."""
    schema = footer.schema.to_arrow_schema()
    kinds = {name: schema.field(name).type for name in schema.names}
    work: list[tuple[tuple[str, ...], Work]] = []
    plain = replace(fields, derived=(), formulas=())
    if fields.derived:
        made_of = tuple(name for name in derived.reads(fields) if name in kinds)
        work.append((made_of, partial(_derived, fields, spec)))
    for declared in plain.features:
        name = declared.name
        kind = kinds.get(declared.name)
        if isinstance(declared, Numeric) and kind == pa.float64():
            work.append(((name,), partial(_numbers, name, spec.scales[name])))
        elif isinstance(declared, Categorical) and kind is not None and _is_text(kind):
            work.append(((name,), partial(_categories, declared)))
        else:
            alone = replace(plain, fields=(declared,), target=Binary())
            there = tuple(column for column in alone.reads if column in kinds)
            work.append((there, partial(_frames, alone, spec)))
    outputs = tuple(name for name in (*OUTPUTS, SCORES, VERSION) if name in kinds)
    if outputs:
        work.append((outputs, partial(_given, fields, spec)))
    for columns, counting in work:
        yield path, columns, counting


def _is_text(kind: Any) -> bool:
    value = kind
    if pa.types.is_dictionary(kind):
        value = kind.value_type
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def _present(values: Any) -> Any:
    """An Arrow array without its nulls, itself if it has none."""
    if values.null_count:
        return values.drop_null()
    return values


def _numbers(name: str, scale: Scale, batches: Batches, _size: int) -> Iterator[tuple[str, Column]]:
    nulls = 0

    def given() -> Iterator[Floats]:
        nonlocal nulls
        for batch in batches:
            values = batch.column(0)
            nulls += values.null_count
            # By DLPack, as Arrow's own to_numpy imports pandas.
            numbers: Any = np.from_dlpack(_present(values))
            yield numbers

    counts, missing = count(given(), scale)
    yield name, dense_column(counts, added(missing, (nulls, 0, 0, 0)))


def _categories(declared: Categorical, batches: Batches, _size: int) -> Iterator[tuple[str, Column]]:
    position = {value: number for number, value in enumerate(declared.values)}
    counts = np.zeros(len(declared.values) + 1, np.int64)
    null = 0
    for batch in batches:
        values = batch.column(0)
        words = values.dictionary.to_pylist()
        null += values.null_count
        codes: Any = np.from_dlpack(_present(values.indices))
        found = np.zeros(len(words), np.int32)
        tally(np.asarray(codes, np.int32), found)
        np.add.at(counts, [position.get(word, len(position)) for word in words], found)
    yield declared.name, dense_column(counts, (null, 0, 0, 0), declared.values)


def _frames(fields: Fields, spec: Spec, batches: Batches, size: int) -> Iterator[tuple[str, Column]]:
    empty = True
    for batch in batches:
        yield from profile_frame(scored(typed(pl.DataFrame(batch), fields), fields), fields, spec).columns.items()
        empty = False
    if empty:
        kinds = {name: kind for name, kind in frame_schema(fields).items() if name in fields.names}
        for name, column in profile_frame(pl.DataFrame(schema=kinds), fields, spec).columns.items():
            yield name, replace(column, missing=(size, 0, 0, 0))


def _derived(fields: Fields, spec: Spec, batches: Batches, size: int) -> Iterator[tuple[str, Column]]:
    """What is derived from the columns, which are read once more for it."""
    names = {field.name for field in fields.derived}
    for name, column in _frames(fields, spec, batches, size):
        if name in names:
            yield name, column


def _given(fields: Fields, spec: Spec, batches: Batches, _size: int) -> Iterator[tuple[str, Column]]:
    """What the model gave, batch by batch."""
    for batch in batches:
        yield from profile_outputs(scored(pl.DataFrame(batch), fields), fields, spec).columns.items()
