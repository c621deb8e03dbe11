"""Derived features: columns that are computed from a row's raw fields, by one definition everywhere.

A case declares them in schema.py (``derived``) and gives their polars expressions in features.py (``FEATURES``).
Loading the case turns these into formulas (expressions.py), plain data that goes with the fields and in every bundle.
Their one implementation (formulas.py) computes them in training, gateway, replay, probe and profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.derived.expressions import formula_of
from pipelines.derived.formulas import NAMES, columns_of, compiled, kind_of, mistakes
from pipelines.errors import ConfigError, IntegrityError
from pipelines.feature_names import moment_part
from pipelines.fields import AGE, EVENT_TIME, FLOAT32_MAX, Field, Fields, Formula, Moment, Numeric, as_kind, column_type

if TYPE_CHECKING:
    import polars as pl

Columns = Mapping[str, Sequence[Any]]
Derive = Callable[[Columns], Columns]


def with_formulas(fields: Fields, expressions: Any) -> Fields:
    """The fields with the formulas of their derived features, from polars ``expressions`` by name.

    Raises ConfigError naming the feature if one of the two lacks it, if an expression cannot be computed for a single
    row, or gives what is not declared.
    """
    if not isinstance(expressions, Mapping):
        raise ConfigError(f"FEATURES is a {type(expressions).__name__}: give a dictionary from name to expression")
    declared = {field.name: field for field in fields.derived}
    for name in [*(set(map(str, expressions)) - declared.keys()), *(declared.keys() - expressions.keys())]:
        where = "features.py has no expression" if name in declared else "schema.py does not declare it as derived"
        raise ConfigError(f"{name}: {where}: write it, or remove the feature")
    readable = _readable(fields)
    formulas = []
    for name, field in declared.items():
        try:
            formula = formula_of(expressions[name])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        if (first := next(mistakes(formula, field, readable), None)) is not None:
            raise ConfigError(f"{name}: {first}")
        formulas.append(formula)
    return replace(fields, formulas=tuple(formulas))


def to_json(fields: Fields) -> dict[str, Formula]:
    """The formulas by the name of their feature, for a bundle."""
    return {field.name: formula for field, formula in zip(fields.derived, _formulas(fields), strict=True)}


def from_json(fields: Fields, value: Any) -> Fields:
    """The fields with the formulas that :func:`to_json` wrote of a bundle, which need not be those of today.

    Raises IntegrityError if they are not what was written.
    """
    readable = _readable(fields)
    try:
        formulas = tuple(_tuples(value[field.name]) for field in fields.derived)
        for formula in formulas:
            kind_of(formula, readable)
            compiled(formula)
    except (ConfigError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"the formulas of {', '.join(field.name for field in fields.derived)} cannot be read ({error!r}): "
            "restore the bundle, or export it again"
        ) from error
    return replace(fields, formulas=formulas)


def derive(fields: Fields, columns: Columns) -> Columns:
    """Raw ``columns`` of plain values, parts of moments among them, and the derived ones beside them.

    A number that is NaN, infinite or beyond a float32 is missing. Raises ConfigError without formulas.
    """
    return deriving(fields)(columns)


def deriving(fields: Fields) -> Derive:
    """:func:`derive` of these fields as a function, for who calls it row by row."""
    if not fields.derived:
        return lambda columns: columns
    first = fields.inputs[0]
    made = [
        (field.name, compiled(formula), isinstance(field, Numeric))
        for field, formula in zip(fields.derived, _formulas(fields), strict=True)
    ]

    def computed(columns: Columns) -> Columns:
        rows = len(columns[first])
        given = dict(columns)
        for name, compute, numeric in made:
            found = compute(columns, rows)
            given[name] = _finite(found) if numeric else found
        return given

    return computed


def with_derived(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """A frame of raw rows and parts of moments with the derived features; itself where it has them all.

    A value that is not of its field's type, or lies in no column, counts as missing, as it does in profiles.
    """
    import polars as pl

    if all(field.name in frame.columns for field in fields.derived):
        return frame
    kinds = {name: column_type(field) for name, field in _readable(fields).items()}
    read = sorted(set().union(*map(columns_of, _formulas(fields))))
    raw = frame.select(
        as_kind(pl.col(name), kinds[name]) if name in frame.columns else pl.lit(None, kinds[name]).alias(name)
        for name in read
    )
    columns = raw.with_columns(pl.selectors.float().fill_nan(None)).to_dict(as_series=False)
    types: dict[bool, Any] = {True: pl.Float64()}
    made = []
    for field, formula in zip(fields.derived, _formulas(fields), strict=True):
        found = compiled(formula)(columns, frame.height)
        numeric = isinstance(field, Numeric)
        made.append(pl.Series(field.name, _finite(found) if numeric else found, types.get(numeric)))
    return frame.with_columns(made)


def reads(fields: Fields) -> tuple[str, ...]:
    """The columns of a row that derived features are made of: fields, and the event time where a moment's age is."""
    found: set[str] = set().union(*map(columns_of, _formulas(fields)))
    names = [field.name for field in fields.fields if found & {field.name, *_readable_of(field)}]
    ages = {moment_part(moment.name, AGE) for moment in fields.moments}
    return (*names, EVENT_TIME) if found & ages else tuple(names)


def _readable(fields: Fields) -> dict[str, Field]:
    """What a formula can read by name: the fields, and of a moment its parts."""
    return {name: one for field in fields.fields for name, one in {field.name: field, **_readable_of(field)}.items()}


def _readable_of(field: Field) -> dict[str, Field]:
    return {part.name: part for part in field.columns} if isinstance(field, Moment) else {}


def _formulas(fields: Fields) -> tuple[Formula, ...]:
    if len(fields.formulas) != len(fields.derived):
        raise ConfigError(
            f"{fields.case}: the formulas of the derived features are not there: load the fields with "
            "pipelines.cases.load_fields"
        )
    return fields.formulas


def _finite(values: Sequence[Any]) -> list[float | None]:
    least, most = -FLOAT32_MAX, FLOAT32_MAX
    return [value if value is not None and least <= value <= most else None for value in values]


def _tuples(value: Any) -> Formula:
    """A formula from its JSON lists. Raises ValueError if it names an operation that there is none of."""
    if not isinstance(value, list) or value[0] not in NAMES:
        raise ValueError(f"{value!r:.80} is no formula")
    if value[0] == "bucket":
        return "bucket", _tuples(value[1]), tuple(map(float, value[2])), tuple(value[3]), bool(value[4])
    if value[0] in {"column", "literal"}:
        return tuple(value)
    return value[0], *map(_tuples, value[1:])
