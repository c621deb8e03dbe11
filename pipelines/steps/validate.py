"""validate: rows that keep the case's contract go on, the others are quarantined with their reasons."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest
from pipelines.data import contract, lake
from pipelines.errors import DataError

STEP_VERSION = 2
ROOMS = ("pipelines.data.contract", "pipelines.data.lake", "pipelines.fields")


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write ``rows.parquet`` and ``quarantine.parquet`` to ``run_dir/validate``.

    Raises DataError if more than ``max_bad_share`` of the rows are bad; the quarantine is then kept in
    ``lake/<case>/quarantine/rows``.
    """
    fields = load_fields(params.case)
    ingest = storage.read_manifest(run_dir / "ingest")
    limit = params.dataset.max_bad_share
    key = storage.step_key("validate", STEP_VERSION, {"ingest": ingest.key}, {"max_bad_share": limit, "fields": fields.hash})

    def build(folder: Path) -> Mapping[str, Any]:
        rows = lake.read_days(settings, ingest.facts["partitions"])
        good, bad = contract.split(rows, fields)
        reasons = contract.count_reasons(bad)
        share = bad.height / rows.height
        if share > limit:
            kept = settings.lake / params.case / "quarantine" / "rows" / f"{run_dir.name}-{key[:12]}.parquet"
            buffer = io.BytesIO()
            bad.write_parquet(buffer)
            storage.write_atomic(kept, buffer.getvalue())
            top = ", ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
            raise DataError(
                f"{params.case}: {bad.height} of {rows.height} rows ({share:.1%}) break the contract, {limit:.0%} may: {top}; "
                f"the bad rows are in {kept}: mend what sends them, or the declared fields"
            )
        good.write_parquet(folder / "rows.parquet", compression="zstd")
        bad.write_parquet(folder / "quarantine.parquet", compression="zstd")
        return {"rows": good.height, "bad": bad.height, "bad_share": share, "reasons": reasons}

    return storage.commit(run_dir / "validate", case=params.case, as_of=as_of, key=key, inputs={"ingest": ingest.key}, build=build)
