"""What a declared source has to say of a table's columns (docs/cases.md#a-source-without-code), or why none can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipelines.fields import EVENT_TIME
from pipelines.inspection.guesses import shown
from pipelines.inspection.table import Found


@dataclass(frozen=True)
class Place:
    """Where a table's rows lie, as params.yaml says it: ``kind`` and the address.

    ``texts`` says that the place can tell texts for missing values, as CSV does.
    """

    block: Mapping[str, Any]
    texts: bool = False

    @property
    def shown(self) -> str:
        """The place for people."""
        if self.block["kind"] == "sql":
            return str(self.block.get("table") or "a query")
        url = str(self.block["url"])
        return url if "://" in url else url.rpartition("/")[2]


@dataclass(frozen=True)
class Declared:
    """The options of a declared source, and why none can say what is needed (empty: these say it)."""

    options: Mapping[str, Any]
    why_not: tuple[str, ...]


def declared(found: Found, frame: pl.DataFrame, place: Place) -> Declared:
    """The options by which a declared source at ``place`` gives the rows that were looked at as ``frame``."""
    names = _names(found)
    nulls = _nulls(found)
    options: dict[str, Any] = {}
    renamed: dict[str, str | None] = {own: theirs for own, theirs in names.items() if own != theirs}
    if found.asked.id is None:
        renamed = {"id": None, **renamed}
    if renamed:
        options["columns"] = renamed
    moments = found.moments.values()
    zones = {one.zone for one in moments if one.zone} | {guess.zone for guess in found.guesses if guess.zone}
    if zones:
        options["time_zone"] = zones.pop()
    units = {one.unit for one in moments if one.unit}
    if units:
        options["time_unit"] = min(units)
    if found.label.values:
        options["label_values"] = list(found.label.values)
    texts = sorted({text for some in nulls.values() for text in some})
    if texts and place.texts:
        options["nulls"] = texts
    why_not = [*_code(found), *(["times in several units"] if len(units) > 1 else [])]
    if texts and not place.texts:
        why_not += [f"{name}: {shown(some)} stands for a missing value" for name, some in nulls.items()]
    elif texts:
        why_not += _values_elsewhere(frame, names, nulls, texts)
    return Declared(options, tuple(why_not))


def _names(found: Found) -> dict[str, str]:
    """The table's names by ours."""
    names = {} if found.asked.id is None else {"id": found.asked.id}
    names[EVENT_TIME] = found.asked.time
    if found.asked.label_time is not None:
        names["label_time"] = found.asked.label_time
    names |= {guess.field.name: guess.column for guess in found.guesses if guess.field is not None}
    return names | {found.fields.label: found.asked.label}


def _nulls(found: Found) -> dict[str, tuple[str, ...]]:
    """The texts that stand for a missing value, by the column that has them."""
    by_column = {guess.column: guess.nulls for guess in found.guesses if guess.field is not None and guess.nulls}
    return by_column | ({found.asked.label: found.label.nulls} if found.label.nulls else {})


def _code(found: Found) -> Iterator[str]:
    by_column = {guess.column: guess.code for guess in found.guesses if guess.field is not None}
    times = {EVENT_TIME: found.asked.time, "label_time": str(found.asked.label_time)}
    by_column |= {times[own]: one.code for own, one in found.moments.items()}
    by_column |= {str(found.asked.id): found.id_code, found.asked.label: found.label.code}
    return (f"{column}: {code}" for column, code in by_column.items() if code)


def _values_elsewhere(
    frame: pl.DataFrame, names: Mapping[str, str], nulls: Mapping[str, tuple[str, ...]], texts: list[str]
) -> Iterator[str]:
    """A text for missing values counts in all columns of a file: where another column means it, none can be told."""
    for column in dict.fromkeys(names.values()):
        meant = [text for text in texts if text not in nulls.get(column, ()) and (frame[column] == text).any()]
        if meant:
            yield f"{column}: {shown(meant)} is a value there and stands for a missing one in another column"
