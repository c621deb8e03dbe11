"""What a source may deliver: the one door to canonical rows, for every case's source and for the prediction log.

Of the rows that are delivered each is kept, refused with its reasons, an exact repeat of another one, or outside of
what was asked for; :class:`Received` counts them, and the counts add up. A value of a field that cannot be read is
left out of its row, which goes on to validation; a row without id, time or usable label is refused here. Where a whole
column is of a type that would have to be guessed at (times without a time zone, whole numbers as times, text as
a label), nothing is guessed: one DataError names the case, the column, a value and what to do.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.fields import AS_DELIVERED, Fields, Numeric, as_kind, frame_schema
from pipelines.moments import parse_moment
from pipelines.params import Params

MOMENT = pl.Datetime("us", "UTC")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """``delivered == rows.height + refused.height + repeats + outside_window + outside_period``, always.

    ``rows`` are canonical, by time and id. ``refused`` have the same columns as far as they can be read, and
    ``reasons``. Both have ``as_delivered`` where a value could not be read: the row as it came, as JSON. ``times``
    are the oldest and newest times that could be read. ``beside`` is what else is to be told of the delivery.
    """

    rows: pl.DataFrame
    refused: pl.DataFrame
    delivered: int
    repeats: int = 0
    outside_window: int = 0
    outside_period: int = 0
    times: tuple[datetime, datetime] | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """What became of the rows delivered."""
        return {
            "delivered": self.delivered,
            "rows": self.rows.height,
            "refused": self.refused.height,
            "repeats": self.repeats,
            "outside_window": self.outside_window,
            "outside_period": self.outside_period,
        }

    def since(self, first: datetime) -> Received:
        """Without the rows from before ``first``: nobody asks for them any more."""
        rows = self.rows.filter(pl.col("event_time") >= first)
        return replace(self, rows=rows, outside_window=self.outside_window + self.rows.height - rows.height)

    def after(self, earlier: Sequence[Received]) -> Received:
        """As seen from before ``earlier`` deliveries took out what never came here."""
        refused = pl.concat([self.refused, *(one.refused for one in earlier)], how="diagonal_relaxed")
        apart = sum(one.delivered - one.rows.height for one in earlier)
        moments = [moment for one in (self, *earlier) if one.times is not None for moment in one.times]
        times = None
        if moments:
            times = (min(moments), max(moments))
        return replace(
            self,
            refused=_in_order(refused.unique()),
            delivered=self.delivered + apart,
            repeats=self.repeats + sum(one.repeats for one in earlier) + refused.height - refused.unique().height,
            outside_window=self.outside_window + sum(one.outside_window for one in earlier),
            outside_period=self.outside_period + sum(one.outside_period for one in earlier),
            times=times,
        )


_NOTES: ContextVar[list[Received] | None] = ContextVar("deliveries", default=None)


@contextmanager
def noted() -> Iterator[list[Received]]:
    """The deliveries that :func:`note` is told of in this block: a source gives back rows, the rest goes this way."""
    found: list[Received] = []
    token = _NOTES.set(found)
    try:
        yield found
    finally:
        _NOTES.reset(token)


def note(case: str, received: Received) -> None:
    """Tell whoever counts, and the log, what did not become a row."""
    found = _NOTES.get()
    if found is not None:
        found.append(received)
    if not received.refused.height and not received.repeats:
        return
    why = ", ".join(f"{reason} ({count})" for reason, count in count_reasons(received.refused).items())
    if why:
        why = f": {why}"
    log.warning(
        "%s: of %d rows delivered %d are refused%s, %d are exact repeats",
        case,
        received.delivered,
        received.refused.height,
        why,
        received.repeats,
    )


def count_reasons(refused: pl.DataFrame) -> dict[str, int]:
    """How many rows are refused for each reason, the most frequent first (a row may count under several)."""
    counts = Counter(reason for reasons in refused["reasons"] for reason in reasons.split("; "))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def receive(
    frame: pl.DataFrame,
    fields: Fields,
    window: Window,
    params: Params,
    *,
    within_period: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Received:
    """Bring what was delivered into canonical form, and count what does not become a row of ``window``.

    ``frame`` needs ``id``, ``event_time``, the declared fields and the label; a ``label_time`` that it lacks is the
    event's plus the case's delay. Other columns are left out, but for those of ``extra`` (name -> type). Delivering
    rows once more, or in another order, gives the same rows. Raises DataError if a column is missing or of a type
    that says nothing of its values.
    """
    _check_form(frame, fields)
    frame = _without_nan(frame, fields)
    given = frame
    if "label_time" not in frame.columns:
        given = frame.with_columns(label_time=pl.lit(None, MOMENT))
    schema = frame_schema(fields) | dict(extra or {})
    columns = {name: as_kind(_read(given, fields, name), kind) for name, kind in schema.items()}
    read = given.select(**columns)
    if "label_time" not in frame.columns:
        read = read.with_columns(label_time=pl.col("event_time") + timedelta(days=params.label_delay_days))
    unread = [_lost(given[name], read[name]) for name in fields.names]
    reasons = _reasons(given, read, fields)
    broken = pl.DataFrame([reasons.is_not_null().alias("refused"), *unread]).select(pl.any_horizontal("*")).to_series()
    read = read.with_columns(reasons=reasons, **{AS_DELIVERED: _as_delivered(frame, broken)})

    since, until = params.period
    if not within_period:
        since, until = window.start, window.end
    moment = pl.col("event_time")
    in_period = moment >= since
    if until is not None:
        in_period &= moment < until
    in_window = (moment >= window.start) & (moment < window.end)
    placed = read.select(period=in_period, inside=in_period & in_window)
    outside_period = int((~placed["period"]).sum())
    outside_window = int((placed["period"] & ~placed["inside"]).sum())
    inside = _where(read, placed["inside"].fill_null(value=True))
    once = inside
    if inside["id"].n_unique() < inside.height:  # equal rows have one id
        once = inside.unique(maintain_order=True)
    sound = once["reasons"].is_null()
    rows = _where(once, sound).drop("reasons")
    refused = once.filter(~sound)
    if rows[AS_DELIVERED].null_count() == rows.height:
        rows = rows.drop(AS_DELIVERED)
    return Received(
        _in_order(rows),
        _in_order(refused),
        delivered=frame.height,
        repeats=inside.height - once.height,
        outside_window=outside_window,
        outside_period=outside_period,
        times=_span(read["event_time"]),
    )


def _where(rows: pl.DataFrame, wanted: pl.Series) -> pl.DataFrame:
    """The rows that are wanted; no copy of them if all are."""
    return rows if wanted.all() else rows.filter(wanted)


def _without_nan(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """Null in place of NaN in numbers that may be missing: sources have one or the other for it."""
    names = [field.name for field in _numbers(fields) if field.missing and frame.schema[field.name].is_float()]
    return frame.with_columns(pl.col(name).fill_nan(None) for name in names)


def _span(times: pl.Series) -> tuple[datetime, datetime] | None:
    """The oldest and the newest of the times that could be read."""
    if times.null_count() == times.len():
        return None
    return times.min(), times.max()  # type: ignore[return-value] # moments, as the column is


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """By time and id; rows that share both by all they hold, so that the order of delivery does not show."""
    if rows["id"].n_unique() == rows.height:
        return rows.sort("event_time", "id")
    return rows.sort("event_time", "id", *(name for name in rows.columns if name not in {"event_time", "id"}))


# --- whole columns ------------------------------------------------------------------------------


def _check_form(frame: Any, fields: Fields) -> None:
    if not isinstance(frame, pl.DataFrame):
        came = type(frame).__name__
        raise DataError(f"{fields.case}: rows came as {came}: give back a polars DataFrame from `rows` in source.py")
    missing = [name for name in ("id", "event_time", *fields.names, fields.label) if name not in frame.columns]
    if missing:
        have = ", ".join(frame.columns) or "none"
        raise DataError(
            f"{fields.case}: column(s) {', '.join(missing)} missing, the rows delivered have {have}: "
            "rename or add them in source.py"
        )
    numeric = {number.name for number in _numbers(fields)}
    for name in ("id", "event_time", "label_time", *fields.names, fields.label):
        if name in frame.columns and (wrong := _wrong_type(frame[name], name, fields, numeric)):
            raise DataError(f"{fields.case}: {name} {wrong}")


def _wrong_type(values: pl.Series, name: str, fields: Fields, numeric: set[str]) -> str | None:
    """Why a whole column cannot be read, with a value and what to do; None if it can, value by value."""
    kind = values.dtype
    if kind == pl.Null:
        return None
    held = f"holds {kind} ({_first(values)})"
    if name in _times_of(fields):
        return _wrong_times(kind, held)
    words = kind in (pl.String, pl.Categorical, pl.Enum) or kind.is_integer()
    is_number = kind.is_numeric() or kind == pl.Boolean
    if name == "id":
        return None if words else f"{held}, which is no id: make it text in source.py, always the same for a row"
    if name == fields.label:
        return None if is_number else _wrong_label(held, fields)
    if name in {vector.name for vector in fields.vectors}:
        listed = isinstance(kind, pl.List | pl.Array) and (kind.inner.is_numeric() or kind.inner == pl.Null)
        return None if listed else f"{held}, expected a list of numbers: convert it in source.py"
    if words or is_number:
        return None
    if name in numeric:
        return f"{held}, expected a number: convert it in source.py"
    return f"{held}, expected text: convert it in source.py"


def _wrong_label(held: str, fields: Fields) -> str:
    expected = "0 or 1"
    if fields.classes:
        expected = f"the class's position, 0 to {len(fields.classes) - 1}"
    if fields.number is not None:
        expected = f"a number ({fields.number.unit})"
    return f"{held}, expected {expected}: convert it in source.py, nothing is guessed"


def _wrong_times(kind: pl.DataType, held: str) -> str | None:
    if kind == pl.String or (isinstance(kind, pl.Datetime) and kind.time_zone is not None):
        return None
    if isinstance(kind, pl.Datetime):
        mend = "give it one in source.py, e.g. pl.col(...).dt.replace_time_zone('UTC')"
        return f"{held} without a time zone, which could be any: {mend}"
    if kind == pl.Date:
        mend = "say in source.py which moment is meant, e.g. .cast(pl.Datetime('us', 'UTC')) for midnight in UTC"
        return f"{held}, a day and no moment: {mend}"
    if kind.is_numeric():
        mend = "make times of them in source.py, e.g. pl.from_epoch(..., time_unit='s').dt.replace_time_zone('UTC')"
        return f"{held}, whose unit could be any: {mend}"
    return f"{held}, expected times with a time zone: convert it in source.py"


def _first(values: pl.Series) -> str:
    found = values.drop_nulls().head(1).to_list()
    if not found:
        return "no value"
    return repr(found[0])[:60]


# --- single values ------------------------------------------------------------------------------


def _read(given: pl.DataFrame, fields: Fields, name: str) -> pl.Expr:
    kind = given.schema[name]
    if kind in (pl.Categorical, pl.Enum):  # polars makes no number of them
        return pl.col(name).cast(pl.String)
    if name in _times_of(fields) and kind == pl.String:
        return pl.lit(pl.Series(name, [_moment(text) for text in given[name]], MOMENT))
    if name == fields.label and fields.number is None and kind.is_numeric() and not kind.is_integer():
        number = pl.col(name).cast(pl.Float64)
        return pl.when(number.round() == number).then(number)
    return pl.col(name)


def _times_of(fields: Fields) -> set[str]:
    """The columns that are times."""
    return {"event_time", "label_time", *(moment.name for moment in fields.moments)}


def _moment(text: str | None) -> datetime | None:
    try:
        return parse_moment(text or "")
    except ValueError:
        return None


def _lost(given: pl.Series, read: pl.Series) -> pl.Series:
    return given.is_not_null() & read.is_null()


def _reasons(given: pl.DataFrame, read: pl.DataFrame, fields: Fields) -> pl.Series:
    """Why a row cannot be kept, all reasons joined by "; ", or null."""
    label = given[fields.label]
    found = {
        "id: missing": read["id"].is_null() | (read["id"] == ""),
        "event_time: missing": given["event_time"].is_null(),
        "event_time: not an ISO 8601 time with a time zone": _lost(given["event_time"], read["event_time"]),
        **_wrong_labels(label, read[fields.label], fields),
        "label_time: before event_time": label.is_not_null()
        & (read["label_time"] < read["event_time"]).fill_null(value=False),
        "label_time: missing": label.is_not_null() & read["event_time"].is_not_null() & read["label_time"].is_null(),
    }
    # Null would pass as missing: what was there and could not be read is none of that.
    found |= {
        f"{field.name}: cannot be read": _lost(given[field.name], read[field.name])
        for field in fields.fields
        if field.missing
    }
    marked = [pl.when(pl.lit(wrong)).then(pl.lit(reason)) for reason, wrong in found.items() if wrong.any()]
    if not marked:
        return pl.Series("reasons", [None] * read.height, pl.String)
    joined = pl.concat_str(marked, separator="; ", ignore_nulls=True)
    return pl.select(joined.alias("reasons")).to_series().replace("", None)


def _wrong_labels(label: pl.Series, read: pl.Series, fields: Fields) -> dict[str, pl.Series]:
    """Which labels cannot be what is predicted, by reason; classes and bounds are the contract's to check."""
    number = label.cast(pl.Float64, strict=False)
    if fields.number is not None:
        return {
            f"{fields.label}: not a finite number": label.is_not_null() & ~number.is_finite().fill_null(value=False)
        }
    lost = _lost(label, read)
    whole = number.is_finite() & (number.round() == number)
    beyond = f"{fields.label}: neither 0 nor 1"
    if fields.classes:
        beyond = f"{fields.label}: no class"
    return {f"{fields.label}: not a whole number": lost & ~whole, beyond: lost & whole}


def _as_delivered(frame: pl.DataFrame, broken: pl.Series) -> pl.Series:
    """The broken rows as JSON, null beside the others; what an earlier reading kept stays."""
    if AS_DELIVERED in frame.columns:
        kept = frame[AS_DELIVERED]
    else:
        kept = pl.Series(AS_DELIVERED, [None], pl.String).new_from_index(0, frame.height)
    if not broken.any():
        return kept
    rows = frame.drop(AS_DELIVERED, strict=False).filter(broken).iter_rows(named=True)
    texts = [json.dumps(row, default=str, ensure_ascii=False) for row in rows]
    return kept.scatter(broken.arg_true(), [old or new for old, new in zip(kept.filter(broken), texts, strict=True)])


def _numbers(fields: Fields) -> list[Numeric]:
    """The numbers that a row has: derived ones are made of it."""
    return [field for field in fields.fields if isinstance(field, Numeric)]
