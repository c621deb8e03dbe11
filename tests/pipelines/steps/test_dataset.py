"""pipelines/steps/dataset.py: training rows and holdout of a run, apart from what the champion knows."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines.contracts import Manifest
from pipelines.errors import IntegrityError, TooFewRows
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.steps.champion import FIRST, promote_first
from tests.pipelines.verbs import dataset, ingest, validate

SECOND = datetime(2020, 5, 4, tzinfo=UTC)
_DEFAULTS = load_params("loans")
PARAMS = _DEFAULTS.model_copy(
    update={
        "training_rows": "source",
        "dataset": _DEFAULTS.dataset.model_copy(update={"window_days": 20, "min_rows": 100, "fallback_rows": 200}),
        "source": {**_DEFAULTS.source, "rows_per_day": 20},
    }
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty state folder."""
    return Settings(home=tmp_path)


def _run(settings: Settings, as_of: datetime, params=PARAMS) -> Manifest:
    run_dir = settings.run_dir("loans", as_of)
    for step in (ingest, validate, dataset):
        manifest = step.run(params, settings, run_dir, as_of)
    return manifest


def _ids(settings: Settings, as_of: datetime, name: str) -> set[str]:
    return set(pl.read_parquet(settings.run_dir("loans", as_of) / "dataset" / f"{name}.parquet")["id"])


def test_facts_say_what_was_chosen(settings: Settings):
    """Counts, rule, base rate and window of the manifest are those of the files."""
    facts = _run(settings, FIRST).facts
    train = pl.read_parquet(settings.run_dir("loans", FIRST) / "dataset" / "train.parquet")
    # 13 of the window's 20 days have labels, of 20 rows each.
    assert (facts["rule"], facts["train_rows"], facts["holdout_rows"]) == ("window", 208, 52)
    assert facts["positives"] == train["granted"].sum()
    assert facts["base_rate"] == pytest.approx(train["granted"].mean())
    assert facts["champion"] is None
    assert facts["window"]["end"] == "2020-05-01T00:00:00Z"
    assert _run(settings, FIRST).key == _run(settings, FIRST).key


def test_no_row_is_judged_on_that_a_model_was_trained_on(settings: Settings):
    """Of the holdout, what the champion was trained on is left out and counted, and trains nobody instead."""
    _run(settings, FIRST)
    promote_first(settings)
    known = _ids(settings, FIRST, "train")
    facts = _run(
        settings,
        SECOND,
        PARAMS.model_copy(update={"dataset": PARAMS.dataset.model_copy(update={"holdout_share": 0.5})}),
    ).facts
    train, holdout = _ids(settings, SECOND, "train"), _ids(settings, SECOND, "holdout")
    assert facts["champion"] == 1
    assert facts["excluded_rows"] > 0
    assert facts["train_rows"] + facts["holdout_rows"] + facts["excluded_rows"] == 260
    assert not holdout & (known | train)


def test_rows_of_a_run_that_was_repeated_otherwise_are_known_too(settings: Settings):
    """If the champion's run was repeated with other parameters, rows of either run leave the holdout."""
    _run(settings, FIRST)
    known = _ids(settings, FIRST, "train")
    promote_first(settings)
    _run(
        settings, FIRST, PARAMS.model_copy(update={"dataset": PARAMS.dataset.model_copy(update={"holdout_share": 0.9})})
    )
    _run(settings, SECOND)
    assert not _ids(settings, SECOND, "holdout") & known


def test_a_champion_without_its_rows_is_refused(settings: Settings):
    """Nobody can be judged fairly if it is not known what the champion was trained on."""
    promote_first(settings)
    with pytest.raises(IntegrityError, match="the rows champion 1 was trained on, is missing"):
        _run(settings, SECOND)


def test_no_label_is_an_error_that_says_so(settings: Settings):
    """Before the first label has arrived there is nothing to train on."""
    early = datetime(2020, 1, 3, tzinfo=UTC)
    with pytest.raises(TooFewRows, match="0 have a label that has arrived: labels take 7 days"):
        _run(settings, early)


def test_the_usual_volume_is_kept_beside_thinned_rows(settings: Settings) -> None:
    """Rows per day are those that came, labelled or not, before max_rows thinned them and older rows were mixed in."""
    params = PARAMS.model_copy(
        update={"dataset": PARAMS.dataset.model_copy(update={"max_rows": 60, "replay_share": 0.5})}
    )
    facts = _run(settings, SECOND, params).facts
    assert facts["train_rows"] < 120
    assert facts["rows_per_day"] == pytest.approx(20, rel=0.05)
