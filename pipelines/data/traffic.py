"""What the arms of a rollout did, from the gateway's own files: counts, mirrored rows, and labels of answers.

Read from the log's closed segments as they are, those that were written to since a moment: a rollout looks at hours,
and at the clock of receipt, by which the lake is not sorted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import polars as pl

from pipelines import segments
from pipelines.contracts import ShadowLine, TrafficLine
from pipelines.settings import Settings

TRAFFIC, SHADOW = "traffic", "shadow"
"""The folders of their segments, beside those of predictions and labels."""
_ANSWER = {
    "prediction_id": pl.String,
    "received_at": pl.String,
    "version": pl.Int64,
    "score": pl.Float64,
    "scores": pl.List(pl.Float64),
}
_LABEL = {"prediction_id": pl.String, "received_at": pl.String, "label": pl.Float64}


def close(settings: Settings, case: str) -> None:
    """Have the open segments of a case closed, so that what came until now can be read."""
    folders = [settings.prediction_log / case / kind for kind in (TRAFFIC, SHADOW, "predictions", "labels")]
    segments.close(folders, settings.log_request(case), settings.log_close_seconds)


def traffic(settings: Settings, case: str, since: datetime) -> list[TrafficLine]:
    """The counts that end after ``since``."""
    lines = cast("Iterator[TrafficLine]", _lines(settings, case, TRAFFIC, since))
    return [line for line in lines if datetime.fromisoformat(line["end"]) > since]


def shadow(settings: Settings, case: str, since: datetime) -> list[ShadowLine]:
    """The mirrored rows that were received since a moment, each once."""
    lines = cast("Iterator[ShadowLine]", _lines(settings, case, SHADOW, since))
    found = {line["prediction_id"]: line for line in lines if datetime.fromisoformat(line["received_at"]) >= since}
    return sorted(found.values(), key=lambda line: (line["received_at"], line["prediction_id"]))


def labelled(settings: Settings, case: str, since: datetime) -> pl.DataFrame:
    """The rows that were answered since a moment and have a label: ``id, at, label, version, score, scores``.

    The first answer and the first label of each, in the order in which the labels were received (``at``).
    """
    labels = _frame(settings, case, "labels", since, _LABEL)
    answers = _frame(settings, case, "predictions", since, _ANSWER)
    first = answers.sort("at", "version").unique("id", keep="first").drop("at")
    return labels.sort("at", "label").unique("id", keep="first").join(first, on="id").sort("at", "id")


def _frame(settings: Settings, case: str, kind: str, since: datetime, schema: dict[str, Any]) -> pl.DataFrame:
    """Lines of a kind that were received since a moment, ``at``."""
    empty = pl.DataFrame(schema=schema)
    found = [pl.read_ndjson(path, schema=schema) for path in _closed(settings, case, kind, since)]
    at = pl.col("received_at").str.to_datetime(time_unit="us", time_zone="UTC")
    lines = pl.concat([empty, *found]).rename({"prediction_id": "id"}).with_columns(at.alias("at"))
    return lines.drop("received_at").filter(pl.col("at") >= since)


def _lines(settings: Settings, case: str, kind: str, since: datetime) -> Iterator[dict[str, Any]]:
    for path in _closed(settings, case, kind, since):
        data, _ = segments.read(path)
        yield from map(json.loads, data.splitlines())


def _closed(settings: Settings, case: str, kind: str, since: datetime) -> list[Path]:
    """The closed segments of a kind that were written to since a moment."""
    folder = settings.prediction_log / case / kind
    return sorted(path for path in folder.glob("[!.]*.jsonl") if path.stat().st_mtime >= since.timestamp())
