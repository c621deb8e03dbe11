"""Formulas: what is computed from the raw values of a row, as plain data that a bundle carries.

A formula is a tuple, its operation's name and then its operands, which are formulas or values:
``("divide", ("column", "distance"), ("literal", 60.0))``. :func:`compiled` makes the one function of it that runs in
training, gateway, replay and profiles alike, over columns of plain Python values: a single row costs microseconds, and
every way gets the same bits. Nulls, NaN and infinities do what they do in polars (expressions.py).
"""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from pipelines.errors import ConfigError
from pipelines.fields import Categorical, Field, Flag, Formula, Numeric

Column = Sequence[Any]
Compute = Callable[[Mapping[str, Column], int], Column]
"""From raw columns and their number of rows to one column."""
Kind = Literal["number", "part", "text", "truth", "nothing"]
"""What comes out of a formula; a ``part`` is a date's, a small whole number to polars, ``nothing`` is null."""

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - seconds are counted without a zone
SECONDS = (-62_135_596_800.0, 253_402_300_799.0)
"""The years 1 to 9999, in seconds since 1970."""
MOST_OUTCOMES = 10_000
"""A formula of more texts than these can only be declared with ``other``."""
MOST_DEEP = 50
"""Operations within one another."""


def _divide(x: float, y: float) -> float:
    if y:
        return x / y
    if not x or math.isnan(x):
        return math.nan
    return math.copysign(math.inf, x) * math.copysign(1.0, y)


def _floor(x: float) -> float:
    return float(math.floor(x)) if math.isfinite(x) else x


def _ceil(x: float) -> float:
    return float(math.ceil(x)) if math.isfinite(x) else x


def _floor_divide(x: float, y: float) -> float:
    return _floor(_divide(x, y))


def _modulo(x: float, y: float) -> float:
    return x - y * _floor_divide(x, y)


def _log(x: float, base: float) -> float:
    return _ln(x) / math.log(base)


def _ln(x: float) -> float:
    if x > 0:
        return math.log(x)
    return -math.inf if x == 0 else math.nan


def _log1p(x: float) -> float:
    if x > -1:
        return math.log1p(x)
    return -math.inf if x == -1 else math.nan


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _power(x: float, y: float) -> float:
    try:
        return math.pow(x, y)
    except OverflowError:
        odd = y == math.floor(y) and y % 2 == 1
        return -math.inf if x < 0 and odd else math.inf
    except ValueError:
        return math.inf if x == 0 else math.nan


def _wave(function: Callable[[float], float], x: float) -> float:
    return function(x) if math.isfinite(x) else math.nan


def _is_nan(x: Any) -> bool:
    return isinstance(x, float) and math.isnan(x)


# NaN is above every number, and equal to itself.
def _above(x: Any, y: Any) -> bool:
    return bool(x > y or (_is_nan(x) and not _is_nan(y)))


def _from(x: Any, y: Any) -> bool:
    return bool(x >= y or _is_nan(x))


def _equal(x: Any, y: Any) -> bool:
    return bool(x == y or (_is_nan(x) and _is_nan(y)))


def _at_least(x: float, low: float) -> float:
    return max(x, low)


def _at_most(x: float, high: float) -> float:
    return min(x, high)


def _moment(seconds: float) -> datetime:
    return EPOCH + timedelta(microseconds=int(seconds * 1e6))


class Operation(NamedTuple):
    """What an operation takes and gives; the ``function`` is called where no operand is null.

    ``takes`` are the kinds of which the operands have to be, all of one of them where ``alike``; ``gives`` none: that
    of the operands.
    """

    operands: int
    takes: tuple[Kind, ...]
    gives: Kind | None
    function: Callable[..., Any]
    alike: bool = False


_NUMBER: tuple[Kind, ...] = ("number",)
_TRUTH: tuple[Kind, ...] = ("truth",)
_ONE: Mapping[str, Callable[[float], float]] = {
    "negate": operator.neg,
    "absolute": abs,
    "floor": _floor,
    "ceil": _ceil,
    "log1p": _log1p,
    "exp": _exp,
    "sqrt": _sqrt,
    "sin": partial(_wave, math.sin),
    "cos": partial(_wave, math.cos),
}
_TWO: Mapping[str, Callable[[float, float], float]] = {
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": _divide,
    "floor_divide": _floor_divide,
    "modulo": _modulo,
    "power": _power,
    "log": _log,
    "at_least": _at_least,
    "at_most": _at_most,
}
_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "above": _above,
    "from": _from,
    "below": lambda x, y: _above(y, x),
    "to": lambda x, y: _from(y, x),
}
PARTS: Mapping[str, Callable[[float], int]] = {
    "year": lambda seconds: _moment(seconds).year,
    "month": lambda seconds: _moment(seconds).month,
    "day": lambda seconds: _moment(seconds).day,
    "weekday": lambda seconds: _moment(seconds).isoweekday(),
    "hour": lambda seconds: _moment(seconds).hour,
    "minute": lambda seconds: _moment(seconds).minute,
}
"""Of seconds since 1970, in UTC; Monday is 1."""
OPERATIONS: Mapping[str, Operation] = {
    **{name: Operation(1, _NUMBER, "number", function) for name, function in _ONE.items()},
    **{name: Operation(2, _NUMBER, "number", function) for name, function in _TWO.items()},
    **{name: Operation(2, ("number", "part"), "truth", function) for name, function in _COMPARED.items()},
    **{name: Operation(1, _NUMBER, "part", function) for name, function in PARTS.items()},
    "equal": Operation(2, ("number", "part", "text", "truth"), "truth", _equal, alike=True),
    "unequal": Operation(2, ("number", "part", "text", "truth"), "truth", lambda x, y: not _equal(x, y), alike=True),
    "as_number": Operation(1, ("number", "part", "truth"), "number", float),
    "add": Operation(2, ("number", "text"), None, operator.add, alike=True),
    "not": Operation(1, _TRUTH, "truth", lambda x: not x),
}
"""Those that are null wherever an operand is."""


@cache
def compiled(formula: Formula) -> Compute:
    """The function of a formula. Raises KeyError, TypeError or ValueError if it is none."""
    name, *operands = formula
    if name == "column":
        (column,) = operands
        return lambda columns, _rows: columns[column]
    if name == "literal":
        (value,) = operands
        return lambda _columns, rows: [value] * rows
    if name == "bucket":
        inner, breaks, labels, left_closed = operands
        return _unary(_bucket(breaks, labels, left_closed=left_closed), compiled(inner))
    parts = [compiled(operand) for operand in operands]
    if name in _WITH_NULLS:
        return _with_nulls(_WITH_NULLS[name], parts)
    operation = OPERATIONS[name]
    if operation.operands != len(parts):
        raise ValueError(f"{name} takes {operation.operands} operands, not {len(parts)}")
    if len(parts) == 1:
        return _unary(operation.function, parts[0])
    constant = operands[1][1] if operands[1][0] == "literal" else None
    if constant is not None:
        return _with_constant(operation.function, parts[0], constant)
    return _binary(operation.function, *parts)


def _with_constant(function: Callable[[Any, Any], Any], part: Compute, constant: Any) -> Compute:
    return lambda columns, rows: [None if x is None else function(x, constant) for x in part(columns, rows)]


def _unary(function: Callable[[Any], Any], part: Compute) -> Compute:
    return lambda columns, rows: [None if x is None else function(x) for x in part(columns, rows)]


def _binary(function: Callable[[Any, Any], Any], left: Compute, right: Compute) -> Compute:
    def compute(columns: Mapping[str, Column], rows: int) -> Column:
        pairs = zip(left(columns, rows), right(columns, rows), strict=True)
        return [None if x is None or y is None else function(x, y) for x, y in pairs]

    return compute


def _with_nulls(function: Callable[..., Any], parts: Sequence[Compute]) -> Compute:
    return lambda columns, rows: list(map(function, *(part(columns, rows) for part in parts)))


def _both(x: bool | None, y: bool | None) -> bool | None:
    """Kleene's and: false where one of them is."""
    if x is False or y is False:
        return False
    return None if x is None or y is None else True


def _either(x: bool | None, y: bool | None) -> bool | None:
    """Kleene's or: true where one of them is."""
    if x or y:
        return True
    return None if x is None or y is None else False


_WITH_NULLS: Mapping[str, Callable[..., Any]] = {
    "is_null": lambda x: x is None,
    "is_not_null": lambda x: x is not None,
    "fill_null": lambda x, y: y if x is None else x,
    "when": lambda condition, then, otherwise: then if condition else otherwise,
    "and": _both,
    "or": _either,
}
"""Operations that see nulls."""


def _bucket(breaks: Sequence[float], labels: Sequence[str], *, left_closed: bool) -> Callable[[float], str]:
    """The label of the interval that a number lies in, of NaN the last one."""
    find = bisect_right if left_closed else bisect_left
    return lambda x: labels[-1] if math.isnan(x) else labels[find(breaks, x)]


# --- what a formula gives, known before any row ----------------------------------------------------


def mistakes(formula: Formula, declared: Field, fields: Mapping[str, Field]) -> Iterator[str]:
    """What cannot work in the formula of a ``declared`` feature over the raw ``fields``, each as a sentence."""
    try:
        found = kind_of(formula, fields)
    except ConfigError as error:
        yield str(error)
        return
    if isinstance(declared, Numeric):
        if found not in {"number", "part"}:
            yield f"it gives a {found}, declared is a number: cast it to pl.Float64, or declare a category"
        return
    wanted = "truth" if isinstance(declared, Flag) else "text"
    if found != wanted:
        yield f"it gives a {found}, declared is a {type(declared).__name__}: declare what it gives"
        return
    if not declared.missing and may_be_null(formula, fields):
        yield "it has no value where one that it is made of is missing: declare missing=True, or use fill_null"
    if not isinstance(declared, Categorical) or declared.other:
        return
    texts = outcomes(formula, fields)
    if texts is None:
        yield "it can give any text: declare other=True"
    elif beyond := sorted(texts - {*declared.values}):
        yield f"it can give {beyond[0]!r}, which is not declared: add it to the values, or declare other=True"


def kind_of(formula: Formula, fields: Mapping[str, Field], deep: int = 0) -> Kind:
    """What a formula gives. Raises ConfigError, with a sentence, where an operand is not of a kind that it takes."""
    name, *operands = formula
    if deep > MOST_DEEP:
        raise ConfigError(f"more than {MOST_DEEP} operations lie within one another: make two features of it")
    if name == "column":
        return _kind_of_column(operands[0], fields)
    if name == "literal":
        return _kind_of_value(operands[0])
    kinds = [kind_of(operand, fields, deep + 1) for operand in (operands[:1] if name == "bucket" else operands)]
    if name in _KINDS_WITH_NULLS:
        return _KINDS_WITH_NULLS[name](name, kinds)
    operation = OPERATIONS[name]
    _wanted(name, operation.takes, kinds)
    if operation.alike:
        _common(name, kinds)
    if name in PARTS:
        _check_seconds(operands[0], fields)
    if name in _CONSTANT and not _is_constant(operands[1], positive=name == "log"):
        raise ConfigError(f"{_CONSTANT[name]} has to be a number")
    return operation.gives or _common(name, kinds)


_CONSTANT = {"at_least": "a bound of clip", "at_most": "a bound of clip", "log": "the base of log, above 0 and not 1,"}


def _is_constant(formula: Formula, *, positive: bool) -> bool:
    return formula[0] == "literal" and not (positive and (formula[1] <= 0 or formula[1] == 1))


def _kind_of_bucket(name: str, kinds: Sequence[Kind]) -> Kind:
    _wanted(name, _NUMBER, kinds)
    return "text"


def _kind_of_junction(name: str, kinds: Sequence[Kind]) -> Kind:
    _wanted(name, _TRUTH, kinds)
    return "truth"


def _kind_of_when(name: str, kinds: Sequence[Kind]) -> Kind:
    _wanted(name, _TRUTH, kinds[:1])
    return _common(name, kinds[1:])


def _kind_of_column(name: str, fields: Mapping[str, Field]) -> Kind:
    kinds: dict[type, Kind] = {Numeric: "number", Categorical: "text", Flag: "truth"}
    field = fields.get(name)
    found = kinds.get(type(field))
    if found is None:
        known = ", ".join(name for name, one in fields.items() if type(one) in kinds)
        raise ConfigError(f"{name!r} is no number, category or flag of the case: use {known}")
    return found


def _kind_of_value(value: Any) -> Kind:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number"


def _wanted(name: str, takes: tuple[Kind, ...], kinds: Sequence[Kind]) -> None:
    wrong = [kind for kind in kinds if kind not in takes]
    if wrong:
        mend = "cast it to pl.Float64 first" if wrong[0] in {"part", "truth"} and "number" in takes else "mend it"
        raise ConfigError(f"{name} takes a {' or a '.join(takes)}, it is given a {wrong[0]}: {mend}")


def _common(name: str, kinds: Sequence[Kind]) -> Kind:
    """The one kind of all branches; a date's part beside a number is a number."""
    found = {kind for kind in kinds if kind != "nothing"}
    if found == {"number", "part"}:
        return "number"
    if len(found) != 1:
        raise ConfigError(f"{name} is given a {' and a '.join(sorted(found)) or 'null'}: give it values of one kind")
    return found.pop()


_KINDS_WITH_NULLS: Mapping[str, Callable[[str, Sequence[Kind]], Kind]] = {
    "is_null": lambda _name, _kinds: "truth",
    "is_not_null": lambda _name, _kinds: "truth",
    "and": _kind_of_junction,
    "or": _kind_of_junction,
    "when": _kind_of_when,
    "fill_null": _common,
    "bucket": _kind_of_bucket,
}


def _check_seconds(operand: Formula, fields: Mapping[str, Field]) -> None:
    """Raise ConfigError if a date is made of what may lie beyond all years: polars refuses all rows for one of them."""
    field = fields[operand[1]] if operand[0] == "column" else None
    low, high = SECONDS
    if not (isinstance(field, Numeric) and field.low is not None and field.high is not None):
        raise ConfigError("a date is made of one numeric field, in seconds since 1970, with low and high declared")
    if not low <= field.low <= field.high <= high:
        raise ConfigError(f"{field.name} may lie beyond the years 1 to 9999: declare its low and high as seconds")


def may_be_null(formula: Formula, fields: Mapping[str, Field]) -> bool:
    """Whether a formula can be null."""
    name, *operands = formula
    if name == "column":
        return fields[operands[0]].missing
    if name == "literal":
        return operands[0] is None
    if name in {"is_null", "is_not_null"}:
        return False
    if name == "fill_null":
        return all(may_be_null(operand, fields) for operand in operands)
    if name == "when":
        return any(may_be_null(operand, fields) for operand in operands[1:])
    if name == "bucket":
        return may_be_null(operands[0], fields)
    return any(may_be_null(operand, fields) for operand in operands)


def outcomes(formula: Formula, fields: Mapping[str, Field]) -> set[str] | None:
    """All texts that a formula can give; None where there is no end of them."""
    name, *operands = formula
    if name == "column":
        field = fields[operands[0]]
        assert isinstance(field, Categorical)
        return None if field.other else {*field.values}
    if name == "literal":
        return set() if operands[0] is None else {operands[0]}
    if name == "bucket":
        return {*operands[2]}
    parts = [outcomes(operand, fields) for operand in (operands[1:] if name == "when" else operands)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if name != "add":
        return set().union(*known)
    if math.prod(map(len, known)) > MOST_OUTCOMES:
        return None
    return {"".join(pair) for pair in itertools.product(*known)}


def columns_of(formula: Formula) -> set[str]:
    """The raw fields that a formula reads."""
    if formula[0] == "column":
        return {formula[1]}
    return set().union(*(columns_of(operand) for operand in formula[1:] if _is_formula(operand)))


def _is_formula(operand: Any) -> bool:
    return isinstance(operand, tuple) and bool(operand) and operand[0] in NAMES


NAMES = frozenset({"column", "literal", "bucket", *OPERATIONS, *_WITH_NULLS})
"""The operations that there are."""
