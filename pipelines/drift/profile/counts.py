"""The profile: what a day of rows looked like, as counts that add up.

Numbers are counted on the bit histogram (bits.py), categories over the declared vocabulary and one bin for all
else. Merging is integer addition, so any hours make a window, in any order, and a profile outlives the champion
it was first compared with.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import feature_names, objects
from pipelines.drift.profile.bits import BINS, Ints, Missing, count, histogram
from pipelines.drift.profile.projections import project
from pipelines.drift.profile.spec import UNIT, Spec, count_words, entropy
from pipelines.drift.profile.vocabulary import split, tokens, unknown_shares
from pipelines.encoding import unfolded
from pipelines.errors import IntegrityError
from pipelines.feature_names import ENTROPY, PREDICTION, SCORE, missing_share, other_share, served
from pipelines.fields import (
    SCORES,
    Categorical,
    Field,
    Fields,
    Flag,
    Moment,
    Scale,
    Text,
    Vector,
    as_kind,
    frame_schema,
)
from pipelines.files import write_atomic
from pipelines.storage import canonical_json

FEW = 1 << 13
"""Sorting fewer values than these beats clearing 65,536 counters."""
ABSENT = ("missing", "given")
"""The vocabulary of a share of missing values."""
UNDECLARED = ("other", "declared")
"""The vocabulary of a share of values outside of the field's own."""
VERSION = "version"
"""The column that says which champion gave a row's score."""
_AT_ONCE = 1 << 22
"""Entries of profiles that are added up at once: 100 MB."""
_HASHED = re.compile(r"[0-9a-f]{16}\.parquet")
_META = b"perennial.profile"
Rows = TypeVar("Rows", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True)
class Column:
    """Counts of one feature: ``counts[i] > 0`` values lie in bin ``bins[i]``, bins ascending with the value.

    Of a category the bin is its position in ``vocabulary``, and ``len(vocabulary)`` is everything else.
    The words of texts are such a category too: their counts are of words, not of rows.
    ``missing`` counts ``null, nan, above (+inf), below (-inf)``, which are in no bin.
    """

    bins: Ints
    counts: Ints
    missing: Missing = (0, 0, 0, 0)
    vocabulary: tuple[str, ...] | None = None

    @property
    def n(self) -> int:
        """Values in bins."""
        return int(self.counts.sum())

    @property
    def beyond(self) -> int:
        """Values outside of the vocabulary."""
        if self.vocabulary is None:
            return 0
        return int(self.counts[self.bins == len(self.vocabulary)].sum())


@dataclass(frozen=True)
class Profile:
    """Counts of all features over some rows. ``days`` and ``baseline`` are a reference's alone (see reference.py)."""

    spec: str
    rows: int
    columns: dict[str, Column]
    days: dict[str, Ints] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)


def number_column(values: pl.Series, scale: Scale) -> Column:
    """Count one numeric series."""
    null = values.null_count()
    numbers = values.drop_nulls().cast(pl.Float64).to_numpy()
    if numbers.size < FEW:
        finite = numbers[np.isfinite(numbers)]
        nan = int(np.isnan(numbers).sum())
        above = int(np.isposinf(numbers).sum())
        below = len(numbers) - len(finite) - nan - above
        return Column(*np.unique(histogram(finite, scale), return_counts=True), (null, nan, above, below))
    counts, missing = count([numbers], scale)
    return dense_column(counts, (null, *missing[1:]))


def dense_column(counts: Ints, missing: Missing, vocabulary: tuple[str, ...] | None = None) -> Column:
    """The column of a count for every bin ``[bins]``, most of them 0."""
    bins = np.flatnonzero(counts > 0)  # of truth values much faster than of numbers
    return Column(bins, counts[bins], missing, vocabulary)


def added(one: Missing, other: Missing) -> Missing:
    """Missing values of two sets of rows together."""
    null, nan, above, below = (a + b for a, b in zip(one, other, strict=True))
    return null, nan, above, below


def category_column(values: pl.Series, vocabulary: tuple[str, ...]) -> Column:
    """Count one series of text, or of truth values, over its declared vocabulary."""
    codes = values.cast(pl.String).cast(pl.Enum(list(vocabulary)), strict=False).to_physical()
    counts = np.bincount(codes.drop_nulls().to_numpy(), minlength=len(vocabulary) + 1).astype(np.int64)
    counts[-1] = codes.null_count() - values.null_count()
    return dense_column(counts, (values.null_count(), 0, 0, 0), vocabulary)


def position_column(values: pl.Series, vocabulary: tuple[str, ...]) -> Column:
    """Count one series of positions in ``vocabulary``; a position outside of it is everything else."""
    found = values.drop_nulls().cast(pl.Int64).to_numpy()
    size = len(vocabulary)
    counts = np.bincount(np.where((found >= 0) & (found < size), found, size), minlength=size + 1).astype(np.int64)
    return dense_column(counts, (values.null_count(), 0, 0, 0), vocabulary)


def profile_frame(frame: pl.DataFrame, fields: Fields, spec: Spec) -> Profile:
    """Count the features of ``frame``, the derived ones too, and what the model gave.

    By ``version``, if that is a column. What it gave is its ``score`` and the ``entropy`` of that, with classes of
    their ``scores``, and with classes its ``prediction``; a predicted number is the ``score`` and has no entropy. A
    missing field counts as null in every row. Of a moment the parts are counted, of a vector the summaries.
    """
    columns: dict[str, Column] = {}
    frame = unfolded(frame, fields)
    for declared in fields.columns:
        values = _values(frame, declared.name)
        if isinstance(declared, Categorical | Flag):
            columns[declared.name] = category_column(values, declared.values)
        elif isinstance(declared, Text):
            columns |= _text(values, spec)
        else:
            columns[declared.name] = number_column(values, spec.scales[declared.name])
    columns |= shares(columns, fields) | profile_outputs(frame, fields, spec).columns
    return Profile(spec.version, frame.height, columns)


def shares(columns: Mapping[str, Column], fields: Fields) -> dict[str, Column]:
    """What the counts of fields say of their missing and undeclared values, of those that declare to have some.

    A share is a category of two, so that it adds up and is tested like any other feature.
    """
    found: dict[str, Column] = {}
    for declared in fields.features:
        if declared.missing:
            counted = columns[_counted(declared)]
            null, nan, above, below = counted.missing
            found[missing_share(declared.name)] = _two(null + nan, counted.n + above + below, ABSENT)
        if isinstance(declared, Categorical) and declared.other:
            other = columns[declared.name].beyond
            found[other_share(declared.name)] = _two(other, columns[declared.name].n - other, UNDECLARED)
    return found


def _counted(declared: Field) -> str:
    """The name of a column that is counted in every row that has a value of the field."""
    if isinstance(declared, Text):
        return feature_names.words(declared.name)
    return declared.columns[0].name if isinstance(declared, Moment | Vector) else declared.name


def _two(first: int, second: int, vocabulary: tuple[str, ...]) -> Column:
    return dense_column(np.array([first, second], np.int64), (0, 0, 0, 0), vocabulary)


def _values(frame: pl.DataFrame, name: str) -> pl.Series:
    if name in frame.columns:
        return frame[name]
    return pl.Series(name, [None] * frame.height)


def profile_outputs(frame: pl.DataFrame, fields: Fields, spec: Spec) -> Profile:
    """The part of :func:`profile_frame` that the model gave."""
    columns: dict[str, Column] = {}
    outputs = _outputs(frame, fields)
    if VERSION in frame.columns and outputs.width:
        for version, part in _by_version(outputs.with_columns(frame[VERSION])):
            columns |= {served(name, version): _output(name, part[name], fields, spec) for name in outputs.columns}
    else:
        columns |= {name: _output(name, outputs[name], fields, spec) for name in outputs.columns}
    return Profile(spec.version, frame.height, columns)


def typed(rows: Rows, fields: Fields) -> Rows:
    """Fields as they are declared; not strict: a value that is not of its field's type counts as missing."""
    kinds = {name: kind for name, kind in frame_schema(fields).items() if name in fields.names}
    return rows.with_columns(
        as_kind(pl.selectors.by_name(name, require_all=False), kind) for name, kind in kinds.items()
    )


def scored(rows: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """Rows of the log with null ``scores`` where a case has classes and none were logged.

    Their counts must not hang on what lies beside them.
    """
    if not fields.classes or SCORE not in rows.columns or SCORES in rows.columns:
        return rows
    return rows.with_columns(pl.lit(None, pl.List(pl.Float64)).alias(SCORES))


def _text(values: pl.Series, spec: Spec) -> dict[str, Column]:
    """What is counted of texts: how many words, how many of them unknown, which, and their projections.

    Rows without a text are missing in each.
    """
    words = count_words(values)
    found = {words.name: number_column(words, spec.scales[words.name])}
    if spec.vocabulary:
        own = split(values)
        found[feature_names.unknown(values.name)] = number_column(unknown_shares(own, spec.vocabulary), UNIT)
        counted = category_column(tokens(own), spec.vocabulary)
        found[feature_names.tokens(values.name)] = replace(counted, missing=(values.null_count(), 0, 0, 0))
        if feature_names.projections(values.name)[0] in spec.scales:
            projected = project(own)
            found |= {name: number_column(projected[name], spec.scales[name]) for name in projected.columns}
    return found


def _outputs(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    names = [SCORE]
    probabilities = SCORE
    kind: Any = pl.Float64
    if fields.classes:
        names = [SCORE, PREDICTION]
        probabilities = SCORES
        kind = pl.List(pl.Float64)
    kept = frame.select(name for name in names if name in frame.columns)
    if fields.number is not None or probabilities not in frame.columns:
        return kept
    return kept.with_columns(entropy(frame[probabilities].cast(kind, strict=False)))


def _by_version(frame: pl.DataFrame) -> list[tuple[Any, pl.DataFrame]]:
    versions = frame[VERSION]
    if (
        frame.height and not versions.null_count() and versions.min() == versions.max()
    ):  # the usual hour: nothing to be sorted out
        return [(versions[0], frame)]
    return sorted((version, part) for (version,), part in frame.partition_by(VERSION, as_dict=True).items())


def _output(name: str, values: pl.Series, fields: Fields, spec: Spec) -> Column:
    if name == PREDICTION:
        return position_column(values, fields.classes)
    if name == ENTROPY:
        return number_column(values, UNIT)
    return number_column(values, spec.scales[SCORE])


def merge(profiles: Iterable[Profile], spec: str) -> Profile:
    """The profile of all rows together; of none, the empty one.

    Raises IntegrityError if one was made with another spec. Hundreds of hours are one count over (feature, bin), a few
    million entries of them at a time.
    """
    total = _Sum()
    for profile in profiles:
        if profile.spec != spec:
            raise IntegrityError(
                f"a profile was made with feature spec {profile.spec}, not {spec}: run the step 'profile' again"
            )
        total.add(profile)
    return Profile(spec, total.rows, total.columns())


class _Sum:
    """Profiles being added up: entries wait until there are enough of them for one pass over all counters."""

    def __init__(self) -> None:
        self.rows = 0
        self.features: dict[str, int] = {}
        self.missing: list[Missing] = []
        self.vocabularies: list[tuple[str, ...] | None] = []
        self.counts: Ints = np.zeros(0, np.int64)
        self.waiting: list[tuple[Ints, Ints]] = []
        self.size = 0

    def add(self, profile: Profile) -> None:
        self.rows += profile.rows
        for name, column in profile.columns.items():
            number = self.features.setdefault(name, len(self.features))
            if number == len(self.missing):
                self.missing.append((0, 0, 0, 0))
                self.vocabularies.append(column.vocabulary)
            self.missing[number] = added(self.missing[number], column.missing)
            self.waiting.append((column.bins + number * BINS, column.counts))
            self.size += column.bins.size
        if self.size > _AT_ONCE:
            self.count()

    def count(self) -> None:
        found: Ints = np.zeros(len(self.features) * BINS, np.int64)
        if self.waiting:
            keys, counts = (_joined(list(parts)) for parts in zip(*self.waiting, strict=True))
            # Sums of whole numbers below 2**53 are exact in float64.
            found = np.bincount(keys, counts, found.size).astype(np.int64)
        found[: self.counts.size] += self.counts
        self.counts = found
        self.waiting = []
        self.size = 0

    def columns(self) -> dict[str, Column]:
        self.count()
        by_feature = self.counts.reshape(len(self.features), BINS)
        return {
            name: dense_column(by_feature[number], self.missing[number], self.vocabularies[number])
            for name, number in sorted(self.features.items())
        }


# --- files --------------------------------------------------------------------------------------


def to_bytes(profile: Profile) -> bytes:
    """A Parquet file ``{feature, bin, count, day}``; equal profiles give equal bytes.

    ``day`` is null in the counts of the whole; in a reference's rows of single days it numbers the day, and
    ``bin`` is a coarse group. Vocabularies, missing values and the spec's version are in the metadata.
    """
    parts: list[tuple[str, Ints, Ints, int | None]] = [
        (name, column.bins, column.counts, None) for name, column in sorted(profile.columns.items())
    ]
    for name, days in sorted(profile.days.items()):
        parts.extend((name, np.flatnonzero(row), row[np.flatnonzero(row)], day) for day, row in enumerate(days))
    table = pa.table(
        {
            "feature": pa.array([name for name, bins, _, _ in parts for _ in bins], pa.string()).dictionary_encode(),
            "bin": pa.array(_joined([bins for _, bins, _, _ in parts]), pa.uint32()),
            "count": pa.array(_joined([counts for _, _, counts, _ in parts]), pa.uint64()),
            "day": pa.array([day for _, bins, _, day in parts for _ in bins], pa.int32()),
        }
    )
    about = {
        "spec": profile.spec,
        "rows": profile.rows,
        "missing": {name: column.missing for name, column in profile.columns.items()},
        "vocabulary": {
            name: column.vocabulary for name, column in profile.columns.items() if column.vocabulary is not None
        },
        "days": {name: list(days.shape) for name, days in profile.days.items()},
        "baseline": profile.baseline,
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_META: canonical_json(about).encode()}), sink, compression="zstd")
    return sink.getvalue()


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])


def read(path: Path) -> Profile:
    """Read a profile.

    Raises IntegrityError if the file is missing, is none, or is named by a hash and holds something else.
    """
    objects.need(path)
    try:
        data = path.read_bytes()
        if _HASHED.fullmatch(path.name) and hashlib.sha256(data).hexdigest()[:16] != path.stem:
            raise IntegrityError(
                f"{path} is not a profile of that name (its bytes have changed): remove it and run the step that "
                "wrote it again"
            )
        table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False).read()
        about: dict[str, Any] = json.loads(table.schema.metadata[_META])
    except (OSError, KeyError, TypeError, pa.ArrowInvalid) as error:
        mend = "remove it and run the step that wrote it again"
        raise IntegrityError(f"{path} is not a profile ({error!r}): {mend}") from error
    features = table["feature"].combine_chunks()
    day = table["day"].combine_chunks()
    names = features.dictionary.to_pylist()
    total = day.null_count  # rows of the whole stand first
    codes, bins, counts = (
        _whole(values) for values in (features.indices, table["bin"].combine_chunks(), table["count"].combine_chunks())
    )
    whole = _by_feature(names, codes[:total], bins[:total], counts[:total], np.full(total, -1))
    single = _by_feature(names, codes[total:], bins[total:], counts[total:], _whole(day.slice(total)))
    columns: dict[str, Column] = {}
    for name, missing in about["missing"].items():
        words = about["vocabulary"].get(name)
        own_bins, own_counts, _ = whole.get(name, (np.empty(0, np.int64),) * 3)
        null, nan, above, below = missing
        columns[name] = Column(own_bins, own_counts, (null, nan, above, below), None if words is None else tuple(words))
    days: dict[str, Ints] = {}
    for name, shape in about["days"].items():
        days[name] = np.zeros(shape, np.int64)
        own_bins, own_counts, own_days = single[name]
        days[name][own_days, own_bins] = own_counts
    return Profile(about["spec"], about["rows"], columns, days, about["baseline"])


def _whole(values: Any) -> Ints:
    """An Arrow array of whole numbers, none null. By DLPack, as Arrow's own to_numpy imports pandas."""
    found: Any = np.from_dlpack(values)
    return np.asarray(found, np.int64)


def _by_feature(
    names: list[str], codes: Ints, bins: Ints, counts: Ints, day: Ints
) -> dict[str, tuple[Ints, Ints, Ints]]:
    """The rows of each feature; a feature's rows stand together in a file."""
    if not codes.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    ends = np.append(starts[1:], codes.size)
    return {
        names[codes[start]]: (bins[start:end], counts[start:end], day[start:end])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    }


def write(profile: Profile, folder: Path) -> Path:
    """Keep a profile as ``folder/<first 16 of its sha256>.parquet``, whole or not at all; returns the path."""
    data = to_bytes(profile)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    if not path.exists() or path.read_bytes() != data:  # a damaged one is mended by running again
        objects.put(path, data)
        write_atomic(path, data)
    return path
