"""What the gateway would have logged: a tick's rows with the champion's answers, and the labels that came in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import LabelLine, PredictionLine
from pipelines.fields import Fields, row_sent
from pipelines.files import write_atomic
from pipelines.replay.ticks import Tick
from pipelines.settings import Settings
from pipelines.storage import canonical_json


def log_rows(
    settings: Settings, fields: Fields, tick: Tick, rows: pl.DataFrame, scores: NDArray[np.float64], version: int
) -> None:
    """Log the rows of ``tick`` (canonical) as one closed segment.

    ``scores`` are ``[n]`` or ``[n, K]``, of ``version``.
    """
    given = rows.select("id", "event_time", *fields.names).iter_rows(named=True)
    _write(
        settings,
        fields,
        "predictions",
        tick,
        [_answer(fields, row, score, version) for row, score in zip(given, scores, strict=True)],
    )


def _answer(fields: Fields, row: dict[str, Any], score: Any, version: int) -> PredictionLine:
    moment = row["event_time"].isoformat()
    prediction: float = int(np.argmax(score)) if fields.classes else int(score >= 0.5)
    if fields.number is not None:
        prediction = float(score)
    line: PredictionLine = {
        "prediction_id": row["id"],
        "request_id": row["id"],
        "event_time": moment,
        "received_at": moment,
        "version": version,
        "score": float(np.max(score)),
        "prediction": prediction,
        "row": row_sent(fields, row),
    }
    if fields.classes:
        line["scores"] = [float(value) for value in score]
    return line


def log_labels(settings: Settings, fields: Fields, tick: Tick, rows: pl.DataFrame, since: datetime) -> None:
    """Log the labels of served ``rows`` that arrived in ``(since, end of the tick]``, and no others."""
    known = rows.drop_nulls(fields.label)
    due = known.filter((pl.col("label_time") > since) & (pl.col("label_time") <= tick.window.end))
    lines: list[LabelLine] = [
        {
            "prediction_id": row["id"],
            "label": row[fields.label],
            "revision": 0,
            "event_time": (at := row["label_time"].isoformat()),
            "received_at": at,
        }
        for row in due.select("id", fields.label, "label_time").iter_rows(named=True)
    ]
    _write(settings, fields, "labels", tick, lines)


def _write(settings: Settings, fields: Fields, kind: str, tick: Tick, lines: list[Any]) -> None:
    if lines:
        # Whole, under the tick's name: a replay that is killed and started again writes the same file.
        path = settings.prediction_log / fields.case / kind / f"{tick.label}.jsonl"
        write_atomic(path, "".join(canonical_json(line) + "\n" for line in lines).encode())
