"""profile: count the rows that were served in the drift window, hour by hour, into profiles that add up to days.

Small days are read together, as frames. A day that is large is streamed from its files (drift/profile/kernel.py), and
only rows whose id is logged more than once are held, so that each of them counts once: memory does not hang on the
rows. Both ways make the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest
from pipelines.data import log as prediction_log
from pipelines.data import repeats
from pipelines.drift.profile.counts import Profile, merge, profile_frame, scored, typed, write
from pipelines.drift.profile.kernel import profile_parquet, profile_where
from pipelines.drift.profile.spec import Spec, load_spec
from pipelines.drift.profile.windows import drift_window
from pipelines.errors import ConfigError, TooFewRows
from pipelines.fields import Fields
from pipelines.line.facts import ProfileFacts
from pipelines.line.order import PROFILE
from pipelines.line.step import Read, Run, Work
from pipelines.params import Params
from pipelines.settings import Settings

PARTS = "profile_parts"
"""Beside the step's folder: the days that were profiled ahead of it by tasks of their own."""
TOGETHER = 32 << 20
"""Bytes of files that are read at once, those of neighbours counted for every day: some hundred thousand rows."""


def work(run: Run, _read: Read) -> Work:
    """Write a profile of every day with rows, made of those of its hours; the facts name them.

    Files: ``lake/<case>/profiles/<spec>/date=D/hour=H/<hash16>.parquet`` and ``date=D/<hash16>.parquet``; the facts
    hold ``days``, each ``{date, path, rows, hours}``. The key is made of the days' hashes: rows that arrive late give a
    new key, running again gives none. Open segments of the prediction log are closed and compacted first; ``unread``
    counts the window's rows in those that nobody closed in time. A day that :func:`part` has profiled from the same
    rows is taken from there. Raises TooFewRows before a case's first training.
    """
    params, settings = run.params, run.settings
    fields = load_fields(params.case)
    if (
        not settings.profile_file(params.case).exists()
        and ledger.champion_before(settings.ledger, params.case, run.as_of) is None
    ):
        raise TooFewRows(
            f"{params.case}: nothing has been trained yet, and the first training freezes the scales that rows are "
            "profiled by: run one first"
        )
    spec = load_spec(fields, settings.profile_file(params.case))
    window = drift_window(run.as_of, params.drift.window)
    unread = prediction_log.catch_up(settings, params.case, window)
    found = {day: _ready(params, settings, run.dir, day) for day in prediction_log.days(settings, params.case, window)}
    wanted = [day for day, ready in found.items() if ready is None]
    found |= {
        day: _keep(params, settings, spec, day, hours) for day, hours in _hours(params, settings, spec, fields, wanted)
    }
    days = [ready for _, ready in sorted(found.items()) if ready is not None and ready["rows"]]
    rows = sum(day["rows"] for day in days)
    facts = ProfileFacts(window=window, spec=spec.version, unread=unread, rows=rows, days=days)
    told = {"window": window, "spec": spec.version, "unread": unread, "days": [day["path"] for day in days]}
    return Work(lambda _folder, _key: facts, told)


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
    params, settings = run.params, run.settings
    fields = load_fields(params.case)

    def build(_folder: Path) -> Mapping[str, Any]:
        spec = load_spec(fields, settings.profile_file(params.case))
        [(_, hours)] = _hours(params, settings, spec, fields, [of])
        return _keep(params, settings, spec, of, hours)

    return storage.commit(
        run.dir / PARTS / day,
        case=params.case,
        as_of=run.as_of,
        key=_part_key(params, settings, of),
        inputs={},
        build=build,
    )


def _part_key(params: Params, settings: Settings, day: date) -> str:
    """A day's profile hangs on the log's files of that day and of its neighbours, where a retry may lie.

    Closed segments never change.
    """
    declared = {
        "day": str(day),
        "spec": load_spec(load_fields(params.case), settings.profile_file(params.case)).version,
        "partition": params.drift.partition,
        "log": prediction_log.fingerprint(settings, params.case, prediction_log.window_of(day)),
    }
    return storage.step_key(PARTS, PROFILE.version, {}, declared)


def _ready(params: Params, settings: Settings, run_dir: Path, day: date) -> dict[str, Any] | None:
    folder = run_dir / PARTS / str(day)
    if not folder.exists():
        return None
    made = storage.read_manifest(folder)
    there = all((settings.root / kept["path"]).exists() for kept in (made.facts, *made.facts["hours"]))
    if there and made.key == _part_key(params, settings, day):
        return made.facts
    return None


def _hours(
    params: Params, settings: Settings, spec: Spec, fields: Fields, days: Sequence[date]
) -> Iterator[tuple[date, dict[int, Profile]]]:
    """Profiles of the hours that have rows, of each of the days."""
    for together, small in _stretches(settings, params.case, days):
        if small:
            for day, rows in prediction_log.read_days(settings, params.case, together, partial(typed, fields=fields)):
                yield day, {hour: profile_frame(scored(part, fields), fields, spec) for hour, part in _by_hour(rows)}
        else:
            yield together[0], _streamed(settings, params.case, together[0], spec, fields)


def _stretches(settings: Settings, case: str, days: Sequence[date]) -> Iterator[tuple[list[date], bool]]:
    """The days, as many together as have small files, and whether those are small: of a single day they may not be."""
    sizes = {
        day: sum(file.stat().st_size for file in prediction_log.near(settings, case, prediction_log.window_of(day)))
        for day in days
    }
    together: list[date] = []
    for day in days:
        if together and sum(map(sizes.__getitem__, together)) + sizes[day] > TOGETHER:
            yield together, sizes[together[0]] <= TOGETHER
            together = []
        together.append(day)
    if together:
        yield together, sizes[together[0]] <= TOGETHER


def _streamed(settings: Settings, case: str, day: date, spec: Spec, fields: Fields) -> dict[int, Profile]:
    """What frames give of a day of any size: rows whose id is logged once are streamed, the others are few."""
    hours, spread = prediction_log.partitions(settings, case, day)
    # Rows in files of several days are held too: they are few.
    twice = repeats.repeated(prediction_log.near(settings, case, prediction_log.window_of(day)), held=spread)
    if not twice.size:
        return {hour: profile_parquet(files, fields, spec) for hour, files in hours.items()}
    again = repeats.hashed().is_in(pl.Series(twice).implode())
    [(_, rows)] = prediction_log.read_days(settings, case, [day], lambda scan: typed(scan.filter(again), fields))
    found = {hour: [profile_frame(scored(part, fields), fields, spec)] for hour, part in _by_hour(rows)}
    for hour, files in hours.items():
        once = (
            profile_where(files, ~again, fields, spec)
            if repeats.holds(files, twice)
            else profile_parquet(files, fields, spec)
        )
        if once.rows:
            found.setdefault(hour, []).append(once)
    return {hour: merge(parts, spec.version) for hour, parts in sorted(found.items())}


def _keep(params: Params, settings: Settings, spec: Spec, day: date, profiles: Mapping[int, Profile]) -> dict[str, Any]:
    """Write the profiles of a day's hours and of the day."""
    folder = settings.lake / params.case / "profiles" / spec.version / f"date={day}"
    paths = (
        {}
        if params.drift.partition == "day"
        else {hour: write(profile, folder / f"hour={hour:02d}") for hour, profile in profiles.items()}
    )
    hours = [
        {"hour": hour, "path": str(path.relative_to(settings.root)), "rows": profiles[hour].rows}
        for hour, path in paths.items()
    ]
    whole = merge(profiles.values(), spec.version)
    return {
        "date": str(day),
        "path": str(write(whole, folder).relative_to(settings.root)),
        "rows": whole.rows,
        "hours": hours,
    }


def _by_hour(rows: pl.DataFrame) -> list[tuple[int, pl.DataFrame]]:
    parts = rows.with_columns(_hour=pl.col("event_time").dt.hour()).partition_by(
        "_hour", as_dict=True, include_key=False
    )
    return sorted((hour, part) for (hour,), part in parts.items())
