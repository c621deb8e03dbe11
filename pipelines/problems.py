"""Why a value that was sent is not allowed: by code for programs, in words for people; and one that is."""

from __future__ import annotations

import math
import re
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pipelines.errors import ConfigError
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
)
from pipelines.text import normalise

ProblemCode = Literal[
    "type",
    "category",
    "class",
    "not_finite",
    "not_whole",
    "bounds",
    "empty",
    "not_unicode",
    "time",
    "prediction_id",
    "event_time",
    "name",
]
"""What can be wrong with a value, in a word that programs read: metrics count by it."""

SUMS_TO_ONE = 1e-6
"""How far declared probabilities may sum from 1."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Problem(NamedTuple):
    """Why a value is not allowed: in which ``field``, by which ``code``, and as a ``message`` for people.

    The message never echoes the value.
    """

    field: str
    code: ProblemCode
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def read_time(value: object) -> datetime | None:
    """The time that an ISO 8601 text with seconds and a zone says, in its zone; None if it is none."""
    # Not at the top: a model that is used elsewhere comes here, too, and has no msgspec where no field is a time.
    import msgspec

    try:
        found: datetime = msgspec.convert(value, _time())
    except msgspec.ValidationError:
        return None
    return found


@cache
def _time() -> Any:
    import msgspec

    return Annotated[datetime, msgspec.Meta(tz=True)]


def problem(field: Field, value: object) -> Problem | None:
    """Why ``value`` is not allowed in ``field``, or None if it is."""
    found = _problem(field, value)
    if found is None and isinstance(value, str) and _SURROGATE.search(value):
        return Problem(field.name, "not_unicode", "holds a lone surrogate: send Unicode text")
    return found


def _problem(field: Field, value: object) -> Problem | None:
    if value is None and field.missing:
        return None
    if isinstance(field, Numeric):
        return _problem_of_number(field, value)
    if isinstance(field, Flag):
        if isinstance(value, bool):
            return None
        return Problem(field.name, "type", f"expected true or false, got {_kind(value)}")
    if isinstance(field, Vector):
        return _problem_of_vector(field, value)
    if not isinstance(value, str):
        return Problem(field.name, "type", f"expected a string, got {_kind(value)}")
    return _problem_of_string(field, value)


def _problem_of_string(field: Categorical | Moment | Text | Attribute, value: str) -> Problem | None:
    if isinstance(field, Categorical):
        return _problem_of_category(field, value)
    if isinstance(field, Moment):
        return problem_of_time(field.name, "time", value)
    if len(value) > field.max_chars:
        return _too_long(field, field.max_chars)
    if isinstance(field, Text) and not normalise(value):
        return Problem(field.name, "empty", "must not be empty")
    return None


def problem_of_time(name: str, code: ProblemCode, value: object) -> Problem | None:
    """Why ``value`` is no time that a row may have, or None if it is."""
    moment = read_time(value)
    if moment is None:
        allowed = "must be an ISO 8601 time with seconds and a time zone, e.g. 2024-05-01T12:00:00Z"
        return Problem(name, code, allowed)
    return out_of_time(name, code, moment)


def out_of_time(name: str, code: ProblemCode, moment: datetime) -> Problem | None:
    """Why a time lies beyond those that a row may have, or None if it does not."""
    # Compared as aware times: year 1 or 9999 may not survive the conversion to UTC.
    if EARLIEST <= moment < LATEST:
        return None
    return Problem(name, code, f"must lie between {EARLIEST.year} and {LATEST.year}")


def _problem_of_category(field: Categorical, value: str) -> Problem | None:
    if field.other and len(value) > OTHER_CHARS:
        return _too_long(field, OTHER_CHARS)
    if field.other or value in field.values:
        return None
    return Problem(field.name, "category", f"unknown category, use one of {', '.join(field.values)}")


def _too_long(field: Field, most: int) -> Problem:
    return Problem(field.name, "bounds", f"must have at most {most} characters")


def _problem_of_number(field: Numeric, value: object) -> Problem | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Problem(field.name, "type", f"expected a number, got {_kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(field.name, "not_finite", "must be finite")
    if abs(value) > FLOAT32_MAX:
        return Problem(field.name, "bounds", "must fit a 32-bit float")
    if field.integer and value != int(value):
        return Problem(field.name, "not_whole", "must be a whole number")
    if field.low is not None and value < field.low:
        return Problem(field.name, "bounds", f"must be at least {field.low:g}")
    if field.high is not None and value > field.high:
        return Problem(field.name, "bounds", f"must be at most {field.high:g}")
    return None


def _problem_of_vector(field: Vector, value: object) -> Problem | None:
    if not isinstance(value, list):
        return Problem(field.name, "type", f"expected a list of {field.size} numbers, got {_kind(value)}")
    if len(value) != field.size:
        return Problem(field.name, "bounds", f"must have {field.size} numbers, has {len(value)}")
    number = Numeric(field.name)
    for place, one in enumerate(value):
        if found := _problem_of_number(number, one):
            return found._replace(message=f"number {place}: {found.message}")
    return None


def _kind(value: object) -> str:
    kinds = {type(None): "null", str: "a string", bool: "a boolean", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def allowed(field: Field) -> str | float | bool | list[float]:
    """A value that is allowed in ``field``: the first of a vocabulary, a number within the bounds."""
    if isinstance(field, Flag):
        return True
    if isinstance(field, Vector):
        return [0.5] * field.size
    if isinstance(field, Moment):
        return "2024-05-01T12:00:00Z"
    if isinstance(field, Attribute):
        return "example"[: field.max_chars]
    if isinstance(field, Categorical):
        return field.values[0]
    if isinstance(field, Numeric):
        low = field.low
        if low is None:
            low = min(0.0, field.high or 0.0)
        high = field.high
        if high is None:
            high = low + 2
        value = (low + high) / 2
        if field.integer:
            return int(value)
        return value
    return "What somebody would write here, in a sentence or in a page."[: field.max_chars]


def default_scores(fields: Fields, default: float | dict[str, float] | None) -> tuple[float, ...] | None:
    """The declared scores, one per output in declared order; None if none is declared.

    Raises ConfigError, with the parameter's name, for what no model of the case could answer.
    """
    if default is None:
        return None
    if fields.classes:
        return _of_classes(fields, default)
    if isinstance(default, dict):
        wanted = "the number" if fields.number is not None else "the probability of 1"
        raise ConfigError(f"serving.default: {fields.case} has no classes: give one number, {wanted}")
    low, high = fields.answers
    if not low <= default <= high:
        what = "probability" if fields.number is None else "number that the target may be"
        raise ConfigError(f"serving.default: {default:g} is no {what}: give one from {low:g} to {high:g}")
    return (float(default),)


def _of_classes(fields: Fields, default: float | dict[str, float]) -> tuple[float, ...]:
    names = ", ".join(fields.classes)
    if not isinstance(default, dict) or set(default) != set(fields.classes):
        raise ConfigError(f"serving.default: give one probability for each of the classes {names}")
    for name, value in default.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"serving.default.{name}: {value:g} is no probability: give one from 0 to 1")
    total = sum(default.values())
    if abs(total - 1) > SUMS_TO_ONE:
        raise ConfigError(f"serving.default: the probabilities of {names} sum to {total:g}: let them sum to 1")
    return tuple(float(default[name]) for name in fields.classes)
