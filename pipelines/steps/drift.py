"""drift: compare the window with what the champion was trained on, step the policy once, and say what to do."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.data import log as prediction_log
from pipelines.drift import judge, reference
from pipelines.drift import report as reports
from pipelines.drift.inputs.refused import alone, refused
from pipelines.drift.judge import Judged
from pipelines.drift.labels.served import plan
from pipelines.drift.past import keep
from pipelines.drift.profile import counts
from pipelines.drift.profile.counts import merge
from pipelines.drift.profile.days import read_days
from pipelines.drift.profile.spec import load_spec, with_counts
from pipelines.drift.run import Run as Asked
from pipelines.drift.why import explain
from pipelines.drift_report import FILE, DriftReport, Explanation, Headroom, read_headroom
from pipelines.errors import Overtaken
from pipelines.line.facts import DatasetFacts, DriftFacts, ProfileFacts
from pipelines.line.order import HEADROOM
from pipelines.line.step import Read, Run, Work
from pipelines.reports import evidently
from pipelines.settings import Settings

ROUNDS = 3
"""How often a run looks again because another try of the same window was first."""
FAILPOINTS = ("decided", "opened")
"""Beyond those of a commit: state in the ledger, episode in the ledger."""


def work(run: Run, read: Read) -> Work:
    """Write ``report.json`` (and ``drift.html`` when somebody should look); keep state and episode in the ledger.

    The first decision of a window stands: running again finds it in the ledger, with the segments of the log that it
    was made on, and gives the same report, with the same action and episode, so that a trigger can be tried again.
    There is one exception: a window that was judged on too few rows, or while some could not be read, is judged again
    once there are more, if it opened no episode and no later window was judged. What the first judgement saw is
    forgotten then: nothing counts twice. A run for a window that was judged before, or older than the newest one that
    was, reports and does not step. A window that ended before the case's first champion or its first served row is not
    judged: the report says so, and what was refused in it, and nothing enters the ledger.
    """
    params, settings, as_of = run.params, run.settings, run.as_of
    made = ProfileFacts.of(read["profile"])
    window, unread = made.window, made.unread
    current = merge((counts.read(settings.root / day["path"]) for day in made.days), made.spec)
    champion = ledger.champion_before(settings.ledger, params.case, as_of)
    if champion is None:
        told = reports.unjudged(params.case, window, current.rows, judge.NO_CHAMPION)
        return _work(run, told, None)
    served_since = prediction_log.first_row(settings, params.case)
    releases = ledger.releases(settings.ledger, params.case)
    early = judge.too_early(window, served_since, releases[0].as_of)
    came = prediction_log.arrived(settings, params.case, window)
    if early is not None and not unread:
        quality = alone(refused(came, window, params.drift.min_rows), params.drift)
        told = reports.unjudged(params.case, window, current.rows, early, champion, served_since, quality)
        return _work(run, told, None)
    bundle = storage.find(settings.root / champion.bundle, champion.candidate_key, verify={reference.FILE})
    before, learned_from = counts.read(bundle / reference.FILE), reference.learned_from(bundle)
    usual = None
    if learned_from is not None:
        usual = DatasetFacts.of(storage.read_manifest(learned_from)).rows_per_day
    fields = load_fields(params.case)
    gain, inputs = _headroom(run)
    asked = Asked(params, fields, as_of, window, champion, before, current, unread, served_since, usual, gain, came)
    judged = _judge(asked, settings)
    days = read_days(run.dir, settings.root, reports.days_before(judged), before.spec)
    told = reports.report(judged, days)
    if told.episode is not None:
        storage.failpoint("drift", "decided")
        why = reports.opened_by(told)
        ledger.open_episode(settings.ledger, case=params.case, episode=told.episode, as_of=as_of, evidence=why)
        storage.failpoint("drift", "opened")
    return _work(run, told, learned_from and learned_from / "train.parquet", inputs)


def _headroom(run: Run) -> tuple[Headroom, dict[str, str]]:
    """What the headroom step of this run found, and its key; a run that has none, as the step failed, goes without."""
    folder = run.dir / HEADROOM.name
    if not (folder / storage.MANIFEST).exists():
        return Headroom(), {}
    key = storage.read_manifest(folder).key
    return read_headroom(folder), {HEADROOM.name: key}


def _judge(asked: Asked, settings: Settings) -> Judged:
    """The window as it is judged, by a decision that stands in the ledger.

    One from before, or this one if no other try was first.
    """
    case, url = asked.params.case, settings.ledger
    spec = load_spec(asked.fields, settings.profile_file(case))
    for _ in range(ROUNDS):
        reading = plan(asked, ledger.drift_states(url, case), prediction_log.compacted(settings, case))
        span, marks = reading.span, reading.marks
        rows = prediction_log.read_predictions(settings, case, span, marks=marks)
        lines = prediction_log.read_label_lines(
            settings, case, span.end, since=span.start, within=marks["now"], marks=marks
        )
        judged = judge.judge(asked, reading, spec, rows, lines, ledger.chain(url, case), ledger.verdicts(url, case))
        if judged.fresh is None or keep(url, case, reading.past, judged.fresh, judged.evidence):
            return judged
    raise Overtaken(
        f"{case}: other tries of the window of {asked.as_of.isoformat()} were first {ROUNDS} times; run the step again"
    )


def _work(run: Run, report: DriftReport, trained_on: Path | None, inputs: Mapping[str, str] | None = None) -> Work:
    params, fields = run.params, load_fields(run.case)

    @functools.cache
    def sides() -> tuple[pl.DataFrame, pl.DataFrame]:
        """The champion's training rows and the window's."""
        assert trained_on is not None
        before = pl.read_parquet(trained_on, columns=list(fields.reads))
        rows = prediction_log.read_predictions(run.settings, run.case, report.window)
        return with_counts(before, fields), with_counts(rows, fields)

    def build(folder: Path, _key: str) -> DriftFacts:
        columns: list[str] = []
        if trained_on is not None:
            columns = reports.drawn(report, fields, params.drift)
        page, error = evidently.page(folder / "drift.html", sides, columns, fields, params.drift)
        apart = Explanation()
        if trained_on is not None and reports.moved(report):
            apart = explain.tell_apart(sides, fields, params.drift.ignore)
        quality = report.quality.model_copy(update={"page": page, "page_error": error})
        told = report.model_copy(update={"quality": quality, "explanation": apart})
        (folder / FILE).write_text(storage.canonical_json(told))
        return DriftFacts(**reports.facts(told))

    return Work(build, {"report": report.model_dump(mode="json")}, inputs or {})
