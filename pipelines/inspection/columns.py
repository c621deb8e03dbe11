"""What kind of field a column is: guessed from its type, its values and its name, and each guess says why."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import polars as pl

from pipelines.fields import (
    EARLIEST,
    LATEST,
    MAX_SIZE,
    OTHER_CHARS,
    PARTS,
    Attribute,
    Categorical,
    Flag,
    Moment,
    Numeric,
    Text,
    Vector,
)
from pipelines.inspection import times
from pipelines.inspection.guesses import NO_VALUE, Guess, col, room, shown

VOCABULARY = 100
"""At most so many values are declared, the commonest: all others are one more."""
FEWEST = 5
"""A value with fewer rows is not declared where there are many."""
WORDS = 4
"""Texts of so many words on average are free text."""
ALONE = 0.95
"""Share of rows with a value of their own from which on a column tells rows apart instead of describing them."""
UNREADABLE = 0.01
"""Up to this share of texts among numbers are mistakes; above it the column is no column of numbers."""
YEAR = 366
SPACES = "spaces around numbers or words"
FLOATS = "numbers with decimals are made whole again"
COMMAS = "numbers with a decimal comma"
_COMMA, _DECIMAL = r"^\s*[+-]?\d+(,\d+)?\s*$", r",(\d{1,2}|\d{4,})\s*$"
"""A number with one comma at most, and one whose comma cannot stand between thousands."""
_WRITTEN, _MARKED = r"^[€$£¥]?\s*[+-]?\d[\d.,' ]*\s*[%€$£¥]?$", r"[,'%€$£¥]"
"""A number as people write it: a currency or per cent beside it, or other marks than a point in it."""
_ID = re.compile(r"(^|_|\b)(id|uuid|guid|key|nr|number)$|[a-z]I[dD]$", re.IGNORECASE)


def guess(values: pl.Series, name: str, *, days: float, zone: str | None = None) -> Guess:
    """What a column is, to be named ``name``; ``days``: how long the history is, ``zone``: of times without one."""
    column, there = values.name, values.drop_nulls()
    if there.dtype.is_float():
        there = there.drop_nans()
    empty = there.is_empty() or (there.dtype == pl.String and there.str.strip_chars().is_in(NO_VALUE).all())
    if empty:
        return _left_out(column, f"empty in all {values.len():,} rows")
    if not isinstance(values.dtype, pl.List | pl.Array | pl.Struct | pl.Object) and _is_constant(values, there):
        return _left_out(column, f"{shown(there.head(1))} in all {values.len():,} rows: it tells nothing")
    kind = values.dtype
    if isinstance(kind, pl.Categorical | pl.Enum):
        return _of_text(values.cast(pl.String), name, days, zone)
    if kind == pl.Boolean:
        missing = values.null_count() > 0
        why = f"true in {int(there.sum()) / there.len():.1%} of {_seen(values)}"
        return Guess(column, Flag(name, missing=missing), col(column), why)
    if isinstance(kind, pl.Datetime) or kind == pl.Date:
        return _of_times(values, name, days, zone)
    if isinstance(kind, pl.List | pl.Array):
        return _of_list(values, name)
    if kind.is_numeric():
        return _of_numbers(values, there, name)
    if kind == pl.String:
        return _of_text(values, name, days, zone)
    return _left_out(column, f"it holds {kind}: make numbers, texts or times of it", warning=True)


def _is_constant(values: pl.Series, there: pl.Series) -> bool:
    return there.len() == values.len() and there.n_unique() == 1


def _left_out(column: str, why: str, *, warning: bool = False) -> Guess:
    return Guess(column, None, "", why, warning)


def _seen(values: pl.Series, missing: int | None = None) -> str:
    missing = values.null_count() if missing is None else missing
    found = f"{values.len():,} rows"
    return f"{found}, missing in {missing / values.len():.1%}" if missing else found


# --- numbers --------------------------------------------------------------------------------------


def _of_numbers(values: pl.Series, there: pl.Series, name: str, reads: str | None = None, more: str = "") -> Guess:
    """Of a numeric column, or of one of texts that are numbers (``reads`` makes them ready)."""
    column, reads = values.name, reads or col(values.name)
    there = there.cast(pl.Float64)
    finite = there.filter(there.is_finite())
    missing = values.len() - there.len()
    if finite.is_empty():
        return _left_out(column, "no finite number in it", warning=True)
    whole = bool((finite.round() == finite).all())
    if whole and (found := _of_id(values, finite, name, missing)):
        return found
    low, high = float(finite.min()), float(finite.max())  # type: ignore[arg-type] # numbers
    bounds = room(low, high)
    integer = whole and not (values.dtype.is_float() or values.dtype == pl.Decimal)
    why = f"{low:g} to {high:g} in {_seen(values, missing)}"
    if whole and {low, high} == {0.0, 1.0}:
        bounds, why = (0.0, 1.0), f"0 and 1 only, as your file has them, in {_seen(values, missing)}"
    warning = finite.len() < there.len()
    if warning:
        why += f"; {there.len() - finite.len():,} rows hold no finite number and will be refused"
    if more:
        why, warning = f"{why}; {more}", True
    field = Numeric(name, _whole(bounds[0]), _whole(bounds[1]), integer=integer, missing=missing > 0)
    return Guess(column, field, reads, why, warning)


def _whole(bound: float) -> float:
    return int(bound) if bound.is_integer() and abs(bound) < 2**53 else bound


def _of_id(values: pl.Series, whole: pl.Series, name: str, missing: int) -> Guess | None:
    """Whole numbers that are names of things: a key rides along, one of few things is a category."""
    distinct, rows = whole.n_unique(), whole.len()
    named = _ID.search(values.name) is not None
    counter = rows >= 100 and distinct == rows and (float(whole.max()) - float(whole.min())) < 2 * rows  # type: ignore[arg-type]
    if not named and not counter:
        return None
    as_text = col(values.name)
    if values.dtype.is_float():
        as_text = _whole_again(f"{as_text}.fill_nan(None)", f"{as_text}.fill_nan(None).cast(pl.String)")
    elif values.dtype != pl.String:
        as_text = f"{as_text}.cast(pl.String)"
    text = values.to_frame().select(whole.cast(pl.Int64, strict=False).cast(pl.String).alias(values.name)).to_series()
    if values.dtype == pl.String:
        text = values.drop_nulls()
    text = text.drop_nulls()
    read_as, code = "", ""
    if values.dtype.is_float():
        read_as, code = "read as a number with decimals, made whole again; ", FLOATS
    if distinct <= VOCABULARY and distinct < ALONE * rows:
        return _category(text, name, as_text, values, missing, f"{read_as}numbers that name things; ", code=code)
    why = f"{read_as}it names rows or things: {distinct:,} different numbers in {_seen(values, missing)}"
    # By its values alone it might be a number, too: that is told.
    return Guess(values.name, Attribute(name, missing=missing > 0), as_text, why, warning=not named, code=code)


def _whole_again(number: str, other: str) -> str:
    """The expression that writes whole numbers without decimals, and leaves every ``other`` value as it is."""
    whole = f"{number}.cast(pl.Int64, strict=False).cast(pl.String)"
    return f"pl.coalesce(pl.when({number}.round() == {number}).then({whole}), {other})"


# --- text ----------------------------------------------------------------------------------------


def _of_text(values: pl.Series, name: str, days: float, zone: str | None) -> Guess:
    column = values.name
    blank = [text for text in values.drop_nulls().unique() if text.strip() in NO_VALUE]
    there = values.filter(values.is_not_null() & ~values.is_in(blank))
    missing = values.len() - there.len()
    reads = col(column)
    if blank:
        reads = f"{reads}.replace({sorted(blank)!r}, [None] * {len(blank)})"
    numbers = there.str.strip_chars().cast(pl.Float64, strict=False)
    wrong = numbers.null_count() / there.len()
    if wrong <= UNREADABLE:
        return _of_numbers_as_text(values, there, numbers, name, reads, missing)
    if _same(there, ("true", "false")):
        return Guess(
            column,
            Flag(name, missing=missing > 0),
            f"{reads}.str.strip_chars().str.to_lowercase()",
            f"true and false as text in {_seen(values, missing)}",
            nulls=tuple(sorted(blank)),
            code=_spaces(there),
        )
    found = times.of_column(there.alias(column), zone)
    if found is not None:
        return _of_times(values, name, days, zone, blank)
    if there.str.contains(_COMMA).all() and there.str.contains(_DECIMAL).any():
        points = there.str.strip_chars().str.replace(",", ".", literal=True)
        reads = f"{reads}.str.strip_chars().str.replace(',', '.', literal=True)"
        found_numbers = _of_numbers_as_text(values, points, points.cast(pl.Float64), name, reads, missing)
        return replace(found_numbers, nulls=tuple(sorted(blank)), code=COMMAS)
    if there.str.contains(_WRITTEN).all() and there.str.contains(_MARKED).any():
        return _left_out(
            column, f"numbers as people write them, such as {shown(there.head(1))}: write 1234.5", warning=True
        )
    if there.str.contains(r"^\s*[\[{]").all():
        return _left_out(
            column,
            f"lists or objects as text, such as {shown(there.head(1))}: give a column for each value",
            warning=True,
        )
    # Letters beside numbers are a vocabulary where there are few; else nobody can tell what is meant.
    if wrong < 0.5 and there.n_unique() > VOCABULARY:
        odd = there.filter(numbers.is_null()).unique().sort()
        return _left_out(
            column,
            f"{1 - wrong:.1%} of {there.len():,} values are numbers, {wrong:.1%} are texts such as {shown(odd)}: "
            "mend them, or make two columns of it",
            warning=True,
        )
    texts = values.filter(values.is_not_null() & (values.str.strip_chars() != "")) if blank else values.drop_nulls()
    return _of_words(values, texts, name)


def _of_numbers_as_text(
    values: pl.Series, there: pl.Series, numbers: pl.Series, name: str, reads: str, missing: int
) -> Guess:
    nulls, code = tuple(sorted(set(values.drop_nulls().unique()) - set(there.unique()))), _spaces(there)
    if code:
        reads = f"{reads}.str.strip_chars()"
    zeros = there.str.contains(r"^0\d").any()
    read = numbers.drop_nulls()
    whole = bool((read.round() == read).all())
    if zeros and whole:  # a postal code, a telephone number: 01067 is not 1067
        return _of_words(values, there, name, "digits with zeros before them; ")
    if _ID.search(values.name) and whole and not there.str.contains(r"[.eE]").any():
        return _of_words(values, there, name, "digits that name things; ")
    wrong = there.len() - read.len()
    more = ""
    if wrong:
        odd = there.filter(numbers.is_null()).unique().sort()
        more = f"{wrong:,} rows hold no number, such as {shown(odd)}, and will be refused"
    found = _of_numbers(read.alias(values.name), read, name, reads, more)
    if found.field is None:
        return found
    if not isinstance(found.field, Numeric):
        as_text = there.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False).cast(pl.String)
        clean = reads
        if there.str.contains(r"[.eE]").any():
            clean, code = _whole_again(f"{reads}.cast(pl.Float64, strict=False)", reads), FLOATS
        words = _of_words(values, as_text.drop_nulls(), name, "numbers that name rows or things; ", clean)
        return replace(words, nulls=nulls, code=code)
    decimals = there.str.contains(r"[.eE]").any()
    field = Numeric(name, found.field.low, found.field.high, integer=whole and not decimals, missing=missing > 0)
    why = found.why.replace(f"{read.len():,} rows", _seen(values, missing), 1)
    return Guess(values.name, field, reads, why, found.warning, nulls, code)


def _spaces(there: pl.Series) -> str:
    return SPACES if there.str.contains(r"^\s|\s$").any() else ""


def _same(there: pl.Series, words: tuple[str, ...]) -> bool:
    return set(there.unique().str.strip_chars().str.to_lowercase()) == set(words)


def _of_words(values: pl.Series, there: pl.Series, name: str, begin: str = "", reads: str | None = None) -> Guess:
    """Of texts that are neither numbers nor times: a category, a key, or free text."""
    column = values.name
    missing = values.len() - there.len()
    gone: list[str] = []
    if reads is None:
        reads = col(column)
        gone = sorted(set(values.drop_nulls().unique()) - set(there.unique()))
        if gone:
            reads = f"{reads}.replace({gone!r}, [None] * {len(gone)})"
    if there.is_empty():
        return _left_out(column, f"empty in all {values.len():,} rows")
    distinct, longest = there.n_unique(), int(there.str.len_chars().max())  # type: ignore[arg-type] # a length
    words = float(there.str.count_matches(r"\S+").mean())  # type: ignore[arg-type] # a number
    if (words >= WORDS and distinct > VOCABULARY) or longest > OTHER_CHARS:
        most = max(20_000, 2 * longest)
        why = f"{words:.0f} words on average, {distinct:,} different texts in {_seen(values, missing)}"
        return Guess(column, Text(name, most, missing=missing > 0), reads, begin + why, nulls=tuple(gone))
    counts = there.value_counts(sort=True)["count"]
    covered = int(counts.head(VOCABULARY).sum()) / there.len()
    alone = distinct >= ALONE * there.len() and distinct > FEWEST
    if alone or (distinct > VOCABULARY and (covered < 0.5 or (_ID.search(column) and covered < ALONE))):
        why = f"{begin}{distinct:,} different texts in {_seen(values, missing)}: it names rows or things"
        field = Attribute(name, max(200, 2 * longest), missing=missing > 0)
        return Guess(column, field, reads, why, nulls=tuple(gone))
    return _category(there, name, reads, values, missing, begin, tuple(gone))


def _category(
    there: pl.Series,
    name: str,
    reads: str,
    values: pl.Series,
    missing: int,
    begin: str,
    nulls: tuple[str, ...] = (),
    code: str = "",
) -> Guess:
    """The commonest values are declared; with more than two of them others are taken, and watched."""
    counts = there.rename("value").value_counts().sort(["count", "value"], descending=[True, False])
    least = FEWEST if counts.height > 2 and there.len() >= 100 * FEWEST else 1
    kept = counts.filter(pl.col("count") >= least).head(VOCABULARY)
    if kept.is_empty():
        kept = counts.head(VOCABULARY)
    rare = counts.height - kept.height
    other = counts.height > 2
    why = f"{begin}{counts.height:,} values in {_seen(values, missing)}"
    if rare:
        rows = there.len() - int(kept["count"].sum())
        why += f"; {rare:,} rare ones ({rows:,} rows) and new ones count as other"
    elif other:
        why += "; new ones count as other"
    else:
        why += "; another one is refused"
    field = Categorical(name, tuple(kept["value"].sort()), missing=missing > 0, other=other)
    return Guess(values.name, field, reads, why, nulls=nulls, code=code)


# --- times and vectors ----------------------------------------------------------------------------


def _of_times(values: pl.Series, name: str, days: float, zone: str | None, blank: list[str] | None = None) -> Guess:
    column = values.name
    there = values.filter(values.is_not_null() & ~values.is_in(blank)) if blank else values.drop_nulls()
    found = times.of_column(there, zone)
    assert found is not None
    if found.mistake:
        return _left_out(column, found.mistake, warning=True)
    reads = found.reads
    if blank:
        reads = reads.replace(col(column), f"{col(column)}.replace({sorted(blank)!r}, [None] * {len(blank)})")
    missing = values.len() - there.len()
    moments = moments_of(there, found)
    inside = moments.is_between(EARLIEST, LATEST, closed="left")
    ordered = moments.sort()
    why = f"{ordered[0]:%Y-%m-%d} to {ordered[-1]:%Y-%m-%d} in {_seen(values, missing)}"
    if found.assumed:
        why += f"; {found.assumed}"
    if not inside.all():
        why += f"; {int((~inside).sum()):,} rows lie outside of 1900 to 2199 and will be refused"
    parts = [part for part in PARTS if part != "month" or days >= YEAR]
    if (moments.dt.hour().n_unique()) == 1:
        parts.remove("hour")
    field = Moment(name, tuple(parts), missing=missing > 0)
    warning = bool(found.assumed) or not inside.all()
    return Guess(column, field, reads, why, warning, tuple(sorted(blank or ())), found.code, found.zone)


def moments_of(there: pl.Series, found: times.Times) -> pl.Series:
    """The times of a column as moments in UTC; what is none is null."""
    from pipelines.fields import as_kind
    from pipelines.inspection.guesses import expression

    read = there.to_frame().select(expression(found.reads).alias("read"))
    kind = pl.Datetime("us", "UTC")
    return read.select(as_kind(pl.col("read"), kind)).to_series()


def _of_list(values: pl.Series, name: str) -> Guess:
    column = values.name
    inner = getattr(values.dtype, "inner", None)
    listed = values.cast(pl.List(inner)) if inner is not None else values
    sizes = listed.list.len().drop_nulls().unique().to_list()
    numbers = inner is not None and inner.is_numeric()
    if not numbers or len(sizes) != 1 or not 1 <= sizes[0] <= MAX_SIZE:
        held = f"lists of {sizes[0]}" if len(sizes) == 1 else f"lists of {len(sizes)} lengths"
        return _left_out(column, f"{held} {inner}: a vector is numbers, as many in each row", warning=True)
    if values.null_count():
        return _left_out(column, f"{values.null_count():,} rows lack the vector, which none may", warning=True)
    if not math.isfinite(float(listed.explode().cast(pl.Float64).abs().max() or 0.0)):  # type: ignore[arg-type]
        return _left_out(column, "a vector with numbers that are not finite: mend them", warning=True)
    return Guess(column, Vector(name, sizes[0]), col(column), f"{sizes[0]} numbers in each of {values.len():,} rows")
