"""What `rescore` answers: whether the logged scores of a span come out again, and what a candidate would have said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import polars as pl

from pipelines.contracts import Window
from pipelines.data import lines
from pipelines.data import log as prediction_log
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.params import Params
from pipelines.rescoring import comparing, diagnosis
from pipelines.rescoring.diagnosis import Problem
from pipelines.rescoring.replay import Replayed, replay, tolerance_of
from pipelines.rescoring.versions import Version, load
from pipelines.settings import Settings


def rescore(
    params: Params, settings: Settings, begin: datetime, end: datetime, version: int | None = None
) -> dict[str, Any]:
    """Score the rows logged with event time in ``[begin, end)`` again.

    Without a ``version`` every row by the version that answered it. With one its own rows so, and on the rows that
    others answered it is compared with them. Raises ConfigError for a span without length and an unknown version,
    DataError where nothing was answered in the span, IntegrityError if the candidate's bundle is damaged.
    """
    case = params.case
    if begin >= end:
        raise ConfigError(
            f"--from {begin.isoformat()} is not before --to {end.isoformat()}: give a span that holds rows"
        )
    window = Window(start=begin, end=end)
    candidate = None if version is None else load(settings, case, version)
    tolerance, problems = tolerance_of(params), list[Problem]()
    unread = _caught_up(settings, case, window, problems)
    started = time.perf_counter()
    batches = _whole(lines.read(settings, case, window), problems)
    replayed, left_out = replay(settings, case, batches, tolerance, version)
    seconds = time.perf_counter() - started
    problems += diagnosis.problems(settings, case, replayed.values(), tolerance)
    compared = None
    if candidate is not None and not any(one.version is None for one in problems):
        compared = _compared(params, settings, candidate, window)
    if not (replayed or compared or problems):
        raise DataError(_nothing(settings, case, window, left_out, unread))
    return {
        "case": case,
        "version": version,
        "from": begin.isoformat(),
        "to": end.isoformat(),
        "tolerance": tolerance,
        "ok": not problems,
        "problems": [problem._asdict() for problem in problems],
        "replay": _told(replayed, left_out, unread, seconds),
        "comparison": compared,
    }


def _caught_up(settings: Settings, case: str, window: Window, problems: list[Problem]) -> int:
    """How many rows of the window stand in segments that are open still; a damaged or lost segment is a problem."""
    try:
        return prediction_log.catch_up(settings, case, window)
    except IntegrityError as error:
        problems.append(Problem("log", None, 0, str(error)))
        return 0


def _whole(batches: Iterator[pl.DataFrame], problems: list[Problem]) -> Iterator[pl.DataFrame]:
    """The batches up to a segment or a partition that is not what was written; that is a problem, told once."""
    try:
        yield from batches
    except IntegrityError as error:
        if all(str(error) != one.told for one in problems):
            problems.append(Problem("log", None, 0, str(error)))


def _told(replayed: dict[int, Replayed], left_out: int, unread: int, seconds: float) -> dict[str, Any]:
    rows = sum(one.rows for one in replayed.values())
    return {
        "rows": rows,
        "identical": sum(one.identical for one in replayed.values()),
        "differ": sum(one.differ + one.contradict for one in replayed.values()),
        "unfit": sum(one.unfit for one in replayed.values()),
        "left_out": left_out,
        "unread": unread,
        "seconds": round(seconds, 3),
        "versions": [
            {
                "version": one.number,
                "rows": one.rows,
                "identical": one.identical,
                "differ": one.differ + one.contradict,
                "unfit": one.unfit,
                "largest": one.largest,
            }
            for one in replayed.values()
        ],
    }


def _compared(params: Params, settings: Settings, candidate: Version, window: Window) -> dict[str, Any] | None:
    rows = comparing.kept(params, candidate, lines.read(settings, params.case, window))
    if rows.is_empty():
        return None
    champions = sorted(set(rows["version"].to_list()))
    return {
        "version": candidate.number,
        "others": champions,
        **comparing.report(params, settings, candidate.fields, rows, window),
    }


def _nothing(settings: Settings, case: str, window: Window, left_out: int, unread: int) -> str:
    first, said = prediction_log.first_row(settings, case), ""
    if left_out:
        said = f" ({left_out:,} imported rows and declared defaults are no model's)"
    mend = "nothing was logged yet: serve rows first"
    if first is not None:
        mend = f"the oldest logged row is of {first.isoformat()}: give another span"
    if unread:
        mend = f"{unread:,} rows lie in segments that gateways still have open: try again in a minute"
    span = f"from {window.start.isoformat()} to {window.end.isoformat()}"
    return f"{case} has no row that a model answered {span}{said}: {mend}"
