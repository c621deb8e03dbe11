"""Starts: which DAG runs were started under a name that stands for what they do, so that it is done once.

Airflow refuses a second run of a name as long as it remembers the first one. Runs that were deleted, or cleaned out of
its database, are remembered here.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Column, String, Table, Text

from pipelines.ledger.rows import insert_first, metadata, read_rows

_starts = Table(
    "starts",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("dag", String(250), primary_key=True),
    Column("run", String(250), primary_key=True),
    Column("asked_by", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
)


class Start(NamedTuple):
    """A DAG run that was started: the task that first knew of it (``dag/run/task#try``), and since when."""

    asked_by: str
    recorded_at: datetime


def started(url: str, case: str, dag: str, run: str) -> Start | None:
    """Who started a run of this name; None: nobody. Raises IntegrityError if the case's starts are not as written."""
    found = read_rows(url, _starts, case, named={"dag": dag, "run": run})
    if not found:
        return None
    return Start(found[0]["asked_by"], datetime.fromisoformat(found[0]["recorded_at"]))


def note_start(url: str, case: str, dag: str, run: str, asked_by: str) -> bool:
    """Remember that a run was started; False if somebody was first, whose row stays."""
    return insert_first(url, _starts, case=case, dag=dag, run=run, asked_by=asked_by)
