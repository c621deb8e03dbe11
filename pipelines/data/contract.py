"""The declared fields as a pandera contract: every row is either kept or quarantined with all its reasons."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.errors import DataError
from pipelines.fields import (
    EARLIEST,
    FLOAT32_MAX,
    LATEST,
    OTHER_CHARS,
    Attribute,
    Categorical,
    Field,
    Fields,
    Flag,
    Moment,
    Numeric,
    Text,
    Vector,
    frame_schema,
)
from pipelines.text import normalise

if TYPE_CHECKING:
    import pandera.polars as pa


def contract(fields: Fields) -> pa.DataFrameSchema:
    """The pandera schema of a case's canonical rows.

    It checks types, vocabularies and bounds, one row per id, and labels: what is predicted, or not yet.
    """
    import pandera.polars as pa

    kinds = frame_schema(fields)
    columns: dict[str, Any] = {"id": pa.Column(kinds["id"], unique=True), "event_time": pa.Column(kinds["event_time"])}
    columns |= {
        field.name: pa.Column(kinds[field.name], _checks(field), nullable=field.missing) for field in fields.fields
    }
    columns[fields.label] = pa.Column(kinds[fields.label], _label_checks(fields), nullable=True)
    columns["label_time"] = pa.Column(kinds["label_time"], nullable=True)
    return pa.DataFrameSchema(columns, strict=False)


def _label_checks(fields: Fields) -> list[Any]:
    import pandera.polars as pa

    if fields.number is not None:
        return _checks(Numeric(fields.label, fields.number.low, fields.number.high))
    wrong = "no class" if fields.classes else "neither 0 nor 1"
    return [pa.Check.isin(list(range(len(fields.classes) or 2)), error=wrong)]


def _checks(field: Field) -> list[Any]:
    import pandera.polars as pa

    if isinstance(field, Categorical):
        if field.other:
            return [_not_longer(OTHER_CHARS)]
        return [pa.Check.isin(field.values, error="unknown category")]
    if isinstance(field, Text):
        return [
            _not_longer(field.max_chars),
            pa.Check(
                lambda data: data.lazyframe.select(
                    pl.col(data.key).map_elements(lambda text: bool(normalise(text)), pl.Boolean)
                ),
                error="empty",
            ),
        ]
    if isinstance(field, Attribute):
        return [_not_longer(field.max_chars)]
    if isinstance(field, Flag):
        return []
    if isinstance(field, Vector):
        return _checks_of_vector(field)
    if isinstance(field, Moment):
        return [
            pa.Check(
                lambda data: data.lazyframe.select(pl.col(data.key).is_between(EARLIEST, LATEST, closed="left")),
                error=f"not between {EARLIEST.year} and {LATEST.year}",
            )
        ]
    return _checks_of_number(field)


def _checks_of_number(field: Numeric) -> list[Any]:
    import pandera.polars as pa

    checks = []
    if field.low is not None:
        checks.append(pa.Check.ge(field.low, error=f"below {field.low:g}"))
    if field.high is not None:
        checks.append(pa.Check.le(field.high, error=f"above {field.high:g}"))
    if field.low is None or field.high is None:
        checks.append(pa.Check(lambda data: data.lazyframe.select(pl.col(data.key).is_finite()), error="infinite"))
        too_large = "too large for a 32-bit float"
        checks.append(pa.Check(lambda data: data.lazyframe.select(_fits(pl.col(data.key))), error=too_large))
    if field.integer:
        checks.append(
            pa.Check(
                lambda data: data.lazyframe.select(pl.col(data.key).round() == pl.col(data.key)),
                error="not a whole number",
            )
        )
    return checks


def _checks_of_vector(field: Vector) -> list[Any]:
    import pandera.polars as pa

    number = pl.element()
    fits = (number.is_finite() & (number.abs() <= FLOAT32_MAX)).fill_null(value=False)
    return [
        pa.Check(
            lambda data: data.lazyframe.select(pl.col(data.key).list.len() == field.size),
            error=f"not {field.size} numbers",
        ),
        pa.Check(
            lambda data: data.lazyframe.select(pl.col(data.key).list.eval(fits).list.all()),
            error="not finite, or too large for a 32-bit float",
        ),
    ]


def _not_longer(most: int) -> Any:
    import pandera.polars as pa

    return pa.Check(
        lambda data: data.lazyframe.select(pl.col(data.key).str.len_chars() <= most),
        error=f"longer than {most} characters",
    )


def _fits(number: pl.Expr) -> pl.Expr:
    return number.is_infinite() | (number.abs() <= FLOAT32_MAX)


def split(frame: pl.DataFrame, fields: Fields, repeated: pl.Series | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Good rows as they are, and bad rows with ``reasons`` (text, all of them, joined by "; ").

    ``frame`` is collected first, so that the contract looks at values and not at types alone. Where it is a part of all
    rows, ``repeated`` are the ids that are not unique among all. Raises
    DataError if columns or types are not those of canonical rows: no single row is to blame then.
    """
    import pandera.polars as pa

    found = []
    if repeated is not None and repeated.len():
        again = frame.with_row_index("index").filter(pl.col("id").is_in(repeated.implode()))
        found.append(again.select("index", reason=pl.lit("id: not unique")))
    try:
        contract(fields).validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        found.append(_failed(error.failure_cases, fields))
    if not any(failed.height for failed in found):
        return frame, frame.clear().with_columns(reasons=pl.lit("", pl.String))
    reasons = (
        pl.concat(found)
        .unique()
        .sort("index", "reason")
        .group_by("index", maintain_order=True)
        .agg(pl.col("reason").str.join("; ").alias("reasons"))
    )
    numbered = frame.with_row_index("index")
    bad = numbered.join(reasons, on="index", how="inner", maintain_order="left").drop("index")
    good = numbered.join(reasons, on="index", how="anti", maintain_order="left").drop("index")
    return good, bad


def _failed(cases: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """Which rows failed, and why. Raises DataError if it was no single row."""
    whole = cases.filter(pl.col("index").is_null())
    if whole.height:
        first = whole.row(0, named=True)
        raise DataError(
            f"{fields.case}: {first['column']}: {first['check']} ({first['failure_case']}): "
            "the rows are not in canonical form; mend the source"
        )
    return cases.select(
        pl.col("index").cast(pl.UInt32),
        reason=pl.format(
            "{}: {}",
            pl.col("column"),
            pl.col("check").replace({"not_nullable": "missing or not a number", "field_uniqueness": "not unique"}),
        ),
    )


def count_reasons(bad: pl.DataFrame | pl.LazyFrame) -> dict[str, int]:
    """How many rows fail for each reason, the most frequent first (a row may count under several)."""
    counts: Counter[str] = Counter()
    for reasons, rows in bad.lazy().group_by("reasons").len().collect(engine="streaming").iter_rows():
        for reason in reasons.split("; "):
            counts[reason] += rows
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
