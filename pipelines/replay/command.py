"""`python -m pipelines replay`: a bar while it plays, files at the end, a table for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipelines.params import Params
from pipelines.replay.play import Told
from pipelines.replay.run import Options, replay, save, total
from pipelines.settings import Settings


def run(params: Params, settings: Settings, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Replay as asked and write the files; the answer is the summary without its ticks, and where the files are."""
    options = Options(**asked)
    with _bar(f"{params.case}: replay", total(params, settings, options)) as told, _quiet():
        summary = replay(params, settings, options, told)
    paths = save(settings, summary)
    return {name: value for name, value in summary.items() if name not in {"ticks", "by_seed", "source"}} | {
        "files": {name: str(path) for name, path in paths.items()}
    }


def table(answer: dict[str, Any]) -> Any:
    """The policies as a table for the terminal, the cheapest in loss and price first."""
    from rich.table import Table

    from pipelines.reports.frontier import cells, columns

    found = Table(
        title=(
            f"{answer['case']}, {answer['from'][:10]} to {answer['until'][:10]}; "
            f"a retraining costs {answer['price_per_retrain']:g} {answer['price_unit']}"
        )
    )
    found.caption = f"{answer['advice']}\n{answer['files']['html']}"
    for title, _ in columns(answer):
        found.add_column(title, justify="left" if title == "policy" else "right")
    for row in cells(answer):
        found.add_row(*row)
    return found


@contextmanager
def _bar(title: str, ticks: int) -> Iterator[Told]:
    """One line on stderr: how many ticks are played, which is next to come and how long it takes.

    Nothing where nobody watches.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=ticks)

        def told(about: str) -> None:
            progress.update(task, advance=1, description=f"{title} {about}")

        yield told


@contextmanager
def _quiet() -> Iterator[None]:
    """Steps say what they do; a replay runs hundreds of them."""
    log = logging.getLogger("pipelines")
    before = log.level
    if not log.isEnabledFor(logging.DEBUG):
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
