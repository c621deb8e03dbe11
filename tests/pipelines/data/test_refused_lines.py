"""Counts of refused rows are compacted and read as rows and labels are: once, whole, and on every machine."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import objects
from pipelines.contracts import Window
from pipelines.data import log
from pipelines.errors import IntegrityError
from pipelines.segments import COMPACTED, adopt
from pipelines.settings import Settings
from tests.pipelines.data import loglines

HOUR = datetime(2020, 5, 1, 7, tzinfo=UTC)
WINDOW = Window(start=HOUR, end=HOUR + timedelta(hours=2))


def line(rows: int, hour: datetime = HOUR, version: int | None = 1, **other) -> dict:
    """A line of the gateway's."""
    told = {"field": "age", "reason": "bounds", "received_at": hour.isoformat()}
    return {"hour": hour.isoformat(), "arm": "champion", "version": version, "rows": rows} | told | other


def found(settings: Settings) -> list[tuple]:
    """What was refused in the window."""
    return [(one.hour, one.version, one.field, one.rows) for one in log.arrived(settings, "loans", WINDOW).refused]


def test_lines_add_up_within_their_hours(tmp_path: Path):
    """Lines of several workers are summed by hour, version and field, and those of other hours left out."""
    settings = Settings(home=tmp_path)
    later = HOUR + timedelta(hours=1)
    loglines.write(settings, "loans", "refusals", "a", [line(2), line(3), line(1, later)])
    loglines.write(settings, "loans", "refusals", "b", [line(4), line(5, version=None), line(9, WINDOW.end)])
    assert log.compact(settings, "loans") == 2
    assert found(settings) == [(HOUR, None, "age", 5), (HOUR, 1, "age", 9), (later, 1, "age", 1)]
    assert log.compact(settings, "loans") == 0
    assert log.compacted(settings, "loans") == {"predictions": [], "labels": []}


def test_a_line_that_counts_nothing_is_quarantined(tmp_path: Path):
    """A malformed line costs the others nothing."""
    settings = Settings(home=tmp_path)
    loglines.write(settings, "loans", "refusals", "a", [line(2), line(0), line(1, hour=HOUR) | {"hour": "noon"}])
    log.compact(settings, "loans")
    assert found(settings) == [(HOUR, 1, "age", 2)]
    [kept] = (settings.lake_dir / "loans" / "quarantine" / "refusals").iterdir()
    assert [json.loads(text)["line"] for text in kept.read_text().splitlines()] == [2, 3]


def test_a_sealed_segment_that_changed_is_an_error(tmp_path: Path):
    """Counts that are not what was written are said to be so, and not used."""
    settings = Settings(home=tmp_path)
    path = loglines.write(settings, "loans", "refusals", "a", [line(2)])
    path.rename(path.with_name("a.jsonl.open"))
    assert adopt(path.parent) == 1
    path.write_bytes(path.read_bytes().replace(b'"rows": 2', b'"rows": 1'))
    with pytest.raises(IntegrityError, match="is not what was written"):
        log.compact(settings, "loans")


def test_another_machine_reads_what_one_compacted(tmp_path: Path):
    """Counts are in the store as the log is: a drift run finds them wherever it runs."""
    url = f"file://{tmp_path}/store"
    one, other = (Settings(home=tmp_path / name, lake=url) for name in ("one", "other"))
    try:
        for settings in (one, other):
            objects.attach(settings)
        loglines.write(one, "loans", "refusals", "a", [line(2)])
        log.compact(one, "loans")
        for kind in COMPACTED:
            objects.need_folder(other.lake_dir / "loans" / kind / "segments")
        assert found(other) == found(one) == [(HOUR, 1, "age", 2)]
    finally:
        objects._attached.clear()
