"""The profiles of single days: made of those of their hours, kept in the lake, and found again by later runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import objects, storage
from pipelines.contracts import Window
from pipelines.drift.profile.counts import Profile, merge, profile_frame, read, scored, write
from pipelines.drift.profile.kernel import profile_parquet, profile_where
from pipelines.drift.profile.spec import Spec
from pipelines.fields import Fields
from pipelines.settings import Settings


def by_hour(
    held: pl.DataFrame | None,
    streamed: Mapping[int, tuple[Sequence[Path], pl.Expr | None]],
    fields: Fields,
    spec: Spec,
    *,
    each_hour: bool = True,
) -> dict[int, Profile]:
    """Profiles of a day's hours that have rows, or unless ``each_hour`` is wanted, profiles that add up to the day's.

    The rows ``held`` are counted as a frame, those left in files as streams: ``streamed`` has by hour the files, and
    which of their rows count (None: all). Both ways make the same counts. A few rows of an hour take as long to count
    as those of a day: where hours are not kept, the rows held are counted at once.
    """
    found: dict[int, list[Profile]] = {}
    if held is not None and held.height:
        for hour, rows in _hours(held) if each_hour else [(0, held)]:
            found[hour] = [profile_frame(scored(rows, fields), fields, spec)]
    for hour, (files, where) in streamed.items():
        counted = _streamed(files, where, fields, spec)
        if counted.rows:
            found.setdefault(hour, []).append(counted)
    return {hour: _together(parts, spec) for hour, parts in sorted(found.items())}


def _hours(rows: pl.DataFrame) -> list[tuple[int, pl.DataFrame]]:
    parts = rows.with_columns(_hour=pl.col("event_time").dt.hour()).partition_by(
        "_hour", as_dict=True, include_key=False
    )
    return sorted((hour, part) for (hour,), part in parts.items())


def _streamed(files: Sequence[Path], where: pl.Expr | None, fields: Fields, spec: Spec) -> Profile:
    if where is None:
        return profile_parquet(files, fields, spec)
    return profile_where(files, where, fields, spec)


def _together(parts: Sequence[Profile], spec: Spec) -> Profile:
    if len(parts) == 1:
        return parts[0]
    return merge(parts, spec.version)


def keep(
    settings: Settings, case: str, day: date, hours: Mapping[int, Profile], spec: Spec, *, each_hour: bool
) -> dict[str, Any]:
    """Write the profile of a day, and where it is wanted those of ``each_hour``; ``{date, path, rows, hours}``.

    Files: ``lake/<case>/profiles/<spec>/date=D/<hash16>.parquet`` and ``date=D/hour=H/<hash16>.parquet``; paths are
    relative to the state folder.
    """
    folder = settings.lake_dir / case / "profiles" / spec.version / f"date={day}"
    kept: list[dict[str, Any]] = []
    if each_hour:
        for hour, profile in hours.items():
            path = write(profile, folder / f"hour={hour:02d}")
            kept.append({"hour": hour, "path": str(path.relative_to(settings.root)), "rows": profile.rows})
    whole = _together(list(hours.values()), spec)
    path = write(whole, folder)
    return {"date": str(day), "path": str(path.relative_to(settings.root)), "rows": whole.rows, "hours": kept}


def read_days(run_dir: Path, root: Path, within: Window, spec: str) -> dict[date, Profile]:
    """Profiles made with feature spec ``spec`` of the days that begin in ``within``, in order.

    What the newest run that has one counted. ``run_dir`` is the run's folder; those of earlier runs of its case lie
    beside it, and later ones are not looked at. Days whose profile is gone are left out. Paths in the manifests are
    relative to ``root``.
    """
    paths: dict[date, Path] = {}
    objects.refresh_all(run_dir.parent, "profile")
    for manifest in sorted(run_dir.parent.glob(f"*/profile/{storage.MANIFEST}")):
        if f"{within.start:%Y%m%dT%H%M%SZ}" <= manifest.parents[1].name <= run_dir.name:
            facts = storage.read_manifest(manifest.parent, verify=False).facts
            if facts["spec"] == spec:
                paths |= {date.fromisoformat(day["date"]): root / day["path"] for day in facts["days"]}
    objects.need(*paths.values())
    first = within.start.date()
    last = within.end.date()
    return {day: read(path) for day, path in sorted(paths.items()) if first <= day < last and path.exists()}
