"""What the blocks of parameters stand on: their base, and checks that several of them share."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

Days = Annotated[float, Field(ge=0, le=36_500)]
"""A number of days; a century is as far as calendars are added up."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """Base of every parameter block: frozen, strictly typed, numbers finite, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def not_below(other: str, *, strictly: bool = False) -> AfterValidator:
    """The value is at least that of ``other``, a key before it in the same block; ``strictly``: above it.

    None says nothing.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        least = info.data.get(other)
        if value is not None and least is not None and (value < least or (strictly and value == least)):
            raise ValueError(
                f"{value} is {'not above' if strictly else 'below'} {other} {least}: raise one, or lower the other"
            )
        return value

    return AfterValidator(check)


def ascending(value: tuple[Any, Any]) -> tuple[Any, Any]:
    """The first of two lies below the second; None is open."""
    low, high = value
    if high is not None and low >= high:
        raise ValueError(f"{shown(low)} is not below {shown(high)}: exchange them")
    return value


def rising_rows(value: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of rows, each above the one before it."""
    if list(value) != sorted(set(value)):
        raise ValueError(f"{list(value)} must rise: name each number once, the lowest first")
    return value


def shown(value: Any) -> str:
    """A number or a moment as people write it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return f"{value:g}"


def rising(value: tuple[float, ...]) -> tuple[float, ...]:
    """Edges, each above the one before it."""
    if any(low >= high for low, high in pairwise(value)):
        raise ValueError(f"{', '.join(map(shown, value))} do not rise: give edges in rising order, none twice")
    return value
