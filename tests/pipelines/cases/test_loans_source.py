"""pipelines/cases/loans/source.py: a stream that is the same however it is asked for, and drifts as told."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.contracts import Window
from pipelines.errors import ConfigError
from pipelines.fields import frame_schema
from pipelines.params_file import load_params
from pipelines.problems import problem
from pipelines.settings import Settings

PARAMS = load_params("loans")
DAY = date(2020, 6, 15)
BEFORE = "2020-06-01"


def _window(first: str, last: str) -> Window:
    return Window(
        start=datetime.fromisoformat(first).replace(tzinfo=UTC), end=datetime.fromisoformat(last).replace(tzinfo=UTC)
    )


def _stretch(drift: str, days: int = 20, drift_at: str | None = BEFORE) -> pl.DataFrame:
    return pl.concat([loans.generate(DAY + timedelta(days=n), drift=drift, drift_at=drift_at) for n in range(days)])


@pytest.fixture(scope="module")
def stretches() -> dict[str, pl.DataFrame]:
    """Twenty days, 8,000 rows, under each kind of drift."""
    return {kind: _stretch(kind) for kind in loans.KINDS}


def _shift(stretches: dict[str, pl.DataFrame], kind: str, column: str) -> float:
    """The mean's move in standard deviations of the stream without drift."""
    old, new = stretches["none"][column], stretches[kind][column]
    return abs(float(new.mean()) - float(old.mean())) / float(old.std())


def test_rows_do_not_depend_on_the_window(tmp_path: Path):
    """A day inside a month and the same day asked for alone are the same rows, in canonical form."""
    source = loans.resolve(Settings(home=tmp_path), PARAMS)
    month = loans.rows(source, _window("2020-05-15", "2020-06-15T12:00"), PARAMS)
    alone = loans.rows(source, _window("2020-06-03", "2020-06-04"), PARAMS)
    assert month.filter(pl.col("event_time").dt.date() == date(2020, 6, 3)).equals(alone)
    assert dict(month.schema) == frame_schema(FIELDS)
    assert month.height == 31 * 400 + 200
    assert alone["id"][0] == "loans-20200603-0000"
    assert (alone["label_time"] - alone["event_time"]).dt.total_days().unique().to_list() == [7]


def test_other_seeds_and_days_give_other_rows():
    """Neither two seeds nor two days share their rows."""
    first = loans.generate(DAY)
    assert not first.equals(loans.generate(DAY, seed=1))
    assert not first["salary"].equals(loans.generate(DAY + timedelta(days=1))["salary"])
    assert first.equals(loans.generate(DAY))


@pytest.mark.parametrize("kind", loans.KINDS)
def test_every_value_is_one_that_the_fields_allow(kind: str, stretches: dict[str, pl.DataFrame]):
    """No regime leaves the declared vocabularies and bounds."""
    for field in FIELDS.fields:
        assert {problem(field, value) for value in stretches[kind][field.name].unique()} == {None}
    assert set(stretches[kind][FIELDS.label].unique()) == {0, 1}


def test_covariate_drift_moves_inputs_and_keeps_the_rule(stretches: dict[str, pl.DataFrame]):
    """Salary and age move by .5 to 1 standard deviation; at given inputs the old rule decides as often as before."""
    assert 0.5 < _shift(stretches, "covariate", "salary") < 1
    assert 0.5 < _shift(stretches, "covariate", "age") < 1
    assert _agreement(stretches["covariate"]) == pytest.approx(1 - loans.NOISE, abs=0.015)


def test_label_drift_moves_the_prior_and_keeps_the_classes(stretches: dict[str, pl.DataFrame]):
    """The share of granted loans goes from a half to three quarters; within a class salaries stay as they were."""
    assert stretches["none"]["granted"].mean() == pytest.approx(0.49, abs=0.02)
    assert stretches["label"]["granted"].mean() == pytest.approx(loans.DRIFTED_PRIOR, abs=0.02)
    for label in (0, 1):
        old, new = (stretches[kind].filter(granted=label)["salary"] for kind in ("none", "label"))
        assert abs(float(old.mean()) - float(new.mean())) < 0.06 * float(old.std())


def test_concept_drift_keeps_the_inputs_value_by_value(stretches: dict[str, pl.DataFrame]):
    """The features are those of the stream without drift, and the old rule no longer tells the label."""
    features = list(FIELDS.names)
    assert stretches["concept"].select(features).equals(stretches["none"].select(features))
    assert _agreement(stretches["concept"]) < 0.6


def _agreement(frame: pl.DataFrame) -> float:
    """How often the first rule of the stream gives the row's label."""
    income = 2 * (frame["salary"] + frame["commission"]) / 3 - frame["amount"] / 5 - 20_000
    return float(np.mean((income > 0).to_numpy() == (frame["granted"] == 1).to_numpy()))


def test_the_regime_starts_and_flips_on_time():
    """Drift holds from its first day on, and with a period it comes and goes."""
    days = [date(2020, 5, 31), date(2020, 6, 1), date(2020, 6, 10), date(2020, 6, 11), date(2020, 6, 21)]
    assert [loans.regime(day, drift="label", drift_at=BEFORE, drift_every_days=10) for day in days] == [
        "none",
        "label",
        "label",
        "none",
        "label",
    ]
    assert loans.regime(date(2030, 1, 1), drift="label", drift_at=BEFORE, drift_every_days=None) == "label"
    with pytest.raises(ConfigError, match="unknown drift 'sudden': choose one of none, covariate"):
        loans.regime(DAY, drift="sudden", drift_at=None, drift_every_days=None)


def test_a_pinned_file_holds_the_generators_rows(tmp_path: Path):
    """Rows from the file and rows from the generator are equal, within the file, across its ends and outside it."""
    loans.write_pinned(tmp_path / loans.PINNED, date(2020, 5, 1), 10, PARAMS)
    pinned = loans.resolve(Settings(home=tmp_path, data_dir=tmp_path), PARAMS)
    generated = loans.resolve(Settings(home=tmp_path), PARAMS)
    assert "pinned rows" in pinned.why
    assert pinned.sha256 is not None
    for window in (
        _window("2020-05-03T07:00", "2020-05-04"),
        _window("2020-04-28", "2020-05-13"),
        _window("2020-07-01", "2020-07-02"),
    ):
        assert loans.rows(pinned, window, PARAMS).equals(loans.rows(generated, window, PARAMS))


def test_a_pinned_file_of_other_settings_is_left_alone(tmp_path: Path):
    """A file made with another seed is not mixed into the stream."""
    other = PARAMS.model_copy(update={"source": {**PARAMS.source, "seed": 7}})
    loans.write_pinned(tmp_path / loans.PINNED, date(2020, 5, 1), 2, other)
    source = loans.resolve(Settings(home=tmp_path, data_dir=tmp_path), PARAMS)
    assert source.path is None
    assert "other settings" in source.why


def test_a_mistake_in_the_settings_is_named(tmp_path: Path):
    """Source settings that cannot be used say what they need."""
    params = PARAMS.model_copy(update={"source": {"seed": 0}})
    with pytest.raises(ConfigError, match="needs rows_per_day, seed and drift"):
        loans.rows(loans.resolve(Settings(home=tmp_path), params), _window("2020-05-01", "2020-05-02"), params)


def test_a_window_before_the_stream_is_empty(tmp_path: Path):
    """Before its first day the stream has no rows, but their columns."""
    empty = loans.rows(loans.resolve(Settings(home=tmp_path), PARAMS), _window("2019-05-01", "2019-06-01"), PARAMS)
    assert empty.is_empty()
    assert dict(empty.schema) == frame_schema(FIELDS)
