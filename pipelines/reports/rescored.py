"""What scoring logged rows again has shown, as tables for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

TEMPLATES = Path(__file__).with_name("templates")
MOST = 40
"""Days and slices that a terminal is shown; page and JSON have all."""
VERSIONS = ("version", "rows", "identical", "differ", "unfit", "largest difference")
SHORT = (0, 1, 2, 6, 7, 10)
"""The columns of ``PARTS`` that fit a terminal."""
PARTS = ("", "rows", "mean", "5%", "median", "95%", "decided otherwise", "labelled", "logged", "candidate", "better by")


def headline(answer: dict[str, Any]) -> str:
    """What came out, in a sentence."""
    found = answer["replay"]
    if found["rows"]:
        rows, same = found["rows"], found["rows"] - found["differ"] - found["unfit"]
        share = f"{found['identical'] / rows:.1%} bit by bit"
        said = f"{same:,} of {rows:,} logged scores come out again within {answer['tolerance']:g}, {share}"
    elif answer["version"] is None:
        said = "no row of this span could be scored again"
    else:
        said = f"version {answer['version']} answered no row of this span itself"
    if found["unread"]:
        said += f"; {found['unread']:,} more rows lie in segments that are still open and were not scored"
    return said if answer["ok"] else f"{said}: {len(answer['problems'])} problem(s)"


def versions(answer: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a table of the versions that were scored again."""
    return [
        (
            str(one["version"]),
            f"{one['rows']:,}",
            f"{one['identical']:,}",
            f"{one['differ']:,}",
            f"{one['unfit']:,}",
            f"{one['largest']:.2g}",
        )
        for one in answer["replay"]["versions"]
    ]


def cells(parts: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of a table of parts of a comparison, see ``PARTS``."""
    return [
        (
            part["name"],
            f"{part['rows']:,}",
            *(_signed(part[name]) for name in ("mean", "p05", "p50", "p95")),
            "-" if part["disagree"] is None else f"{part['disagree']:.1%}",
            f"{part['labelled']:,}",
            *("-" if part[name] is None else f"{part[name]:.4g}" for name in ("theirs", "ours")),
            _lift(part["lift"]),
        )
        for part in parts
    ]


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 100 else f"{value:+.4g}"


def _lift(lift: dict[str, float] | None) -> str:
    if lift is None:
        return "-"
    return f"{lift['value']:+.4f} ({lift['low']:+.4f} to {lift['high']:+.4f})"


def against(answer: dict[str, Any]) -> str:
    """What the comparison is of, in a sentence."""
    compared = answer["comparison"]
    others = ", ".join(map(str, compared["others"]))
    return (
        f"version {compared['version']} on rows that version(s) {others} answered; differences are candidate minus "
        f"logged, the metric is {compared['metric']}, intervals are paired, {compared['confidence']:.0%}"
    )


def table(answer: dict[str, Any]) -> Any:
    """The answer for a person at a terminal."""
    drawn: list[Any] = [Text(f"{answer['case']}, {answer['from']} to {answer['to']}: {headline(answer)}")]
    drawn += [Text(f"{one['cause']}: {one['told']}", style="bold red") for one in answer["problems"]]
    if answer["replay"]["left_out"]:
        drawn.append(Text(f"{answer['replay']['left_out']:,} lines are no model's: imported, or a declared default"))
    if answer["replay"]["versions"]:
        drawn.append(_drawn("scored again", VERSIONS, versions(answer)))
    if (compared := answer["comparison"]) is not None:
        parts = [compared["all"], *compared["slices"], *compared["days"]]
        drawn += [Text(against(answer)), _shortly(parts[:MOST])]
        if len(parts) > MOST:
            drawn.append(Text(f"{MOST} of {len(parts)} lines; --json or --page has all"))
    return Group(*drawn)


def _shortly(parts: Sequence[dict[str, Any]]) -> Table:
    rows = [[row[place] for place in SHORT] for row in cells(parts)]
    return _drawn("candidate", [PARTS[place] for place in SHORT], rows)


def _drawn(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    found = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        found.add_column(Text(column), justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        found.add_row(*map(Text, row))
    return found


def page(answer: dict[str, Any]) -> str:
    """The answer as one HTML file; nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    compared = answer["comparison"]
    return environment.get_template("rescored.html").render(
        a=answer,
        headline=headline(answer),
        columns=VERSIONS,
        versions=versions(answer),
        parts=PARTS,
        against="" if compared is None else against(answer),
        groups=[]
        if compared is None
        else [
            (title, cells(parts))
            for title, parts in (
                ("All rows", [compared["all"]]),
                ("By slice", compared["slices"]),
                ("By day", compared["days"]),
            )
            if parts
        ],
    )
