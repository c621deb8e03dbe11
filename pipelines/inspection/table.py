"""A whole table: its fields, its label, its volume, and what is to be told; leaks are refused."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from pipelines.errors import ConfigError, DataError
from pipelines.fields import EVENT_TIME, Field, Fields, Text, as_kind, column_type, label_type
from pipelines.inspection import columns, labels, leaks, times, volume
from pipelines.inspection.guesses import Guess, col, expression, names_for, shown
from pipelines.inspection.labels import Kind, Label
from pipelines.inspection.volume import Volume

FEWEST = 100
"""Rows with a label below which nothing is worth guessing."""


@dataclass(frozen=True)
class Asked:
    """What somebody says of a table: names of its columns.

    ``known`` are columns that are known when the answer is asked for, whatever they tell; ``without`` are left out.
    """

    case: str
    label: str
    time: str
    id: str | None = None
    target: Kind | None = None
    known: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What was found: ``reads`` holds, for every column of a case's rows, the expression that makes it of the file's.

    ``notes`` must be told to whoever asked.
    """

    fields: Fields
    guesses: tuple[Guess, ...]
    label: Label
    reads: Mapping[str, str]
    volume: Volume
    spread: float
    """Variance of a label that is a number, else 0."""
    notes: tuple[str, ...]

    @property
    def left_out(self) -> dict[str, str]:
        """The columns that are no fields, each with why."""
        return {guess.column: guess.why for guess in self.guesses if guess.field is None}


def inspect(frame: pl.DataFrame, asked: Asked) -> Found:
    """What the columns of a table are.

    Raises ConfigError if a column that was named is not there, DataError if it cannot be what it was named for, if
    nobody can tell what the label is, or if a column knows the answer; each says what to do.
    """
    _check_names(frame, asked)
    moments = _moments(frame, asked.time)
    when = frame.select(expression(moments.reads).alias(EVENT_TIME))
    when = when.select(as_kind(pl.col(EVENT_TIME), pl.Datetime("us", "UTC")))
    label = labels.guess(frame[asked.label], asked.target)
    rest = [name for name in frame.columns if name not in {asked.label, asked.time, *asked.without}]
    own_id, why_id = _id(frame, asked, rest)
    rest = [name for name in rest if name != asked.id]
    label_name = _label_name(asked.label)
    names = names_for(rest, taken=(label_name,))
    days = _days(when)
    guesses = [columns.guess(frame[name], names[name], days=days) for name in rest]
    guesses = _one_text(frame, guesses)
    guesses += [Guess(name, None, "", "left out, as --without says") for name in asked.without]
    kept = tuple(guess.field for guess in guesses if guess.field is not None)
    about = f"{frame.height:,} rows, {asked.time} from {when.min().item():%Y-%m-%d} to {when.max().item():%Y-%m-%d}"
    try:
        fields = Fields(asked.case, kept, label_name, about=about, target=label.target)
    except ConfigError as error:
        raise DataError(f"no case can be made of this table: {error}") from error
    reads = {"id": own_id, EVENT_TIME: moments.reads}
    reads |= {guess.field.name: guess.reads for guess in guesses if guess.field is not None}
    reads[label_name] = label.reads
    rows = canonical(frame, fields, reads)
    _refuse_leaks(rows, fields, guesses, label, asked)
    if (labelled := int(rows[label_name].is_not_null().sum())) < FEWEST:
        raise DataError(f"{labelled} rows have a label and a time: give at least {FEWEST}, some thousand are better")
    spread = 0.0
    if fields.number is not None:
        spread = float(rows[label_name].drop_nulls().var(ddof=0))  # type: ignore[arg-type] # a number
    told = [f"{guess.column}: {guess.why}" for guess in guesses if guess.warning]
    if moments.assumed:
        told.insert(0, f"{asked.time}: {moments.assumed}")
    if asked.id is None:
        told.append(why_id)
    found = volume.measure(rows[EVENT_TIME], rows[label_name])
    if found.guessed:
        told.append(
            "how long it takes until a label is known cannot be seen: label_delay_days in params.yaml is a guess"
        )
    return Found(fields, tuple(guesses), label, reads, found, spread, (*label.notes, *told))


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
    options = {"--label": asked.label, "--time": asked.time, "--id": asked.id}
    options |= {f"--known {name}": name for name in asked.known} | {f"--without {name}": name for name in asked.without}
    for option, name in options.items():
        if name is not None and name not in frame.columns:
            near = difflib.get_close_matches(name, frame.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the file has {', '.join(frame.columns[:30])}"
            raise ConfigError(f"{option.partition(' ')[0]} {name}: there is no such column: {hint}")
    named = [name for name in (asked.label, asked.time, asked.id) if name is not None]
    for name in named:
        if named.count(name) > 1 or name in asked.without:
            raise ConfigError(
                f"the column {name} is named twice: --label, --time, --id and --without are different ones"
            )
    patterns = [name for name in frame.columns if name == "*" or (name.startswith("^") and name.endswith("$"))]
    if patterns:
        raise DataError(f"a column is named {patterns[0]!r}, which polars takes for a pattern: name it otherwise")


def _label_name(column: str) -> str:
    """The label may be called what it is."""
    return column if column == "label" else names_for([column])[column]


def _moments(frame: pl.DataFrame, name: str) -> times.Times:
    values = frame[name]
    there = values.drop_nulls()
    if there.is_empty():
        raise DataError(
            f"{name} is empty in all {values.len():,} rows: name the column of the event's time with --time"
        )
    found = times.of_column(there)
    if found is None:
        mend = "write ISO 8601 with a zone, as in 2024-05-31T12:00:00Z"
        raise DataError(f"{name} holds {values.dtype} ({shown(there)}), which are not all times of one format: {mend}")
    if found.mistake:
        raise DataError(f"{name}: {found.mistake}")
    return found


def _days(when: pl.DataFrame) -> float:
    first, last = when.min().item(), when.max().item()
    return float((last - first).total_seconds() / 86_400)


def _id(frame: pl.DataFrame, asked: Asked, rest: list[str]) -> tuple[str, str]:
    """The expression of the rows' ids, and how it came about; raises DataError if a column that was named is none."""
    if asked.id is None:
        made = json.dumps([*rest, asked.time], ensure_ascii=False)
        text = f"pl.struct({made}).struct.json_encode().map_elements(digest, return_dtype=pl.String)"
        return text, "no --id: a row's id is made of what it holds, so equal rows are one"
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
        return col(asked.id), ""
    if values.dtype.is_float():
        return f"{col(asked.id)}.cast(pl.Int64)", ""
    return f"{col(asked.id)}.cast(pl.String)", ""


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
    found = leaks.found(rows, judged, fields.label, label.target, shown_as)
    if found:
        names = " ".join(
            f"--without {leak.column!r}" if " " in leak.column else f"--without {leak.column}" for leak in found
        )
        told = "; ".join(f"{leak.column}: {leak.why}" for leak in found)
        raise DataError(
            f"{len(found)} column(s) know the answer: {told}. Nobody has them when the answer is asked for: leave them "
            f"out ({names}), or say --known COLUMN of one that is known by then"
        )
