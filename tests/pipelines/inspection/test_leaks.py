"""pipelines/inspection/leaks.py: a column that knows the answer is refused, an honest one is not."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from pipelines.errors import DataError
from pipelines.inspection.table import Asked, inspect
from tests.pipelines.inspection.frames import customers, draws

ROWS = 1_500
ASKED = Asked("churn", "churned", "at", "key")


def with_column(make, label=None) -> pl.DataFrame:
    """Customers with a column ``beside`` that is made of the rows' labels."""
    frame = customers(ROWS)
    if label is not None:
        frame = frame.with_columns(churned=pl.Series(label(frame["churned"].to_numpy()), strict=False))
    made = make(frame["churned"].to_list(), frame)
    return frame.with_columns(beside=pl.Series(made, strict=False))


def noisy(labels, _frame) -> list:
    """The label with a little noise."""
    return [label + draws().normal(0, 0.01) for label in labels]


def unfilled(labels, _frame) -> list:
    """Written down with the label only."""
    rng = draws()
    return [None if label is None else rng.normal() for label in labels]


def waiting(labels: np.ndarray) -> list:
    """The newest 200 labels have not arrived."""
    return [None if row >= ROWS - 200 else int(label) for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("make", "label", "words"),
    [
        (noisy, None, "ROC-AUC of 1.000"),
        (lambda labels, _: ["left" if label else "stayed" for label in labels], None, "ROC-AUC of 1.000"),
        (
            lambda labels, _: [None if label else 3.5 * row for row, label in enumerate(labels)],
            None,
            "have the label 1",
        ),
        (lambda labels, _: [row % 7 if label else None for row, label in enumerate(labels)], None, "have the label 0"),
        (unfilled, waiting, "whose label is unknown"),
        (
            lambda labels, frame: [
                at + timedelta(days=30 if label else -30) for at, label in zip(frame["at"], labels, strict=True)
            ],
            None,
            "by its distance to the event",
        ),
        (
            lambda labels, _: [2 * label + 1 for label in labels],
            lambda y: y + draws().normal(0, 1, ROWS),
            "of the label's variance",
        ),
        (
            lambda labels, _: [f"z{label}" for label in labels],
            lambda y: [f"c{row % 5}" for row in range(ROWS)],
            "of the classes apart",
        ),
        (
            lambda labels, _: ["first" if label in {"c0", "c1"} else "last" for label in labels],
            lambda y: [f"c{row % 5}" for row in range(ROWS)],
            "each label has one of its 2 values",
        ),
        (
            lambda labels, _: ["low" if label < -1 else "high" if label > 1 else "middle" for label in labels],
            lambda y: draws().normal(0, 2, ROWS),
            "each of its 3 values has a range of the label",
        ),
        (
            lambda labels, _: [
                f"{row} he {('stayed', 'cancelled')[label]} after {row % 91} days and {row % 17} calls to our desk"
                for row, label in enumerate(labels)
            ],
            None,
            "its word '(cancelled|stayed)' alone has a ROC-AUC of 1.000",
        ),
    ],
)
def test_what_knows_the_answer_is_refused(make, label, words):
    """A copy, a word for it, a hole that tells it, what is filled in with it and a time after it."""
    with pytest.raises(DataError, match="beside: .*" + words) as refused:
        inspect(with_column(make, label), ASKED)
    assert "--without beside" in str(refused.value)
    found = inspect(with_column(make, label), Asked("churn", "churned", "at", "key", without=("beside",)))
    assert found.left_out["beside"] == "left out, as --without says"
    # Somebody may know better.
    known = inspect(with_column(make, label), Asked("churn", "churned", "at", "key", known=("beside",)))
    assert "beside" in known.fields.names


def test_a_good_column_and_honest_holes_are_no_leak():
    """A column that says much but not all, and one that is missing a little more often for one label, are taken."""
    rng = draws()
    strong = with_column(lambda labels, _: [label + rng.normal(0, 0.5) for label in labels])
    holes = pl.Series(
        "holes", [None if rng.random() < 0.2 + 0.2 * label else 1.0 + rng.random() for label in strong["churned"]]
    )
    found = inspect(strong.with_columns(holes), ASKED)
    assert found.fields.names == ("age", "plan", "beside", "holes")


def test_labels_in_the_order_of_time_are_refused():
    """Where rows of one label come before those of another nothing can be judged; somebody may know better."""
    frame = customers(ROWS).sort("churned").with_columns(at=customers(ROWS)["at"])
    with pytest.raises(DataError, match="at knows the answer: alone it has a ROC-AUC of 1"):
        inspect(frame, ASKED)
    assert inspect(frame, Asked("churn", "churned", "at", "key", known=("at",))).fields.names == ("age", "plan")


def test_a_time_behind_the_event_is_told_and_may_be_the_labels():
    """A time that lies behind the event in all rows is told, and one that is missing just as the label is, refused."""
    frame = customers(ROWS).with_columns(churned=pl.Series(waiting(customers(ROWS)["churned"].to_numpy())))
    rng = draws()
    due = [at + timedelta(days=int(rng.integers(1, 9))) for at in frame["at"]]
    found = inspect(frame.with_columns(due=pl.Series(due)), ASKED)
    assert any(note.startswith("due: it lies behind at in 100.0%") for note in found.notes)
    written = frame.with_columns(answered=pl.when(pl.col("churned").is_not_null()).then(pl.Series(due)))
    with pytest.raises(DataError, match="--label-time answered"):
        inspect(written, ASKED)
    found = inspect(written, Asked("churn", "churned", "at", "key", label_time="answered"))
    assert found.volume.delay == 8
    assert not found.volume.guessed
