"""What the history of releases alone says of a candidate (deploy/rollout.py)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipelines.contracts import Release, Trial
from pipelines.deploy.rollout import settled

MAY, JUNE, JULY = (datetime(2020, month, 1, tzinfo=UTC) for month in (5, 6, 7))


def release(seq: int, version: int, as_of: datetime, action: str = "promote") -> Release:
    """A row of the ledger; version 1 is of the candidate k1."""
    about = {"case": "loans", "trigger": "manual", "reason": "r", "actor": "ada", "mlflow_run": None, "hash": "h"}
    more = {
        "verdict_hash": None,
        "recorded_at": as_of,
        "previous_hash": "",
        "bundle": "b",
        "candidate_key": f"k{version}",
    }
    return Release(**about, **more, seq=seq, champion=version, as_of=as_of, action=action)


TRIAL = {"bundle": "b", "mlflow_run": None, "verdict_hash": None, "trigger": "manual", "plan": {}, "step": 0}


def row(seq: int, action: str, challenger: int | None, tried: int = 3) -> Release:
    """A row of the rollout of a candidate, beside version 2."""
    trial = Trial(**TRIAL, candidate_key=f"k{tried}", as_of=JULY, opened=JULY, since=JULY)
    stage = "full" if challenger is None else "canary"
    found = release(seq, 2, JULY, action)
    return found.model_copy(update={"trial": trial, "challenger": challenger, "stage": stage})


FIRST, SECOND = release(1, 1, MAY), release(2, 2, JUNE)
BACK = release(3, 1, JULY, "rollback")
OPEN, ABORT = row(3, "open", 3), row(4, "abort", None)


@pytest.mark.parametrize(
    ("history", "version", "champion", "as_of", "expected"),
    [
        ([], 1, None, MAY, None),
        ([], 1, 7, MAY, ("stale", None)),
        ([FIRST], 2, 1, JUNE, None),
        ([FIRST], 2, 1, MAY, None),
        ([FIRST], 2, None, JUNE, ("stale", None)),
        ([FIRST, SECOND], 3, 1, JULY, ("stale", None)),
        ([FIRST, SECOND], 3, 2, MAY, ("stale", None)),
        ([FIRST, SECOND], 2, 1, JUNE, ("promoted", SECOND)),
        ([FIRST, SECOND], 1, None, MAY, ("already_released", FIRST)),
        ([FIRST, SECOND, BACK], 1, None, MAY, ("already_released", BACK)),
        ([FIRST, SECOND, BACK], 2, 1, JUNE, ("already_released", SECOND)),
        ([FIRST, SECOND, OPEN], 3, 2, JULY, ("opened", OPEN)),
        ([FIRST, SECOND, OPEN], 4, 2, JULY, None),
        ([FIRST, SECOND, OPEN], 4, 1, JULY, ("stale", None)),
        ([FIRST, SECOND, OPEN, ABORT], 3, 2, JULY, ("aborted", OPEN)),
        ([FIRST, SECOND, OPEN, ABORT], 4, 2, JULY, None),
        ([FIRST, SECOND, OPEN, row(4, "open", 4, tried=4)], 3, 2, JULY, ("aborted", OPEN)),
        ([FIRST, SECOND, OPEN, release(4, 1, JULY, "rollback")], 3, 2, JULY, ("aborted", OPEN)),
    ],
)
def test_the_history_says_what_became_of_a_candidate(history, version, champion, as_of, expected):
    """Own release still serving: promoted; served before: already_released; another champion, or a later one: stale.

    On trial: opened; its rollout was ended, replaced or overtaken by a person's order: aborted.
    """
    assert settled(history, f"k{version}", version, champion, as_of) == expected
