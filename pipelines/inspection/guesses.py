"""What was guessed of a column: a field, how it is read from the file, and why."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from pipelines.fields import FLOAT32_MAX, RESERVED, Field
from pipelines.storage import digest

NO_VALUE = ("", "NA", "N/A", "n/a", "na", "NaN", "nan", "NULL", "Null", "null", "None", "none", "-", "?", ".")
"""Texts that stand for a missing value where the others are numbers or times."""


@dataclass(frozen=True)
class Guess:
    """``reads`` is the polars expression, as Python text, that makes the declared field of the file's ``column``.

    Without a ``field`` the column is left out; ``why`` says why, and from how many rows. ``warning``: it must be told.
    ``nulls`` are texts of it that stand for a missing value. ``code`` says what no declared source does of what
    ``reads`` does; empty: a declaration can say all of it. ``zone`` is that of times that have none themselves.
    """

    column: str
    field: Field | None
    reads: str
    why: str
    warning: bool = False
    nulls: tuple[str, ...] = ()
    code: str = ""
    zone: str | None = None


UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"})


def col(column: str) -> str:
    """The text of ``pl.col`` of a column.

    >>> col("house value")
    "pl.col('house value')"
    """
    return f"pl.col({column!r})"


def expression(text: str) -> pl.Expr:
    """The polars expression that a text says: what is checked is what is written into source.py."""
    known = {"pl": pl, "digest": digest}
    found = eval(text, known)  # noqa: S307 - the text is made in this room, names in it are quoted by repr
    assert isinstance(found, pl.Expr)
    return found


def names_for(columns: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A name that a field can have for every column, no two the same, and none of ``taken``.

    Umlauts are written out, other accents left out; letters of other alphabets cannot be kept.

    >>> names_for(["Größe (m²)", "Prénom"])
    {'Größe (m²)': 'Groesse_m2', 'Prénom': 'Prenom'}
    >>> names_for(["House value (EUR)", "house value-EUR", "2nd", "score", "label"])
    {'House value (EUR)': 'House_value_EUR', 'house value-EUR': 'house_value_EUR', '2nd': 'x2nd', \
'score': 'score_value', 'label': 'label_value'}
    """
    found: dict[str, str] = {}
    used = set(taken)
    for column in columns:
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", column).translate(UMLAUTS))
        letters = "".join(letter for letter in plain if not unicodedata.combining(letter))
        name = re.sub(r"[^A-Za-z0-9_]+", "_", letters).strip("_")[:56] or "column"
        if not name[0].isalpha():
            name = f"x{name}"
        if name in RESERVED:
            name = f"{name}_value"
        first, number = name, 2
        while name in used:
            name, number = f"{first}_{number}", number + 1
        used.add(name)
        found[column] = name
    return found


def room(low: float, high: float) -> tuple[float, float]:
    """Hard bounds with room around what was seen: five times as wide, round, and not below 0 if nothing was.

    >>> room(18, 95), room(-3.5, 12.0), room(0, 1)
    ((0.0, 500.0), (-100.0, 100.0), (0.0, 5.0))
    """
    margin = 4 * ((high - low) or abs(high) or 1.0)
    top = _round_up(high + margin)
    if low >= 0:
        return 0.0, top
    return -_round_up(margin - low), top


def _round_up(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten.

    >>> _round_up(403), _round_up(0.03)
    (500.0, 0.05)
    """
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    found = next(float(f"{step * power:.1g}") for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-12))
    return min(found, FLOAT32_MAX)


def shown(values: Iterable[object], most: int = 3) -> str:
    """Some values for people, each cut off at 40 characters."""
    return ", ".join(f"{value!r}"[:40] for value, _ in zip(values, range(most), strict=False))
