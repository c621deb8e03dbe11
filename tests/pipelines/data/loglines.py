"""Log lines for tests, in the form that the gateway writes."""

import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.fields import Fields, row_sent
from pipelines.settings import Settings


def predictions(frame: pl.DataFrame, fields: Fields, version: int = 1) -> list[dict[str, Any]]:
    """One prediction line per row of ``frame``, received a second after its event."""
    return [
        {
            "prediction_id": row["id"],
            "request_id": f"r-{row['id']}",
            "event_time": row["event_time"].isoformat(),
            "received_at": (row["event_time"] + timedelta(seconds=1)).isoformat(),
            "version": version,
            "score": 0.25,
            "prediction": 0,
            "row": row_sent(fields, row),
        }
        for row in frame.iter_rows(named=True)
    ]


def labels(frame: pl.DataFrame, fields: Fields) -> list[dict[str, Any]]:
    """One label line per row of ``frame``, arriving at its label_time."""
    return [
        {
            "prediction_id": row["id"],
            "label": row[fields.label],
            "revision": 0,
            "event_time": row["label_time"].isoformat(),
            "received_at": row["label_time"].isoformat(),
        }
        for row in frame.iter_rows(named=True)
    ]


def write(
    settings: Settings, case: str, kind: str, segment: str, lines: Iterable[dict[str, Any]], tail: bytes = b""
) -> Path:
    """Write one closed segment, ``tail`` after its last line."""
    path = settings.prediction_log / case / kind / f"{segment}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + tail)
    return path
