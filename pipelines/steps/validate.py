"""validate: rows that keep the case's contract go on, the others are quarantined with their reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.cases import load_fields
from pipelines.data import contract, lake
from pipelines.errors import DataError
from pipelines.fields import AS_DELIVERED, Attribute
from pipelines.line.facts import IngestFacts, ValidateFacts
from pipelines.line.step import Read, Run, Work


def work(run: Run, read: Read) -> Work:
    """Write ``rows.parquet`` and ``quarantine.parquet``.

    What ingest refused lies in the quarantine, too. Of the rows delivered each is counted once in the facts: ``rows +
    bad + repeats + outside = delivered``. Raises DataError if more than ``max_bad_share`` of the rows are bad, or all;
    the quarantine is then kept in ``lake/<case>/quarantine/rows``.
    """
    params, settings, run_dir = run.params, run.settings, run.dir
    fields = load_fields(params.case)
    ingest = read["ingest"]
    found = IngestFacts.of(ingest)
    limit = params.dataset.max_bad_share

    def build(folder: Path, key: str) -> ValidateFacts:
        rows = lake.read_days(settings, found.partitions)
        good, bad = contract.split(rows, fields)
        refused = run_dir / "ingest" / "quarantine.parquet"
        if "quarantine.parquet" in ingest.files:
            bad = pl.concat([bad, pl.read_parquet(refused)], how="diagonal_relaxed")
        reasons = contract.count_reasons(bad)
        share = bad.height / (good.height + bad.height)
        if share > limit or good.is_empty():
            kept = lake.set_aside(settings, params.case, f"{run_dir.name}-{key[:12]}", bad)
            top = ", ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
            raise DataError(
                f"{params.case}: {bad.height} of {good.height + bad.height} rows ({share:.1%}) break the contract, "
                f"{limit:.0%} may: {top}; e.g. {_example(bad)}; the bad rows are in {kept}: mend what sends them, "
                "or the declared fields"
            )
        good = good.drop(AS_DELIVERED, strict=False)
        good.write_parquet(folder / "rows.parquet", compression="zstd")
        bad.write_parquet(folder / "quarantine.parquet", compression="zstd")
        return ValidateFacts(rows=good.height, bad=bad.height, bad_share=share, reasons=reasons, **_apart(found.counts))

    declared: dict[str, Any] = {"fields": fields.hash}
    if attributes := [asdict(field) for field in fields.fields if isinstance(field, Attribute)]:
        declared["attributes"] = attributes  # no part of the hash, and yet of what a row has to be
    return Work(build, declared)


def _apart(counts: Mapping[str, int]) -> dict[str, int]:
    """What ingest counted beside the rows that came here; its manifests of before count nothing."""
    if not counts:
        return {}
    outside = counts["outside_window"] + counts["outside_period"]
    return {"delivered": counts["delivered"], "repeats": counts["repeats"], "outside": outside}


def _example(bad: pl.DataFrame) -> str:
    """A value that the most frequent reason is about, as it was delivered where that is known."""
    top = next(iter(contract.count_reasons(bad)))
    row = bad.filter(pl.col("reasons").str.contains(top, literal=True)).row(0, named=True)
    came = json.loads(row[AS_DELIVERED]) if row.get(AS_DELIVERED) else row
    name = top.partition(":")[0]
    return f"{name} = {came.get(name)!r:.60}, id {came.get('id')!r:.60}"
