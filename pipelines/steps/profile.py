"""profile: count the rows that were served in the drift window, hour by hour, into profiles that add up to days."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest, Window
from pipelines.data import log as prediction_log
from pipelines.drift.profile import merge, profile_frame, write
from pipelines.drift.spec import Spec, load_spec
from pipelines.drift.windows import drift_window
from pipelines.errors import ConfigError
from pipelines.fields import Fields, frame_schema

STEP_VERSION = 3
ROOMS = (
    "pipelines.drift.bits",
    "pipelines.drift.profile",
    "pipelines.drift.spec",
    "pipelines.drift.vocabulary",
    "pipelines.drift.windows",
    "pipelines.data.log",
    "pipelines.fields",
)
PARTS = "profile_parts"
"""Beside the step's folder: the days that were profiled ahead of it by tasks of their own."""


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write a profile of every day with rows, made of those of its hours, and ``run_dir/profile``, which names them.

    Files: ``lake/<case>/profiles/<spec>/date=D/hour=H/<hash16>.parquet`` and ``date=D/<hash16>.parquet``; the facts
    hold ``days``, each ``{date, path, rows, hours}``. The key is made of the days' hashes: rows that arrive late give a
    new key, running again gives none. Closed segments of the prediction log are compacted first. A day that
    :func:`part` has profiled from the same rows is taken from there.
    """
    fields = load_fields(params.case)
    spec = load_spec(fields)
    window = drift_window(as_of, params.drift.window)
    prediction_log.compact(settings, params.case)
    found = {day: _ready(params, settings, run_dir, day) for day in prediction_log.days(settings, params.case, window)}
    if None in found.values():
        rows = _typed(prediction_log.read_predictions(settings, params.case, window), fields)
        of_day = dict(_groups(rows, pl.col("event_time").dt.date()))
        found |= {day: _profile(params, settings, spec, fields, day, of_day[day]) for day, ready in found.items() if ready is None and day in of_day}
    days = [ready for _, ready in sorted(found.items()) if ready is not None and ready["rows"]]
    declared = {"window": window.model_dump(mode="json"), "spec": spec.version, "days": [day["path"] for day in days]}
    facts: Mapping[str, Any] = {"window": declared["window"], "rows": sum(day["rows"] for day in days), "spec": spec.version, "days": days}
    return storage.commit(
        run_dir / "profile",
        case=params.case,
        as_of=as_of,
        key=storage.step_key("profile", STEP_VERSION, {}, declared),
        inputs={},
        build=lambda _folder: facts,
    )


def days(params: Params, settings: Settings, as_of: datetime) -> list[str]:
    """The parts of a large profile: the days of the window that have rows, in order. Closed segments are compacted first."""
    prediction_log.compact(settings, params.case)
    return [str(day) for day in prediction_log.days(settings, params.case, drift_window(as_of, params.drift.window))]


def part(params: Params, settings: Settings, run_dir: Path, as_of: datetime, day: str) -> Manifest:
    """Profile one day ahead of the step, as ``run_dir/profile_parts/<day>``; many can be made at once, on any machine that sees the lake."""
    try:
        of = date.fromisoformat(day)
    except ValueError as error:
        raise ConfigError(f"{day!r} is no day: write it as 2009-05-01") from error
    fields = load_fields(params.case)

    def build(_folder: Path) -> Mapping[str, Any]:
        rows = _typed(prediction_log.read_predictions(settings, params.case, _window(of)), fields)
        return _profile(params, settings, load_spec(fields), fields, of, rows)

    return storage.commit(run_dir / PARTS / day, case=params.case, as_of=as_of, key=_part_key(params, settings, of), inputs={}, build=build)


def _window(day: date) -> Window:
    start = datetime.combine(day, time(), UTC)
    return Window(start=start, end=start + timedelta(days=1))


def _part_key(params: Params, settings: Settings, day: date) -> str:
    """A day's profile hangs on the log's files of that day and of its neighbours, where a retry may lie; closed segments never change."""
    declared = {
        "day": str(day),
        "spec": load_spec(load_fields(params.case)).version,
        "partition": params.drift.partition,
        "log": prediction_log.fingerprint(settings, params.case, _window(day)),
    }
    return storage.step_key(PARTS, STEP_VERSION, {}, declared)


def _ready(params: Params, settings: Settings, run_dir: Path, day: date) -> dict[str, Any] | None:
    folder = run_dir / PARTS / str(day)
    if not folder.exists():
        return None
    made = storage.read_manifest(folder)
    return made.facts if made.key == _part_key(params, settings, day) else None


def _typed(served: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """Fields as they are declared; not strict: a value that is not of its field's type counts as missing."""
    kinds = {name: kind for name, kind in frame_schema(fields).items() if name in fields.names and name in served.columns}
    return served.with_columns(pl.col(name).cast(kind, strict=False) for name, kind in kinds.items())


def _profile(params: Params, settings: Settings, spec: Spec, fields: Fields, day: date, rows: pl.DataFrame) -> dict[str, Any]:
    folder = settings.lake / params.case / "profiles" / spec.version / f"date={day}"
    parts = [(0, rows)] if params.drift.partition == "day" else _groups(rows, pl.col("event_time").dt.hour())
    profiles = {hour: profile_frame(part, fields, spec) for hour, part in parts}
    paths = {} if params.drift.partition == "day" else {hour: write(profile, folder / f"hour={hour:02d}") for hour, profile in profiles.items()}
    hours = [{"hour": hour, "path": str(path.relative_to(settings.root)), "rows": profiles[hour].rows} for hour, path in paths.items()]
    path = write(merge(profiles.values(), spec.version), folder)
    return {"date": str(day), "path": str(path.relative_to(settings.root)), "rows": rows.height, "hours": hours}


def _groups(rows: pl.DataFrame, by: pl.Expr) -> Iterable[tuple[Any, pl.DataFrame]]:
    return sorted((key, part) for (key,), part in rows.with_columns(_by=by).partition_by("_by", as_dict=True, include_key=False).items())
