"""pipelines/steps/profile.py: hours, days, and days made by tasks of their own."""

import json
from datetime import timedelta

import polars as pl
import pytest

from pipelines import storage
from pipelines.config import Settings
from pipelines.drift.profile import merge, profile_frame, read, to_bytes
from pipelines.drift.spec import load_spec
from pipelines.errors import ConfigError
from pipelines.steps import profile
from tests.pipelines.drift.stream import FIELDS, START, Stream, midnight
from tests.pipelines.steps.test_drift import LOANS, serve

WEEK = LOANS.model_copy(update={"drift": LOANS.drift.model_copy(update={"window": "week"})})
AS_OF = midnight(START) + timedelta(days=7)


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Settings:
    """A state folder with two days of answers, not compacted yet."""
    settings = Settings(home=tmp_path_factory.mktemp("logged") / "state")
    stream = Stream(seed=0)
    for number in (2, 4):
        serve(settings, stream, number)
    return settings


def run(settings: Settings, name: str, params=WEEK) -> storage.Manifest:
    """The step in a run folder of its own."""
    return profile.run(params, settings, settings.root / name, AS_OF)


def test_hours_add_up_to_days(logged):
    """Every hour with rows has a profile under its hash, and those of a day add up to its profile, to the bit."""
    made = run(logged, "hours").facts
    assert [day["date"] for day in made["days"]] == [str(START + timedelta(days=number)) for number in (2, 4)]
    for day in made["days"]:
        path = logged.root / day["path"]
        assert path.stem == storage.file_sha256(path)[:16]
        assert len(day["hours"]) > 1
        hours = [read(logged.root / hour["path"]) for hour in day["hours"]]
        assert [hour.rows for hour in hours] == [hour["rows"] for hour in day["hours"]]
        assert to_bytes(merge(reversed(hours), made["spec"])) == path.read_bytes()
    assert sum(day["rows"] for day in made["days"]) == made["rows"] == 2 * LOANS.source["rows_per_day"]


def test_a_day_is_the_same_without_hours(logged):
    """A case that keeps days only has the same day profiles, and so the same key."""
    days_only = WEEK.model_copy(update={"drift": WEEK.drift.model_copy(update={"partition": "day"})})
    one, other = run(logged, "hours"), run(logged, "days", days_only)
    assert one.key == other.key
    assert [day["hours"] for day in other.facts["days"]] == [[], []]


def test_days_profiled_by_tasks_of_their_own_are_the_same(logged, monkeypatch):
    """Mapped over days and merged, or all in one task: the same facts and the same key; the merge reads no rows."""
    expected = run(logged, "hours")
    parts = profile.days(WEEK, logged, AS_OF)
    assert parts == [day["date"] for day in expected.facts["days"]]
    made = [profile.part(WEEK, logged, logged.root / "mapped", AS_OF, day) for day in reversed(parts)]
    monkeypatch.setattr(profile.prediction_log, "read_predictions", lambda *_: pytest.fail("the merge read rows"))
    assert profile.part(WEEK, logged, logged.root / "mapped", AS_OF, parts[0]).key == made[-1].key
    merged = run(logged, "mapped")
    assert (merged.key, merged.facts) == (expected.key, expected.facts)


def test_rows_that_come_after_a_days_task_are_not_lost(logged):
    """A day whose log has grown since its task is profiled again by the merge; a day that no task made is profiled too."""
    first = profile.days(WEEK, logged, AS_OF)[0]
    profile.part(WEEK, logged, logged.root / "late", AS_OF, first)
    segment = logged.prediction_log / "loans" / "predictions" / "day-02.jsonl"
    line = json.loads(segment.read_text().splitlines()[0]) | {"prediction_id": "late"}
    segment.with_name("late.jsonl").write_text(json.dumps(line) + "\n")
    made = run(logged, "late").facts
    assert made["rows"] == 2 * LOANS.source["rows_per_day"] + 1
    assert [day["rows"] for day in made["days"]] == [LOANS.source["rows_per_day"] + 1, LOANS.source["rows_per_day"]]


def test_what_is_no_day_is_refused(logged):
    """A part is named by a day; anything else is a mistake that is told with the value."""
    with pytest.raises(ConfigError, match="'yesterday' is no day"):
        profile.part(WEEK, logged, logged.root / "x", AS_OF, "yesterday")


def test_a_value_of_another_type_is_missing(logged):
    """A number that was logged as text which is none counts as missing, as the declaration says what it should be."""
    name = FIELDS.numeric[0].name
    typed = profile._typed(pl.DataFrame({name: ["1.5", "many", None]}), FIELDS)
    assert profile_frame(typed, FIELDS, load_spec(FIELDS)).columns[name].missing == (2, 0, 0, 0)
