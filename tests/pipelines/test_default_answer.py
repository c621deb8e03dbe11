"""A declared default: what may be one, and that it is no answer of a model to whoever reads the log."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
import yaml

from pipelines.cases import surveying
from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS as LOANS
from pipelines.contracts import ELSEWHERE, Window
from pipelines.data import log
from pipelines.drift.labels import arrived, performance
from pipelines.drift.profile.counts import Profile, profile_outputs
from pipelines.drift.why import shown
from pipelines.errors import ConfigError
from pipelines.feature_names import served
from pipelines.fields import Binary, Fields, Number, Numeric
from pipelines.problems import default_scores
from pipelines.settings import Settings
from tests.pipelines.data import loglines
from tests.pipelines.drift.stream import PARAMS
from tests.pipelines.drift.test_profile import FIELDS as PROFILED
from tests.pipelines.drift.test_profile import SPEC

AGE = (Numeric("age"),)
YES = Fields("loans", AGE, "granted")
TEAM = Fields("reports", AGE, "team", classes=("a", "b", "c"))
MINUTES = Fields("trips", AGE, "minutes", target=Number("min", 0, 90))
DAY = datetime(2020, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "default", "scores"),
    [
        (YES, None, None),
        (YES, 0.02, (0.02,)),
        (YES, 1, (1.0,)),
        (TEAM, {"c": 0.5, "a": 0.25, "b": 0.25}, (0.25, 0.25, 0.5)),
        (TEAM, {"a": 0.7, "b": 0.2, "c": 0.1}, (0.7, 0.2, 0.1)),
        (MINUTES, 12, (12.0,)),
    ],
)
def test_a_default_is_what_the_case_could_answer(fields, default, scores):
    """A probability, a number within its bounds, or a probability for each class, in their declared order."""
    assert default_scores(fields, default) == scores


@pytest.mark.parametrize(
    ("fields", "default", "says"),
    [
        (YES, 1.5, r"serving\.default: 1\.5 is no probability: give one from 0 to 1"),
        (YES, math.nan, r"serving\.default: nan is no probability"),
        (YES, {"yes": 1.0}, r"serving\.default: loans has no classes: give one number, the probability of 1"),
        (TEAM, 0.5, r"serving\.default: give one probability for each of the classes a, b, c"),
        (TEAM, {"a": 0.5, "b": 0.5}, "for each of the classes a, b, c"),
        (TEAM, {"a": 0.5, "b": 0.25, "c": 0.25, "d": 0.0}, "for each of the classes a, b, c"),
        (TEAM, {"a": 1.5, "b": -0.5, "c": 0.0}, r"serving\.default\.a: 1\.5 is no probability"),
        (TEAM, {"a": 0.5, "b": 0.2, "c": 0.2}, r"serving\.default: the probabilities of a, b, c sum to 0\.9"),
        (MINUTES, 91, r"serving\.default: 91 is no number that the target may be: give one from 0 to 90"),
        (MINUTES, math.inf, "inf is no number that the target may be"),
    ],
)
def test_what_no_model_could_answer_is_refused_by_name(fields, default, says):
    """Bounds, classes and sums that are wrong are one error that names the parameter and says what to give."""
    with pytest.raises(ConfigError, match=says):
        default_scores(fields, default)


def test_a_wrong_default_breaks_its_case_when_it_is_read(tmp_path, monkeypatch):
    """The survey tells the case's parameter; with a right one there is nothing to tell."""
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    own = yaml.safe_load(surveying.file_of("loans", "params.yaml").read_text())
    found = []
    for default in (7, 0.5):
        (tmp_path / "loans.yaml").write_text(yaml.safe_dump(own | {"serving": {"default": default}}))
        [case] = surveying.survey(Settings(params_dir=tmp_path), ["loans"])
        found.append((case.problem, case.params is None))
    assert found == [("serving.default: 7 is no probability: give one from 0 to 1", True), ("", False)]


def by_default(lines, *, scores=None):
    """The lines as the gateway writes them where the default was answered."""
    more = {} if scores is None else {"scores": scores}
    return [
        {**line, **more, "version": ELSEWHERE, "score": 0.9, "prediction": 1, "outcome": "default"} for line in lines
    ]


@pytest.fixture
def rows(tmp_path):
    """A day's rows as they are read: every second was answered by version 1, the others by the default."""
    settings = Settings(home=tmp_path)
    frame = loans.generate(date(2020, 5, 1), rows_per_day=400)
    sent = loglines.predictions(frame, LOANS)
    loglines.write(settings, "loans", "predictions", "a", [*sent[::2], *by_default(sent[1::2])])
    assert log.compact(settings, "loans") == 1
    found = log.read_predictions(settings, "loans", Window(start=DAY, end=DAY + timedelta(days=1)))
    assert found.select("id", *LOANS.names).equals(frame.sort("event_time", "id").select("id", *LOANS.names))
    return found, frame


def test_a_default_answer_is_a_row_that_nobody_answered(rows):
    """Its features are read as they were sent; it has neither score nor prediction, and no version of ours."""
    found, _ = rows
    own = found.filter(pl.col("version") == ELSEWHERE)
    assert own.height == 200
    assert own["score"].null_count() == own["prediction"].null_count() == 200
    assert found.filter(pl.col("version") == 1)["score"].to_list() == [0.25] * 200


def test_a_default_answer_says_nothing_of_a_model(rows):
    """Labels of such rows count in no version's errors, loss or calibration, and the champion's figures are its own."""
    found, frame = rows
    window = Window(start=DAY, end=DAY + timedelta(days=1))
    labels = frame.select("id", label=pl.col("granted").cast(pl.Int64), label_time=pl.col("event_time"), revision=0)
    until = DAY + timedelta(days=2)
    alone = found.filter(pl.col("version") == 1)

    def judged(of):
        known = performance.known(of, labels, until)
        fresh = arrived.mature(of, labels, until, timedelta(0))
        base = {"error_rate": 0.2, "rows": 1000, "errors": 200, "loss": 0.4, "loss_se": 0.01}
        summed = performance.summary(known, [window], 1, {}, (), PARAMS.drift, Binary(), {})
        return arrived.judge(fresh, 1, base, PARAMS.drift), summed

    (evidence, every), (own, only) = judged(found), judged(alone)
    assert evidence == own
    assert (every.slices, every.estimate, every.earlier) == (only.slices, only.estimate, only.earlier)
    assert [one for one in every.rolling if one.version == 1] == list(only.rolling)
    [nobody] = [one for one in every.rolling if one.version == ELSEWHERE]
    assert (nobody.rows, nobody.labelled, nobody.main) == (200, 200, None)


def test_a_default_answer_is_in_no_statistics_of_scores(rows):
    """A window's scores are those that versions gave, and its page names nobody else as who answered."""
    found, _ = rows
    given = found.select("score", "prediction", "version")
    profile = profile_outputs(given, PROFILED, SPEC)
    alone = profile_outputs(given.filter(pl.col("version") == 1), PROFILED, SPEC)
    for name in ("score", "entropy"):
        one, other = profile.columns[served(name, 1)], alone.columns[served(name, 1)]
        assert (one.bins.tolist(), one.counts.tolist(), one.missing) == (
            other.bins.tolist(),
            other.counts.tolist(),
            other.missing,
        )
    assert profile.columns[served("score", ELSEWHERE)].n == 0
    assert shown._answered(Profile(SPEC.version, found.height, profile.columns)) == {1: 200}


def test_scores_of_classes_go_too(tmp_path):
    """In a case with classes the declared probabilities are left out with the score."""
    settings = Settings(home=tmp_path)
    sent = loglines.predictions(loans.generate(date(2020, 5, 1), rows_per_day=48), LOANS)
    told = [{**line, "scores": [0.75, 0.25]} for line in sent[:10]]
    loglines.write(settings, "loans", "predictions", "a", [*told, *by_default(sent[10:], scores=[0.1, 0.9])])
    log.compact(settings, "loans")
    found = log.read_predictions(settings, "loans", Window(start=DAY, end=DAY + timedelta(days=1)))
    assert found["scores"].null_count() == len(sent) - 10


def test_a_default_of_a_version_is_no_line_of_the_log(tmp_path):
    """A line that says both that a version answered and that the default did is kept apart, and named."""
    settings = Settings(home=tmp_path)
    sent = loglines.predictions(loans.generate(date(2020, 5, 1), rows_per_day=24), LOANS)
    loglines.write(settings, "loans", "predictions", "a", [*sent[1:], {**sent[0], "outcome": "default"}])
    log.compact(settings, "loans")
    found = log.read_predictions(settings, "loans", Window(start=DAY, end=DAY + timedelta(days=1)))
    assert sorted(found["id"]) == sorted(line["prediction_id"] for line in sent[1:])
