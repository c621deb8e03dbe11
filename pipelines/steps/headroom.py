"""headroom: measure what a retraining would gain, by a cheap probe beside the champion on the newest labelled rows."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Window
from pipelines.data import log as prediction_log
from pipelines.data.lake import content_sha256
from pipelines.drift.report import measure_of
from pipelines.drift_report import HEADROOM_FILE, Headroom
from pipelines.headroom import probe
from pipelines.headroom.rows import Log, chosen
from pipelines.headroom.trial import lacking, trial
from pipelines.line.facts import HeadroomFacts, ProfileFacts
from pipelines.line.step import Read, Run, Work
from pipelines.moments import day


def work(run: Run, read: Read) -> Work:
    """Write ``headroom.json`` (:class:`~pipelines.drift_report.Headroom`).

    The window is the drift window ``label_delay_days`` earlier, so that all of its labels are mature and no row is in
    two windows; rows that are not newer than what the champion was trained on are left out. The probe learns from the
    labelled rows that a training at the window's start would choose: served ones, and from before the first of these
    the champion's own. A text that a probe has read leaves the window. The key is made of these rows. Whatever is in
    the way of a figure, a probe that fails included, is a code in the facts, and no error.
    """
    params, fields = run.params, load_fields(run.case)
    until, delay = ProfileFacts.of(read["profile"]).window, timedelta(days=params.label_delay_days)
    window = Window(start=until.start - delay, end=until.end - delay)
    champion = ledger.champion_before(run.settings.ledger, run.case, run.as_of)
    first = prediction_log.first_row(run.settings, run.case)
    if champion is None:
        return _told(Headroom(code="no_champion", why="no champion yet: nothing to compare with", window=window))
    if first is None or window.end <= first:
        why = f"nothing was served before {day(window.end)}: labels take {params.label_delay_days:g} days"
        return _told(Headroom(code="not_served", why=why, window=window))
    rows = chosen(Log(run.settings, fields, until.end, first), params, champion, window)
    family = probe.family_of(fields, params.headroom.family)
    known = {
        "window": window,
        "coverage": rows.labelled / max(rows.served, 1),
        "learned": rows.learned.height,
        "family": family,
        "price": params.headroom.price,
        "confidence": params.headroom.confidence,
        "unit": measure_of(fields).loss_unit,
    }
    if (missing := lacking(rows, fields, params.headroom.min_rows)) is not None:
        code, why = missing
        return _told(Headroom(code=code, why=why, rows=rows.judged.height, **known))

    def measure() -> Headroom:
        return trial(rows, fields, family, params.gate, params.headroom).model_copy(update=known)

    frames = {"judged": rows.judged, "learned": rows.learned, "past": rows.past}
    made_of = {name: None if frame is None else content_sha256(frame) for name, frame in frames.items()}
    declared = {
        "window": window,
        "version": champion.champion,
        "family": family,
        "fields": fields.features_hash,
        **made_of,
    }
    return Work(lambda folder, _key: _kept(folder, measure()), declared, runs_case=family == "own")


def _told(found: Headroom) -> Work:
    """That there is no figure, and why."""
    return Work(lambda folder, _key: _kept(folder, found), {"found": found}, runs_case=False)


def _kept(folder: Path, found: Headroom) -> HeadroomFacts:
    (folder / HEADROOM_FILE).write_text(storage.canonical_json(found))
    return HeadroomFacts(code=found.code, why=found.why, rows=found.rows, gain=found.decides, price=found.price)
