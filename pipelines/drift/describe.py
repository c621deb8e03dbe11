"""What moved, in the field's own terms: medians and shares of two columns of counts, for people to read."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.drift.profile import Column, bounds
from pipelines.drift.spec import Scale


def describe(before: Column, now: Column, scale: Scale | None) -> dict[str, Any] | None:
    """The two sides of one feature; None if one of them has no values.

    A number: ``{"kind": "number", "before": [q25, median, q75], "now": ...}`` in the field's units, each the middle of
    its bin (within 0.8% of the value where the bins are widest). A category: ``{"kind": "category", "value", "before", "now"}``,
    the value whose share of the rows (0 to 1) changed most; ``value`` is None for values that are not declared.

    >>> day = Column(np.array([0, 1]), np.array([30, 10]), vocabulary=("web", "shop"))
    >>> describe(day, Column(np.array([0, 1]), np.array([10, 30]), vocabulary=("web", "shop")), None)
    {'kind': 'category', 'value': 'web', 'before': 0.75, 'now': 0.25}
    """
    if not before.n or not now.n:
        return None
    if before.vocabulary is not None:
        words = before.vocabulary
        was, became = (np.bincount(column.bins, weights=column.counts, minlength=len(words) + 1) / column.n for column in (before, now))
        most = int(np.argmax(np.abs(became - was)))
        return {"kind": "category", "value": words[most] if most < len(words) else None, "before": float(was[most]), "now": float(became[most])}
    if scale is None:
        return None
    return {"kind": "number", "before": _quartiles(before, scale), "now": _quartiles(now, scale)}


def _quartiles(column: Column, scale: Scale) -> list[float]:
    at = np.searchsorted(np.cumsum(column.counts), np.array([0.25, 0.5, 0.75]) * column.n)
    low, high = bounds(column.bins[at], scale)
    return [float(value) for value in (low + high) / 2]
