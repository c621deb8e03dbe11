"""Where the reports with their fields come from: the source of the case `triage`."""

from __future__ import annotations

import polars as pl

from pipelines.cases.sources import Source, canonical
from pipelines.cases.triage.source import reports, resolve
from pipelines.cases.triage_fields.schema import FIELDS
from pipelines.contracts import Window
from pipelines.params import Params

__all__ = ["resolve", "rows"]


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window``: those of triage, with what is known of a report when it is published.

    The assigner is the organisation in its address, as the database names it today; null where it gives no address.
    """
    year = pl.col("id").str.extract(r"^CVE-(\d{4})-", 1).cast(pl.Int32)
    fields = reports(source, ["assigner"]).with_columns(
        assigner=pl.col("assigner").str.extract("@(.+)$", 1),
        published=pl.col("event_time"),
        waited=(pl.col("event_time").dt.year() - year).cast(pl.Float64),
    )
    return canonical(fields, FIELDS, window, params)
