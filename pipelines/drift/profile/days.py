"""The profiles of single days, as the runs up to this one left them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from pipelines import storage
from pipelines.contracts import Window
from pipelines.drift.profile.counts import Profile, read


def read_days(run_dir: Path, root: Path, within: Window, spec: str) -> dict[date, Profile]:
    """Profiles made with feature spec ``spec`` of the days that begin in ``within``, in order.

    What the newest run that has one counted. ``run_dir`` is the run's folder; those of earlier runs of its case lie
    beside it, and later ones are not looked at. Days whose profile is gone are left out. Paths in the manifests are
    relative to ``root``.
    """
    paths: dict[date, Path] = {}
    for manifest in sorted(run_dir.parent.glob(f"*/profile/{storage.MANIFEST}")):
        if f"{within.start:%Y%m%dT%H%M%SZ}" <= manifest.parents[1].name <= run_dir.name:
            facts = storage.read_manifest(manifest.parent, verify=False).facts
            if facts["spec"] == spec:
                paths |= {date.fromisoformat(day["date"]): root / day["path"] for day in facts["days"]}
    first = within.start.date()
    last = within.end.date()
    return {day: read(path) for day, path in sorted(paths.items()) if first <= day < last and path.exists()}
