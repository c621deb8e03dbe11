"""Rows of the prediction log that are more than may be held: what comes of them is what comes of all at once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.contracts import Manifest, Window
from pipelines.data import compaction, heap, log, served
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.data import loglines
from tests.pipelines.steps.champion import promote_first
from tests.pipelines.verbs import ingest, validate

AS_OF = datetime(2020, 6, 20, 12, tzinfo=UTC)
FIRST = AS_OF - timedelta(days=14)
DAY = 8
"""Rows of a day."""


def params(fallback_rows: int = 10) -> Params:
    """A window of six days, whose labels come a day after their rows."""
    defaults = load_params("loans")
    dataset = {"window_days": 6, "min_rows": 10, "fallback_rows": fallback_rows, "max_bad_share": 0.5}
    return defaults.model_copy(
        update={
            "dataset": defaults.dataset.model_copy(update=dataset),
            "source": {**defaults.source, "rows_per_day": DAY},
            "label_delay_days": 1.0,
        }
    )


def shifted(line: dict[str, Any], event: timedelta, received: timedelta | None = None, **more: Any) -> dict[str, Any]:
    """A log line of the same id at other times."""
    moved = {
        name: (datetime.fromisoformat(line[name]) + by).isoformat()
        for name, by in (("event_time", event), ("received_at", event if received is None else received))
    }
    return {**line, **moved, **more}


def log_lines() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions and labels of two weeks with all that a log may hold."""
    rows = loans.rows(loans.resolve(Settings(), params()), Window(start=FIRST, end=AS_OF), params())
    answers, labels = loglines.predictions(rows, FIELDS), loglines.labels(rows, FIELDS)
    hours, days = timedelta(hours=1), timedelta(days=1)
    last = len(answers) - DAY
    again = {"request_id": "again", "version": 2, "score": 0.75}
    answers += [
        shifted(answers[last - 1], 23 * hours, **again),  # a retry over midnight
        shifted(answers[last - 2], -23 * hours, **again),  # one that is filed the day before
        shifted(answers[last - 24], 3 * days, **again),  # one that is far from the first
        shifted(answers[last - 25], 3 * days, -hours, **again),  # the same, received first
        shifted(answers[last - 42], -days, -hours, **again),  # of the first day of the window, answered before it
        dict(answers[last - 4]),  # the same line twice
    ]
    answers[last - 11]["row"]["salary"] = "much"
    del answers[last - 12]["row"]["age"]
    labels = [line for number, line in enumerate(labels) if number % 11]
    end = len(labels) - 3 * DAY
    labels += [
        {**labels[end], "label": 1 - labels[end]["label"], "revision": 3},  # corrected
        shifted(labels[end], 2 * hours, label=0, revision=2),  # a correction that was overtaken
        shifted(labels[end - 3], 2 * hours),  # the same once more
        {**labels[end - 4], "prediction_id": "nobody"},  # of no row
        shifted(labels[end - 6], -2 * days),  # before its row
        shifted(labels[-DAY], 2 * days, revision=1),  # not there yet
    ]
    return answers, labels


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state folder whose case has a champion, and its log in several segments."""
    found = Settings(home=tmp_path)
    promote_first(found)
    answers, labels = log_lines()
    for number in range(3):
        loglines.write(found, "loans", "predictions", f"p{number}", answers[number::3])
        loglines.write(found, "loans", "labels", f"l{number}", labels[number::3])
    return found


def run(settings: Settings, name: str, fallback_rows: int = 10) -> tuple[Manifest, pl.DataFrame, Manifest]:
    """Ingest, what it refused, and validate in a folder of that name."""
    folder, own = settings.root / name, params(fallback_rows)
    made = ingest.run(own, settings, folder, AS_OF)
    refused = pl.read_parquet(folder / "ingest" / "quarantine.parquet")
    return made, refused, validate.run(own, settings, folder, AS_OF)


@pytest.mark.parametrize(("most", "fallback"), [(500, 10), (3, 10), (500, 40)])
def test_rows_of_the_log_by_days_are_the_rows_at_once(settings, monkeypatch, most, fallback):
    """Key, partitions, refused rows and what became of every line and label are the same, however much is held.

    So they are where rows of several days share a file, and where the window alone has too few labels.
    """
    monkeypatch.setattr(compaction, "MOST_PARTITIONS", most)
    at_once, refused, checked = run(settings, "at-once", fallback)
    counts, fate = at_once.facts["counts"], at_once.facts["log"]["labels"]
    assert (counts["outside_window"] > 0) == (fallback > 10)
    assert counts["repeats"] == 6
    assert counts["refused"] == refused.height == 1
    assert (fate["superseded"], min(fate.values()) > 0) == (4, True)
    monkeypatch.setattr(log, "read_labels", lambda *_, **__: pytest.fail("all labels were read"))
    for name, together, most_held in (("days", 1, 2000), ("stretches", 40_000, 300)):
        monkeypatch.setattr(served, "TOGETHER", together)
        monkeypatch.setattr(heap, "AT_ONCE", most_held)
        made, own, own_checked = run(settings, name, fallback)
        assert (made.key, made.facts) == (at_once.key, at_once.facts)
        assert own.equals(refused)
        assert (own_checked.key, own_checked.facts) == (checked.key, checked.facts)
    assert not list(settings.lake_dir.rglob("*scratch*"))


def test_no_more_rows_are_held_than_those_of_some_days(settings, monkeypatch):
    """Each part is whole days, the newest first, and no file of a day is read for another one's rows."""
    run(settings, "whole")
    monkeypatch.setattr(served, "TOGETHER", 1)
    window = Window(start=AS_OF - timedelta(days=6), end=AS_OF)
    parts = [found.rows for found in served.read(settings, FIELDS, window, AS_OF)]
    days = [set(rows["event_time"].dt.date()) for rows in parts]
    assert [len(own) for own in days] == [1] * 7
    assert [own.pop() for own in days] == sorted({row for rows in parts for row in rows["event_time"].dt.date()})[::-1]


def test_a_log_without_a_row_in_the_window_is_counted(settings, monkeypatch):
    """Labels that came for older rows alone are told, where there is nothing to join them with."""
    monkeypatch.setattr(served, "TOGETHER", 1)
    run(settings, "whole")
    window = Window(start=AS_OF + timedelta(hours=12), end=AS_OF + timedelta(days=5))
    [found] = served.read(settings, FIELDS, window, window.end)
    assert found.rows.is_empty()
    assert found.repeats == 0
    assert found.fate["labels"]["used"] == 0
    assert found.fate["labels"]["of_no_row"] == found.fate["labels"]["lines"] > 0
