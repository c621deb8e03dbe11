"""Sends a window's real rows and the labels that have come due through the gateway."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from embedded.traffic import label_sent, prediction_sent
from pipelines.data.dataset import spread
from pipelines.errors import Unavailable
from pipelines.fields import Fields

if TYPE_CHECKING:
    import polars as pl

BATCH, BATCH_TEXTS = 256, 40
"""Rows of one request; a text takes a core some twenty milliseconds."""


@dataclass
class Tally:
    """What was sent and what came back. ``answers`` maps a prediction id to (version, score, prediction)."""

    requests: int = 0
    rows_sent: int = 0
    labels: int = 0
    errors: int = 0
    answers: dict[str, tuple[int, float, int | str]] = field(default_factory=dict)


def sampled(rows: pl.DataFrame, per_month: int | None) -> pl.DataFrame:
    """At most ``per_month`` of the canonical rows of each calendar month, evenly spaced: the same ones every time."""
    import polars as pl

    if per_month is None or rows.is_empty():
        return rows
    months = rows.with_columns(_month=pl.col("event_time").dt.truncate("1mo")).partition_by(
        "_month", maintain_order=True, include_key=False
    )
    return pl.concat([spread(month, per_month) for month in months])


def client(url: str, key_file: Path) -> httpx.Client:
    """A client of the gateway that carries its API key."""
    return httpx.Client(base_url=url, headers={"X-API-Key": key_file.read_text().strip()}, timeout=90, trust_env=False)


def send_rows(gateway: httpx.Client, fields: Fields, frame: pl.DataFrame, tally: Tally) -> None:
    """Post the rows of ``frame`` (canonical) in batches; answers and errors land in ``tally``."""
    case = fields.case
    for batch in frame.iter_slices(BATCH if fields.text is None else BATCH_TEXTS):
        sent = batch.select("id", "event_time", *fields.names)
        rows = [prediction_sent(fields, row) for row in sent.iter_rows(named=True)]
        tally.requests += 1
        tally.rows_sent += len(rows)
        answer = gateway.post(f"/v1/cases/{case}/predict", json={"rows": rows})
        if answer.status_code != httpx.codes.OK:
            tally.errors += 1
            continue
        tally.answers.update(
            {
                row["prediction_id"]: (row["version"], row.get("score", row["prediction"]), row["prediction"])
                for row in answer.json()["rows"]
            }
        )


def send_labels(gateway: httpx.Client, fields: Fields, frame: pl.DataFrame, tally: Tally) -> None:
    """Post the labels of ``frame`` with their arrival in event time; classes go by their names.

    A row whose truth never came has none to post.
    """
    case = fields.case
    label = fields.label
    for batch in frame.drop_nulls(label).iter_slices(4 * BATCH):
        labels: list[dict[str, Any]] = [
            {
                "prediction_id": row["id"],
                "label": label_sent(fields, row[label]),
                "event_time": row["label_time"].isoformat(),
            }
            for row in batch.select("id", label, "label_time").iter_rows(named=True)
        ]
        answer = gateway.post(f"/v1/cases/{case}/labels", json={"labels": labels})
        if answer.status_code != httpx.codes.OK:
            tally.errors += 1
            continue
        tally.labels += len(labels)


def wait_for_closed_segments(log: Path, case: str, seconds: float = 20) -> None:
    """Wait until the gateway has closed every segment that holds rows: only closed ones are read."""
    deadline = time.monotonic() + seconds
    while open_segments := [path for path in (log / case).rglob("*.jsonl.open") if _holds_rows(path)]:
        if time.monotonic() > deadline:
            raise Unavailable(f"{open_segments[0]} is still open after {seconds:g} s: look at the gateway's log")
        time.sleep(0.05)


def _holds_rows(segment: Path) -> bool:
    try:
        return segment.stat().st_size > 0
    except FileNotFoundError:  # closed since it was seen
        return False
