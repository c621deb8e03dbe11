"""profile: count the rows that were served in the drift window, day by day, into profiles that add up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest
from pipelines.data import log as prediction_log
from pipelines.drift.profile import profile_frame, write
from pipelines.drift.spec import load_spec
from pipelines.drift.windows import drift_window
from pipelines.fields import frame_schema

STEP_VERSION = 1
ROOMS = ("pipelines.drift.profile", "pipelines.drift.spec", "pipelines.drift.windows", "pipelines.data.log", "pipelines.fields")


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write one profile per day with rows, ``lake/<case>/profiles/<spec>/date=D/<hash16>.parquet``, and ``run_dir/profile``.

    The key is made of the profiles' hashes: rows that arrive late give a new key, running again gives none.
    Closed segments of the prediction log are compacted first.
    """
    fields = load_fields(params.case)
    spec = load_spec(fields)
    window = drift_window(as_of, params.drift.window)
    prediction_log.compact(settings, params.case)
    served = prediction_log.read_predictions(settings, params.case, window)
    kinds = {name: kind for name, kind in frame_schema(fields).items() if name in fields.names and name in served.columns}
    # Not strict: a value that is not of its field's type counts as missing.
    rows = served.with_columns(pl.col(name).cast(kind, strict=False) for name, kind in kinds.items())
    days = []
    for (day,), part in sorted(rows.with_columns(_day=pl.col("event_time").dt.date()).partition_by("_day", as_dict=True, include_key=False).items()):
        path = write(profile_frame(part, fields, spec), settings.lake / params.case / "profiles" / spec.version / f"date={day}")
        days.append({"date": str(day), "path": str(path.relative_to(settings.root)), "rows": part.height})
    declared = {"window": window.model_dump(mode="json"), "spec": spec.version, "days": [day["path"] for day in days]}
    facts: Mapping[str, Any] = {"window": declared["window"], "rows": rows.height, "spec": spec.version, "days": days}
    return storage.commit(
        run_dir / "profile",
        case=params.case,
        as_of=as_of,
        key=storage.step_key("profile", STEP_VERSION, {}, declared),
        inputs={},
        build=lambda _folder: facts,
    )
