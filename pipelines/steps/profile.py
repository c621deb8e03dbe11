"""profile: count the rows that were served in the drift window, hour by hour, into profiles that add up to days.

Small days are read together, as frames; a day that is large is streamed from its files (data/day_rows.py). Both ways
make the same bytes (drift/profile/days.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest
from pipelines.data import day_rows
from pipelines.data import log as prediction_log
from pipelines.drift.profile import days as profiles
from pipelines.drift.profile.counts import typed
from pipelines.drift.profile.spec import Spec, load_spec
from pipelines.drift.profile.windows import drift_window
from pipelines.errors import ConfigError, TooFewRows
from pipelines.line.facts import ProfileFacts
from pipelines.line.order import PROFILE
from pipelines.line.step import Read, Run, Work

PARTS = "profile_parts"
"""Beside the step's folder: the days that were profiled ahead of it by tasks of their own."""


def work(run: Run, _read: Read) -> Work:
    """Write a profile of every day with rows, made of those of its hours; the facts name them.

    Files: ``lake/<case>/profiles/<spec>/date=D/hour=H/<hash16>.parquet`` and ``date=D/<hash16>.parquet``; the facts
    hold ``days``, each ``{date, path, rows, hours}``. The key is made of the days' hashes: rows that arrive late give a
    new key, running again gives none. Open segments of the prediction log are closed and compacted first; ``unread``
    counts the window's rows in those that nobody closed in time. A day that :func:`part` has profiled from the same
    rows is taken from there. Raises TooFewRows before a case's first training.
    """
    settings, scales = run.settings, run.settings.profile_file(run.case)
    load_fields(run.case)  # a case that is broken is told so, also before its first training
    if not scales.exists() and ledger.champion_before(settings.ledger, run.case, run.as_of) is None:
        raise TooFewRows(
            f"{run.case}: nothing has been trained yet, and the first training freezes the scales that rows are "
            "profiled by: run one first"
        )
    spec = _spec(run)
    window = drift_window(run.as_of, run.params.drift.window)
    unread = prediction_log.catch_up(settings, run.case, window)
    found = {day: _made_ahead(run, spec, day) for day in prediction_log.days(settings, run.case, window)}
    found |= _profiled(run, spec, [day for day, made in found.items() if made is None])
    counted = [day for _, day in sorted(found.items()) if day is not None and day["rows"]]
    rows = sum(day["rows"] for day in counted)
    facts = ProfileFacts(window=window, spec=spec.version, unread=unread, rows=rows, days=counted)
    told = {"window": window, "spec": spec.version, "unread": unread, "days": [day["path"] for day in counted]}
    return Work(lambda _folder, _key: facts, told)


def _spec(run: Run) -> Spec:
    return load_spec(load_fields(run.case), run.settings.profile_file(run.case))


def _profiled(run: Run, spec: Spec, wanted: Sequence[date]) -> Iterator[tuple[date, dict[str, Any]]]:
    """Count the rows of the days, and keep their profiles; each day as the facts name it."""
    fields, each_hour = load_fields(run.case), run.params.drift.partition != "day"
    for rows in day_rows.read(run.settings, run.case, wanted, partial(typed, fields=fields)):
        hours = profiles.by_hour(rows.held, rows.streamed, fields, spec, each_hour=each_hour)
        yield rows.day, profiles.keep(run.settings, run.case, rows.day, hours, spec, each_hour=each_hour)


def days(run: Run) -> list[str]:
    """The parts of a large profile: the days of the window that have rows, in order.

    Open segments are closed and compacted first.
    """
    window = drift_window(run.as_of, run.params.drift.window)
    prediction_log.catch_up(run.settings, run.case, window)
    return [str(day) for day in prediction_log.days(run.settings, run.case, window)]


def part(run: Run, day: str) -> Manifest:
    """Profile one day ahead of the step, as ``profile_parts/<day>`` in the run's folder.

    Many can be made at once, on any machine that sees the lake.
    """
    try:
        of = date.fromisoformat(day)
    except ValueError as error:
        raise ConfigError(f"{day!r} is no day: write it as 2009-05-01") from error

    spec = _spec(run)

    def build(_folder: Path) -> Mapping[str, Any]:
        [(_, made)] = _profiled(run, spec, [of])
        return made

    folder, key = run.dir / PARTS / day, _part_key(run, spec, of)
    return storage.commit(folder, case=run.case, as_of=run.as_of, key=key, inputs={}, build=build)


def _part_key(run: Run, spec: Spec, day: date) -> str:
    """A day's profile hangs on the log's files of that day and of its neighbours, where a retry may lie.

    Closed segments never change.
    """
    declared = {
        "day": str(day),
        "spec": spec.version,
        "partition": run.params.drift.partition,
        "log": prediction_log.fingerprint(run.settings, run.case, prediction_log.window_of(day)),
    }
    return storage.step_key(PARTS, PROFILE.version, {}, declared)


def _made_ahead(run: Run, spec: Spec, day: date) -> dict[str, Any] | None:
    """The day as :func:`part` has profiled it, if it has, of the same rows, and its profiles are still there."""
    folder = run.dir / PARTS / str(day)
    if not folder.exists():
        return None
    made = storage.read_manifest(folder)
    there = all((run.settings.root / kept["path"]).exists() for kept in (made.facts, *made.facts["hours"]))
    if there and made.key == _part_key(run, spec, day):
        return made.facts
    return None
