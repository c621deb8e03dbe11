"""Which labels a drift run counts.

Each one once, in the first window after it became known, whenever and however often it comes.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import polars as pl
import pytest
from sqlalchemy import create_engine, text

from pipelines import ledger
from pipelines.drift import policy
from pipelines.drift_report import Corrections
from pipelines.errors import Overtaken
from pipelines.settings import Settings
from pipelines.steps import export as export_step
from tests.pipelines.drift.stream import FIELDS, Stream, midnight
from tests.pipelines.steps.test_drift import LOANS, after, day, judge, release, report
from tests.pipelines.verbs import drift, profile

AGE = timedelta(days=1)
DRIFT = LOANS.drift.model_copy(update={"evidently": "never"})
PARAMS = LOANS.model_copy(
    update={"label_delay_days": 1.0, "drift": DRIFT, "source": LOANS.source | {"rows_per_day": 60}}
)
ROWS = 60


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


@pytest.fixture
def settings(tmp_path, stream) -> Settings:
    """A state folder with a champion."""
    settings = Settings(home=tmp_path / "state")
    release(settings, stream, midnight(day(0)))
    return settings


def rows_of(stream: Stream, number: int) -> pl.DataFrame:
    """Rows of the n-th day, spread over it."""
    return stream.generated(day(number), "none", None).gather_every(400 // ROWS).head(ROWS)


def write(settings: Settings, kind: str, segment: str, lines: list[dict]) -> None:
    """One closed segment of the gateway."""
    folder = settings.prediction_log / "loans" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{segment}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def answered(
    settings: Settings, stream: Stream, number: int, rows: pl.DataFrame | None = None, segment: str | None = None
) -> None:
    """The answers of a day."""
    rows = rows_of(stream, number) if rows is None else rows
    lines = [
        {
            "prediction_id": row["id"],
            "request_id": row["id"],
            "version": 1,
            "score": score,
            "prediction": int(score >= 0.5),
        }
        | {"event_time": row["event_time"].isoformat(), "received_at": row["event_time"].isoformat()}
        | {"row": {name: row[name] for name in FIELDS.names}}
        for row, score in zip(rows.to_dicts(), stream.scores(rows).tolist(), strict=True)
    ]
    write(settings, "predictions", segment or f"rows-{number:06d}", lines)


def labelled(
    settings: Settings,
    rows: pl.DataFrame,
    segment: str,
    *,
    delay: timedelta = AGE,
    revision: int = 0,
    wrong: bool = False,
) -> None:
    """Labels of rows, stated ``delay`` after them; ``wrong``: the other class."""
    lines = [
        {"prediction_id": id_, "label": 1 - label if wrong else label, "revision": revision}
        | {"event_time": (moment + delay).isoformat(), "received_at": "2026-01-01T00:00:00+00:00"}
        for id_, label, moment in rows.select("id", FIELDS.label, "event_time").iter_rows()
    ]
    write(settings, "labels", segment, lines)


def counted(settings: Settings, days: range) -> list[int]:
    """The labels that each window's run counted."""
    return [report(settings, after(number)).labels.rows for number in days]


@pytest.mark.parametrize(
    ("posted_late", "every", "expected"),
    [
        (0, 1, [0, 60, 60, 60, 60, 60]),
        (1, 1, [0, 0, 60, 60, 60, 60]),
        (0, 3, [0, 0, 120, 0, 0, 180]),
        (2, 3, [0, 0, 0, 0, 120, 0]),
    ],
    ids=["in time", "a day late", "every third day", "every third day, two days late"],
)
def test_every_label_counts_once_it_is_known(settings, stream, posted_late, every, expected):
    """Labels with true times count exactly once, in the first window after they were posted.

    It does not matter how long after their own day that is.
    """
    posts: dict[int, list[int]] = {}
    for number in range(6):
        due = number + 1  # the day on which the labels of the n-th day are stated
        posts.setdefault(due + (-(due + 1)) % every + posted_late, []).append(number)
    for number in range(6):
        answered(settings, stream, number)
        for of in posts.get(number, []):
            labelled(settings, rows_of(stream, of), f"labels-{of:06d}")
        judge(settings, after(number), PARAMS)
    assert counted(settings, range(6)) == expected


def test_late_labels_confirm_drift(settings, stream):
    """Where the rule has changed, the first window after the labels were posted confirms it.

    That holds though their own days were judged long before.
    """
    for number in range(5):
        answered(settings, stream, number)
        judge(settings, after(number), PARAMS)
    assert {report(settings, after(number)).state for number in range(5)} == {"STABLE"}
    for number in range(4):
        labelled(settings, rows_of(stream, number), f"upload-{number:06d}", wrong=True)
    answered(settings, stream, 5)
    judge(settings, after(5), PARAMS)
    found = report(settings, after(5))
    assert (found.labels.rows, found.labels.fresh_labels, found.policy.trigger) == (
        4 * ROWS,
        4 * ROWS,
        "performance",
    )


def test_a_run_reads_its_own_record_again(settings, stream):
    """Labels that come after a run are not in it when it is run again: the same evidence, the same bytes.

    The next window has them.
    """
    answered(settings, stream, 0)
    labelled(settings, rows_of(stream, 0), "early")
    answered(settings, stream, 1)
    judge(settings, after(0), PARAMS)
    judge(settings, after(1), PARAMS)
    place = settings.run_dir("loans", after(1)) / "drift" / "report.json"
    before = place.read_bytes()
    labelled(settings, rows_of(stream, 1).head(20), "late", delay=timedelta(hours=1))
    labelled(settings, rows_of(stream, 0).head(20), "correction", revision=1, wrong=True)
    judge(settings, after(1), PARAMS)
    assert place.read_bytes() == before
    judge(settings, after(2), PARAMS)
    assert counted(settings, range(3)) == [0, ROWS, 20]
    judge(settings, after(1), PARAMS)
    assert place.read_bytes() == before


def test_a_label_counts_when_its_row_comes_late(settings, stream):
    """A label that is known before its row is readable counts once the row is."""
    rows = rows_of(stream, 0)
    answered(settings, stream, 0, rows.head(40))
    labelled(settings, rows, "labels")
    for number in (0, 1):
        judge(settings, after(number), PARAMS)
    answered(settings, stream, 0, rows.tail(20), segment="rest")
    judge(settings, after(2), PARAMS)
    assert counted(settings, range(3)) == [0, 40, 20]


def test_a_corrected_label_counts_once(settings, stream):
    """A label counts once, as it is known when its row has the declared age.

    What is corrected later is reported and not counted.
    """
    rows = rows_of(stream, 0)
    answered(settings, stream, 0)
    labelled(settings, rows, "first", delay=timedelta(hours=2), wrong=True)
    judge(settings, after(0), PARAMS)
    young = report(settings, after(0)).labels
    assert (young.rows, young.young) == (0, sum(moment.hour < 22 for moment in rows["event_time"]))
    labelled(settings, rows, "corrected", delay=timedelta(hours=20), revision=1)
    judge(settings, after(1), PARAMS)
    ripe = report(settings, after(1)).labels
    right = stream.scores(rows).round() == rows[FIELDS.label].to_numpy()
    assert (ripe.rows, ripe.errors, ripe.corrections) == (ROWS, int((~right).sum()), Corrections())
    labelled(settings, rows.head(10), "again", delay=timedelta(days=1, hours=30), revision=2, wrong=True)
    judge(settings, after(2), PARAMS)
    later, log_e = (
        report(settings, after(2)).labels,
        [report(settings, after(number)).policy.log_e for number in (1, 2)],
    )
    assert (later.rows, later.corrections.rows, log_e[0]) == (0, 10, log_e[1])
    assert later.corrections.errors == 2 * int(right[:10].sum()) - 10
    judge(settings, after(3), PARAMS)
    assert report(settings, after(3)).labels.corrections == Corrections()


def test_any_order_counts_the_same(settings, stream):
    """Labels that come doubled, in pieces, backwards and corrected give the evidence of labels delivered once.

    The corrections come before they count.
    """
    plain = Settings(home=settings.home.with_name("plain"))
    release(plain, stream, midnight(day(0)))
    for number in range(2):
        rows = rows_of(stream, number)
        for one in (settings, plain):
            answered(one, stream, number)
        labelled(plain, rows, f"day-{number}")
        labelled(settings, rows.reverse().tail(45), f"b-{number}")
        labelled(settings, rows.head(30), f"a-{number}", wrong=True)
        labelled(settings, rows.tail(30), f"c-{number}")
        labelled(settings, rows.head(30), f"d-{number}", revision=1)
    for one in (settings, plain):
        for number in range(3):
            judge(one, after(number), PARAMS)
    assert [report(settings, after(number)).labels for number in range(3)] == [
        report(plain, after(number)).labels for number in range(3)
    ]


def test_a_state_without_a_record_is_taken_over(settings, stream):
    """After a release that kept no record nothing counts twice.

    What it counted by the stated time stays counted, however young; the rest goes on.
    """
    for number in range(4):
        answered(settings, stream, number)
    labelled(settings, rows_of(stream, 0), "day-0")
    labelled(settings, rows_of(stream, 1), "day-1", delay=timedelta(minutes=1))
    for number in (0, 1):
        judge(settings, after(number), PARAMS)
    with create_engine(settings.ledger).begin() as connection:
        for as_of, state in connection.execute(text("SELECT as_of, state FROM drift_states")).all():
            old = {name: value for name, value in json.loads(state).items() if name in {"as_of", "policy"}}
            connection.execute(
                text("UPDATE drift_states SET state = :state WHERE as_of = :as_of"),
                {"state": json.dumps(old), "as_of": as_of},
            )
        connection.execute(text("DROP TABLE journal"))
    settings = settings.model_copy(
        update={"ledger_url": f"{settings.ledger}?timeout=29"}
    )  # as a process that comes later
    labelled(settings, rows_of(stream, 2), "day-2", delay=timedelta(hours=20))
    for number in (2, 3):
        judge(settings, after(number), PARAMS)
    labelled(settings, rows_of(stream, 0).head(5), "again", delay=timedelta(hours=30))
    labelled(settings, rows_of(stream, 3), "day-3")
    judge(settings, after(4), PARAMS)
    # The old release had counted the young labels of day 1 in the window of that day.
    assert counted(settings, range(2, 5)) == [0, ROWS, ROWS]


@pytest.mark.parametrize("place", ["after the read", "before the decision"])
def test_racing_windows_count_each_label_once(settings, stream, monkeypatch, place):
    """Two windows judged at once on one state count every label once.

    Whichever is second is overtaken, and judged on what the first one left.
    """
    for number in range(3):
        answered(settings, stream, number)
        labelled(settings, rows_of(stream, number), f"day-{number}")
    judge(settings, after(0), PARAMS)
    for number in (1, 2):
        profile.run(PARAMS, settings, settings.run_dir("loans", after(number)), after(number))
    both, alone = threading.Barrier(2), threading.local()
    module, name = (ledger, "drift_states") if place == "after the read" else (policy, "step")
    real = getattr(module, name)

    def together(*arguments):
        found = real(*arguments)
        if not hasattr(alone, "waited"):
            alone.waited = True
            both.wait(60)
        return found

    overtaken = []

    def tried(number: int) -> None:
        for _ in range(3):
            try:
                drift.run(PARAMS, settings, settings.run_dir("loans", after(number)), after(number))
            except Overtaken:
                overtaken.append(number)
            else:
                return
        raise AssertionError("overtaken again and again")

    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as pool:
        patched.setattr(module, name, together)
        list(pool.map(tried, (1, 2)))
    assert len(overtaken) == 1
    # The first window is only reported where the second one came first: then that one has counted the labels of both.
    judged = [datetime.fromisoformat(state["as_of"]) for state in ledger.drift_states(settings.ledger, "loans")]
    assert sum(report(settings, moment).labels.rows for moment in judged) == 2 * ROWS


def test_records_are_short(settings, stream):
    """What a run keeps of a day's segments does not grow with their number, nor with the days before."""
    rows = rows_of(stream, 0)
    for number in range(ROWS):
        answered(settings, stream, 0, rows.slice(number, 1), segment=f"20260101T000000Z-17-0a1b2c3d-{number:06d}")
    judge(settings, after(0), PARAMS)
    answered(settings, stream, 1)
    judge(settings, after(1), PARAMS)
    first, second = (state["segments"] for state in ledger.drift_states(settings.ledger, "loans"))
    assert first == {"predictions": [["20260101T000000Z-17-0a1b2c3d-", 0, ROWS - 1]], "labels": []}
    assert second == {"predictions": [["rows-", 1, 1]], "labels": []}


def test_the_baseline_counts_as_the_window_does(settings, stream):
    """A holdout row is judged by the label that a drift run would count.

    As it was when it was mature, not as it was corrected later.
    """
    rows = rows_of(stream, 0)
    holdout = rows.with_columns(label_time=pl.col("event_time") + timedelta(days=9))
    labelled(settings, rows, "first", delay=timedelta(hours=1), wrong=True)
    labelled(settings, rows, "corrected", delay=timedelta(hours=20), revision=1)
    labelled(settings, rows.head(10), "later", delay=timedelta(days=2), revision=2, wrong=True)
    profile.run(PARAMS, settings, settings.run_dir("loans", after(9)), after(9))
    named = dict(zip(rows["id"], rows[FIELDS.label], strict=True))

    def judged(frame: pl.DataFrame, number: int) -> dict[str, int | None]:
        found = export_step.as_judged(PARAMS, settings, after(number), frame)
        assert found["id"].equals(frame["id"])
        return dict(zip(found["id"], found[FIELDS.label], strict=True))

    assert judged(holdout, 9) == named
    # Rows that are younger than the declared age are left out, unless hardly any would be left.
    young = pl.concat([holdout, rows_of(stream, 8).with_columns(label_time=pl.col("event_time"))])
    last = judged(young, 8)
    assert {id_ for id_, label in last.items() if label is None} == {
        row["id"] for row in young.to_dicts() if row["event_time"] > after(8) - AGE
    }
    assert None not in judged(rows_of(stream, 9).with_columns(label_time=pl.col("event_time")), 9).values()
