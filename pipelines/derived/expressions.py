"""From a polars expression of a case's features.py to a formula.

The expression's own serialised tree is read. What is not among the operations here cannot be computed row by row, or
not by what a gateway has, and is refused with its name.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from pipelines.derived.formulas import MOST_DEEP, PARTS
from pipelines.errors import ConfigError
from pipelines.fields import Formula

Read = Callable[[Any], Formula]
SUBSET = (
    "pl.col, pl.lit, + - * / // % **, comparisons, & | ~, pl.when, abs, floor, ceil, sqrt, exp, log, log1p, sin, cos, "
    "clip, fill_null, is_null, is_not_null, is_between, is_in, bin_intervals, pl.concat_str, cast(pl.Float64), and of "
    "pl.from_epoch dt.year, month, day, weekday, hour and minute"
)
_BINARY = {
    "Plus": "add",
    "Minus": "subtract",
    "Multiply": "multiply",
    "TrueDivide": "divide",
    "FloorDivide": "floor_divide",
    "Modulus": "modulo",
    "Gt": "above",
    "GtEq": "from",
    "Lt": "below",
    "LtEq": "to",
    "Eq": "equal",
    "NotEq": "unequal",
    "And": "and",
    "Or": "or",
}
_FUNCTIONS = {
    "Negate": "negate",
    "Abs": "absolute",
    "Floor": "floor",
    "Ceil": "ceil",
    "Log": "log",
    "Log1p": "log1p",
    "Exp": "exp",
    "FillNull": "fill_null",
    "Boolean:IsNull": "is_null",
    "Boolean:IsNotNull": "is_not_null",
    "Boolean:Not": "not",
    "Pow:Sqrt": "sqrt",
    "Pow:Generic": "power",
    "Trigonometry:Sin": "sin",
    "Trigonometry:Cos": "cos",
}
_PARTS = {"WeekDay": "weekday", **{part.title(): part for part in PARTS if part != "weekday"}}
_SECOND = {"Literal": {"Scalar": {"Int64": 1_000_000}}}
_BETWEEN = {"Both": ("from", "to"), "Left": ("from", "below"), "Right": ("above", "to"), "None": ("above", "below")}


def formula_of(expression: Any) -> Formula:
    """The formula of a polars expression. Raises ConfigError, with a sentence, for what is beyond ``SUBSET``."""
    import polars as pl

    if not isinstance(expression, pl.Expr):
        raise ConfigError(f"{type(expression).__name__} is no polars expression: write it with pl.col")
    try:
        tree = json.loads(expression.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, ValueError, RecursionError) as error:
        raise ConfigError(f"polars cannot write the expression down ({error}): {_mend()}") from error
    return _read(tree)


def _mend() -> str:
    return f"use {SUBSET}; compute anything else in source.py, as a field"


def _beyond(what: str) -> ConfigError:
    return ConfigError(f"{what} cannot be computed for a single row: {_mend()}")


def _read(tree: Any, deep: int = 0) -> Formula:
    if deep > 2 * MOST_DEEP:
        raise ConfigError(f"more than {MOST_DEEP} operations lie within one another: make two features of it")

    def read(part: Any) -> Formula:
        return _read(part, deep + 1)

    if not isinstance(tree, dict) or len(tree) != 1:
        raise _beyond(f"{tree!r:.80}")
    ((kind, own),) = tree.items()
    if kind not in _NODES:
        raise _beyond(kind)
    return _NODES[kind](own, read)


def _binary(own: Any, read: Read) -> Formula:
    if own["op"] not in _BINARY:
        raise _beyond(own["op"])
    return _BINARY[own["op"]], read(own["left"]), read(own["right"])


def _ternary(own: Any, read: Read) -> Formula:
    return "when", read(own["predicate"]), read(own["truthy"]), read(own["falsy"])


def _cast(own: Any, read: Read) -> Formula:
    if own["dtype"] == {"Literal": "Float64"}:
        return "as_number", read(own["expr"])
    if own["dtype"] == {"Literal": "String"} and _name(own["expr"]).startswith("Bin"):
        return read(own["expr"])  # polars gives an enumeration, whose values are texts
    raise _beyond(f"a cast to {json.dumps(own['dtype'])}")


def _name(tree: Any) -> str:
    """A function as "Abs" or "Boolean:IsNull"; other expressions have none."""
    function = tree["Function"]["function"] if "Function" in tree else ""
    if isinstance(function, str):
        return function
    ((group, own),) = function.items()
    return f"{group}:{own}" if isinstance(own, str) else f"{group}:{next(iter(own))}"


def _function(own: Any, read: Read) -> Formula:
    name = _name({"Function": own})
    given, function = own["input"], own["function"]
    if name in _FUNCTIONS:
        return _FUNCTIONS[name], *map(read, given)
    if name.startswith("TemporalExpr:") and (part := _PARTS.get(name.partition(":")[2])):
        return part, read(_seconds(given[0]))
    if name.startswith("Clip"):
        bounds = [("at_least", "has_min"), ("at_most", "has_max")]
        asked = [bound for bound, there in bounds if function["Clip"][there]]
        return reduce(
            lambda inner, bound: (bound[0], inner, read(bound[1])), zip(asked, given[1:], strict=True), read(given[0])
        )
    if name == "Boolean:IsBetween":
        value, low, high = map(read, given)
        above, below = _BETWEEN[function["Boolean"]["IsBetween"]["closed"]]
        return "and", (above, value, low), (below, value, high)
    if name == "Boolean:IsIn" and not function["Boolean"]["IsIn"]["nulls_equal"] and "Literal" in given[1]:
        value = read(given[0])
        any_of = [("equal", value, ("literal", one)) for one in _series(given[1]["Literal"]["Scalar"]["List"])]
        return _balanced("or", any_of)
    if name == "StringExpr:ConcatHorizontal" and not function["StringExpr"]["ConcatHorizontal"]["ignore_nulls"]:
        between = ("literal", function["StringExpr"]["ConcatHorizontal"]["delimiter"])
        parts = [part for one in given for part in (between, read(one))][1:]
        return reduce(lambda left, right: ("add", left, right), parts)
    if name.startswith("Bin:") and (bucket := _bucket(function["Bin"], read(given[0]))):
        return bucket
    raise _beyond(name)


def _balanced(name: str, parts: Sequence[Formula]) -> Formula:
    """Parts joined in pairs, and pairs of pairs: a long list does not lie deep."""
    if not parts:
        raise ConfigError("is_in is given no values: give it one at least")
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return name, _balanced(name, parts[:half]), _balanced(name, parts[half:])


def _seconds(tree: Any) -> Any:
    """The column of ``pl.from_epoch(column, time_unit="s")``."""
    cast = tree.get("Cast", {})
    inner = cast.get("expr", {}).get("BinaryExpr", {})
    micros = cast.get("dtype") == {"Literal": {"Datetime": ["Microseconds", None]}}
    if micros and inner.get("op") == "Multiply" and inner.get("right") == _SECOND:
        return inner["left"]
    raise ConfigError('dates are made by pl.from_epoch(pl.col(name), time_unit="s"): write it so')


def _bucket(about: Mapping[str, Any], value: Formula) -> Formula | None:
    intervals = about["method"].get("Intervals", {})
    breaks = intervals.get("spec", {})
    if not isinstance(breaks, dict) or "Breaks" not in breaks or not about["labels"] or about["include_intervals"]:
        return None
    edges = tuple(float(edge) for edge in _series(breaks["Breaks"]))
    return "bucket", value, edges, tuple(about["labels"]), not intervals["right_closed"]


def _series(kept: Sequence[int]) -> list[Any]:
    """The values of a series that polars wrote as Arrow's bytes."""
    import polars as pl

    return [_plain(value) for value in pl.read_ipc_stream(io.BytesIO(bytes(kept))).to_series().to_list()]


def _value(literal: Any) -> Any:
    ((how, own),) = literal.items() if isinstance(literal, dict) else (("", None),)
    if how not in {"Dyn", "Scalar"} or not isinstance(own, dict):
        raise _beyond(f"the constant {literal!r:.80}")
    ((kind, value),) = own.items()
    if kind == "Null":
        return None
    if kind.startswith(("Int", "UInt", "Float")) or kind in {"String", "Boolean"}:
        return _plain(value)
    raise _beyond(f"a constant of type {kind}")


def _plain(value: Any) -> Any:
    """A constant as it is computed with: numbers are floats."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if value is None or isinstance(value, bool | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _beyond(f"the constant {value!r:.80}")


_NODES: Mapping[str, Callable[[Any, Read], Formula]] = {
    "Column": lambda own, _read: ("column", own),
    "Literal": lambda own, _read: ("literal", _value(own)),
    "Alias": lambda own, read: read(own[0]),
    "BinaryExpr": _binary,
    "Ternary": _ternary,
    "Cast": _cast,
    "Function": _function,
}
