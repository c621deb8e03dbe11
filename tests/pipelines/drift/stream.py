"""The drift rule on the loans stream, window by window, without the log, the ledger and Airflow.

A logistic regression, fitted to the days before the stream, is the champion; every day of the stream is one
window, its labels arrive a week later. Days before the drift are the same rows for every kind of drift, so
their profiles and scores are made once, changed rows' too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression

from pipelines.cases.loans.schema import FIELDS
from pipelines.cases.loans.source import generate
from pipelines.contracts import Window
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.labels import arrived as label_evidence
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.spec import load_spec
from pipelines.drift.reference import reference_profile
from pipelines.params_file import load_params

PARAMS = load_params("loans")
SPEC = load_spec(FIELDS)
LEARNED_DAYS = 30
START = date(2021, 3, 1)
DELAY = timedelta(days=PARAMS.label_delay_days)


def midnight(day: date) -> datetime:
    """The first moment of a UTC day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def features(frame: pl.DataFrame) -> np.ndarray:
    """The numbers, scaled: the old rule is linear in them."""
    scales = [SPEC.scales[field.name] for field in FIELDS.numeric]
    return (frame.select(field.name for field in FIELDS.numeric).to_numpy() - [scale.loc for scale in scales]) * [
        scale.scale for scale in scales
    ]


class Stream:
    """One seed's champion and its days."""

    def __init__(self, seed: int) -> None:
        """Fit the champion to the days before the stream."""
        self.seed = seed
        self.quiet: dict[tuple, tuple] = {}
        learned = pl.concat(
            [self.generated(START - timedelta(days=LEARNED_DAYS - n), "none", None) for n in range(LEARNED_DAYS)]
        )
        cut = round(learned.height * (1 - PARAMS.dataset.holdout_share))
        train = learned.head(cut)
        holdout = learned.tail(learned.height - cut)
        self.model = LogisticRegression(C=10.0, max_iter=300).fit(features(train), train[FIELDS.label].to_numpy())
        self.reference = reference_profile(train, self.scores(holdout), FIELDS, SPEC, holdout)

    def generated(self, day: date, drift: str, since: date | None) -> pl.DataFrame:
        """The rows of a day."""
        return generate(
            day, rows_per_day=int(PARAMS.source["rows_per_day"]), seed=self.seed, drift=drift, drift_at=since
        )

    def scores(self, frame: pl.DataFrame) -> np.ndarray:
        """The champion's probabilities."""
        return self.model.predict_proba(features(frame))[:, 1]

    def window(
        self, day: date, drift: str, since: date | None, change: Callable[[pl.DataFrame], pl.DataFrame] | None
    ) -> tuple:
        """A day's served rows with their label and its arrival, what is wrong with them, and how they drifted."""
        quiet = since is None or day < since
        if quiet and (day, change) in self.quiet:
            return self.quiet[day, change]
        rows = self.generated(day, drift, since)
        rows = change(rows) if change else rows
        served = rows.with_columns(
            version=pl.lit(1, pl.Int64), score=pl.Series(self.scores(rows)), label_time=pl.col("event_time") + DELAY
        )
        profile = profile_frame(served, FIELDS, SPEC)
        checks = quality(
            self.reference, profile, Window(start=midnight(day), end=midnight(day + timedelta(days=1))), PARAMS.drift
        )
        problems = tuple(problem.message for problem in checks.problems)
        kept = served.select("id", "event_time", "version", "score", "label_time", label=pl.col(FIELDS.label))
        found = (kept, problems, compare(self.reference, profile, FIELDS, SPEC, PARAMS.drift, 1))
        if quiet:
            self.quiet[day, change] = found
        return found

    @cache  # noqa: B019 - a stream lives as long as its tests
    def triggers(
        self,
        windows: int,
        drift: str = "none",
        since: int = 0,
        change: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    ) -> list[int]:
        """Numbers of the windows, from 0, after which a retraining was asked for; drift starts with window ``since``.

        No retraining ever gives a better candidate.
        """
        state = None
        asked = []
        log = []
        fresh = 0
        for number in range(windows):
            day = START + timedelta(days=number)
            served, problems, moved = self.window(day, drift, START + timedelta(days=since) if since else None, change)
            log = [*log[-8:], served]
            recent = pl.concat(log)
            end = midnight(day + timedelta(days=1))
            labels = recent.select("id", "label", "label_time")
            rows = recent.drop("label", "label_time")
            new = label_evidence.fresh(
                rows, labels, end, DELAY, label_evidence.counted(rows, labels, end - timedelta(days=1), DELAY)
            )
            fresh += new.height
            marks = (
                []
                if state is None
                else [Window(start=mark.end - timedelta(days=1), end=mark.end) for mark in state.marks]
            )
            evidence = DriftEvidence(
                champion=1,
                training_rows=self.reference.rows,
                problems=tuple(problems),
                features=moved,
                labels=label_evidence.judge(new, 1, self.reference.baseline, PARAMS.drift),
                labelled=label_evidence.coverage(rows, labels, marks, end, DELAY),
                fresh_labels=fresh,
                outcome="kept" if asked else "none",
            )
            state, action = policy.step(state, evidence, PARAMS.drift, end, "loans", end)
            if action == "retrain":
                asked.append(number)
        return asked
