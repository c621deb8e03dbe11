"""The columns of a declared source: which are asked for, and how what they hold becomes what a row holds.

Nothing is guessed. A time needs a zone, a number as a time a unit, a text as a label its place among the values; what
lacks it is one error that names the column, where it is and what to declare. Single values that cannot be read are left
to :mod:`pipelines.cases.receiving`, which refuses them one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

import polars as pl

from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.fields import Fields, Flag, Numeric, Vector, as_kind, frame_schema
from pipelines.params import Columns, SqlSource, Watermark

MOMENT = pl.Datetime("us", "UTC")
DAY = timedelta(days=1)
ID_DIGITS = 32
"""Hexadecimal digits of an id that is made of a row's content: 128 bits of its SHA-256."""
# A zone of hours alone, as PostgreSQL writes it, is none to "%+".
_SECONDS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z")
WITH_ZONE = ("%+", "%Y-%m-%dT%H:%M%#z", "%Y-%m-%d %H:%M%#z", *_SECONDS)
WITHOUT_ZONE = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d")
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MARK = "_watermark"
"""Our name of a watermark, where there is one."""
PIECE = 100_000
"""Rows that are read at once."""
_EXACT = 2.0**53
"""Below it a float64 tells every whole number from the next."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a source: a case's columns, as it declares them, of one window."""

    fields: Fields
    declared: Columns
    window: Window

    @property
    def names(self) -> dict[str, str]:
        """The source's names by ours, of every column that is read."""
        given = self.declared.columns
        ours = ["id", "event_time", *self.fields.names, self.fields.label]
        if "label_time" in given:
            ours.append("label_time")
        found = {own: given.get(own) or own for own in ours if own != "id" or not self.makes_ids}
        if self.watermark is not None:
            found[MARK] = self.watermark.column
        return found

    @property
    def watermark(self) -> Watermark | None:
        """What tells rows that are new or were changed, if it is declared."""
        return self.declared.watermark if isinstance(self.declared, SqlSource) else None

    @property
    def makes_ids(self) -> bool:
        """Whether the source has no ids."""
        return self.declared.columns.get("id", "id") is None

    @property
    def times(self) -> list[str]:
        """Those of our names that are times."""
        moments = [field.name for field in self.fields.moments]
        return [name for name in self.names if name in {"event_time", "label_time", MARK, *moments}]

    @property
    def event_time(self) -> str:
        """The source's name of the time by which rows are asked for."""
        return self.names["event_time"]

    @property
    def text_types(self) -> dict[str, pl.DataType]:
        """How a file of texts is read: numbers too, for one reading of all formats, and vectors as lists."""
        vectors = {field.name for field in self.fields.fields if isinstance(field, Vector)}
        return {name: pl.List(pl.Float64()) if own in vectors else pl.String() for own, name in self.names.items()}

    def check(self, there: Collection[str], where: str) -> None:
        """Raise DataError if a column is not there."""
        missing = [name for name in self.names.values() if name not in there]
        if not missing:
            return
        mend = "name them in source.columns of params.yaml, or deliver them again"
        if missing == [self.names.get(MARK)]:
            mend = "name another one in source.watermark.column of params.yaml, or leave source.watermark out"
        if self.names.get("id") in missing:
            mend += "; {id: null} there says that rows have no id, and one is made of what they hold"
        raise DataError(
            f"{where} has no column {', '.join(missing)}, but {', '.join(sorted(there)[:40]) or 'none'}: {mend}"
        )


def pieces(frames: Iterable[pl.LazyFrame], asked: Asked, where: str) -> Iterator[pl.DataFrame]:
    """The rows of the window under our names, at most ``PIECE`` at once, in the order of ``frames``.

    ``frames`` are one file or table, whole or in parts, and at least one, so that there is a piece too. Rows without a
    readable time are among them, for whoever counts refusals. Raises DataError for a column that cannot be read as it
    is declared; what polars raises passes.
    """
    seen = _Seen()
    kinds: list[pl.DataFrame] = []
    for frame in frames:
        wanted = _wanted(frame, asked, where)
        found = batches(wanted, PIECE)
        first = next(found, pl.DataFrame(schema=wanted.collect_schema()))
        for batch in chain([first], found):
            piece = _readable(batch, asked, where, seen)
            kinds = [together([*kinds, piece.clear()])]
            yield piece
    _check_zones(seen, asked, where)


def moments(values: Sequence[Any], own: str, asked: Asked, where: str) -> list[datetime | None]:
    """Single values of a column of times as moments. Raises DataError for one that is none, or could be any."""
    name = asked.names[own]
    given = pl.DataFrame({name: list(values)}, strict=False)
    found = given.select(_moment(pl.col(name), own, given.schema, asked, where).alias(own))[own].to_list()
    for value, moment in zip(values, found, strict=True):
        if value is not None and moment is None:
            raise DataError(f"{where}: {name} holds {value!r}, which is no time: cast the column in a query")
    return found


def batches(frame: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    """All rows of a frame in their order, at most ``rows`` at once. Raises what polars raises.

    polars' own ``collect_batches`` (2.1) ends without an error where one of its threads panics, as on a file that is
    shorter than it should be: what came until then would pass for all. A panic is a ComputeError here.
    """
    found: Queue[pl.DataFrame | None] = Queue(maxsize=1)
    left = Event()
    wrong: list[BaseException] = []

    def hand(batch: pl.DataFrame | None) -> bool:
        """Whether nobody takes batches any more."""
        while not left.is_set():
            with suppress(Full):
                found.put(batch, timeout=0.1)
                return False
        return True

    def read() -> None:
        try:
            frame.sink_batches(hand, chunk_size=rows, maintain_order=True, engine="streaming")
        except BaseException as error:  # noqa: BLE001 - raised again where batches are taken
            wrong.append(error)
        hand(None)

    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        while (batch := found.get()) is not None:
            yield batch
    finally:
        left.set()
        thread.join()
    for error in wrong:
        if isinstance(error, Exception):
            raise error
        raise pl.exceptions.ComputeError(str(error)) from error


def span(frame: pl.LazyFrame, asked: Asked, where: str) -> tuple[datetime, datetime] | None:
    """The oldest and the newest event time of a whole file; None if a row has none that can be read, or there is none.

    Raises what :func:`pieces` raises.
    """
    schema = frame.collect_schema()
    asked.check(schema.names(), where)
    moment = _moment(pl.col(asked.event_time), "event_time", schema, asked, where).alias("at")
    found = frame.select(moment).select(
        first=pl.col("at").min(), last=pl.col("at").max(), undated=pl.col("at").null_count()
    )
    first, last, undated = found.collect(engine="streaming").row(0)
    return None if undated or first is None else (first, last)


def _wanted(frame: pl.LazyFrame, asked: Asked, where: str) -> pl.LazyFrame:
    """Those rows and columns that are asked for, with each time read beside it."""
    schema = frame.collect_schema()
    asked.check(schema.names(), where)
    window, name = asked.window, asked.event_time
    kind = schema[name]
    if isinstance(kind, pl.Datetime):  # on the column itself, so that a Parquet file's statistics leave pages unread
        frame = frame.filter(pl.col(name).is_between(*_around(window, kind)) | pl.col(name).is_null())
    columns = {own: pl.col(theirs) for own, theirs in asked.names.items()}
    read = {f"_{own}": _moment(pl.col(asked.names[own]), own, schema, asked, where) for own in asked.times}
    event_time = pl.col("_event_time")
    inside = (event_time >= window.start) & (event_time < window.end)
    return frame.select(**columns, **read).filter(inside | event_time.is_null())


def together(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Pieces as one frame: times that are texts in one of them are texts in all. Raises what polars raises."""
    found = list(frames)
    kinds = {name: {frame.schema[name] for frame in found} for name in found[0].columns}
    texts = [name for name, own in kinds.items() if {pl.String, MOMENT} <= own]
    if texts:
        found = [
            frame.with_columns(_text(frame[name]) for name in texts if frame.schema[name] == MOMENT) for frame in found
        ]
    return pl.concat(found, how="vertical_relaxed")


def _text(moments: pl.Series) -> pl.Series:
    return moments.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00")


@dataclass
class _Seen:
    """What pieces of one file or table were found to hold, where only all of them together tell what it means."""

    unread: dict[str, str | None] = field(default_factory=dict)
    """By time the first text that is none, or None once one could be read."""
    by_class: set[bool] = field(default_factory=set)
    """Whether labels that are texts are names of classes."""


def _around(window: Window, kind: pl.Datetime) -> tuple[pl.Expr, pl.Expr]:
    """A day more on either side, in the column's own type: which zone it is in does not matter."""
    bounds: list[pl.Expr] = []
    for moment in (_plus(window.start, -DAY), _plus(window.end, DAY)):
        bound = pl.lit(moment.replace(tzinfo=None), pl.Datetime(kind.time_unit))
        if kind.time_zone is not None:
            bound = bound.dt.replace_time_zone("UTC").dt.convert_time_zone(kind.time_zone)
        bounds.append(bound)
    return bounds[0], bounds[1]


def _plus(moment: datetime, more: timedelta) -> datetime:
    try:
        return moment + more
    except OverflowError:
        return moment


def _moment(column: pl.Expr, own: str, schema: pl.Schema, asked: Asked, where: str) -> pl.Expr:
    """A column as moments in UTC, null where a value is none."""
    name = asked.names[own]
    kind, zone, unit = schema[name], asked.declared.time_zone, asked.declared.time_unit
    if kind == pl.Null:
        return pl.lit(None, MOMENT)
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        return column.cast(MOMENT)
    if kind == pl.String:
        return column.map_batches(lambda texts: _of_texts(texts, zone, unit), MOMENT, is_elementwise=True)
    if isinstance(kind, pl.Datetime) or kind == pl.Date:
        if zone is None:
            raise DataError(
                f"{where}: {name} holds {kind} without a time zone, which could be any: declare it as "
                "source.time_zone in params.yaml, like UTC or Europe/Berlin"
            )
        return _in_zone(column.cast(pl.Datetime("us")), zone)
    if kind.is_numeric():
        if unit is None:
            raise DataError(
                f"{where}: {name} holds {kind}, whose unit could be any: declare it as source.time_unit in "
                "params.yaml, s, ms, us or ns since 1970"
            )
        return _of_number(column, unit)
    raise DataError(f"{where}: {name} holds {kind}, expected times: name another column in source.columns")


def _of_texts(texts: pl.Series, zone: str | None, unit: str | None) -> pl.Series:
    """Texts as moments, in the first form that reads each. A form is tried if those before it left texts unread."""
    text = pl.col(texts.name)
    forms = [text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False) for form in WITH_ZONE]
    if zone is not None:
        local = [text.str.to_datetime(form, time_unit="us", strict=False) for form in WITHOUT_ZONE]
        forms += [_in_zone(one, zone) for one in local]
    if unit is not None:
        forms.append(_of_number(text.cast(pl.Float64, strict=False), unit))
    given = texts.to_frame()
    found = pl.Series(texts.name, [None], MOMENT).new_from_index(0, texts.len())
    for form in forms:
        if found.null_count() == texts.null_count():
            break
        found = given.select(pl.coalesce(found, form.alias(texts.name))).to_series()
    return found


def _in_zone(local: pl.Expr, zone: str) -> pl.Expr:
    """Local times in UTC: the earlier one of the hour that comes twice; an hour that never comes cannot be read."""
    return local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")


def _of_number(column: pl.Expr, unit: str) -> pl.Expr:
    """Numbers since 1970 as moments."""
    micro = column * (10**6 / PER_SECOND[unit])
    return micro.round().cast(pl.Int64, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _readable(found: pl.DataFrame, asked: Asked, where: str, seen: _Seen) -> pl.DataFrame:
    """What was read with moments in their places, ids and labels as rows have them."""
    for own in asked.times:
        moment = found[f"_{own}"]
        lost = found[own].is_not_null() & moment.is_null()
        _note_texts(found[own], lost, own, seen)
        if lost.any():  # as texts, so that those that are none are refused one by one, as they came
            moment = _text(moment).zip_with(~lost, found[own].cast(pl.String, strict=False).fill_null("unreadable"))
        found = found.with_columns(moment.alias(own)).drop(f"_{own}")
    for column in asked.fields.fields:
        if isinstance(column, Flag):
            words = pl.col(column.name).cast(pl.String).str.to_lowercase().replace({"1": "true", "0": "false"})
            found = found.with_columns(words)
        elif isinstance(column, Numeric) and isinstance(found.schema[column.name], pl.Decimal):
            found = found.with_columns(pl.col(column.name).cast(pl.Float64))
    label = asked.fields.label
    try:
        known = label in found.columns
        found = found.with_columns(
            _label(found[label], asked, where, seen) if known else pl.lit(None, pl.Int8).alias(label)
        )
    except DataError:
        _check_zones(seen, asked, where)
        raise
    if asked.makes_ids:
        return found.with_columns(_ids(found, asked.fields))
    return found.with_columns(_id(found["id"], asked.names["id"], where))


def _note_texts(texts: pl.Series, lost: pl.Series, own: str, seen: _Seen) -> None:
    if texts.dtype != pl.String:
        return
    if lost.sum() < texts.len() - texts.null_count():
        seen.unread[own] = None
    elif lost.any():
        seen.unread.setdefault(own, texts.filter(lost)[0])


def _check_zones(seen: _Seen, asked: Asked, where: str) -> None:
    """Raise DataError if none of a column's texts can be read for want of one declaration."""
    for own, text in seen.unread.items():
        if text is None:
            continue
        try:
            datetime.fromisoformat(text)
        except ValueError:
            if not text.lstrip("-").replace(".", "", 1).isdecimal():
                continue
            mend = "a number whose unit could be any: declare it as source.time_unit in params.yaml, s, ms, us or ns"
        else:
            mend = "without a time zone, which could be any: declare it as source.time_zone in params.yaml, like UTC"
        raise DataError(f"{where}: {asked.names[own]} holds times like {text!r}, {mend}")


def _id(ids: pl.Series, name: str, where: str) -> pl.Series:
    """Ids that a table keeps as floats, as they are when some are missing, without their point."""
    if not ids.dtype.is_float():
        return ids
    known = ids.fill_nan(None).drop_nulls()
    if not ((known == known.round()) & (known.abs() < _EXACT)).all():
        raise DataError(f"{where}: {name} holds {ids.dtype}, and not only whole numbers: an id is a text or an integer")
    return ids.fill_nan(None).cast(pl.Int64)


def _label(labels: pl.Series, asked: Asked, where: str, seen: _Seen) -> pl.Series:
    values = list(asked.declared.label_values)
    held = f"{where}: the label {asked.names[asked.fields.label]}"
    if isinstance(labels.dtype, pl.Categorical | pl.Enum):
        labels = labels.cast(pl.String)
    mixed = False
    if not values and asked.fields.classes and labels.dtype == pl.String:
        named = _among(labels, asked.fields.classes)
        if labels.null_count() < labels.len():
            seen.by_class.add(named)
        mixed = len(seen.by_class) > 1
        if named and not mixed:
            values = list(asked.fields.classes)
    if values:
        texts = labels.cast(pl.String)
        if not _among(texts, values):
            raise DataError(
                f"{held} holds {_strange(texts, values)!r}, which is none of {', '.join(values)}: mend the data, or "
                "declare all of them as source.label_values, in the order of the label's numbers"
            )
        return texts.replace_strict(values, list(range(len(values))), return_dtype=pl.Int64)
    if labels.dtype != pl.String:
        return labels
    return _number(labels, asked, held, mixed=mixed)


def _number(labels: pl.Series, asked: Asked, held: str, *, mixed: bool) -> pl.Series:
    """Labels that are numbers written as texts; ``mixed``: elsewhere they are names of classes."""
    words = {"true": "1", "false": "0"}
    number = labels.cast(pl.Float64, strict=False)
    if number.null_count() > labels.null_count():
        number = labels.str.to_lowercase().replace(words).cast(pl.Float64, strict=False)
    wrong = labels.is_not_null() & (number.is_null() | mixed)
    if wrong.any():
        text = labels.filter(wrong)[0]
        mend = 'declare what it can be as source.label_values in params.yaml, like ["no", "yes"] for 0 and 1'
        if asked.fields.classes:
            mend = f"it is none of the classes {', '.join(map(str, asked.fields.classes[:20]))}; mend the data, or them"
        if asked.fields.number is not None:
            mend = "a number is expected: mend the data, or name another column in source.columns"
        raise DataError(f"{held} holds {text!r}: {mend}")
    return number


def _among(texts: pl.Series, values: Collection[Any]) -> bool:
    return bool(texts.drop_nulls().is_in(list(values)).all())


def _strange(texts: pl.Series, values: Collection[Any]) -> str:
    return str(texts.drop_nulls().filter(~texts.drop_nulls().is_in(list(values)))[0])


def _ids(found: pl.DataFrame, fields: Fields) -> pl.Series:
    """Ids of what rows hold, whatever file format or database they came from: time and fields by name.

    The label is left out: it comes later, and the row stays the same.
    """
    schema = frame_schema(fields)
    read = found.select(as_kind(pl.col(name), schema[name]) for name in sorted({"event_time", *fields.names}))
    read = read.with_columns(pl.selectors.datetime().dt.timestamp("us"), pl.selectors.float().fill_nan(None))
    texts = (json.dumps(row, ensure_ascii=False) for row in read.iter_rows())
    digests = [hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS] for text in texts]
    return pl.Series("id", digests, pl.String)
