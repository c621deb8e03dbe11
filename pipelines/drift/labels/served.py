"""Which part of the prediction log a drift run is about, and what the labels in it say.

Plain functions on frames and names.

A label counts in the first window after it became known, which its stated time cannot say: known is what stands in
the run's segments and is stated no later than the window's end, and new what no earlier run knew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from pipelines import segments
from pipelines.contracts import Window
from pipelines.drift.evidence import LabelEvidence
from pipelines.drift.labels import arrived, performance
from pipelines.drift.past import Judgement, Past, recall
from pipelines.drift.profile.windows import drift_window, last_windows
from pipelines.drift.run import Run
from pipelines.drift_report import Corrections
from pipelines.feature_names import OUTPUTS
from pipelines.fields import SCORES
from pipelines.segments import Segments

WINDOWS = 8
"""Windows whose performance is shown, beside those whose labels cannot have arrived yet."""


@dataclass(frozen=True)
class Reading:
    """What of the log a run looks at: rows with event times in ``span``, with a column for each of ``marks``.

    ``past`` is what the run goes on from. ``marks``: segments by what they are to this run (``now``: known to it;
    ``before``: to the one that it goes on from; ``taken_over``: when counting by segments began; ``learned``: when the
    champion was trained). ``start``: from when on labels are counted. ``windows`` (oldest first, the newest is the
    run's own) are shown, ``marked`` those in the policy's history. ``age``: how old a row is when its label counts.
    Labels up to ``since`` are counted, up to ``taken_over`` by their stated time. ``record``: the segments that no
    earlier run had seen; ``takes_over``: this run is the first one that keeps them.
    """

    past: Past
    span: Window
    marks: Mapping[str, Segments]
    start: datetime
    windows: Sequence[Window]
    marked: Sequence[Window]
    age: timedelta
    since: datetime
    taken_over: datetime | None
    takes_over: bool
    record: dict[str, list[segments.Name]]


@dataclass(frozen=True)
class Served:
    """What the log says of the windows that count, as frames of drift/labels/performance.py.

    ``rows``: what was served in ``windows`` (oldest first, the newest is the run's own), with the labels that are
    known; ``fresh``: the champion's rows whose label counts in this window. For the policy: ``labels``, ``labelled``
    (by window end, the share of rows with a mature label) and ``fresh_labels``. For people only: ``corrections`` of
    labels that were counted before, and ``young``, the champion's labels that count once their rows are old enough.
    """

    rows: pl.DataFrame
    fresh: pl.DataFrame
    windows: Sequence[Window]
    labels: LabelEvidence
    labelled: dict[str, float]
    fresh_labels: int
    corrections: Corrections
    young: int


def plan(run: Run, states: Iterable[Mapping[str, Any]], there: Mapping[str, Sequence[str]]) -> Reading:
    """What to read, where the ledger has ``states`` and the segments of ``there`` are compacted.

    All of these, or those that the run saw when it decided.
    """
    past = recall(states, run.as_of, run.window.end, run.current.rows, run.unread)
    kind, delay = run.params.drift.window, timedelta(days=run.params.label_delay_days)
    base, stands, known = past.policy, past.stands, past.known
    seen = _recorded(known)
    if stands is not None and stands.segments is not None:
        now: Segments = _recorded([*known, stands])
        record = stands.segments
    else:
        now, record = there, segments.beyond(there, seen)
    # Runs of releases that kept no record counted by the stated time, of whatever age the row was. What they left to be
    # known is taken over once: it may lack a label that came late to them, and counts none twice.
    unmarked = base is not None and all(one.segments is None for one in known)
    since = run.champion.as_of if base is None else base.end
    taken = next((one for one in (*known, stands) if one is not None and one.taken_over is not None), None)
    taken_over = since if unmarked else None
    learned = [one for one in known if one.segments is not None and one.as_of <= run.champion.as_of]
    marked = [] if base is None else [drift_window(mark.end, kind) for mark in base.marks]
    # Room for labels that took twice their usual time.
    room = run.champion.as_of - timedelta(days=2 * run.params.label_delay_days + 1)
    start = min([room, run.window.start, *(window.start for window in marked)])
    late = math.ceil(delay / (run.window.end - run.window.start))
    windows = last_windows(run.window, kind, WINDOWS + late)
    return Reading(
        past=past,
        span=Window(start=min(start, windows[0].start), end=run.window.end),
        marks={
            "now": now,
            "before": now if base is None or unmarked else seen,
            "taken_over": now if taken is None else _recorded([taken]),
            "learned": _recorded(learned) if learned else now,
        },
        start=start,
        windows=windows,
        marked=marked,
        age=delay if stands is None or stands.segments is not None else timedelta(0),
        since=since,
        taken_over=taken_over if taken is None else taken.taken_over,
        takes_over=unmarked and stands is None,
        record=record,
    )


def _recorded(judgements: Iterable[Judgement]) -> dict[str, list[segments.Name]]:
    """The segments that the runs of ``judgements`` have seen."""
    own = [one.segments for one in judgements if one.segments is not None]
    return {kind: [name for record in own for name in record[kind]] for kind in segments.KINDS}


def serve(run: Run, reading: Reading, logged: pl.DataFrame, lines: pl.DataFrame) -> Served:
    """What ``logged`` predictions and label ``lines`` say, both read as ``reading`` asks (lines.

    The one of an id that counts first).
    """
    drift, end, age = run.params.drift, run.window.end, reading.age
    extra = [name for name in (SCORES, *run.params.gate.slices) if name in logged.columns]
    everything = logged.select("id", "event_time", "version", *OUTPUTS, *extra, *reading.marks)
    labels = arrived.not_early(arrived.possible(lines, run.target), everything)
    served = everything.filter(pl.col("now") & (pl.col("event_time") >= reading.start))
    counted = arrived.counted(served, labels, reading.since, age, reading.taken_over)
    fresh = arrived.fresh(served, labels, end, age, counted)
    known = arrived.mature(served, labels, end, timedelta(0))
    learned_from = arrived.mature(served, labels.filter("learned"), run.champion.as_of, timedelta(0))
    own = pl.col("version") == run.version
    changed = arrived.corrected(served, labels, end, counted)
    return Served(
        rows=performance.known(everything.drop(*reading.marks), labels, end),
        fresh=fresh.filter(own),
        windows=reading.windows,
        labels=arrived.judge(fresh, run.version, run.reference.baseline, drift, run.target),
        labelled=arrived.coverage(served, labels, [*reading.marked, run.window], end, age),
        fresh_labels=known.join(learned_from.select("id"), on="id", how="anti").height,
        corrections=arrived.corrections(changed, run.version, run.target),
        young=known.filter(own & (pl.col("event_time") > end - age)).height,
    )
