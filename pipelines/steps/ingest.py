"""ingest: bring the rows that this run may need into immutable day partitions.

Before a case's first champion rows come from its source; afterwards the loop is closed: only rows that
went through the gateway, with the labels that have arrived by as_of, and the source is not even opened
(unless the case declares ``training_rows: source``). A case whose declared source is the log has no other rows.

A large window of a declared source may be read in parts: :func:`days` names stretches of it, :func:`part` takes one in,
and the step reads what no part has. The rows are the same; a part counts once, for the step that follows it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, objects, storage
from pipelines.cases import load_fields
from pipelines.cases import part as part_of
from pipelines.cases.code import code_sha256
from pipelines.cases.delivery import Origin, from_source, none_usable, whole
from pipelines.cases.receiving import Received, count_reasons, receive
from pipelines.contracts import Manifest, Window
from pipelines.data import dataset, lake, served, stretches
from pipelines.data import log as prediction_log
from pipelines.errors import DataError, PerennialError, TooFewRows
from pipelines.fields import AS_DELIVERED, Fields
from pipelines.files import make_folder, write_atomic
from pipelines.installation import PROGRAM
from pipelines.line.facts import IngestFacts
from pipelines.line.order import INGEST
from pipelines.line.step import Read, Run, Work

QUARANTINE = "quarantine.parquet"
"""The rows that could not be read as rows, with their reasons, in the step's folder."""


PARTS = "ingest_parts"
"""Beside the step's folder: what was taken in ahead of it by tasks of their own."""
PLAN = "plan.json"
"""In there: which stretches there are, and what was found of the source when they were cut."""

_UNDATED = "undated"
log = logging.getLogger(__name__)


def work(run: Run, _read: Read) -> Work:
    """Write the partitions; the key is made of the hashes of partitions and refused rows.

    So late data gives a new key, and a second run without new data is a no-op. The facts say what became of every
    row that was delivered (:class:`pipelines.cases.receiving.Received`); refused ones lie in ``quarantine.parquet``.
    Raises TooFewRows if there is not a single row yet, DataError if there are some and none of them can be used.
    """
    params, as_of = run.params, run.as_of
    fields = load_fields(run.case)
    first_run = _is_first(run)
    made: list[_Part] = []
    if _opens_source(run):
        origin = _from_source(run, fields)
        made = _made_ahead(run, origin)
    else:
        origin = _from_log(run, fields)

    taken = _take(run, fields, origin, made)
    refused = dataset.known_at(taken.apart.refused, fields.label, as_of)
    if not taken.rows:
        _forget_parts(run)
        raise _nothing(run, origin.name, taken.apart)
    if params.learns_from_log_alone and first_run and taken.labelled < params.dataset.first_rows:
        raise _too_few(run, taken.rows, taken.labelled)
    window = dataset.training_window(as_of, params.dataset)
    declared: dict[str, Any] = {
        "origin": origin.name,
        "window": window,
        "partitions": [[p["date"], p["sha256"]] for p in taken.partitions],
    }
    if refused.height:
        declared["refused"] = lake.content_sha256(refused)

    def build(folder: Path, _key: str) -> IngestFacts:
        if refused.height:
            refused.write_parquet(folder / QUARANTINE, compression="zstd")
        return IngestFacts(
            origin=origin.name,
            window=window,
            rows=taken.rows,
            labelled=taken.labelled,
            counts=taken.apart.counts | {"rows": taken.rows},
            reasons=count_reasons(refused),
            partitions=taken.partitions,
            source=origin.about,
            **taken.apart.beside,
        )

    return Work(build, declared, runs_case=origin.name == "source", follow=lambda _manifest: _forget_parts(run))


def _is_first(run: Run) -> bool:
    return ledger.champion_before(run.settings.ledger, run.case, run.as_of) is None


def _opens_source(run: Run) -> bool:
    params = run.params
    return not params.learns_from_log_alone and (_is_first(run) or params.training_rows == "source")


@dataclass(frozen=True)
class _Days:
    """Some whole days as they were taken: ``labelled`` rows by day, and what did not become rows (``apart``).

    ``undated`` are rows without a day that were seen beside them and are counted with the newest days.
    """

    labelled: dict[date, int]
    partitions: list[dict[str, Any]]
    apart: Received
    undated: tuple[str, ...] = ()

    def since(self, first: datetime | None) -> _Days:
        """Without the days before ``first``: they are counted as outside of the window."""
        kept = [one for one in self.partitions if first is None or one["date"] >= str(first.date())]
        left_out = sum(one["rows"] for one in self.partitions) - sum(one["rows"] for one in kept)
        apart = replace(self.apart, outside_window=self.apart.outside_window + left_out)
        return replace(self, partitions=kept, apart=apart)


@dataclass(frozen=True)
class _Part:
    """What was taken ahead of the step: all days of a ``stretch``."""

    stretch: Window
    days: _Days


@dataclass(frozen=True)
class _Taken:
    """What a run takes of a delivery: ``rows`` of whole days in ``partitions``, and what is ``apart`` from them."""

    rows: int
    labelled: int
    partitions: list[dict[str, Any]]
    apart: Received


def _take(run: Run, fields: Fields, origin: Origin, made: Sequence[_Part] = ()) -> _Taken:
    """Write whole event days up to ``as_of``, but for those that are ``made``.

    At least the window's, and no more than it takes to reach the first needed one. Days are written as they come, so
    that only some of them are held. A day that is read and not needed is not written.
    """
    params, as_of = run.params.dataset, run.as_of
    ahead = {one.stretch: one.days for one in made}
    for start in _starts(run, origin.earliest):
        found: list[_Days] = []
        labelled: Counter[date] = Counter()
        first = None
        for span in stretches.spans(Window(start=start, end=as_of), ahead):
            for days in [ahead[span]] if span in ahead else _pieces(run, origin, span):
                own = days.labelled if isinstance(days, _Days) else _labelled(days, fields, as_of)
                labelled.update(own)
                first = dataset.first_needed_day(labelled, as_of, params)
                found.append(days.since(first) if isinstance(days, _Days) else _write(run, fields, days, first, own))
                del days  # nothing of these days is held while the next ones are read
        if first is not None or start <= origin.earliest:
            break
    if not _all_counted(found):
        log.warning(
            "%s: some rows without a day are seen with the days around them alone: all is read at once", run.case
        )
        return _take(run, fields, origin)
    kept = [day for day in labelled if first is None or day >= first.date()]
    partitions = [partition for days in found for partition in days.partitions]
    return _Taken(
        rows=sum(partition["rows"] for partition in partitions),
        labelled=sum(labelled[day] for day in kept),
        partitions=sorted(partitions, key=lambda partition: str(partition["date"])),
        apart=whole([days.apart for days in found]),
    )


def _all_counted(found: Sequence[_Days]) -> bool:
    """Whether each row without a day was seen with the newest days.

    A database compares a text that is no time with the days asked for, and a local time that never was lies among them.
    """
    seen = {row for days in found for row in days.undated}
    return not seen or seen <= {row for days in found for row in _hashes(days.apart.refused)}


def _hashes(refused: pl.DataFrame) -> set[str]:
    """What refused rows are known by: each has what was delivered."""
    return {storage.digest(text)[:16] for text in refused[AS_DELIVERED]}


def _starts(run: Run, earliest: datetime) -> Iterator[datetime]:
    """Where a window begins that looks back further and further; of a case that needs all, where it has all."""
    params, days = run.params.dataset, run.params.dataset.window_days
    to_the_beginning = params.replay_share > 0 or params.history_rows > 0
    while True:
        start = datetime.combine((run.as_of - timedelta(days=days)).date(), time(0), UTC)
        if start <= earliest or not to_the_beginning:
            yield start
        days *= 4


def _pieces(run: Run, origin: Origin, span: Window) -> Iterator[Received]:
    """What comes of a span; rows that have no day come with the newest one, and count with no other."""
    for piece in origin.parts(span):
        if span.end < run.as_of and piece.times is None:
            undated = tuple(sorted(_hashes(piece.refused)))
            yield replace(piece, refused=piece.refused.clear(), delivered=0, repeats=0, beside={_UNDATED: undated})
        else:
            yield piece


def _labelled(received: Received, fields: Fields, as_of: datetime) -> dict[date, int]:
    return dataset.labelled_on(dataset.known_at(received.rows, fields.label, as_of), fields.label)


def _write(run: Run, fields: Fields, received: Received, first: datetime | None, labelled: dict[date, int]) -> _Days:
    needed = received if first is None else received.since(first)
    partitions = lake.write_days(run.settings, run.case, dataset.known_at(needed.rows, fields.label, run.as_of))
    beside = {name: value for name, value in needed.beside.items() if name != _UNDATED}
    apart = replace(needed, rows=needed.rows.clear(), beside=beside)
    return _Days(labelled, partitions, apart, needed.beside.get(_UNDATED, ()))


# --- in parts -----------------------------------------------------------------------------------


def days(run: Run) -> list[str]:
    """The parts of a large window: stretches of ``dataset.mapped_days`` days. None where the log is read.

    Parts of before are forgotten: the source is looked at anew. Of a table of versions all parts read the one that is
    found here.
    """
    _forget_parts(run)
    params = run.params.dataset
    if params.mapped_days is None or not _opens_source(run):
        return []
    origin = _from_source(run, load_fields(run.case))
    start = next(_starts(run, origin.earliest))
    since = max(start, datetime.combine(origin.earliest.astimezone(UTC).date(), time(0), UTC))
    found = stretches.cut(Window(start=since, end=run.as_of), params.mapped_days)
    # What lies before the case's period is counted with its oldest days.
    found[:1] = [Window(start=start, end=oldest.end) for oldest in found[:1]]
    names = [stretches.name(stretch) for stretch in found]
    plan = {"stretches": names, "source": origin.about}
    make_folder(run.dir / PARTS)
    data = storage.canonical_json(plan).encode()
    objects.replace(run.dir / PARTS / PLAN, data)
    write_atomic(run.dir / PARTS / PLAN, data)
    return names


def part(run: Run, day: str) -> Manifest:
    """Take in one stretch ahead of the step, as ``ingest_parts/<day>`` in the run's folder.

    Many can be made at once, on any machine that sees the lake and the source.
    """
    fields, stretch = load_fields(run.case), stretches.named(day, run.as_of)
    origin = _from_source(run, fields)

    def build(folder: Path) -> Mapping[str, Any]:
        found = [
            _write(run, fields, piece, None, _labelled(piece, fields, run.as_of))
            for piece in _pieces(run, origin, stretch)
        ]
        labelled: Counter[date] = Counter()
        for days in found:
            labelled.update(days.labelled)
        apart = whole([days.apart for days in found])
        apart.refused.write_parquet(folder / QUARANTINE, compression="zstd")
        return {
            "partitions": [partition for days in found for partition in days.partitions],
            "labelled": {str(day): count for day, count in labelled.items()},
            "times": apart.times,
            "undated": [row for days in found for row in days.undated],
            "counts": apart.counts | {"rows": sum(one["rows"] for days in found for one in days.partitions)},
        }

    folder, key = run.dir / PARTS / day, _part_key(run, origin, day)
    return storage.commit(folder, case=run.case, as_of=run.as_of, key=key, inputs={}, build=build)


def _part_key(run: Run, origin: Origin, day: str) -> str:
    """What a part hangs on; where a source lies on the machine that read it is no matter."""
    declared = {
        "day": day,
        "as_of": run.as_of,
        "source": {name: value for name, value in origin.about.items() if name != "why"},
        "params": run.params,
        "code": code_sha256(run.case),
    }
    return storage.step_key(PARTS, INGEST.version, {}, declared)


def _made_ahead(run: Run, origin: Origin) -> list[_Part]:
    """The parts that are there whole, of this source as it is now; what the others lack is read by the step."""
    if run.params.dataset.mapped_days is None:
        return []
    return [made for name in _plan(run).get("stretches", []) if (made := _made(run, origin, name)) is not None]


def _made(run: Run, origin: Origin, name: str) -> _Part | None:
    folder = run.dir / PARTS / name
    objects.refresh(folder)
    if not folder.exists():
        log.warning("%s: no task has taken in %s: the step reads it", run.case, name)
        return None
    try:
        made = storage.read_manifest(folder)
    except PerennialError as error:
        log.warning("%s: what was taken in of %s is damaged, the step reads it again: %s", run.case, name, error)
        return None
    facts = made.facts
    if made.key != _part_key(run, origin, name):
        log.warning("%s: the source has changed since %s was taken in: the step reads it again", run.case, name)
        return None
    paths = [run.settings.root / partition["path"] for partition in facts["partitions"]]
    objects.need(*paths)
    if not all(path.exists() for path in paths):
        log.warning("%s: a partition of %s is gone: the step reads it again", run.case, name)
        return None
    counts = {name: count for name, count in facts["counts"].items() if name not in {"rows", "refused"}}
    times = None
    if facts["times"] is not None:
        first, last = map(datetime.fromisoformat, facts["times"])
        times = first, last
    apart = Received(pl.DataFrame(), pl.read_parquet(folder / QUARANTINE), times=times, **counts)
    labelled = {date.fromisoformat(day): count for day, count in facts["labelled"].items()}
    return _Part(stretches.named(name, run.as_of), _Days(labelled, facts["partitions"], apart, tuple(facts["undated"])))


def _plan(run: Run) -> dict[str, Any]:
    objects.latest(run.dir / PARTS / PLAN)
    try:
        found: dict[str, Any] = json.loads((run.dir / PARTS / PLAN).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _forget_parts(run: Run) -> None:
    """Parts count once: whoever reads rows again reads the source again, and finds what has come since."""
    objects.forget_folder(run.dir / PARTS)
    shutil.rmtree(run.dir / PARTS, ignore_errors=True)


# --- where rows come from -----------------------------------------------------------------------


def _from_source(run: Run, fields: Fields) -> Origin:
    """The case's source; of a table of versions the one that the parts of this run have read."""
    params = run.params
    name = {"delta": "version", "iceberg": "snapshot"}.get(str(params.source.get("kind")))
    if name is not None and params.dataset.mapped_days is not None:
        before = _plan(run).get("source", {}).get(name)
        if before is not None:
            params = params.model_copy(update={"source": {**params.source, name: int(before)}})
    return from_source(part_of(run.case, "source"), fields, params, run.settings)


def _from_log(run: Run, fields: Fields) -> Origin:
    """The prediction log, compacted first."""
    prediction_log.catch_up(run.settings, run.case, dataset.training_window(run.as_of, run.params.dataset))
    outputs = {"version": pl.Int64(), "score": pl.Float64()}

    def parts(window: Window) -> Iterator[Received]:
        for found in served.read(run.settings, fields, window, run.as_of):
            received = receive(found.rows, fields, window, run.params, within_period=False, extra=outputs)
            yield replace(
                received,
                delivered=received.delivered + found.repeats,
                repeats=received.repeats + found.repeats,
                beside={"log": found.fate},
            )

    earliest = served.first_moment(run.settings, run.case) or run.as_of
    why = "the case has a champion: only what was served is learned from"
    if run.params.learns_from_log_alone:
        why = "the case declares it: source.kind is log"
    return Origin("log", parts, earliest, {"name": "prediction log", "kind": "log", "why": why})


def _nothing(run: Run, origin: str, received: Received) -> DataError:
    """Why there is no row: none has come yet, which is no fault, or those that came cannot be used, which is one."""
    kept = None
    if received.refused.height:
        name = f"{run.settings.run_dir(run.case, run.as_of).name}-{lake.content_sha256(received.refused)[:12]}"
        kept = lake.set_aside(run.settings, run.case, name, received.refused)
    why = none_usable(received, run.params, origin, kept)
    if why is None and run.params.learns_from_log_alone:
        why = _too_few(run, 0, 0)
    return why or TooFewRows(
        f"{run.case}: the {origin} has no rows before {run.as_of.isoformat()}: choose a later as_of, or check that "
        "rows arrive"
    )


def _too_few(run: Run, rows: int, labelled: int) -> TooFewRows:
    """What a first training lacks where rows come from the log alone: its gate could not say anything of fewer."""
    needed = run.params.dataset.first_rows
    return TooFewRows(
        f"{run.case}: {rows} rows were logged before {run.as_of.isoformat()}, {labelled} of them have a label that has "
        f"arrived, and source.kind log has no others: a first training needs {needed} (dataset.min_holdout by "
        "holdout_share). Wait for rows and labels. The gateway logs rows once there is a champion; until then "
        f"`{PROGRAM} import {run.case} --from ...` takes in those of what answers today, or declare a source with a "
        "history (docs/cases.md)"
    )
