"""What a case is written with: the fields, what is predicted, and the form of its rows.

These names are the public interface for cases, and stay. ``from perennial import Fields, Numeric, Categorical``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.fields import (
    Attribute,
    Binary,
    Categorical,
    Classes,
    Fields,
    Flag,
    Moment,
    Number,
    Numeric,
    Text,
    Vector,
)

if TYPE_CHECKING:
    from pipelines.cases.sources import Source, canonical

__all__ = [
    "Attribute",
    "Binary",
    "Categorical",
    "Classes",
    "Fields",
    "Flag",
    "Moment",
    "Number",
    "Numeric",
    "Source",
    "Text",
    "Vector",
    "canonical",
]


def __getattr__(name: str) -> Any:
    """``Source`` and ``canonical``, when they are asked for: a schema needs neither, nor the libraries behind them."""
    if name in {"Source", "canonical"}:
        from pipelines.cases import sources

        return getattr(sources, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: choose one of {', '.join(__all__)}")
