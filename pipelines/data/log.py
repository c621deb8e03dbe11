"""The prediction log: JSON-line segments of the gateway, compacted to hourly Parquet, read as frames.

The segments are the truth and stay as they are; the Parquet partitions are made from them once (compaction.py), under
the segment's own name. A record, written once they are durable, names the segments that are done, and their partitions
with the hashes of both (records.py). What is gone or cut off is made again by the next compaction; a reader that meets
a file that is missing or damaged raises IntegrityError. Whatever the order in which segments, retries and corrections
arrive, the frames read are the same:

- one row per ``prediction_id``: the answer received first (a repeated request gets the first answer);
- one label per ``prediction_id``: the highest revision that has arrived, of equal ones the first.

Catch up before reading (:func:`catch_up`): the rows of open segments are not read, and of a segment that is being
compacted by somebody else a reader may see a part. :func:`compacted` names what is whole; a reader may be held to those
segments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import polars as pl

from pipelines import segments
from pipelines.contracts import Arrived, Refusal, Window
from pipelines.data import records
from pipelines.data.compaction import FIXED, SOMETIMES, TIME, compact, folder_of, known, rows_in
from pipelines.data.records import MEND, SPREAD
from pipelines.errors import IntegrityError
from pipelines.segments import COMPACTED, KINDS, Kind, Segments
from pipelines.settings import Settings
from pipelines.storage import digest

__all__ = [
    "KINDS",
    "RETRY_MARGIN",
    "Each",
    "Kind",
    "Segments",
    "arrived",
    "best",
    "catch_up",
    "compact",
    "compacted",
    "count",
    "days",
    "fate",
    "fingerprint",
    "first_day",
    "first_row",
    "in_order",
    "label_files",
    "label_lines",
    "lines",
    "near",
    "partitions",
    "read_days",
    "read_label_lines",
    "read_labels",
    "read_predictions",
    "window_of",
]

RETRY_MARGIN = timedelta(days=1)
"""How far apart a request and its retries may lie in event time and still be found to be one row."""

Each = Callable[[pl.LazyFrame], pl.LazyFrame]
_BATCH = 200
"""Files opened at once."""
log = logging.getLogger(__name__)


def catch_up(settings: Settings, case: str, window: Window) -> int:
    """Have open segments closed and compact what is closed.

    Returns how many rows of ``window`` cannot be read all the same: they lie in segments that are open still, after
    ``log_close_seconds`` of waiting for the gateway.
    """
    folders = [settings.prediction_log / case / kind for kind in COMPACTED]
    still = segments.close(folders, settings.log_request(case), settings.log_close_seconds)
    held = {path: rows_in(path, window) for path in still if path.parent.name == "predictions"}
    compact(settings, case)
    left = [path for path in held if path.exists()]
    if len(left) < len(still):
        compact(settings, case)  # some were closed meanwhile
    unread = sum(held[path] for path in left)
    if still:
        log.warning("%s: %d open segment(s) were not closed within %g s", case, len(still), settings.log_close_seconds)
    return unread


def compacted(settings: Settings, case: str) -> dict[str, list[str]]:
    """The segments of each kind that were compacted whole."""
    return {kind: sorted(known(settings, case, kind).segments) for kind in KINDS}


# --- reading ------------------------------------------------------------------------------------


def first_day(settings: Settings, case: str) -> date | None:
    """The oldest day with logged predictions, or None if there are none."""
    return next(iter(_days(settings, case)), None)


def _days(settings: Settings, case: str) -> list[date]:
    folder = folder_of(settings, case, "predictions")
    told = known(settings, case, "predictions")
    own = {path.name.removeprefix("date=") for path in folder.glob("date=*")} | (told.days.keys() - {SPREAD})
    return sorted(map(date.fromisoformat, own.union(*told.spread.values())))


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
    """The compacted files that :func:`read_predictions` of ``window`` reads.

    They are those of its days, and of the days beside it, where a retry may lie.
    """
    return _files(settings, case, "predictions", window.start - RETRY_MARGIN, window.end + RETRY_MARGIN)


def fingerprint(settings: Settings, case: str, window: Window) -> str:
    """A hash that changes whenever a compacted file is added that :func:`read_predictions` of ``window`` reads."""
    folder = settings.lake_dir / case / "predictions"
    return digest([str(file.relative_to(folder)) for file in near(settings, case, window)])


def read_predictions(
    settings: Settings,
    case: str,
    window: Window,
    *,
    marks: Mapping[str, Segments] | None = None,
    each: Each = lambda scan: scan,
) -> pl.DataFrame:
    """Logged rows with event time in ``window``, sorted by event_time and id: one row per prediction.

    Columns: ``id, event_time``, the features as logged (text or float64), ``version`` (int64), ``score``
    (float64), ``prediction``, ``request_id``, ``received_at``, and with classes ``scores`` (a list of float64);
    ``traceparent`` where any request had one. Empty with the fixed columns only if there is none. Each of ``marks``
    adds a column of its name: whether any of a row's lines stands in those segments. ``each`` changes what a file holds
    before files are put together.
    """
    named = _named("predictions", marks)
    frame = _read(settings, case, "predictions", near(settings, case, window), each, named)
    return _first_answers(frame.with_columns(pl.col(name).any().over("id") for name in named), window, list(named))


def lines(settings: Settings, case: str, kind: Kind, files: Sequence[Path], each: Each) -> pl.DataFrame:
    """The lines of compacted files as they are, every one; ``each`` changes what a file holds before."""
    return _read(settings, case, kind, files, each)


def read_days(settings: Settings, case: str, wanted: Sequence[date], each: Each) -> Iterator[tuple[date, pl.DataFrame]]:
    """Of each day what :func:`read_predictions` gives.

    ``wanted`` ascends, and all files from its first day to its last are read once. ``each`` changes what a file holds
    before files are put together: types then do not hang on what lies beside them.
    """
    span = Window(start=window_of(wanted[0]).start, end=window_of(wanted[-1]).end)
    rows = _read(settings, case, "predictions", near(settings, case, span), each)
    of = rows["event_time"].dt.date()
    for day in wanted:
        window = window_of(day)
        first = (window.start - RETRY_MARGIN).date()
        last = (window.end + RETRY_MARGIN).date()
        yield day, _first_answers(rows.filter((of >= first) & (of <= last)), window)


def _first_answers(frame: pl.DataFrame, window: Window, marks: Sequence[str] = ()) -> pl.DataFrame:
    told = [name for name in SOMETIMES if name in frame.columns]
    features = [name for name in frame.columns if name not in {*FIXED["predictions"], *told, *marks}]
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
            *told,
            *marks,
        )
    )


def read_labels(settings: Settings, case: str, arrived_by: datetime, *, since: datetime | None = None) -> pl.DataFrame:
    """The label of each prediction as known at ``arrived_by`` (inclusive), sorted by id.

    Columns: ``id, label, label_time, revision``. ``since`` leaves out labels that arrived before: a row's label
    does not arrive before the row.
    """
    return best(read_label_lines(settings, case, arrived_by, since=since))


def best(found: pl.DataFrame) -> pl.DataFrame:
    """The line of each id that counts, of lines in the order of :func:`read_label_lines`, sorted by id."""
    return (
        found.unique("id", keep="first", maintain_order=True).sort("id").select("id", "label", "label_time", "revision")
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
    """Every label line that had arrived by ``arrived_by``, the one that counts first.

    Columns: ``id, label, label_time, revision``. ``within`` holds the reader to some segments. Each of ``marks`` adds a
    column of its name: whether a line stands in those.
    """
    files = label_files(settings, case, arrived_by, since=since)
    named = _named("labels", marks)
    if within is not None:
        files = list(filter(_stands_in("labels", within), files))
    found = _read(settings, case, "labels", files, _arrived(arrived_by, since), named)
    return in_order(found).select("id", "label", "label_time", "revision", *named)


def label_files(settings: Settings, case: str, arrived_by: datetime, *, since: datetime | None = None) -> list[Path]:
    """The compacted files that :func:`read_label_lines` reads."""
    return _files(settings, case, "labels", since, arrived_by)


def label_lines(
    settings: Settings, case: str, files: Sequence[Path], arrived_by: datetime, *, since: datetime | None = None
) -> pl.DataFrame:
    """What :func:`read_label_lines` takes of some files, as it lies: :func:`in_order` takes all lines of an id."""
    return _read(settings, case, "labels", files, _arrived(arrived_by, since))


def _arrived(arrived_by: datetime, since: datetime | None) -> Each:
    asked = pl.col("label_time") <= arrived_by
    if since is not None:  # a file may hold rows of other days too
        asked &= pl.col("label_time").dt.date() >= since.date()
    return lambda scan: scan.filter(asked)


def in_order(found: pl.DataFrame) -> pl.DataFrame:
    """Label lines, of each id the one that counts first."""
    # Releases of before took any revision: one above the time of its receipt counts as that time, so that it can be
    # corrected.
    return found.with_columns(pl.min_horizontal("revision", pl.col("received_at").dt.epoch("s"))).sort(
        ["revision", "label_time", "received_at", "label"], descending=[True, False, False, False]
    )


def arrived(settings: Settings, case: str, window: Window) -> Arrived:
    """The rows that came in ``window``: answered and refused ones by hour.

    Where none was refused those that were answered are not counted, either.
    """
    refused = _read(settings, case, "refusals", _files(settings, case, "refusals", window.start, window.end))
    keys = ["hour", "arm", "version", "field", "reason"]
    counts = refused.filter(_within("hour", window)).group_by(keys).agg(pl.col("rows").sum()).sort(keys)
    if counts.is_empty():
        return Arrived()
    files = _files(settings, case, "predictions", window.start, window.end)
    times = _read(settings, case, "predictions", files, lambda scan: scan.select("id", "event_time"))
    rows = times.filter(_within("event_time", window)).unique("id", keep="first", maintain_order=True)
    hours = rows.group_by(pl.col("event_time").dt.truncate("1h")).len().sort("event_time")
    return Arrived(answered=dict(hours.iter_rows()), refused=tuple(Refusal(**row) for row in counts.to_dicts()))


def _within(time: str, window: Window) -> pl.Expr:
    return (pl.col(time) >= window.start) & (pl.col(time) < window.end)


def fate(settings: Settings, case: str) -> dict[str, dict[str, int]]:
    """What became of all lines of the segments that are done, by kind: ``rows``, ``torn`` and ``malformed``."""
    found: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        every = known(settings, case, kind).segments.values()
        found[kind] = {name: sum(getattr(done, name) for done in every) for name in ("rows", "torn", "malformed")}
    return found


def count(settings: Settings, case: str, kind: Kind, start: datetime, end: datetime) -> int:
    """Lines that :func:`read_predictions` of ``[start, end)`` chooses from, or :func:`read_labels` since ``start``."""
    files = _files(settings, case, kind, start, end)
    time = TIME[kind]
    moment = pl.col(time)
    if kind == "predictions":
        counted = (moment >= start) & (moment < end)
    else:
        counted = (moment.dt.date() >= start.date()) & (moment <= end)
    if not files:
        return 0
    found = _read(settings, case, kind, files, lambda scan: scan.filter(counted).select(lines=pl.len()))
    return int(found["lines"].sum())


Stands = Callable[[Path], bool]
"""Whether a compacted file is of certain segments."""


def _stands_in(kind: Kind, names: Segments) -> Stands:
    holds = segments.among(names[kind])
    return lambda file: holds(file.stem)


def _named(kind: Kind, marks: Mapping[str, Segments] | None) -> dict[str, Stands]:
    return {name: _stands_in(kind, own) for name, own in (marks or {}).items()}


def _files(settings: Settings, case: str, kind: Kind, start: datetime | None, end: datetime) -> list[Path]:
    low = ""
    if start is not None:
        low = str(start.date())
    high = str(end.date())
    there = {path.name.removeprefix("date=") for path in folder_of(settings, case, kind).glob("date=*")}
    days = sorted(day for day in there | known(settings, case, kind).days.keys() if low <= day <= high)
    return _on(settings, case, kind, days)


def _on(settings: Settings, case: str, kind: Kind, days: Iterable[date | str]) -> list[Path]:
    """The files of some days, each checked against what was compacted."""
    folder = folder_of(settings, case, kind)
    names = [str(day) for day in days]
    files = [file for day in names for file in (folder / f"date={day}").glob("hour=*/*.parquet")]
    return records.checked(folder, files, names)


def _read(
    settings: Settings,
    case: str,
    kind: Kind,
    files: Sequence[Path],
    each: Each = lambda scan: scan,
    marks: Mapping[str, Stands] | None = None,
) -> pl.DataFrame:
    """The lines of ``files``, with a column for each of ``marks``."""
    told = marks or {}
    empty = pl.DataFrame(schema=FIXED[kind] | dict.fromkeys(told, pl.Boolean))
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
            f"a partition in {settings.lake_dir / case / kind} cannot be read ({error}): {MEND}"
        ) from error
    return pl.concat([empty, *batches], how="diagonal_relaxed")
