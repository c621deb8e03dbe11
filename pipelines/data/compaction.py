"""Compaction of the prediction log: closed segments of JSON lines become hourly Parquet files.

What lies where, and what of it is whole, is said in records.py; log.py reads the files.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from pipelines import objects, segments
from pipelines.contracts import DEFAULT, ELSEWHERE, LabelLine, PredictionLine, RefusalLine, Window
from pipelines.data import records
from pipelines.data.records import SPREAD, Done, Part
from pipelines.errors import IntegrityError
from pipelines.fields import FLOAT32_MAX, SCORES, TRACEPARENT
from pipelines.files import make_durable, write_atomic
from pipelines.moments import parse_moment
from pipelines.params import METRICS, EventTimes, too_high
from pipelines.params_file import load_params, params_file
from pipelines.segments import COMPACTED, RECORDS, Kind
from pipelines.settings import Settings
from pipelines.storage import failpoint

TIME: dict[Kind, str] = {"predictions": "event_time", "labels": "label_time", "refusals": "hour"}
"""The column by whose hour a row is filed: a label's time is its arrival."""
MOST_PARTITIONS = 500
"""Hours of one segment that get a file of their own; the rows of those beyond, which have the fewest, share one."""
_MOMENT = pl.Datetime("us", "UTC")
_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    "predictions": msgspec.json.Decoder(PredictionLine),
    "labels": msgspec.json.Decoder(LabelLine),
    "refusals": msgspec.json.Decoder(RefusalLine),
}
FIXED: dict[Kind, dict[str, Any]] = {
    "predictions": {
        "id": pl.String,
        "request_id": pl.String,
        "event_time": _MOMENT,
        "received_at": _MOMENT,
        "version": pl.Int64,
        "score": pl.Float64,
        "prediction": pl.Int64,
    },
    "labels": {"id": pl.String, "label": pl.Int8, "revision": pl.Int64, "label_time": _MOMENT, "received_at": _MOMENT},
    "refusals": {
        "hour": _MOMENT,
        "arm": pl.String,
        "version": pl.Int64,
        "field": pl.String,
        "reason": pl.String,
        "rows": pl.Int64,
        "received_at": _MOMENT,
    },
}
SOMETIMES: dict[str, Any] = {SCORES: pl.List(pl.Float64), TRACEPARENT: pl.String}
"""Columns that are there if any row has them: a binary label has one score, and few requests name their trace."""
WIDER = ("label", "prediction")
"""Columns that hold numbers in a case that predicts one; there they are float64."""
WHOLE = 32_767
"""Positions of classes are int16 at most: what is larger can only be a number."""

log = logging.getLogger(__name__)


class Allowed(NamedTuple):
    """What says whether a line is one of the case: when things may happen, and whether ``numbers`` are predicted."""

    times: EventTimes
    numbers: bool


ANYTHING = Allowed(EventTimes(max_age_days=None, max_ahead_days=None), numbers=True)


def folder_of(settings: Settings, case: str, kind: Kind) -> Path:
    """Where the compacted files of a kind lie."""
    return settings.lake_dir / case / kind


def known(settings: Settings, case: str, kind: Kind) -> records.Known:
    """What is recorded as compacted."""
    return records.read(folder_of(settings, case, kind) / RECORDS)


def compact(settings: Settings, case: str) -> int:
    """Turn every closed segment that is not done yet, has grown or has lost a partition into Parquet.

    Returns how many were. Files: ``lake/<case>/{predictions,labels,refusals}/date=D/hour=H/<segment>.parquet`` by event
    time (a label's is its arrival); of a segment whose rows lie in more than ``MOST_PARTITIONS`` hours those of the
    emptiest share ``spread/<segment>.parquet``. A last line without an end is torn (its sender got no answer) and only
    counted; any other line that is not what the contract says goes to
    ``lake/<case>/quarantine/<kind>/<segment>.jsonl``.

    Raises IntegrityError for a segment that is not what was written (its seal says so) and for one of which nothing but
    the seal is left, once all others are compacted.
    """
    done = 0
    damaged: list[str] = []
    params = load_params(case, params_file(case, settings))
    allowed = Allowed(params.times, numbers=params.gate.metric in METRICS["number"])
    for kind in COMPACTED:
        compacted, problems = _compact_kind(settings, case, kind, allowed)
        done += compacted
        damaged += problems
    if len(damaged) > 3:
        damaged[3:] = [f"and {len(damaged) - 3} more"]
    if damaged:
        raise IntegrityError("; ".join(damaged))
    return done


def _compact_kind(settings: Settings, case: str, kind: Kind, allowed: Allowed) -> tuple[int, list[str]]:
    """How many segments of a kind were compacted, and what is wrong with others."""
    folder = folder_of(settings, case, kind)
    own = settings.prediction_log / case / kind
    before = known(settings, case, kind)
    fresh: dict[str, Done] = {}
    damaged: list[str] = []
    for path in sorted(own.glob("*.jsonl")):
        if _is_done(folder, before.segments.get(path.stem), path):
            continue
        try:
            fresh[path.stem] = _compact_segment(settings, case, kind, path, allowed)
        except IntegrityError as error:
            damaged.append(str(error))
    failpoint("compact", "files")
    old = (
        one
        for one in before.segments.values()
        if not one.hashed and one.segment not in fresh and records.is_whole(folder, one)
    )
    new = [*fresh.values(), *(records.hashed(folder, one) for one in old)]
    if new:
        records.keep(folder / RECORDS, new, before)
    gone = segments.missing(own, (before.segments.keys() | fresh.keys()).__contains__)
    damaged += [
        f"the closed segment {path} is gone and was not compacted: "
        f"restore it, or remove {segments.seal(path)} if it is lost"
        for path in gone
    ]
    return len(fresh), damaged


def _is_done(folder: Path, done: Done | None, path: Path) -> bool:
    """Whether a segment was compacted, has not grown since, and lost no partition."""
    if done is None or not records.is_whole(folder, done):
        return False
    # Records of earlier releases say no size.
    return done.size < 0 or path.stat().st_size <= done.size


def _compact_segment(settings: Settings, case: str, kind: Kind, path: Path, allowed: Allowed) -> Done:
    data, sealed = segments.read(path)
    good, bad, torn = _parse(data, kind, allowed)
    if torn and not sealed:
        log.error(
            "%s: the closed segment %s is cut off in the middle of a line: rows after it may be lost. "
            "Restore it from a backup, if there is one, and run again",
            case,
            path,
        )
    frame = _frame(good, kind)
    time = TIME[kind]
    placed = _placed(frame, time)
    written = {place: folder_of(settings, case, kind) / place / f"{path.stem}.parquet" for place in placed}
    parts = [_write(part, written[place], place) for place, part in placed.items()]
    folders = {folder for file in written.values() for folder in file.parents if folder.is_relative_to(settings.root)}
    make_durable([*written.values(), *folders])
    objects.put_files(written.values())
    if bad:
        log.warning("%s: %d malformed line(s) in %s quarantined", case, len(bad), path.name)
        text = "".join(json.dumps({"segment": path.name, **line}) + "\n" for line in bad)
        quarantined = settings.lake_dir / case / "quarantine" / kind / path.name
        write_atomic(quarantined, text.encode())
        objects.replace(quarantined, text.encode())
    spread: list[str] = []
    if SPREAD in placed:
        spread = sorted(map(str, placed[SPREAD][time].dt.date().unique()))
    return Done(path.stem, frame.height, torn, len(bad), parts, len(data), spread)


def _placed(frame: pl.DataFrame, time: str) -> dict[str, pl.DataFrame]:
    """The rows by the place of their partition.

    A folder for each hour, and one for the hours beyond ``MOST_PARTITIONS``.
    """
    placed = frame.with_columns(_place=pl.col(time).dt.strftime("date=%Y-%m-%d/hour=%H"))
    hours = placed.group_by("_place").len().sort(["len", "_place"], descending=[True, False])["_place"]
    if hours.len() > MOST_PARTITIONS:
        own = pl.col("_place").is_in(hours.head(MOST_PARTITIONS).implode())
        placed = placed.with_columns(_place=pl.when(own).then("_place").otherwise(pl.lit(SPREAD)))
    parts = placed.partition_by("_place", as_dict=True, include_key=False)
    return {str(place): part for (place,), part in sorted(parts.items())}


def _write(part: pl.DataFrame, path: Path, place: str) -> Part:
    """Publish one partition whole. All of a segment are made durable together: a replayed one has hundreds."""
    buffer = io.BytesIO()
    part.write_parquet(buffer, compression="zstd")
    data = buffer.getvalue()
    write_atomic(path, data, durable=False)
    return Part(place, hashlib.sha256(data).hexdigest())


def _parse(data: bytes, kind: Kind, allowed: Allowed) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Good lines, malformed ones as ``{line, error, text}``, and the number of torn ones (0 or 1)."""
    lines = data.split(b"\n")
    tail = lines.pop()
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            good.append(_decode(line, kind, allowed))
        except ValueError as error:
            bad.append({"line": number, "error": str(error), "text": line.decode(errors="backslashreplace")})
    if not tail:
        return good, bad, 0
    try:
        good.append(_decode(tail, kind, allowed))
    except ValueError:
        return good, bad, 1
    return good, bad, 0


def _decode(line: bytes, kind: Kind, allowed: Allowed) -> dict[str, Any]:
    """One line as a flat row; raises ValueError (msgspec's and datetime's own) if it is not what the contract says."""
    value = _DECODERS[kind].decode(line)
    if kind == "refusals":
        return _refusal(value)
    moment = parse_moment(value["event_time"])
    received = parse_moment(value["received_at"])
    mistake = allowed.times.mistake(moment, received)
    if mistake is not None:
        raise ValueError(f"event_time {mistake}")
    row = {"id": value["prediction_id"], "received_at": received}
    if kind == "labels":
        if too_high(value["revision"], received):
            raise ValueError("revision must not be above the time of its receipt in seconds since 1970")
        if allowed.numbers and not abs(value["label"]) <= FLOAT32_MAX:
            raise ValueError("label is no finite number that a float32 holds")
        if not allowed.numbers and not _is_position(value["label"]):
            raise ValueError("label is not a class")
        return row | {"label": value["label"], "revision": value["revision"], "label_time": moment}
    own = {"event_time": moment, "row": value["row"]}
    return row | own | _given(value, allowed)


def _given(value: PredictionLine, allowed: Allowed) -> dict[str, Any]:
    """What a row was answered, and by whom; a declared default is no answer beyond the log.

    What was declared says nothing about any model.
    """
    if (value["prediction"] is None) is not (value["score"] is None):
        raise ValueError("prediction and score go together")
    if value["score"] is None and value["version"] != ELSEWHERE:
        raise ValueError("an answer has a prediction and a score")
    if not allowed.numbers and value["prediction"] is not None and not _is_position(value["prediction"]):
        raise ValueError("prediction is not a class")
    found: dict[str, Any] = {name: value[name] for name in ("request_id", "version", "score", "prediction")}
    found |= {name: value.get(name) for name in SOMETIMES}
    if value.get("outcome") != DEFAULT:
        return found
    if value["version"] != ELSEWHERE:
        raise ValueError("a default answer is none of a version")
    return found | dict.fromkeys(("score", "prediction", SCORES))


def _refusal(value: RefusalLine) -> dict[str, Any]:
    if value["rows"] < 1:
        raise ValueError("a line counts one row at least")
    return {**value, "hour": parse_moment(value["hour"]), "received_at": parse_moment(value["received_at"])}


def _is_position(value: float) -> bool:
    return isinstance(value, int) and -WHOLE - 1 <= value <= WHOLE


def _frame(rows: list[dict[str, Any]], kind: Kind) -> pl.DataFrame:
    schema = {name: _narrowest(rows, name, type_) for name, type_ in FIXED[kind].items()}
    fixed = pl.DataFrame([[row[name] for row in rows] for name in schema], schema=schema)
    if kind != "predictions" or not rows:
        return fixed
    # Fields are typed by what was logged: text stays text, every number is a float64. The step that knows
    # the case's declaration casts, and validation finds what does not fit.
    fields = pl.DataFrame([row["row"] for row in rows], infer_schema_length=None, strict=False)
    frame = pl.concat([fixed, fields.with_columns(pl.selectors.numeric().cast(pl.Float64))], how="horizontal")
    told = {name: pl.Series(name, [row[name] for row in rows], kind) for name, kind in SOMETIMES.items()}
    return frame.with_columns(column for column in told.values() if column.null_count() < len(rows))


def _narrowest(rows: list[dict[str, Any]], name: str, least: Any) -> Any:
    """The type of a column, wider than the ``least`` one where a case predicts numbers or has more classes."""
    if name not in WIDER:
        return least
    values = [row[name] for row in rows if row[name] is not None]
    if any(isinstance(value, float) for value in values) or not all(abs(value) <= WHOLE for value in values):
        return pl.Float64
    if least == pl.Int8 and not all(-128 <= value <= 127 for value in values):
        return pl.Int16
    return least


def rows_in(path: Path, window: Window) -> int:
    """How many whole lines of an open segment are rows of ``window``."""
    try:
        rows, _, _ = _parse(path.read_bytes(), "predictions", ANYTHING)
    except FileNotFoundError:
        return 0
    return sum(window.start <= row["event_time"] < window.end for row in rows)
