"""pipelines/drift/inputs/refused.py: what was refused in a window, where it was worst, and whether it blocks."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.cases.loans.source import generate
from pipelines.contracts import Arrived, Refusal, Window
from pipelines.drift.inputs.compare import quality
from pipelines.drift.inputs.refused import FEWEST, refused
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift_report import Quality, Refused
from pipelines.params import DriftParams
from tests.pipelines.drift.stream import FIELDS, SPEC

START = datetime(2021, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = Window(start=START, end=START + timedelta(days=1))
MONTH = Window(start=START, end=datetime(2021, 4, 1, tzinfo=UTC))
JOB = ("education", "category")
ROWS = profile_frame(generate(START.date(), rows_per_day=400), FIELDS, SPEC)


def came(window: Window, per_hour: int, broken: dict[int, dict[tuple[str, str], int]]) -> Arrived:
    """``per_hour`` rows in every hour of a window; of these hours so many were refused by field and reason."""
    answered = {}
    for number in range(int((window.end - window.start) / HOUR)):
        answered[START + HOUR * number] = per_hour - sum(broken.get(number, {}).values())
    found = [
        Refusal(hour=START + HOUR * number, arm="champion", version=3, field=field, reason=reason, rows=rows)
        for number, reasons in broken.items()
        for (field, reason), rows in reasons.items()
    ]
    return Arrived(answered={hour: rows for hour, rows in answered.items() if rows}, refused=tuple(found))


def told(arrived: Arrived, window: Window = DAY, **declared) -> Quality:
    """What is said of a window in which that arrived."""
    params = DriftParams(min_rows=200, **declared)
    return quality(None, ROWS, window, params, refused=refused(arrived, window, params.min_rows))


@pytest.mark.parametrize("window", [DAY, MONTH])
def test_half_of_an_hour_blocks_a_window_of_any_length(window):
    """An hour of which half was refused blocks a day and a month.

    The message says when, how many, which field and why.
    """
    [problem] = told(came(window, 400, {12: {JOB: 150, ("age", "bounds"): 50}}), window).problems
    assert (problem.code, problem.field) == ("refused", "education")
    assert problem.message == (
        "50.0% of the rows from 1 Mar 2021 12:00 to 13:00 UTC were refused (200 of 400): "
        "education: category (150), age: bounds (50)"
    )


@pytest.mark.parametrize(("rows", "problems", "warnings"), [(3, 0, 0), (4, 0, 1), (19, 0, 1), (20, 1, 0), (400, 1, 0)])
def test_a_hundredth_is_told_and_a_twentieth_blocks(rows, problems, warnings):
    """From 1% of the rows on there is a warning, from 5% on a problem, and below nothing is said."""
    found = told(came(DAY, 400, {number: {JOB: rows} for number in range(24)}))
    assert (len(found.problems), len(found.warnings)) == (problems, warnings)
    assert found.refused.rows == 24 * rows
    assert found.refused.share == pytest.approx(rows / 400)


def test_a_case_may_declare_other_shares():
    """Shares that a case declares take the place of 1% and 5%; the second is not below the first."""
    half = came(DAY, 400, {12: {JOB: 200}})
    found = told(half, block_refused_share=0.6)
    assert (found.problems, [one.code for one in found.warnings]) == ((), ["refused"])
    assert told(half, warn_refused_share=0.6, block_refused_share=0.6).warnings == ()
    with pytest.raises(ValueError, match="block_refused_share"):
        DriftParams(warn_refused_share=0.6)
    assert "refused" not in DriftParams().model_dump_json()


def test_few_rows_are_looked_at_together():
    """Hours with few rows are judged as many at once as hold min_rows rows, and few refused rows say nothing."""
    slow = refused(came(DAY, 50, {12: {JOB: 25}}), DAY, 200)
    assert slow.worst is not None
    assert (slow.worst.end - slow.worst.start, slow.worst.came, slow.worst.refused) == (4 * HOUR, 200, 25)
    by_hand = refused(came(DAY, 2, {12: {JOB: 2}}), DAY, 200)
    assert (by_hand.worst, by_hand.rows) == (None, 2)
    few = refused(came(DAY, 2, {number: {JOB: 1} for number in range(FEWEST)}), DAY, 200)
    assert few.worst is not None
    assert (few.worst.start, few.worst.end, few.worst.share) == (DAY.start, DAY.end, FEWEST / 48)


def test_rows_without_a_declared_field_have_their_words():
    """A refusal that is about no declared field, or for many reasons, is told without a name that a client chose."""
    reasons = {("", "unknown_field"): 200, ("age", "type"): 3, ("car", "category"): 2, ("salary", "bounds"): 1}
    [problem] = told(came(DAY, 400, {12: reasons})).problems
    assert problem.field is None
    assert problem.message.endswith(
        "no declared field: unknown_field (200), age: type (3), car: category (2), 1 more reasons"
    )


def test_a_window_that_lost_nothing_says_nothing():
    """Where nothing was refused, the report's part is what reports of before are read as."""
    found = told(Arrived())
    assert (found.refused, found.problems) == (Refused(), ())
    assert Quality.model_validate({}).refused == Refused()


def test_unread_rows_say_nothing_of_a_share():
    """While rows cannot be read nobody knows what share was refused: the window is judged again."""
    lost = refused(came(DAY, 400, {12: {JOB: 200}}), DAY, 200)
    found = quality(None, ROWS, DAY, DriftParams(), unread=5, refused=lost)
    assert (found.problems, [one.code for one in found.warnings]) == ((), ["unread"])
