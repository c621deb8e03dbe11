"""Traffic for the table of false alarms: windows of 20 numbers and 5 categories as counts per value, three kinds of it.

Numbers are recorded to 0.01 of their standard deviation, so a window's counts per value are the window: every
rule compared here looks at one feature at a time and at no order of rows, and loses nothing. Of windows with many
rows the counts are drawn at once: given how a day's volume was spread over its hours, a feature's rows are
independent and their counts multinomial, exactly. (What two numbers share through a row's own hour is lost by
that; it makes several of them alarm together, so without it a window with an alarm is, if anything, likelier.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["iid", "diurnal", "sessions", "part of a day"]

NUMBERS = 20
STEP = 0.01
LIMIT = 5.0
GRID = np.round(np.arange(-LIMIT, LIMIT + STEP / 2, STEP), 2)
"""The values that a number can have, in standard deviations."""
SHARES: tuple[Floats, ...] = tuple(
    np.array(shares)
    for shares in ([0.5, 0.5], [0.9, 0.1], [0.6, 0.3, 0.09, 0.01], [0.3, 0.25, 0.2, 0.15, 0.07, 0.03], [0.1] * 10)
)
"""Shares of the values of each category; the rare ones are what a small window may not hold."""

HOURS = np.arange(24)
DAYTIME = 1 + 0.7 * np.sin(2 * np.pi * (HOURS - 8) / 24)
"""Rows of an hour, up to a factor."""
AMPLITUDE = np.linspace(0.2, 1.0, NUMBERS)
"""How far the mean of each number moves up and down in a day, in standard deviations within an hour."""
HOUR_NOISE, TILT_NOISE = 0.2, 0.1
"""No two days are alike: each hour's volume varies by about 20%.

A day leans towards one half of itself by about 10%.
"""
SESSION = (5, 20)
"""Rows of a session, uniform. They share 15 of the 20 numbers and all categories."""
SHARED = 15


@dataclass(frozen=True)
class Counts:
    """Windows as counts: ``numbers`` ``[W, NUMBERS, len(GRID)]`` and per category ``[W, its values]``."""

    numbers: Ints
    categories: tuple[Ints, ...]

    def __getitem__(self, chosen: slice) -> Counts:
        return replace(
            self, numbers=self.numbers[chosen], categories=tuple(counts[chosen] for counts in self.categories)
        )


def draw(kind: Kind, rng: np.random.Generator, windows: int, rows: int, shift: float = 0.0) -> Counts:
    """``windows`` windows of ``rows`` rows each; the first number is moved up by ``shift`` standard deviations."""
    if kind == "sessions":
        return _sessions(rng, windows, rows, shift)
    volumes = None if kind == "iid" else _volumes(kind, rng, windows)
    categories = tuple(rng.multinomial(rows, shares, windows) for shares in SHARES)
    if rows > 2 * len(GRID):
        moved = [shift, *[0.0] * (NUMBERS - 1)]
        return Counts(
            np.stack(
                [rng.multinomial(rows, _mass(number, by, volumes), windows) for number, by in enumerate(moved)], axis=1
            ),
            categories,
        )
    values = rng.standard_normal((windows, NUMBERS, rows), np.float32)
    if volumes is not None:
        means, spread = _day()
        values *= spread[:, None].astype(np.float32)
        for window, counts in enumerate(rng.multinomial(rows, volumes)):
            values[window] += np.repeat(means, counts, axis=1).astype(np.float32)
    values[:, 0] += shift
    return Counts(_count(values), categories)


def _mass(number: int, shift: float, volumes: Floats | None) -> Floats:
    """Probability of every value of one number.

    ``[V]``, or with each window's volumes by hour ``[W, 24]`` ``[W, V]``.
    """
    edges = np.concatenate([[-np.inf], GRID[:-1] + STEP / 2, [np.inf]]) - shift
    if volumes is None:
        mass: Floats = np.diff(norm.cdf(edges))
    else:
        means, spread = _day()
        mass = volumes @ np.diff(norm.cdf((edges - means[number][:, None]) / spread[number]))
    shares: Floats = mass / mass.sum(axis=-1, keepdims=True)
    return shares


def _count(values: NDArray[np.float32], weights: Floats | None = None) -> Ints:
    """Counts ``[W, F, V]`` of values ``[W, F, n]``, recorded to STEP; they are overwritten."""
    windows, features, _ = values.shape
    values *= 1 / STEP
    np.rint(values, out=values)
    np.clip(values, -LIMIT / STEP, LIMIT / STEP, out=values)
    cells = values.astype(np.int64)
    cells += (np.arange(windows * features).reshape(windows, features, 1) * len(GRID)) + len(GRID) // 2
    given = None if weights is None else np.broadcast_to(weights[:, None, :], values.shape).ravel()
    found = np.bincount(cells.ravel(), given, minlength=windows * features * len(GRID))
    return found.astype(np.int64).reshape(windows, features, len(GRID))


def _day() -> tuple[Floats, Floats]:
    """Means ``[NUMBERS, 24]`` of each number by hour and its deviation ``[NUMBERS]`` within an hour.

    Over an ordinary day they are scaled to 0 and 1.
    """
    phases = 2 * np.pi * np.arange(NUMBERS) / NUMBERS
    means = AMPLITUDE[:, None] * np.sin(2 * np.pi * HOURS / 24 + phases[:, None])
    usual = DAYTIME / DAYTIME.sum()
    means = means - (means @ usual)[:, None]
    spread = np.sqrt(1 + (means**2) @ usual)
    return means / spread[:, None], 1 / spread


def _volumes(kind: Kind, rng: np.random.Generator, windows: int) -> Floats:
    """Shares ``[W, 24]`` of each window's rows by hour.

    Windows that are part of a day take turns among its quarters.
    """
    tilt = TILT_NOISE * rng.standard_normal((windows, 1)) * np.sin(2 * np.pi * HOURS / 24)
    volumes = DAYTIME * np.exp(HOUR_NOISE * rng.standard_normal((windows, 24)) + tilt)
    if kind == "part of a day":
        volumes = np.where(np.arange(windows)[:, None] % 4 == HOURS // 6, volumes, 0.0)
    shares: Floats = volumes / volumes.sum(axis=1, keepdims=True)
    return shares


def _sessions(rng: np.random.Generator, windows: int, rows: int, shift: float) -> Counts:
    """Whole sessions; the last one is cut so that a window has its ``rows``."""
    low, high = SESSION
    lengths = rng.integers(low, high + 1, (windows, rows // low + 1))
    lengths = np.diff(np.minimum(np.cumsum(lengths, axis=1), rows), prepend=0, axis=1)
    lengths = lengths[:, : int((lengths > 0).sum(axis=1).max())]
    shared = rng.standard_normal((windows, SHARED, lengths.shape[1]), np.float32)
    shared[:, 0] += shift
    alone = range(SHARED, NUMBERS)
    if rows > 2 * len(GRID):
        own = np.stack([rng.multinomial(rows, _mass(number, 0.0, None), windows) for number in alone], axis=1)
    else:
        own = _count(rng.standard_normal((windows, len(alone), rows), np.float32))
    numbers = np.concatenate([_count(shared, lengths.astype(np.float64)), own], axis=1)
    return Counts(numbers, tuple(_weighted(rng, shares, lengths) for shares in SHARES))


def _weighted(rng: np.random.Generator, shares: Floats, lengths: Ints) -> Ints:
    """Counts ``[W, its values]`` of one category that is the same in all rows of a session."""
    windows = len(lengths)
    size = len(shares)
    values = (
        np.searchsorted(np.cumsum(shares)[:-1], rng.random(lengths.shape), side="right")
        + np.arange(windows)[:, None] * size
    )
    return (
        np.bincount(values.ravel(), lengths.ravel(), minlength=windows * size).astype(np.int64).reshape(windows, size)
    )


def session_rows() -> float:
    """What one row of sessions must be divided by.

    ``E[k^2] / E[k]`` rows of ``k``-row sessions tell as much as one (Kish's design effect).

    >>> round(session_rows(), 1)
    14.2
    """
    lengths = np.arange(SESSION[0], SESSION[1] + 1)
    return float((lengths**2).mean() / lengths.mean())
