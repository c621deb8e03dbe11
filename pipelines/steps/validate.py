"""validate: rows that keep the case's contract go on, the others are quarantined with their reasons."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.cases import load_fields
from pipelines.data import contract, lake
from pipelines.data.heap import Heap
from pipelines.errors import DataError
from pipelines.fields import AS_DELIVERED, Attribute, Fields
from pipelines.line.facts import IngestFacts, ValidateFacts
from pipelines.line.step import Read, Run, Work
from pipelines.settings import Settings


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
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            good, bad = Heap(Path(scratch), "rows"), Heap(Path(scratch), "quarantine")
            for kept, failed in _judged(settings, found.partitions, fields):
                good.add(kept.drop(AS_DELIVERED, strict=False))
                bad.add(failed)
            if "quarantine.parquet" in ingest.files:
                bad.add(pl.read_parquet(run_dir / "ingest" / "quarantine.parquet"))
            reasons = contract.count_reasons(bad.lazy())
            share = bad.rows / (good.rows + bad.rows)
            if share > limit or not good.rows:
                kept_in = lake.set_aside(settings, params.case, f"{run_dir.name}-{key[:12]}", bad.lazy())
                top = ", ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
                raise DataError(
                    f"{params.case}: {bad.rows} of {good.rows + bad.rows} rows ({share:.1%}) break the contract, "
                    f"{limit:.0%} may: {top}; e.g. {_example(bad, next(iter(reasons)))}; the bad rows are in "
                    f"{kept_in}: mend what sends them, or the declared fields"
                )
            good.write(folder / "rows.parquet")
            bad.write(folder / "quarantine.parquet")
        return ValidateFacts(rows=good.rows, bad=bad.rows, bad_share=share, reasons=reasons, **_apart(found.counts))

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


def _judged(
    settings: Settings, partitions: Sequence[dict[str, Any]], fields: Fields
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Good rows and bad ones, some days at once. An id is unique among all days, whatever is held at once."""
    parts = lake.some_days(settings, partitions)
    first = next(parts)
    second = next(parts, None)
    if second is None:
        yield contract.split(first, fields)
        return
    parts = chain([first, second], parts)
    del first, second
    repeated = lake.repeated_ids(settings, partitions)
    for rows in parts:
        yield contract.split(rows, fields, repeated)


def _example(bad: Heap, top: str) -> str:
    """A value that the most frequent reason is about, as it was delivered where that is known."""
    row = bad.lazy().filter(pl.col("reasons").str.contains(top, literal=True)).head(1).collect().row(0, named=True)
    came = json.loads(row[AS_DELIVERED]) if row.get(AS_DELIVERED) else row
    name = top.partition(":")[0]
    return f"{name} = {came.get(name)!r:.60}, id {came.get('id')!r:.60}"
