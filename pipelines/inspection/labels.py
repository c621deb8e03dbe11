"""What the label is: yes or no, one of several classes, or a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl

from pipelines.errors import DataError
from pipelines.fields import MAX_CLASSES, Binary, Classes, Number, Target
from pipelines.inspection.guesses import col, room, shown

Kind = Literal["binary", "classes", "number"]
YES = ("1", "1.0", "true", "yes", "y", "t", "on", "positive")
NO = ("0", "0.0", "false", "no", "n", "f", "off", "negative")
NUMBERS = (("0", "1"), ("0.0", "1.0"), ("false", "true"))
"""Texts of no and yes that need not be declared."""
NO_VALUE = ("", "NaN", "nan", "NULL", "null")
"""Texts of labels that have not arrived; "none" may be a class."""
MAYBE_CLASSES = 20
"""So many different whole numbers may be classes or numbers: nobody can tell, and so it has to be said."""
SCARCE = 50
"""Of two labels one with fewer rows is told."""
RARE = 10
"""A class with fewer rows is told."""


@dataclass(frozen=True)
class Label:
    """The target, the expression that makes the label of the file's column, why, and what is to be told.

    ``values`` are the texts of the label in the order of its numbers, where a declared source has to be told them;
    ``nulls`` and ``code`` are as those of a :class:`Guess`.
    """

    target: Target
    reads: str
    why: str
    notes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()
    code: str = ""

    @property
    def kind(self) -> Kind:
        """What is predicted, as the option says it."""
        if isinstance(self.target, Number):
            return "number"
        return "classes" if isinstance(self.target, Classes) else "binary"


def guess(values: pl.Series, asked: Kind | None = None) -> Label:
    """What the column of labels is, or how it is what was ``asked``. Raises DataError if nobody can tell, or it cannot.

    A missing label is one that has not arrived.
    """
    name, given = values.name, values
    values = _told(values)
    there = values.drop_nulls()
    code = ""
    if there.dtype.is_float():
        code = f"{int(there.is_nan().sum())} labels are NaN, which stand for none" if there.is_nan().any() else ""
        there = there.drop_nans()
    if there.is_empty():
        raise DataError(f"the label {name} is empty in all {values.len():,} rows: name another column with --label")
    distinct = there.unique().sort()
    if distinct.len() == 1:
        raise DataError(f"the label {name} is {shown(distinct)} in all rows that have one: there is nothing to learn")
    if asked is None:
        _refuse_spellings(distinct)
    numbers = _numbers(there)
    kind = asked or _kind(there, distinct, numbers)
    rows = f"{there.len():,} rows with a label of {values.len():,}"
    if kind == "number":
        found = _number(there, numbers, rows)
    elif kind == "binary":
        found = _binary(there, distinct, rows)
    else:
        found = _classes(there, rows)
    nulls = sorted(set(given.cast(pl.String).unique().drop_nulls()) & set(NO_VALUE)) if there.dtype == pl.String else []
    return replace(found, nulls=tuple(nulls), code=code)


def _refuse_spellings(distinct: pl.Series) -> None:
    """Raise DataError if labels differ in capitals or blanks alone: nobody can tell whether they are one."""
    if distinct.dtype != pl.String:
        return
    alike = distinct.to_frame("text").group_by(pl.col("text").str.strip_chars().str.to_lowercase().alias("as")).all()
    twice = alike.filter(pl.col("text").list.len() > 1).sort("as")
    if twice.height:
        ways = shown(twice["text"][0].sort())
        raise DataError(
            f"the label {distinct.name} is written in several ways ({ways}), which may be one: write each alike, or "
            "say --target binary or classes if they are not"
        )


def _told(values: pl.Series) -> pl.Series:
    """Null in place of texts that stand for nothing."""
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    if values.dtype != pl.String:
        return values
    return values.to_frame().select(pl.col(values.name).replace(list(NO_VALUE), [None] * len(NO_VALUE))).to_series()


def _numbers(there: pl.Series) -> pl.Series | None:
    """The labels as numbers, None if one is none."""
    if there.dtype == pl.Boolean:
        return None
    if there.dtype != pl.String and not there.dtype.is_numeric():
        raise DataError(
            f"the label {there.name} holds {there.dtype} ({shown(there.head(1))}): give numbers, texts or booleans"
        )
    found = there.cast(pl.Float64, strict=False)
    return None if found.null_count() or not found.is_finite().all() else found


def _kind(there: pl.Series, distinct: pl.Series, numbers: pl.Series | None) -> Kind:
    if distinct.len() == 2:
        return "binary"
    if numbers is None:
        if distinct.len() > max(2, there.len() // 5) or distinct.len() > MAX_CLASSES:
            raise DataError(
                f"the label {there.name} has {distinct.len():,} different texts ({shown(distinct)}) in {there.len():,} "
                f"rows: classes are few, at most {MAX_CLASSES:,}; name another column, or group them"
            )
        return "classes"
    whole = (numbers.round() == numbers).all()
    if whole and distinct.len() <= MAYBE_CLASSES:
        raise DataError(
            f"the label {there.name} has {distinct.len()} whole numbers ({shown(distinct)}), which may be classes or "
            "amounts: say --target classes or --target number"
        )
    return "number"


def _number(there: pl.Series, numbers: pl.Series | None, rows: str) -> Label:
    if numbers is None:
        wrong = there.filter(there.cast(pl.Float64, strict=False).is_null()) if there.dtype == pl.String else there
        raise DataError(
            f"the label {there.name} is no number in some rows, e.g. {shown(wrong.head(1))}: mend them, or say "
            "--target binary or --target classes"
        )
    low, high = float(numbers.min()), float(numbers.max())  # type: ignore[arg-type] # numbers
    bounds = room(low, high)
    reads = col(there.name)
    if there.dtype == pl.String:
        value = f"{_replaced(there.name)}"
        # What is there and is no number is refused, not taken for a label that has not arrived.
        number = f"{value}.cast(pl.Float64, strict=False).fill_null(float('nan'))"
        reads = f"pl.when({value}.is_not_null()).then({number})"
    elif there.dtype.is_float():
        reads = f"{reads}.fill_nan(None)"
    note = f"the unit of {there.name} is unknown: write it into schema.py in place of 1"
    return Label(Number("1", *bounds), reads, f"{low:g} to {high:g} in {rows}; the unit is unknown", (note,))


def _replaced(name: str) -> str:
    return f"{col(name)}.replace({list(NO_VALUE)!r}, [None] * {len(NO_VALUE)})"


def _binary(there: pl.Series, distinct: pl.Series, rows: str) -> Label:
    if distinct.len() != 2:
        raise DataError(
            f"the label {there.name} has {distinct.len():,} values ({shown(distinct)}), binary has two: say --target "
            "classes or --target number"
        )
    low, high = distinct.to_list()
    words = [str(value).strip().lower() for value in (low, high)]
    counts = [int((there == value).sum()) for value in (low, high)]
    first_is_yes = words[0] in YES and words[1] in NO
    known = first_is_yes or (words[0] in NO and words[1] in YES)
    if not known:
        first_is_yes = counts[0] < counts[1]
    yes, no = (low, high) if first_is_yes else (high, low)
    share = int((there == yes).sum()) / there.len()
    why = f"{yes!r} is 1, in {share:.1%} of {rows}"
    notes: tuple[str, ...] = (
        () if known else (f"{there.name}: {yes!r} was taken for the positive class, as it is rarer",)
    )
    if min(counts) < SCARCE:
        rare = (low, high)[counts.index(min(counts))]
        notes += (f"{there.name}: only {min(counts)} rows of {rare!r}: hardly enough to learn from, or to find leaks",)
    if there.dtype == pl.Boolean or (there.dtype.is_numeric() and (no, yes) == (0, 1)):
        reads = f"{col(there.name)}.fill_nan(None)" if there.dtype.is_float() else col(there.name)
        return Label(Binary(), reads, why, notes)
    texts = _texts(there, (no, yes))
    plain = tuple(text.lower() for text in texts) in NUMBERS
    return Label(Binary(), _positions(there, {no: 0, yes: 1}), why, notes, () if plain else texts)


def _classes(there: pl.Series, rows: str) -> Label:
    if there.dtype.is_float():
        if not (there.round() == there).all():
            raise DataError(
                f"the label {there.name} holds numbers with decimals, which are no classes: say --target number"
            )
        found = there.cast(pl.Int64).value_counts()
    else:
        found = there.value_counts()
    found = found.sort(there.name)
    if found.height > MAX_CLASSES:
        raise DataError(
            f"the label {there.name} has {found.height:,} classes, {MAX_CLASSES:,} are possible: group them"
        )
    counts = dict(zip(found[there.name].to_list(), found["count"].to_list(), strict=True))
    rare = [f"{value!r} ({count})" for value, count in counts.items() if count < RARE]
    why = f"{len(counts)} classes in {rows}"
    notes: tuple[str, ...] = ()
    if rare:
        told = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        notes = (f"{there.name}: hardly a row of {told}: a model cannot learn them; group them with others",)
    target = Classes(tuple(str(value) for value in counts))
    known = list(counts) == list(range(len(counts))) or there.dtype == pl.String
    texts = () if known else _texts(there, counts)
    return Label(target, _positions(there, {value: at for at, value in enumerate(counts)}), why, notes, texts)


def _texts(there: pl.Series, values: Iterable[object]) -> tuple[str, ...]:
    """Values of the label as a declared source finds them: as texts of the column's own type."""
    return tuple(pl.Series(list(values), dtype=there.dtype).cast(pl.String))


def _positions(there: pl.Series, positions: dict[object, int]) -> str:
    """Every value's position; another value becomes a position that there is none of, which is refused."""
    table: dict[object, int | None] = {**positions}
    if there.dtype == pl.String:
        table |= dict.fromkeys((text for text in NO_VALUE if text not in positions), None)
    base = f"{col(there.name)}.fill_nan(None)" if there.dtype.is_float() else col(there.name)
    beyond = len(positions)
    return f"{base}.replace_strict({ {**table, None: None}!r}, default={beyond}, return_dtype=pl.Int16)"
