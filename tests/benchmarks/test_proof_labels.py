"""The proof of the labels in small.

What is due when, and a cell of the real steps with a champion that costs nothing.
"""

from datetime import timedelta

import polars as pl
import pytest

from benchmarks.proof import labels as proof
from tests.pipelines.drift.stream import Stream

HOUR = timedelta(hours=1)


def rows(*hours: int) -> pl.DataFrame:
    """Rows so many hours after the first midnight, all of class 1, half of them answered with class 0."""
    times = [proof.midnight(proof.START) + hour * HOUR for hour in hours]
    scores = [0.9 if number % 2 else 0.1 for number in range(len(hours))]
    return pl.DataFrame(
        {
            "id": [str(hour) for hour in hours],
            "event_time": times,
            "score": scores,
            proof.FIELDS.label: [1] * len(hours),
        }
    )


@pytest.mark.parametrize(
    ("upload", "delay", "posted"),
    [
        ("hourly", 0, [1 + 5 / 60, 24 + 5 / 60, 25 + 5 / 60]),
        ("daily", 0, [30, 30, 54]),
        ("daily", 1, [54, 54, 78]),
        ("weekly", 0, [174, 174, 174]),
        ("weekly", 7, [342, 342, 342]),
    ],
)
def test_uploads_follow_what_they_cover(upload, delay, posted):
    """A label is posted when the hour, day or week of its stated time is over.

    That is a few minutes later or, of nightly and weekly jobs, six hours later.
    """
    found = proof.stated(rows(0, 23, 24), proof.Cell(delay, upload))
    assert (found["label_time"] - found["event_time"]).unique().to_list() == [timedelta(days=delay)]
    assert found["posted"].to_list() == [proof.midnight(proof.START) + hours * HOUR for hours in posted]


def test_a_label_is_due_once_when_it_is_known():
    """Labels of the first day that are posted at six in the morning are due in the second window.

    Those of the second day are due in the third, and none twice.
    """
    found = proof.stated(rows(1, 23, 30), proof.Cell(0, "daily"))
    parts = [part["id"].to_list() for part in proof.due(found, 4)]
    assert parts == [[], ["1", "23"], ["30"], []]
    assert [proof.errors(part) for part in proof.due(found, 4)] == [0, 1, 1, 0]


def test_a_cell_holds_on_the_real_steps():
    """With nightly uploads every label counts once and drift is confirmed as early as it can be.

    A run that counts otherwise is seen.
    """
    found = proof.played(proof.Cell(0, "daily", 3), Stream(seed=0))
    assert found["judged"] == found["delivered"] == 400 * (found["windows"] - 1)
    assert all(one["holds"] for one in proof.goals([found]))
    for change in (
        {"runs_as_due": found["windows"] - 1},
        {"first_spoke": None},
        {"confirmed": None},
        {"confirmed": found["earliest"] + 2},
    ):
        assert [one["holds"] for one in proof.goals([found | change])].count(False) == 1
