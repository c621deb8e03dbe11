"""What the arms of a rollout did, as gateways wrote it down: counts, rows that both versions answered, and labels.

It goes by the wall clock, as rollouts do: by when requests and labels were received. Segments are read as they lie. The
folders ``traffic`` and ``shadow`` never become part of the lake, so that no training and no drift run can see them.

What was received until a moment is known a while later: a gateway counts a request when it has its answer, and writes
every ``PERENNIAL_GATEWAY_TRAFFIC_SECONDS``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import polars as pl

from pipelines import segments
from pipelines.contracts import LabelLine, ShadowLine, TrafficLine
from pipelines.moments import parse_moment
from pipelines.segments import Kind
from pipelines.settings import Settings

T = TypeVar("T")
SKEW = timedelta(minutes=1)
"""How far a file's time may lie before those in its lines: clocks differ, and that of files is coarse."""
_MOMENT = pl.Datetime("us", "UTC")
_PAIRS = {
    "prediction_id": pl.String,
    "event_time": _MOMENT,
    "received_at": _MOMENT,
    "arm": pl.String,
    "champion": pl.Int64,
    "challenger": pl.Int64,
    "champion_score": pl.Float64,
    "challenger_score": pl.Float64,
    "champion_scores": pl.List(pl.Float64),
    "challenger_scores": pl.List(pl.Float64),
    "ms": pl.Float64,
}
_ANSWERED = {
    "prediction_id": pl.String,
    "event_time": _MOMENT,
    "received_at": _MOMENT,
    "arm": pl.String,
    "version": pl.Int64,
    "score": pl.Float64,
    "prediction": pl.Float64,
    "scores": pl.List(pl.Float64),
}
_LABELS = {"prediction_id": pl.String, "label": pl.Float64, "label_received_at": _MOMENT}
_counts = msgspec.json.Decoder(TrafficLine)
_shadow = msgspec.json.Decoder(ShadowLine)
_label = msgspec.json.Decoder(LabelLine)

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """What is read of a line of the prediction log, beside a rollout or in one."""

    prediction_id: str
    event_time: str
    received_at: str
    version: int
    score: float | None
    prediction: float | None
    arm: Literal["champion", "challenger", ""] = ""
    scores: list[float] | None = None


_answer = msgspec.json.Decoder(_Answer)


def read(settings: Settings, case: str, since: datetime, until: datetime) -> list[TrafficLine]:
    """The lines of ``traffic`` whose counting began in ``[since, until)``, in the order of their times."""
    found = _lines(settings, case, "traffic", since, _counts.decode, lambda line: line["begin"])
    lines = [line for moment, line in found if since <= moment < until]
    return sorted(lines, key=lambda line: (parse_moment(line["begin"]), line["arm"], line["version"]))


def mirrored(settings: Settings, case: str, since: datetime, until: datetime) -> list[ShadowLine]:
    """The rows received in ``[since, until)`` that both versions were asked, in the order of receipt.

    One line for each prediction.
    """
    found = _lines(settings, case, "shadow", since, _shadow.decode, lambda line: line["received_at"])
    lines = {line["prediction_id"]: line for moment, line in found if since <= moment < until}
    return sorted(lines.values(), key=lambda line: (parse_moment(line["received_at"]), line["prediction_id"]))


def pairs(settings: Settings, case: str, since: datetime, until: datetime) -> pl.DataFrame:
    """What :func:`mirrored` gives as a frame, with the label of each row as far as it has come.

    Columns: those of a ShadowLine, ``label`` (float64; 0 or 1, a class's position, or the number) and
    ``label_received_at``, both null where there is no label yet. Of several labels the one received first counts, so
    that a repeated look gives the same.
    """
    lines = mirrored(settings, case, since, until)
    return _labelled(settings, case, since, _frame([_moments(dict(line)) for line in lines], _PAIRS))


def answered(settings: Settings, case: str, since: datetime, until: datetime) -> pl.DataFrame:
    """The rows of the prediction log received in ``[since, until)`` that belong to an arm, with their labels.

    Columns: ``prediction_id, event_time, received_at, arm, version, score, prediction, scores`` and the label as in
    :func:`pairs`. The ``version`` of an arm's row is another one than the arm's where something stood in.
    """
    found = _lines(settings, case, "predictions", since, _answer.decode, lambda line: line.received_at)
    rows: dict[str, tuple[datetime, _Answer]] = {}
    for moment, line in found:
        if line.arm and since <= moment < until:
            first = rows.get(line.prediction_id)
            if first is None or moment < first[0]:
                rows[line.prediction_id] = moment, line
    told = sorted(rows.values(), key=lambda one: (one[0], one[1].prediction_id))
    return _labelled(
        settings, case, since, _frame([_moments(msgspec.structs.asdict(line)) for _, line in told], _ANSWERED)
    )


def _labelled(settings: Settings, case: str, since: datetime, rows: pl.DataFrame) -> pl.DataFrame:
    if rows.is_empty():
        wanted: set[str] = set()
    else:
        wanted = set(rows["prediction_id"])
    first: dict[str, tuple[datetime, float]] = {}
    if wanted:
        # A label is received after its row: not before the first of these.
        for moment, line in _lines(settings, case, "labels", since, _label.decode, lambda line: line["received_at"]):
            key = line["prediction_id"]
            if key in wanted and (key not in first or (moment, line["label"]) < first[key]):
                first[key] = moment, line["label"]
    labels = [
        {"prediction_id": key, "label": float(label), "label_received_at": moment}
        for key, (moment, label) in first.items()
    ]
    return rows.join(_frame(labels, _LABELS), on="prediction_id", how="left", maintain_order="left")


def _lines(
    settings: Settings, case: str, kind: Kind, since: datetime, decode: Callable[[bytes], T], time: Callable[[T], str]
) -> Iterator[tuple[datetime, T]]:
    """The lines of segments that were written to after ``since``, each with its time.

    Lines that cannot be read are left out, and said. Raises IntegrityError for a segment that is not what was sealed.
    """
    for path in closed_since(settings, case, kind, since):
        yield from _of_segment(path, case, decode, time)


def closed_since(settings: Settings, case: str, kind: Kind, since: datetime) -> Iterator[Path]:
    """The segments of a kind that were written to after ``since``; open ones are closed first."""
    folder = settings.prediction_log / case / kind
    still = segments.close([folder], settings.log_request(case), settings.log_close_seconds)
    if still:
        log.warning("%s: %d open segment(s) of %s were not closed in time", case, len(still), kind)
    for path in sorted(folder.glob(f"[!.]*{segments.CLOSED}")):
        if path.stat().st_mtime >= (since - SKEW).timestamp():
            yield path


def _of_segment(
    path: Path, case: str, decode: Callable[[bytes], T], time: Callable[[T], str]
) -> Iterator[tuple[datetime, T]]:
    data, _sealed = segments.read(path)
    damaged = 0
    for line in filter(None, data.split(b"\n")):
        try:
            found = decode(line)
            moment = parse_moment(time(found))
        except ValueError:  # msgspec's errors are ValueErrors, too
            damaged += 1
        else:
            yield moment, found
    if damaged:
        log.warning("%s: %d line(s) of %s cannot be read: they are left out", case, damaged, path)


def _moments(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, **{name: parse_moment(line[name]) for name in ("event_time", "received_at")}}


def _frame(rows: list[dict[str, Any]], schema: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([[row.get(name) for row in rows] for name in schema], schema=schema)
