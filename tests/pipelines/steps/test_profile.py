"""pipelines/steps/profile.py: hours, days, and days made by tasks of their own."""

import json
import shutil
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines import storage
from pipelines.cases.triage.schema import FIELDS as TRIAGE_FIELDS
from pipelines.data import compaction, day_rows, repeats
from pipelines.drift.profile import kernel
from pipelines.drift.profile.counts import merge, profile_frame, read, to_bytes, typed
from pipelines.drift.profile.spec import load_spec
from pipelines.errors import ConfigError, IntegrityError
from pipelines.files import file_sha256
from pipelines.line.step import Run
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.steps import profile as home
from tests.pipelines.data import loglines
from tests.pipelines.drift.stream import FIELDS, START, Stream, midnight
from tests.pipelines.steps.test_drift import LOANS, serve
from tests.pipelines.verbs import profile

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
        assert path.stem == file_sha256(path)[:16]
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
    parts = home.days(Run(WEEK, logged, AS_OF))
    assert parts == [day["date"] for day in expected.facts["days"]]
    made = [home.part(Run(WEEK, logged, AS_OF, logged.root / "mapped"), day) for day in reversed(parts)]
    for reader in ("read_predictions", "read_days"):
        monkeypatch.setattr(home.prediction_log, reader, lambda *_: pytest.fail("the merge read rows"))
    assert home.part(Run(WEEK, logged, AS_OF, logged.root / "mapped"), parts[0]).key == made[-1].key
    merged = run(logged, "mapped")
    assert (merged.key, merged.facts) == (expected.key, expected.facts)


def test_rows_that_come_after_a_days_task_are_not_lost(logged):
    """A day whose log has grown since its task is profiled again by the merge.

    A day that no task made is profiled too.
    """
    first = home.days(Run(WEEK, logged, AS_OF))[0]
    home.part(Run(WEEK, logged, AS_OF, logged.root / "late"), first)
    segment = logged.prediction_log / "loans" / "predictions" / "day-02.jsonl"
    line = json.loads(segment.read_text().splitlines()[0]) | {"prediction_id": "late"}
    segment.with_name("late.jsonl").write_text(json.dumps(line) + "\n")
    made = run(logged, "late").facts
    assert made["rows"] == 2 * LOANS.source["rows_per_day"] + 1
    assert [day["rows"] for day in made["days"]] == [LOANS.source["rows_per_day"] + 1, LOANS.source["rows_per_day"]]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_the_mend_of_a_profile_works(logged, mapped, removed):
    """A day's profile that is damaged, or was removed as the error says, is whole again when the step has run again."""
    name = f"mend-{mapped}"
    if mapped:
        for day in home.days(Run(WEEK, logged, AS_OF)):
            home.part(Run(WEEK, logged, AS_OF, logged.root / name), day)
    made = run(logged, name)
    path = logged.root / made.facts["days"][0]["path"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(IntegrityError, match="remove it and run the step that wrote it again"):
        read(path)
    if removed or mapped:
        path.unlink()
    assert run(logged, name) == made
    assert path.read_bytes() == whole


def test_what_is_no_day_is_refused(logged):
    """A part is named by a day; anything else is a mistake that is told with the value."""
    with pytest.raises(ConfigError, match="'yesterday' is no day"):
        home.part(Run(WEEK, logged, AS_OF, logged.root / "x"), "yesterday")


def test_a_value_of_another_type_is_missing(logged):
    """A number that was logged as text which is none counts as missing, as the declaration says what it should be."""
    name = FIELDS.numeric[0].name
    rows = typed(pl.DataFrame({name: ["1.5", "many", None]}), FIELDS)
    assert profile_frame(rows, FIELDS, load_spec(FIELDS)).columns[name].missing == (2, 0, 0, 0)


def answers(case: str) -> list[dict]:
    """Log lines of three hours of three days with all that a log may hold.

    Missing fields, values of another type, two versions, no scores, odd texts.
    """
    rng = np.random.default_rng(3)
    lines = []
    for number in range(90):
        at = (
            AS_OF - timedelta(days=3) + timedelta(days=number // 30, hours=11 * (number // 10 % 3), minutes=number % 10)
        )
        scores = rng.dirichlet(np.ones(len(TRIAGE_FIELDS.classes))).tolist()
        if case == "triage":
            row = {"text": (None, 7.0, "", "A heap overflow in libpng-1.2", "the the attacker")[number % 5]}
            given = {
                "score": max(scores),
                "prediction": int(np.argmax(scores)),
                **({"scores": scores} if number % 7 else {}),
            }
        else:
            row = {
                field.name: (None, "many", "1.5", 3, float(rng.normal(1e4, 5e3)))[min(4, int(rng.integers(0, 40)))]
                for field in FIELDS.numeric
            }
            row |= {
                field.name: (None, 3.0, "elsewhere", *field.values)[int(rng.integers(0, 3 + len(field.values)))]
                for field in FIELDS.categorical
            }
            given = {"score": float(rng.random()), "prediction": number % 2}
        row = {name: value for name, value in row.items() if value is not None}
        about = {"prediction_id": f"p{number}", "request_id": f"r{number}", "version": 1 + (number > 50), "row": row}
        lines.append({**about, **given, "event_time": at.isoformat(), "received_at": at.isoformat()})
    return lines


def retried(line: dict, later: timedelta) -> dict:
    """The same prediction, asked for and answered again by the next version."""
    moved = {name: (datetime.fromisoformat(line[name]) + later).isoformat() for name in ("event_time", "received_at")}
    return {**line, **moved, "request_id": "again", "version": line["version"] + 1, "score": 0.5}


@pytest.mark.parametrize("case", ["loans", "triage"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_day_too_large_for_a_frame_has_the_same_profile(tmp_path, monkeypatch, case, retries):
    """Streamed from its files a day has the profiles of its frame, to the bit.

    An id that is logged twice counts once, as it was first answered.
    """
    settings, lines = Settings(home=tmp_path), answers(case)
    again = [
        retried(lines[at], later)
        for at, later in (
            (0, timedelta(hours=3)),
            (35, timedelta(seconds=1)),
            (45, timedelta(hours=23)),
            (75, -timedelta(days=1)),
        )
    ]
    for number, part in enumerate(np.array_split(np.array(lines + again * retries, dtype=object), 4)):
        loglines.write(settings, case, "predictions", f"s{number}", part.tolist())
    params = load_params(case)
    params = params.model_copy(
        update={"drift": params.drift.model_copy(update={"window": "week", "partition": "hour"})}
    )
    whole = run(settings, "frame", params)
    assert whole.facts["rows"] == len(lines)
    monkeypatch.setattr(day_rows, "TOGETHER", 1)
    monkeypatch.setattr(repeats, "AT_ONCE", 64)
    monkeypatch.setattr(kernel, "BATCH", 2)
    streamed = run(settings, "streamed", params)
    assert (streamed.key, streamed.facts) == (whole.key, whole.facts)


def test_rows_that_share_a_file_with_other_days_are_profiled(tmp_path, monkeypatch):
    """Hours that have few rows may lie in one file.

    Frames and streams give the profiles that a file for each hour gives.
    """
    lines, apart, shared = answers("loans"), Settings(home=tmp_path / "apart"), Settings(home=tmp_path / "shared")
    params = load_params("loans")
    params = params.model_copy(
        update={"drift": params.drift.model_copy(update={"window": "week", "partition": "hour"})}
    )
    made = []
    for settings, most in ((apart, 500), (shared, 3)):
        monkeypatch.setattr(compaction, "MOST_PARTITIONS", most)
        loglines.write(settings, "loans", "predictions", "s0", lines)
        for name, together in (("frame", day_rows.TOGETHER), ("streamed", 1)):
            with monkeypatch.context() as patch:
                patch.setattr(day_rows, "TOGETHER", together)
                made.append(run(settings, name, params))
    assert len(list(shared.lake_dir.glob("loans/predictions/*/**/*.parquet"))) == 4
    assert made[0].facts["rows"] == len(lines)
    assert {one.key for one in made} == {made[0].key}


def test_days_are_taken_together_as_long_as_their_files_are_small(logged, monkeypatch):
    """No more is read at once than the bytes that are allowed, whatever the window.

    A day beyond them is not read as a frame at all.
    """
    run(logged, "together")
    sizes = []
    read_days = home.prediction_log.read_days
    monkeypatch.setattr(
        home.prediction_log, "read_days", lambda *given: sizes.append(len(given[2])) or read_days(*given)
    )
    window = [START + timedelta(days=number) for number in (2, 4)]
    near = [
        file.stat().st_size
        for file in home.prediction_log.near(logged, "loans", home.prediction_log.window_of(window[0]))
    ]
    for limit, expected in ((10 * sum(near), [2]), (sum(near) * 5 // 4, [1, 1]), (sum(near) // 4, [])):
        sizes.clear()
        monkeypatch.setattr(day_rows, "TOGETHER", limit)
        run(logged, f"together-{limit}")
        assert sizes == expected


def test_a_damaged_partition_is_named_when_streamed(logged, tmp_path, monkeypatch):
    """A partition that cannot be read is named with what to remove, as in a frame."""
    run(logged, "damaged")
    shutil.copytree(logged.root, tmp_path / "state")
    next(iter((tmp_path / "state" / "lake" / "loans" / "predictions").rglob("*.parquet"))).write_bytes(b"PAR1torn")
    monkeypatch.setattr(day_rows, "TOGETHER", 1)
    with pytest.raises(IntegrityError, match="remove that folder, it is made again"):
        run(Settings(home=tmp_path / "state"), "damaged-again")
