"""A whole table: its fields, its label, its volume, and what is to be told; leaks are refused."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import polars as pl

from pipelines.errors import ConfigError, DataError
from pipelines.fields import EVENT_TIME, Field, Fields, Text, as_kind, column_type, label_type
from pipelines.inspection import columns, labels, leaks, times, volume
from pipelines.inspection.guesses import Guess, col, expression, names_for, shown
from pipelines.inspection.labels import Kind, Label
from pipelines.inspection.times import Times
from pipelines.inspection.volume import Extent, Volume

FEWEST = 100
"""Rows with a label below which nothing is worth guessing."""
AHEAD = 0.99
"""From this share of rows on a time lies behind the event by what it is."""
Unit = Literal["s", "ms", "us", "ns"]


@dataclass(frozen=True)
class Asked:
    """What somebody says of a table: names of its columns.

    ``known`` are columns that are known when the answer is asked for, whatever they tell; ``without`` are left out.
    ``zone`` is that of times without one, ``unit`` that of times that are numbers.
    """

    case: str
    label: str
    time: str
    id: str | None = None
    target: Kind | None = None
    known: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    label_time: str | None = None
    zone: str | None = None
    unit: Unit | None = None


@dataclass(frozen=True)
class Found:
    """What was found: ``reads`` holds, for every column of a case's rows, the expression that makes it of the file's.

    ``rows`` are those that were looked at, as far as they can be read. ``notes`` must be told to whoever asked.
    """

    asked: Asked
    fields: Fields
    guesses: tuple[Guess, ...]
    label: Label
    moments: Mapping[str, Times]
    """How the event's time, and the label's where it was named, are read."""
    id_code: str
    """Why no declared source can read the id; empty: it can."""
    reads: Mapping[str, str]
    volume: Volume
    spread: float
    """Variance of a label that is a number, else 0."""
    rows: pl.DataFrame
    notes: tuple[str, ...]

    @property
    def left_out(self) -> dict[str, str]:
        """The columns that are no fields, each with why."""
        return {guess.column: guess.why for guess in self.guesses if guess.field is None}


def inspect(frame: pl.DataFrame, asked: Asked, extent: Extent | None = None) -> Found:
    """What the columns of a table are; ``extent`` is the table's where ``frame`` holds some of its rows.

    Raises ConfigError if a column that was named is not there, DataError if it cannot be what it was named for, if
    nobody can tell what the label is, or if a column knows the answer; each says what to do.
    """
    _check_names(frame, asked)
    moments = {EVENT_TIME: moments_of(frame, asked.time, asked)}
    if asked.label_time is not None:
        moments["label_time"] = moments_of(frame, asked.label_time, asked)
    when = read_moments(frame, moments[EVENT_TIME])
    extent = extent or Extent(frame.height, *_span(when, asked.time))
    label = labels.guess(frame[asked.label], asked.target)
    taken = {asked.label, asked.time, asked.label_time, *asked.without}
    rest = [name for name in frame.columns if name not in taken]
    own_id, why_id, id_code = _id(frame, asked, rest)
    rest = [name for name in rest if name != asked.id]
    label_name = _label_name(asked.label)
    names = names_for(rest, taken=(label_name,))
    days = (extent.last - extent.first).total_seconds() / 86_400
    guesses = [columns.guess(frame[name], names[name], days=days, zone=asked.zone) for name in rest if name]
    guesses = _one_text(frame, guesses)
    guesses += [Guess("", None, "", "it has no name, as the index that pandas writes") for name in rest if not name]
    guesses += [Guess(name, None, "", "left out, as --without says") for name in asked.without]
    kept = tuple(guess.field for guess in guesses if guess.field is not None)
    about = f"{extent.rows:,} rows, {asked.time} from {extent.first:%Y-%m-%d} to {extent.last:%Y-%m-%d}"
    if frame.height < extent.rows:
        about += f"; {frame.height:,} of them were looked at"
    try:
        fields = Fields(asked.case, kept, label_name, about=about, target=label.target)
    except ConfigError as error:
        raise DataError(f"no case can be made of this table: {error}{_apart(guesses)}") from error
    reads = {"id": own_id, EVENT_TIME: moments[EVENT_TIME].reads}
    reads |= {guess.field.name: guess.reads for guess in guesses if guess.field is not None}
    reads[label_name] = label.reads
    rows = canonical(frame, fields, reads)
    _refuse_leaks(rows, fields, guesses, label, asked)
    if (labelled := int(rows[label_name].is_not_null().sum())) < FEWEST:
        raise DataError(f"{labelled} rows have a label and a time: give at least {FEWEST}, some thousand are better")
    spread = 0.0
    if fields.number is not None:
        spread = float(rows[label_name].drop_nulls().var(ddof=0))  # type: ignore[arg-type] # a number
    told = [f"{asked.time}: {moments[EVENT_TIME].assumed}"] if moments[EVENT_TIME].assumed else []
    told += [f"{guess.column}: {guess.why}" for guess in guesses if guess.warning]
    told += [*_again(rest), *_ahead(rows, fields, guesses, asked)]
    if asked.id is None:
        told.append(why_id)
    delays = None if asked.label_time is None else read_moments(frame, moments["label_time"]) - when
    found = volume.measure(rows[EVENT_TIME], rows[label_name], extent, delays)
    if found.guessed:
        told.append(
            "how long it takes until a label is known cannot be seen: label_delay_days in params.yaml is a guess"
        )
    notes = (*label.notes, *told)
    return Found(asked, fields, tuple(guesses), label, moments, id_code, reads, found, spread, rows, notes)


def canonical(frame: pl.DataFrame, fields: Fields, reads: Mapping[str, str]) -> pl.DataFrame:
    """The event time, the fields and the label of rows that have a time, in its order, as far as they can be read."""
    wanted = {EVENT_TIME: pl.Datetime("us", "UTC"), **{field.name: column_type(field) for field in fields.fields}}
    wanted[fields.label] = label_type(fields)
    delivered = frame.select(expression(reads[name]).alias(name) for name in wanted)
    read = delivered.select(as_kind(pl.col(name), kind).alias(name) for name, kind in wanted.items())
    floats = [field.name for field in fields.fields if column_type(field) == pl.Float64() and field.missing]
    read = read.with_columns(pl.col(name).fill_nan(None) for name in floats)
    return read.filter(pl.col(EVENT_TIME).is_not_null()).sort(EVENT_TIME, maintain_order=True)


def _check_names(frame: pl.DataFrame, asked: Asked) -> None:
    options = {"--label": asked.label, "--time": asked.time, "--id": asked.id, "--label-time": asked.label_time}
    options |= {f"--known {name}": name for name in asked.known} | {f"--without {name}": name for name in asked.without}
    for option, name in options.items():
        if name is not None and name not in frame.columns:
            near = difflib.get_close_matches(name, frame.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the file has {', '.join(frame.columns[:30])}"
            raise ConfigError(f"{option.partition(' ')[0]} {name}: there is no such column: {hint}")
    named = [name for name in (asked.label, asked.time, asked.id, asked.label_time) if name is not None]
    for name in named:
        if named.count(name) > 1 or name in asked.without:
            raise ConfigError(
                f"the column {name} is named twice: --label, --time, --id, --label-time and --without are different "
                "ones"
            )
    patterns = [name for name in frame.columns if name == "*" or (name.startswith("^") and name.endswith("$"))]
    if patterns:
        raise DataError(f"a column is named {patterns[0]!r}, which polars takes for a pattern: name it otherwise")


def _apart(guesses: list[Guess]) -> str:
    """Why columns are no fields, behind what is wrong."""
    why = "; ".join(f"{guess.column}: {guess.why}" for guess in guesses if guess.field is None)
    return why and f" ({why[:1000]})"


def _again(names: list[str]) -> list[str]:
    """What is to be told of columns of a CSV whose name another one has: polars numbers them."""
    found = [re.fullmatch(r"(.*)_duplicated_\d+", name) for name in names]
    return [f"{match[0]}: the header names {match[1]} more than once, this is one more" for match in found if match]


def _label_name(column: str) -> str:
    """The label may be called what it is."""
    return column if column == "label" else names_for([column])[column]


def moments_of(frame: pl.DataFrame, name: str, asked: Asked) -> Times:
    """How a column that was named for times is read. Raises DataError if it holds none, or two readings fit."""
    values = frame[name]
    there = values.drop_nulls()
    if there.is_empty():
        raise DataError(
            f"{name} is empty in all {values.len():,} rows: name the column of the event's time with --time"
        )
    found = times.of_column(there, asked.zone) or times.of_numbers(there, asked.unit)
    if found is None:
        mend = "write ISO 8601 with a zone, as in 2024-05-31T12:00:00Z, or say --unit of numbers since 1970"
        raise DataError(f"{name} holds {values.dtype} ({shown(there)}), which are not all times of one format: {mend}")
    if found.mistake:
        raise DataError(f"{name}: {found.mistake}")
    return found


def read_moments(frame: pl.DataFrame, how: Times) -> pl.Series:
    """A column of times as moments in UTC; null where a value is none."""
    read = frame.select(expression(how.reads).alias(EVENT_TIME))
    return read.select(as_kind(pl.col(EVENT_TIME), pl.Datetime("us", "UTC"))).to_series()


def _span(when: pl.Series, name: str) -> tuple[datetime, datetime]:
    first, last = when.min(), when.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        raise DataError(f"{name} holds no time that can be read: name the column of the event's time with --time")
    return first, last


def _ahead(rows: pl.DataFrame, fields: Fields, guesses: list[Guess], asked: Asked) -> list[str]:
    """Times that lie behind the event: known beforehand like a due date, or written down with the label."""
    shown_as = {guess.field.name: guess.column for guess in guesses if guess.field is not None}
    told = []
    for field in fields.moments:
        later = rows.filter(pl.col(field.name).is_not_null())
        share = later.filter(pl.col(field.name) > pl.col(EVENT_TIME)).height / max(1, later.height)
        if share >= AHEAD and shown_as[field.name] not in asked.known:
            column = shown_as[field.name]
            told.append(
                f"{column}: it lies behind {asked.time} in {share:.1%} of {later.height:,} rows: if it is written down "
                f"with the label, say --label-time {column} or --without {column}"
            )
    return told


def _id(frame: pl.DataFrame, asked: Asked, rest: list[str]) -> tuple[str, str, str]:
    """The expression of the rows' ids, how it came about, and why no declared source reads them so, if none does.

    Raises DataError if a column that was named is none.
    """
    if asked.id is None:
        made = json.dumps([*rest, asked.time], ensure_ascii=False)
        text = f"pl.struct({made}).struct.json_encode().map_elements(digest, return_dtype=pl.String)"
        return text, "no --id: a row's id is made of what it holds, so equal rows are one", ""
    values = frame[asked.id]
    if values.null_count():
        raise DataError(
            f"{asked.id} is missing in {values.null_count():,} rows, and a row's id never is: leave out --id"
        )
    if values.dtype.is_float() and not (values.round() == values).all():
        raise DataError(f"{asked.id} holds numbers with decimals ({shown(values)}), which are no ids: leave out --id")
    once = frame.unique()
    twice = once.filter(pl.col(asked.id).is_duplicated())
    if twice.height:
        raise DataError(
            f"{twice.height:,} rows share their {asked.id} with another, different row, e.g. {twice[asked.id][0]!r}: "
            "an id is one row's; leave out --id, and a row's id is made of what it holds"
        )
    if values.dtype == pl.String or values.dtype.is_integer():
        return col(asked.id), "", ""
    if values.dtype.is_float():
        return f"{col(asked.id)}.cast(pl.Int64)", "", ""
    return f"{col(asked.id)}.cast(pl.String)", "", f"{values.dtype} as a text"


def _one_text(frame: pl.DataFrame, guesses: list[Guess]) -> list[Guess]:
    """With the longest of several texts alone, as a case has one at most."""
    texts = [guess.column for guess in guesses if isinstance(guess.field, Text)]
    if len(texts) < 2:
        return guesses
    longest = max(texts, key=lambda name: float(frame[name].str.len_chars().fill_null(0).mean()))  # type: ignore[arg-type]
    why = f"a second text beside {longest}, and a case has one at most: join them in the file"
    return [
        replace(guess, field=None, reads="", why=why, warning=True)
        if guess.column in texts and guess.column != longest
        else guess
        for guess in guesses
    ]


def _refuse_leaks(rows: pl.DataFrame, fields: Fields, guesses: list[Guess], label: Label, asked: Asked) -> None:
    shown_as = {guess.field.name: guess.column for guess in guesses if guess.field is not None}
    judged: list[Field] = [field for field in fields.fields if shown_as[field.name] not in asked.known]
    if asked.time not in asked.known and (why := leaks.by_time(rows, fields.label, label.target)):
        raise DataError(
            f"{asked.time} knows the answer: {why}. Rows of one label come before those of another, so nothing could "
            f"be judged on the newest ones: give rows of the same time for all labels, or say --known {asked.time}"
        )
    found = leaks.found(rows, judged, fields.label, label.target, shown_as)
    if found:
        names = " ".join(
            f"--without {leak.column!r}" if " " in leak.column else f"--without {leak.column}" for leak in found
        )
        told = "; ".join(f"{leak.column}: {leak.why}" for leak in found)
        times_of_label = [leak.column for leak in found if leak.with_label]
        when = f"; a time at which the label became known is --label-time {times_of_label[0]}" if times_of_label else ""
        raise DataError(
            f"{len(found)} column(s) know the answer: {told}. Nobody has them when the answer is asked for: leave them "
            f"out ({names}), or say --known COLUMN of one that is known by then{when}"
        )
