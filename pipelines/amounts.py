"""Values of a metric as people read them: with the digits that mean something."""

from __future__ import annotations

from pipelines.contracts import Interval


def amount(value: float, like: float | None = None, *, signed: bool = False) -> str:
    """Three digits behind the point below 10, one below 1,000, none from there on; as many as ``like`` has, if given.

    >>> amount(0.0812), amount(43.787), amount(-1446.333), amount(0.5, like=217.9), amount(0.25, signed=True)
    ('0.081', '43.8', '-1,446', '0.5', '+0.250')
    """
    size = abs(value if like is None else like)
    digits = 1 if size < 1000 else 0
    if size < 10:
        digits = 3
    return f"{value:{'+' if signed else ''},.{digits}f}"


def share(value: float) -> str:
    """A share of all keys.

    >>> share(0.05), share(0.0525), share(1)
    ('5%', '5.25%', '100%')
    """
    return f"{100 * value:.4g}%"


def spread(found: Interval, unit: str = "", *, signed: bool = False) -> str:
    """A value, its unit and its interval, all with the digits of the largest.

    >>> spread(Interval(value=0.08, low=0.05, high=0.11), "nats")
    '0.080 nats (0.050 to 0.110)'
    >>> spread(Interval(value=217.873, low=126.487, high=309.259), "minutes²", signed=True)
    '+217.9 minutes² (+126.5 to +309.3)'
    """
    largest = max(map(abs, (found.value, found.low, found.high)))
    value, low, high = (amount(one, largest, signed=signed) for one in (found.value, found.low, found.high))
    return f"{value}{' ' if unit else ''}{unit} ({low} to {high})"
