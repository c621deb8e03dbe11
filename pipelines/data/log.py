"""The prediction log: JSON-line segments of the gateway, compacted to hourly Parquet, read as frames.

The segments are the truth and stay as they are; the Parquet partitions are made from them once, under the
segment's own name. A record, written once they are durable, names the segments that are done, and their partitions with the
hashes of both (records.py). What is gone or cut off is made again by the next compaction; a reader that meets a file that is
missing or damaged raises IntegrityError. Whatever the order in which segments, retries and corrections arrive, the frames read
are the same:

- one row per ``prediction_id``: the answer received first (a repeated request gets the first answer);
- one label per ``prediction_id``: the highest revision that has arrived, of equal ones the first.

Catch up before reading (:func:`catch_up`): the rows of open segments are not read, and of a segment that is being compacted by
somebody else a reader may see a part. :func:`compacted` names what is whole; a reader may be held to those segments.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from pipelines import segments
from pipelines.contracts import LabelLine, PredictionLine, Window
from pipelines.data import records
from pipelines.data.records import MEND, SPREAD, Done, Part
from pipelines.errors import IntegrityError
from pipelines.fields import SCORES
from pipelines.moments import parse_moment
from pipelines.params import EventTimes, too_high
from pipelines.params_file import load_params, params_file
from pipelines.segments import KINDS, Kind, Segments
from pipelines.settings import Settings
from pipelines.storage import digest, failpoint, make_durable, write_atomic

RETRY_MARGIN = timedelta(days=1)
"""How far apart a request and its retries may lie in event time and still be found to be one row."""

MOST_PARTITIONS = 500
"""Hours of one segment that get a file of their own; the rows of those beyond, which have the fewest, share one."""
_BATCH = 200
"""Files opened at once."""
_MOMENT = pl.Datetime("us", "UTC")
SEGMENTS = "segments"
"""The folder of a kind's records."""
_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    "predictions": msgspec.json.Decoder(PredictionLine),
    "labels": msgspec.json.Decoder(LabelLine),
}
_FIXED: dict[Kind, dict[str, Any]] = {
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
}

log = logging.getLogger(__name__)


def catch_up(settings: Settings, case: str, window: Window) -> int:
    """Have open segments closed and compact what is closed; returns how many rows of ``window`` cannot be read all the same.

    Waits at most ``log_close_seconds`` for the gateway. Rows of the window that are missing then lie in segments that are open.
    """
    folders = [settings.prediction_log / case / kind for kind in KINDS]
    still = segments.close(folders, settings.log_request(case), settings.log_close_seconds)
    held = {path: _rows_in(path, window) for path in still if path.parent.name == "predictions"}
    compact(settings, case)
    left = [path for path in held if path.exists()]
    if len(left) < len(still):
        compact(settings, case)  # some were closed meanwhile
    unread = sum(held[path] for path in left)
    if still:
        log.warning("%s: %d open segment(s) were not closed within %g s", case, len(still), settings.log_close_seconds)
    return unread


def _rows_in(path: Path, window: Window) -> int:
    """How many whole lines of an open segment are rows of ``window``."""
    try:
        rows = _parse(path.read_bytes(), "predictions", EventTimes(max_age_days=None, max_ahead_days=None))[0]
    except FileNotFoundError:
        return 0
    return sum(window.start <= row["event_time"] < window.end for row in rows)


def _folder(settings: Settings, case: str, kind: Kind) -> Path:
    return settings.lake / case / kind


def _known(settings: Settings, case: str, kind: Kind) -> records.Known:
    return records.read(_folder(settings, case, kind) / SEGMENTS)


def compacted(settings: Settings, case: str) -> dict[str, list[str]]:
    """The segments of each kind that were compacted whole."""
    return {kind: sorted(_known(settings, case, kind).segments) for kind in KINDS}


def compact(settings: Settings, case: str) -> int:
    """Turn every closed segment that is not done yet, has grown or has lost a partition into Parquet; returns how many were.

    Files: ``lake/<case>/{predictions,labels}/date=D/hour=H/<segment>.parquet`` by event time (a label's is
    its arrival); of a segment whose rows lie in more than ``MOST_PARTITIONS`` hours those of the emptiest share
    ``spread/<segment>.parquet``. A last line without an end is torn (its sender got no answer) and only counted; any other
    line that is not what the contract says goes to ``lake/<case>/quarantine/<kind>/<segment>.jsonl``.

    Raises IntegrityError for a segment that is not what was written (its seal says so) and for one of which nothing but the seal is
    left, once all others are compacted.
    """
    done, damaged = 0, []
    times = load_params(case, params_file(case, settings)).times
    for kind in KINDS:
        folder, own = _folder(settings, case, kind), settings.prediction_log / case / kind
        known = _known(settings, case, kind)
        fresh: dict[str, Done] = {}
        for path in sorted(own.glob("*.jsonl")):
            found = known.segments.get(path.stem)
            if found is None or not records.is_whole(folder, found) or 0 <= found.size < path.stat().st_size:
                try:
                    fresh[path.stem] = _compact_segment(settings, case, kind, path, times)
                except IntegrityError as error:
                    damaged.append(str(error))
        done += len(fresh)
        failpoint("compact", "files")
        old = (
            one
            for one in known.segments.values()
            if not one.hashed and one.segment not in fresh and records.is_whole(folder, one)
        )
        if new := [*fresh.values(), *(records.hashed(folder, one) for one in old)]:
            records.keep(folder / SEGMENTS, new, known)
        gone = segments.missing(own, (known.segments.keys() | fresh.keys()).__contains__)
        damaged += [
            f"the closed segment {path} is gone and was not compacted: restore it, or remove {segments.seal(path)} if it is lost"
            for path in gone
        ]
    if damaged:
        raise IntegrityError("; ".join(damaged[:3]) + (f"; and {len(damaged) - 3} more" if len(damaged) > 3 else ""))
    return done


def _compact_segment(settings: Settings, case: str, kind: Kind, path: Path, times: EventTimes) -> Done:
    data, sealed = segments.read(path)
    good, bad, torn = _parse(data, kind, times)
    if torn and not sealed:
        log.error(
            "%s: the closed segment %s is cut off in the middle of a line: rows after it may be lost. Restore it from a backup, if there is one, and run again",
            case,
            path,
        )
    frame = _frame(good, kind)
    time = "event_time" if kind == "predictions" else "label_time"
    placed = _placed(frame, time)
    written = {place: _folder(settings, case, kind) / place / f"{path.stem}.parquet" for place in placed}
    parts = [_write(part, written[place], place) for place, part in placed.items()]
    folders = {folder for file in written.values() for folder in file.parents if folder.is_relative_to(settings.root)}
    make_durable([*written.values(), *folders])
    if bad:
        log.warning("%s: %d malformed line(s) in %s quarantined", case, len(bad), path.name)
        text = "".join(json.dumps({"segment": path.name, **line}) + "\n" for line in bad)
        write_atomic(settings.lake / case / "quarantine" / kind / path.name, text.encode())
    spread = sorted(map(str, placed[SPREAD][time].dt.date().unique())) if SPREAD in placed else []
    return Done(path.stem, frame.height, torn, len(bad), parts, len(data), spread)


def _placed(frame: pl.DataFrame, time: str) -> dict[str, pl.DataFrame]:
    """The rows by the place of their partition: a folder for each hour, and one for the hours beyond ``MOST_PARTITIONS``."""
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


def _parse(data: bytes, kind: Kind, times: EventTimes) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Good lines, malformed ones as ``{line, error, text}``, and the number of torn ones (0 or 1)."""
    lines = data.split(b"\n")
    tail = lines.pop()
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            good.append(_decode(line, kind, times))
        except ValueError as error:
            bad.append({"line": number, "error": str(error), "text": line.decode(errors="backslashreplace")})
    if not tail:
        return good, bad, 0
    try:
        good.append(_decode(tail, kind, times))
    except ValueError:
        return good, bad, 1
    return good, bad, 0


def _decode(line: bytes, kind: Kind, times: EventTimes) -> dict[str, Any]:
    """One line as a flat row; raises ValueError (msgspec's and datetime's own) if it is not what the contract says."""
    value = _DECODERS[kind].decode(line)
    moment, received = parse_moment(value["event_time"]), parse_moment(value["received_at"])
    if (mistake := times.mistake(moment, received)) is not None:
        raise ValueError(f"event_time {mistake}")
    row = {"id": value["prediction_id"], "received_at": received}
    if kind == "labels":
        if too_high(value["revision"], received):
            raise ValueError("revision must not be above the time of its receipt in seconds since 1970")
        if not -128 <= value["label"] <= 127:
            raise ValueError("label is not a class")
        return row | {"label": value["label"], "revision": value["revision"], "label_time": moment}
    fixed = {name: value[name] for name in ("request_id", "version", "score", "prediction")}
    return row | fixed | {"event_time": moment, "row": value["row"], "scores": value.get("scores")}


def _frame(rows: list[dict[str, Any]], kind: Kind) -> pl.DataFrame:
    schema = _FIXED[kind]
    fixed = pl.DataFrame([[row[name] for row in rows] for name in schema], schema=schema)
    if kind == "labels" or not rows:
        return fixed
    # Fields are typed by what was logged: text stays text, every number is a float64. The step that knows
    # the case's declaration casts, and validation finds what does not fit.
    fields = pl.DataFrame([row["row"] for row in rows], infer_schema_length=None, strict=False)
    frame = pl.concat([fixed, fields.with_columns(pl.selectors.numeric().cast(pl.Float64))], how="horizontal")
    if all(row["scores"] is None for row in rows):  # a binary label has one score
        return frame
    return frame.with_columns(pl.Series(SCORES, [row["scores"] for row in rows], pl.List(pl.Float64)))


# --- reading ------------------------------------------------------------------------------------


def first_day(settings: Settings, case: str) -> date | None:
    """The oldest day with logged predictions, or None if there are none."""
    return next(iter(_days(settings, case)), None)


def _days(settings: Settings, case: str) -> list[date]:
    folder = _folder(settings, case, "predictions")
    own = {path.name.removeprefix("date=") for path in folder.glob("date=*")}
    return sorted(map(date.fromisoformat, own.union(*_known(settings, case, "predictions").spread.values())))


def first_row(settings: Settings, case: str) -> datetime | None:
    """The event time of the oldest logged prediction, or None if there are none."""
    # The oldest day's files suffice; a folder without one was left by a process that died before its first file.
    for day in _days(settings, case):
        if files := _on(settings, case, "predictions", [day]):
            times = [
                pl.read_parquet(file, columns=["event_time"], hive_partitioning=False)["event_time"].min()
                for file in files
            ]
            return min(times)  # type: ignore[type-var, return-value] # moments, as the column is
    return None


def days(settings: Settings, case: str, window: Window) -> list[date]:
    """The days with logged predictions that lie in ``window`` or reach into it, in order."""
    last = (window.end - timedelta(microseconds=1)).date()
    return [day for day in _days(settings, case) if window.start.date() <= day <= last]


def window_of(day: date) -> Window:
    """The day, in UTC."""
    start = datetime.combine(day, time(), UTC)
    return Window(start=start, end=start + timedelta(days=1))


def partitions(settings: Settings, case: str, day: date) -> tuple[dict[int, list[Path]], list[Path]]:
    """The compacted files of a day's predictions, by hour, and those that hold rows of other days too."""
    hours: dict[int, list[Path]] = {}
    spread = []
    for file in _on(settings, case, "predictions", [day]):
        if file.parent.name == SPREAD:
            spread.append(file)
        else:
            hours.setdefault(int(file.parent.name.removeprefix("hour=")), []).append(file)
    return hours, spread


def near(settings: Settings, case: str, window: Window) -> list[Path]:
    """The compacted files that :func:`read_predictions` of ``window`` reads: its days, and those beside it where a retry may lie."""
    return _files(settings, case, "predictions", window.start - RETRY_MARGIN, window.end + RETRY_MARGIN)


def fingerprint(settings: Settings, case: str, window: Window) -> str:
    """A hash that changes whenever a compacted file is added that :func:`read_predictions` of ``window`` reads."""
    folder = settings.lake / case / "predictions"
    return digest([str(file.relative_to(folder)) for file in near(settings, case, window)])


def read_predictions(
    settings: Settings, case: str, window: Window, *, marks: Mapping[str, Segments] | None = None
) -> pl.DataFrame:
    """Logged rows with event time in ``window``, sorted by event_time and id: one row per prediction.

    Columns: ``id, event_time``, the features as logged (text or float64), ``version`` (int64), ``score``
    (float64), ``prediction``, ``request_id``, ``received_at``, and with classes ``scores`` (a list of float64).
    Empty with the fixed columns only if there is none. Each of ``marks`` adds a column of its name: whether any of a row's lines
    stands in those segments.
    """
    named = _named("predictions", marks)
    frame = _read(settings, case, "predictions", near(settings, case, window), marks=named)
    return _first_answers(frame.with_columns(pl.col(name).any().over("id") for name in named), window, list(named))


def read_days(
    settings: Settings, case: str, wanted: Sequence[date], each: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> Iterator[tuple[date, pl.DataFrame]]:
    """Of each day what :func:`read_predictions` gives; ``wanted`` ascends, and all files from the first to the last are read once.

    ``each`` changes what a file holds before files are put together: types then do not hang on what lies beside them.
    """
    span = Window(start=window_of(wanted[0]).start, end=window_of(wanted[-1]).end)
    rows = _read(settings, case, "predictions", near(settings, case, span), each)
    of = rows["event_time"].dt.date()
    for day in wanted:
        window = window_of(day)
        first, last = (window.start - RETRY_MARGIN).date(), (window.end + RETRY_MARGIN).date()
        yield day, _first_answers(rows.filter((of >= first) & (of <= last)), window)


def _first_answers(frame: pl.DataFrame, window: Window, marks: Sequence[str] = ()) -> pl.DataFrame:
    scores = [SCORES] if SCORES in frame.columns else []
    features = [name for name in frame.columns if name not in {*_FIXED["predictions"], *scores, *marks}]
    return (
        frame.sort("received_at", "event_time", "version", "request_id")
        .unique("id", keep="first", maintain_order=True)
        .filter((pl.col("event_time") >= window.start) & (pl.col("event_time") < window.end))
        .sort("event_time", "id")
        .select(
            "id",
            "event_time",
            *features,
            "version",
            "score",
            "prediction",
            "request_id",
            "received_at",
            *scores,
            *marks,
        )
    )


def read_labels(settings: Settings, case: str, arrived_by: datetime, *, since: datetime | None = None) -> pl.DataFrame:
    """The label of each prediction as known at ``arrived_by`` (inclusive), sorted by id: ``id, label, label_time, revision``.

    ``since`` leaves out labels that arrived before: a row's label does not arrive before the row.
    """
    return best(read_label_lines(settings, case, arrived_by, since=since))


def best(lines: pl.DataFrame) -> pl.DataFrame:
    """The line of each id that counts, of lines in the order of :func:`read_label_lines`, sorted by id."""
    return (
        lines.unique("id", keep="first", maintain_order=True).sort("id").select("id", "label", "label_time", "revision")
    )


def read_label_lines(
    settings: Settings,
    case: str,
    arrived_by: datetime,
    *,
    since: datetime | None = None,
    within: Segments | None = None,
    marks: Mapping[str, Segments] | None = None,
) -> pl.DataFrame:
    """Every label line that had arrived by ``arrived_by``, the one that counts first: ``id, label, label_time, revision``.

    ``within`` holds the reader to some segments. Each of ``marks`` adds a column of its name: whether a line stands in those.
    """
    files, named = _files(settings, case, "labels", since, arrived_by), _named("labels", marks)
    if within is not None:
        files = list(filter(_stands_in("labels", within), files))
    asked = pl.col("label_time") <= arrived_by
    if since is not None:  # a file may hold rows of other days too
        asked &= pl.col("label_time").dt.date() >= since.date()
    return (
        _read(settings, case, "labels", files, marks=named)
        .filter(asked)
        # Releases of before took any revision: one above the time of its receipt counts as that time, so that it can be corrected.
        .with_columns(pl.min_horizontal("revision", pl.col("received_at").dt.epoch("s")))
        .sort(["revision", "label_time", "received_at", "label"], descending=[True, False, False, False])
        .select("id", "label", "label_time", "revision", *named)
    )


def fate(settings: Settings, case: str) -> dict[str, dict[str, int]]:
    """What became of all lines of the segments that are done, by kind: ``rows``, ``torn`` and ``malformed``."""
    found: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        every = _known(settings, case, kind).segments.values()
        found[kind] = {name: sum(getattr(done, name) for done in every) for name in ("rows", "torn", "malformed")}
    return found


def count(settings: Settings, case: str, kind: Kind, start: datetime, end: datetime) -> int:
    """Lines that :func:`read_predictions` of ``[start, end)`` chooses from, or :func:`read_labels` since ``start``."""
    time, files = ("event_time" if kind == "predictions" else "label_time"), _files(settings, case, kind, start, end)
    moment = pl.col(time)
    counted = (
        (moment >= start) & (moment < end)
        if kind == "predictions"
        else (moment.dt.date() >= start.date()) & (moment <= end)
    )
    return _read(settings, case, kind, files, lambda scan: scan.select(time)).filter(counted).height


Stands = Callable[[Path], bool]
"""Whether a compacted file is of certain segments."""


def _stands_in(kind: Kind, names: Segments) -> Stands:
    holds = segments.among(names[kind])
    return lambda file: holds(file.stem)


def _named(kind: Kind, marks: Mapping[str, Segments] | None) -> dict[str, Stands]:
    return {name: _stands_in(kind, own) for name, own in (marks or {}).items()}


def _files(settings: Settings, case: str, kind: Kind, start: datetime | None, end: datetime) -> list[Path]:
    low, high = "" if start is None else str(start.date()), str(end.date())
    there = {path.name.removeprefix("date=") for path in _folder(settings, case, kind).glob("date=*")}
    days = sorted(day for day in there | _known(settings, case, kind).days.keys() if low <= day <= high)
    return _on(settings, case, kind, days)


def _on(settings: Settings, case: str, kind: Kind, days: Iterable[date | str]) -> list[Path]:
    """The files of some days, each checked against what was compacted."""
    folder, names = _folder(settings, case, kind), list(map(str, days))
    return records.checked(
        folder, [file for day in names for file in (folder / f"date={day}").glob("hour=*/*.parquet")], names
    )


def _read(
    settings: Settings,
    case: str,
    kind: Kind,
    files: Sequence[Path],
    each: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda scan: scan,
    marks: Mapping[str, Stands] | None = None,
) -> pl.DataFrame:
    """The lines of ``files``, with a column for each of ``marks``."""
    told = marks or {}
    empty = pl.DataFrame(schema=_FIXED[kind] | dict.fromkeys(told, pl.Boolean))
    scans = [
        each(pl.scan_parquet(file, hive_partitioning=False)).with_columns(
            pl.lit(stands(file)).alias(name) for name, stands in told.items()
        )
        for file in files
    ]
    try:
        batches = [
            pl.concat(scans[at : at + _BATCH], how="diagonal_relaxed").collect() for at in range(0, len(scans), _BATCH)
        ]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(
            f"a partition in {settings.lake / case / kind} cannot be read ({error}): {MEND}"
        ) from error
    return pl.concat([empty, *batches], how="diagonal_relaxed")
