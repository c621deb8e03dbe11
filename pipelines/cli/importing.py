"""import: rows that were answered elsewhere, and their labels, become rows of the prediction log.

A case whose source is the log has no first rows: the gateway logs what a champion answers. They come in here, by the
same checks as all rows, and lie in the log as the gateway's own do.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from pipelines import ledger, segments
from pipelines.cases import declared_files, kept_target, load_fields
from pipelines.cases.columns import Asked, together
from pipelines.cases.receiving import Received, receive
from pipelines.cli import looking
from pipelines.contracts import ELSEWHERE, ID_PATTERN, LabelLine, PredictionLine, Window
from pipelines.data import contract, lake
from pipelines.data import log as prediction_log
from pipelines.errors import ConfigError, ConflictError, DataError
from pipelines.faults import said
from pipelines.fields import EARLIEST, LATEST, SCORES, Fields, row_sent
from pipelines.files import make_folder
from pipelines.locks import alone
from pipelines.params import EventTimes, FilesSource, Params
from pipelines.provenance import wall_time
from pipelines.settings import Settings
from pipelines.storage import canonical_json

SEGMENT_ROWS = 100_000
"""Lines of one segment: a compaction holds one."""
SCORE = "score"


@dataclass(frozen=True)
class Given:
    """What somebody says of a file of rows: where it is, and what it calls our columns."""

    address: str
    form: str | None = None
    columns: tuple[tuple[str, str | None], ...] = ()
    """The file's names by ours, of ``id``, ``event_time``, ``label_time``, the label and fields."""
    score: str | None = None
    zone: str | None = None
    unit: str | None = None
    label_values: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answered(Asked):
    """A case's columns, with the score that somebody else gave, and without a label where the file has none."""

    score: str | None = None
    labelled: bool = True

    @property
    def names(self) -> dict[str, str]:
        """The file's names by ours."""
        found = super().names
        if not self.labelled:
            del found[self.fields.label]
        return found | ({SCORE: self.score} if self.score else {})

    @property
    def text_types(self) -> dict[str, pl.DataType]:
        """How a file of texts is read; the probabilities of classes are a list."""
        found = super().text_types
        return found | ({self.score: pl.List(pl.Float64())} if self.score and self.fields.classes else {})


def pairs(given: Iterable[str], fields: Fields) -> dict[str, str]:
    """``NAME=COLUMN`` by name. Raises ConfigError for one that is none, or names no field."""
    found = {}
    for text in given:
        own, mark, theirs = text.partition("=")
        if not mark or not theirs or own not in fields.names:
            raise ConfigError(f"--column {text}: write FIELD=COLUMN, of the fields {', '.join(fields.names)}")
        found[own] = theirs
    return found


def take(params: Params, settings: Settings, given: Given) -> dict[str, Any]:
    """Put the rows of a file, and their labels, into the log. Returns what became of each.

    Rows whose ids the log has are left out, so the same file twice adds nothing, and a label that the log has is not
    replaced. What is refused is kept beside the lake. Raises ConfigError if the case does not learn from its log alone
    or the file cannot be used, DataError if none of its rows can be, ConflictError while another import of the case
    runs or if it is retired. Then the log is as it was.
    """
    if not params.learns_from_log_alone:
        raise ConfigError(
            f"{params.case}: its rows come from its own source; an import is for a case whose params.yaml says "
            "source: {kind: log}"
        )
    ledger.require_in_service(settings.ledger, params.case)
    fields = load_fields(params.case)
    now = wall_time()
    kept_target.require(fields, given.label_values, settings)
    rows, refused, received = _read(params, fields, settings, given, now)
    kept = None
    if refused.height:
        name = f"import-{lake.content_sha256(refused)[:12]}"
        kept = lake.set_aside(settings, params.case, name, refused)
    reasons = dict(Counter(contract.count_reasons(refused)).most_common()) if refused.height else {}
    if not rows.height and refused.height:
        why = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
        raise DataError(f"{params.case}: none of {received.delivered:,} rows can be used: {why}; they are in {kept}")

    def refusal(pid: str) -> ConflictError:
        return ConflictError(f"{params.case}: another import (process {pid}) runs: wait for it, then run this again")

    folder = settings.prediction_log / params.case
    make_folder(folder)
    with alone(folder / ".import.lock", refusal):
        fresh, labels, differ = _new(rows, fields, settings)
        kept_target.keep_in_lake(fields, given.label_values, settings, rows_follow=True)
        written = _write(settings, fields, fresh, labels, now)
        prediction_log.compact(settings, params.case)
    known = rows.drop_nulls(fields.label).height
    return {
        "case": params.case,
        "rows": {
            "delivered": received.delivered,
            "added": fresh.height,
            "already_there": rows.height - fresh.height,
            "refused": refused.height,
            "repeats": received.repeats,
        },
        "labels": {"added": labels.height, "already_there": known - labels.height - differ, "differing": differ},
        "answered": fresh[SCORE].count() if SCORE in fresh.columns else 0,
        "reasons": reasons,
        "refused_rows": None if kept is None else str(kept),
        "from": None if not rows.height else rows["event_time"].min().isoformat(),  # type: ignore[union-attr]
        "until": None if not rows.height else rows["event_time"].max().isoformat(),  # type: ignore[union-attr]
        "segments": [path.name for path in written],
        "first_training_needs": params.dataset.first_rows,
    }


# --- reading ------------------------------------------------------------------------------------


def _read(
    params: Params, fields: Fields, settings: Settings, given: Given, now: datetime
) -> tuple[pl.DataFrame, pl.DataFrame, Received]:
    """Rows that can be logged, those that cannot with ``reasons``, and the delivery that they are of."""
    options = {"columns": dict(given.columns), "time_zone": given.zone, "time_unit": given.unit}
    block, source = looking.files_at(
        given.address, given.form, settings, params.case, **options, label_values=list(given.label_values)
    )
    declared = FilesSource.model_validate_json(json.dumps(block))
    window = Window(start=EARLIEST, end=LATEST)
    there = _columns(source, declared, params.case)
    named = dict(given.columns).get(fields.label)
    asked = _Answered(fields, declared, window, given.score, labelled=named is not None or fields.label in there)
    try:
        frame = together(declared_files.pieces(source, asked))
    except DataError as error:
        raise DataError(_as_options(str(error))) from error
    if fields.classes and given.score and not isinstance(frame.schema[SCORE], pl.List | pl.Array | pl.Null):
        raise DataError(
            f"{params.case}: {given.score} holds {frame.schema[SCORE]}: with classes a score is a list of the "
            f"probabilities of all {len(fields.classes)} in their declared order (Parquet or JSON)"
        )
    extra: dict[str, Any] = {}
    if given.score:
        extra[SCORE] = pl.List(pl.Float64()) if fields.classes else pl.Float64()
    received = receive(frame, fields, window, params, within_period=False, extra=extra)
    rows = received.rows
    if "label_time" not in frame.columns:  # a label that is here has arrived, whatever the usual delay
        arrived = pl.min_horizontal("label_time", pl.lit(now).cast(rows.schema["label_time"]))
        rows = rows.with_columns(label_time=pl.max_horizontal("event_time", arrived))
    good, bad = contract.split(rows, fields)
    good, wrong = _apart(good, fields, params.times, now)
    refused = pl.concat([received.refused, bad, wrong], how="diagonal_relaxed")
    return good, refused, received


def _columns(source: declared_files.Files, declared: FilesSource, case: str) -> set[str]:
    try:
        return set(declared_files.whole(source, declared, case).collect_schema().names())
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{source.name} cannot be read ({said(error)}): mend it, or save it anew") from error


def _as_options(words: str) -> str:
    """What a declared source asks for, in the words of this command."""
    for declaration, option in (
        ("declare it as source.time_zone in params.yaml", "say it by --zone"),
        ("declare it as source.time_unit in params.yaml", "say it by --unit"),
        ("name them in source.columns of params.yaml", "name them by --id, --time, --label or --column NAME=COLUMN"),
        (
            "; {id: null} there says that rows have no id, and one is made of what they hold",
            "; --id - makes one of the row",
        ),
        ("declare what it can be as source.label_values in params.yaml", "say what it can be by --label-values"),
        ("declare all of them as source.label_values", "give all of them by --label-values"),
        ("in source.columns", "by --time, --label-time or --column"),
    ):
        words = words.replace(declaration, option)
    return words


def _apart(rows: pl.DataFrame, fields: Fields, times: EventTimes, now: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows as the gateway would take them, and those that it would refuse, with ``reasons``."""
    reasons = {
        "id: must be 1 to 128 letters, digits or . _ : / @ + = -": ~rows["id"].str.contains(ID_PATTERN),
        **{
            f"{name}: {text}": wrong
            for name in ("event_time", "label_time")
            for text, wrong in _impossible(rows, name, fields, times, now).items()
        },
    }
    if SCORE in rows.columns:
        reasons["score: not what a model answers"] = _no_score(rows[SCORE], fields)
    marked = [pl.when(pl.lit(wrong.fill_null(value=False))).then(pl.lit(reason)) for reason, wrong in reasons.items()]
    found = rows.with_columns(reasons=pl.concat_str(marked, separator="; ", ignore_nulls=True).replace("", None))
    return (
        found.filter(pl.col("reasons").is_null()).drop("reasons"),
        found.filter(pl.col("reasons").is_not_null()),
    )


def _impossible(
    rows: pl.DataFrame, name: str, fields: Fields, times: EventTimes, now: datetime
) -> dict[str, pl.Series]:
    """Which times cannot be of rows that are received now, by what is wrong with them."""
    counts = (
        rows[fields.label].is_not_null() if name == "label_time" else pl.Series([True]).new_from_index(0, rows.height)
    )
    mistakes = [times.mistake(moment, now) if moment is not None else None for moment in rows[name]]
    found = pl.Series(mistakes, dtype=pl.String)
    return {text: (found == text) & counts for text in found.drop_nulls().unique()}


def _no_score(scores: pl.Series, fields: Fields) -> pl.Series:
    if fields.classes:
        right = scores.list.len() == len(fields.classes)
        inside = scores.list.eval(pl.element().is_between(0, 1)).list.all()
        return scores.is_not_null() & ~(right & inside & ((scores.list.sum() - 1).abs() < 0.01)).fill_null(value=False)
    low, high = (0.0, 1.0) if fields.number is None else (fields.number.low, fields.number.high)
    wrong = ~scores.is_finite()
    if low is not None:
        wrong |= scores < low
    if high is not None:
        wrong |= scores > high
    return wrong.fill_null(value=False)


# --- what is new --------------------------------------------------------------------------------


def _new(rows: pl.DataFrame, fields: Fields, settings: Settings) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Rows whose ids the log does not have, labels that it does not have, and how many of others are there."""
    if not rows.height:
        return rows, rows, 0
    window = Window(start=rows["event_time"].min(), end=rows["event_time"].max() + timedelta(microseconds=1))  # type: ignore[operator]
    prediction_log.catch_up(settings, fields.case, window)
    logged = prediction_log.read_predictions(settings, fields.case, window).select("id")
    known = prediction_log.read_labels(settings, fields.case, LATEST, since=window.start).select("id", known="label")
    labels = rows.drop_nulls(fields.label).join(known, on="id", how="left")
    other = labels.filter(pl.col("known").is_not_null() & (pl.col("known") != pl.col(fields.label)))
    fresh = rows.join(logged, on="id", how="anti", maintain_order="left")
    return fresh, labels.filter(pl.col("known").is_null()).drop("known"), other.height


# --- writing ------------------------------------------------------------------------------------


def _write(
    settings: Settings, fields: Fields, rows: pl.DataFrame, labels: pl.DataFrame, now: datetime
) -> Sequence[Any]:
    """Write the segments, labels first: a row that is seen has its label."""
    folder = settings.prediction_log / fields.case
    name = f"import-{now:%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}"

    def parts() -> Iterator[tuple[Any, Iterable[bytes]]]:
        for kind, frame, line in (("labels", labels, _label), ("predictions", rows, _prediction)):
            for number, at in enumerate(range(0, frame.height, SEGMENT_ROWS), start=1):
                part = frame.slice(at, SEGMENT_ROWS).iter_rows(named=True)
                lines = (f"{canonical_json(line(fields, row, name, now))}\n".encode() for row in part)
                yield folder / kind / f"{name}-{number:06d}.jsonl", lines

    return segments.put(parts())


def _prediction(fields: Fields, row: dict[str, Any], name: str, now: datetime) -> PredictionLine:
    score = row.get(SCORE)
    prediction: float | None = None
    if score is not None and fields.number is not None:
        prediction = float(score)
    elif score is not None:
        prediction = int(np.argmax(score)) if fields.classes else int(score >= 0.5)
    line: PredictionLine = {
        "prediction_id": row["id"],
        "request_id": name,
        "event_time": row["event_time"].isoformat(),
        "received_at": now.isoformat(),
        "version": ELSEWHERE,
        "score": None if score is None else float(np.max(score)),
        "prediction": prediction,
        "row": row_sent(fields, row),
    }
    if fields.classes and score is not None:
        line[SCORES] = [float(value) for value in score]  # type: ignore[literal-required]
    return line


def _label(fields: Fields, row: dict[str, Any], _name: str, now: datetime) -> LabelLine:
    return {
        "prediction_id": row["id"],
        "label": row[fields.label],
        "revision": 0,
        "event_time": row["label_time"].isoformat(),
        "received_at": now.isoformat(),
    }


# --- telling ------------------------------------------------------------------------------------


def table(answer: dict[str, Any]) -> Any:
    """What became of the rows, and what a first training needs."""
    from rich.console import Group
    from rich.text import Text

    rows, labels = answer["rows"], answer["labels"]
    lines = [
        Text(
            f"{rows['added']:,} of {rows['delivered']:,} rows were added to the log of {answer['case']}", style="bold"
        ),
        Text(
            f"rows     {rows['already_there']:,} were there, {rows['refused']:,} refused, {rows['repeats']:,} repeats"
        ),
        Text(f"labels   {labels['added']:,} added, {labels['already_there']:,} were there"),
        Text(f"answers  {answer['answered']:,} rows have a score of who answered them"),
    ]
    if labels["differing"]:
        lines.append(
            Text(f"         {labels['differing']:,} differ from those in the log: send corrections with a revision")
        )
    if answer["reasons"]:
        why = ", ".join(f"{reason} ({count:,})" for reason, count in answer["reasons"].items())
        lines += [Text(f"refused  {why}"), Text(f"         {answer['refused_rows']}")]
    if answer["from"]:
        lines.append(Text(f"times    {answer['from']} to {answer['until']}"))
    lines.append(Text(f"A first training needs {answer['first_training_needs']:,} rows whose label has arrived."))
    return Group(*lines)
