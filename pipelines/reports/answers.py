"""What a command answers, as tables for a person at a terminal; programs get the same as one line of JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

COLUMNS = {
    "alerts": ("rule", "severity", "state", "first_seen", "last_seen", "count", "owner", "summary"),
    "findings": ("case", "table", "row", "column", "problem"),
    "silences": ("rule", "until", "actor", "reason"),
}
"""What of a list's items stands in its table, where all would be too wide; the JSON has all."""
SHOWN, ROWS = 8, 12
"""Items of a plain list that are written out, and rows of a table of details.

What a command is about is shown whole.
"""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def tables(title: str, answer: Any) -> Group:
    """Single values side by side with their names, nested ones by dotted names.

    Below them one table for each list of objects. An answer that is no object is shown as it is.
    """
    values = dict[str, Any]()
    lists = dict[str, Sequence[Mapping[str, Any]]]()
    if not isinstance(answer, Mapping):
        answer = {"": answer}
    for name, value in _flat(answer):
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            lists[name] = value
        else:
            values[name] = value
    pairs = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    pairs.add_column(no_wrap=True, style="bold")
    pairs.add_column(overflow="fold")
    for name, value in values.items():
        pairs.add_row(Text(name), Text(_cell(value)))
    return Group(pairs, *(_table(name, items, ROWS if "." in name else len(items)) for name, items in lists.items()))


def _table(name: str, items: Sequence[Mapping[str, Any]], most: int) -> Table:
    rows = [dict(_flat(item)) for item in items]
    columns = COLUMNS.get(name) or tuple(dict.fromkeys(column for row in rows for column in row))
    heading = f"\n{name}"
    if len(items) > most:
        heading += f", {most} of {len(items)} (--json has all)"
    found = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        found.add_column(Text(column), overflow="fold")
    for row in rows[:most]:
        found.add_row(*(Text(_cell(row.get(column))) for column in columns))
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _cell(value: Any) -> str:
    if value is None or value in ([], (), {}):
        return "-"
    if isinstance(value, bool):
        if value:
            return "yes"
        return "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(map(_cell, value[:SHOWN]))
        if len(value) > SHOWN:
            shown += f" ... ({len(value)} in all)"
        return shown
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return f"{value[:12]}..."
    return str(value)
