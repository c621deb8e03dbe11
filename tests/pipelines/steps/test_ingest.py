"""pipelines/steps/ingest.py: the right rows, once, from the source at first and from the log ever after."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from pipelines import storage
from pipelines.cases import by_day
from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.contracts import Manifest, Window
from pipelines.data import lake
from pipelines.errors import TooFewRows
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.steps import ingest as ingest_step
from tests.pipelines.data import loglines
from tests.pipelines.steps.champion import FIRST, promote_first
from tests.pipelines.verbs import ingest

AS_OF = datetime(2020, 6, 1, tzinfo=UTC)
_DEFAULTS = load_params("loans")
PARAMS = _DEFAULTS.model_copy(
    update={
        "dataset": _DEFAULTS.dataset.model_copy(update={"window_days": 10, "min_rows": 50, "fallback_rows": 100}),
        "source": {**_DEFAULTS.source, "rows_per_day": 20},
    }
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty state folder."""
    return Settings(home=tmp_path)


def _run(settings: Settings, as_of: datetime = AS_OF, params: Params = PARAMS) -> Manifest:
    return ingest.run(params, settings, settings.run_dir("loans", as_of), as_of)


def _stream(start: datetime, end: datetime, settings: Settings) -> pl.DataFrame:
    return loans.rows(loans.resolve(settings, PARAMS), Window(start=start, end=end), PARAMS)


def _serve(settings: Settings, frame: pl.DataFrame, segment: str = "a") -> None:
    """Log the rows as served, and their labels."""
    loglines.write(settings, "loans", "predictions", segment, loglines.predictions(frame, FIELDS))
    loglines.write(settings, "loans", "labels", segment, loglines.labels(frame, FIELDS))


def test_before_a_champion_rows_come_from_the_source(settings: Settings):
    """Whole days before as_of, one partition each, labels only where the delay has passed."""
    manifest = _run(settings)
    assert manifest.facts["origin"] == "source"
    assert manifest.facts["source"]["kind"] == "generated"
    rows = lake.read_days(settings, manifest.facts["partitions"])
    assert rows["event_time"].max() < AS_OF
    assert rows.filter(pl.col("granted").is_not_null())["event_time"].max() <= AS_OF - timedelta(days=7)
    assert manifest.facts["labelled"] == rows["granted"].count() == rows["label_time"].count()
    # 100 labelled rows and room for 5 % bad ones: 106 of 20 a day, the newest 7 days without labels.
    assert [part["date"] for part in manifest.facts["partitions"]] == [f"2020-05-{day}" for day in range(19, 32)]


@pytest.mark.parametrize("at_once", [by_day.AT_ONCE, 2000])
def test_a_source_that_gives_pieces_gives_the_rows_of_its_window(settings, tmp_path, monkeypatch, at_once):
    """Day by day or in one frame, of pinned rows and generated ones: the same key, facts and partitions."""
    loans.write_pinned(tmp_path / "data" / loans.PINNED, AS_OF.date() - timedelta(days=5), 3, PARAMS)
    as_of, made = AS_OF + timedelta(hours=7), []
    for name in ("pieces", "rows"):
        home = Settings(home=tmp_path / name, data_dir=tmp_path / "data")
        monkeypatch.setattr(by_day, "AT_ONCE", at_once)
        made.append(ingest.run(PARAMS, home, home.run_dir("loans", as_of), as_of))
        alone = SimpleNamespace(resolve=loans.resolve, rows=loans.rows)
        monkeypatch.setattr(ingest_step, "part_of", lambda *_, alone=alone: alone)
    assert made[0].facts["counts"]["outside_window"] > 0
    assert (made[0].key, made[0].facts) == (made[1].key, made[1].facts)


def test_running_again_changes_nothing(settings: Settings):
    """The same rows are the same key, the same manifest and the same files."""
    first = _run(settings)
    files = sorted(path for path in settings.root.rglob("*") if path.is_file())
    assert _run(settings) == first
    assert sorted(path for path in settings.root.rglob("*") if path.is_file()) == files


def test_after_a_champion_rows_come_from_the_log_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """The source is not even opened: what was served, with version and score, is all there is."""
    served = _stream(FIRST, FIRST + timedelta(days=25), settings)
    promote_first(settings)
    _serve(settings, served)
    for name in ("resolve", "rows"):
        monkeypatch.setattr(loans, name, lambda *_: pytest.fail("the source was opened"))
    manifest = _run(settings)
    assert manifest.facts["origin"] == "log"
    rows = lake.read_days(settings, manifest.facts["partitions"])
    expected = served.filter(pl.col("event_time") >= rows["event_time"].min().replace(hour=0, minute=0, second=0))
    assert rows["id"].to_list() == expected["id"].to_list()
    arrived = expected.with_columns(pl.when(pl.col("label_time") <= AS_OF).then(pl.col("granted")).alias("granted"))
    assert rows["granted"].to_list() == arrived["granted"].to_list()
    assert rows.select(FIELDS.names).equals(expected.select(FIELDS.names))
    assert rows["version"].unique().to_list() == [1]


def test_the_run_that_made_the_champion_finds_its_source_again(settings: Settings):
    """A re-run at the champion's own as_of is the run that it was: from the source, a no-op."""
    before = _run(settings, FIRST)
    promote_first(settings)
    assert _run(settings, FIRST) == before


def test_a_case_may_train_from_its_source(settings: Settings):
    """With ``training_rows: source`` the source stays the origin after the first champion."""
    promote_first(settings)
    assert _run(settings, params=PARAMS.model_copy(update={"training_rows": "source"})).facts["origin"] == "source"


def test_late_rows_give_a_new_key(settings: Settings):
    """A row that arrives late makes other work of the same run; the old folder is set aside, not lost."""
    served = _stream(FIRST, FIRST + timedelta(days=25), settings)
    promote_first(settings)
    _serve(settings, served.filter(pl.col("id") != "loans-20200522-0005"))
    first = _run(settings)
    _serve(settings, served.filter(pl.col("id") == "loans-20200522-0005"), segment="b")
    second = _run(settings)
    assert second.key != first.key
    assert second.facts["rows"] == first.facts["rows"] + 1
    changed = [
        new["date"]
        for old, new in zip(first.facts["partitions"], second.facts["partitions"], strict=True)
        if old != new
    ]
    assert changed == ["2020-05-22"]
    assert storage.read_manifest(next(settings.run_dir("loans", AS_OF).glob(f"ingest.{first.key[:12]}*"))) == first


def test_labels_after_as_of_do_not_exist_yet(settings: Settings):
    """A label that arrives a second after as_of changes nothing."""
    served = _stream(FIRST, FIRST + timedelta(days=25), settings)
    promote_first(settings)
    _serve(settings, served)
    first = _run(settings)
    late = loglines.labels(served.filter(pl.col("label_time") > AS_OF), FIELDS)
    moved = [{**line, "event_time": (AS_OF + timedelta(seconds=1)).isoformat()} for line in late]
    loglines.write(settings, "loans", "labels", "b", moved)
    assert _run(settings).key == first.key


def test_a_value_of_another_type_becomes_a_bad_row(settings: Settings):
    """A feature that was logged as text where a number is declared is null here, for validation to find."""
    promote_first(settings)
    lines = loglines.predictions(_stream(FIRST, FIRST + timedelta(days=1), settings), FIELDS)
    lines[0]["row"]["salary"] = "much"
    loglines.write(settings, "loans", "predictions", "a", lines)
    rows = lake.read_days(settings, _run(settings).facts["partitions"])
    assert rows["salary"].null_count() == 1
    assert rows["salary"].dtype == pl.Float64


def test_no_rows_at_all_is_an_error_that_says_so(settings: Settings):
    """A case with a champion and an empty log names the log and the time."""
    promote_first(settings)
    with pytest.raises(TooFewRows, match="loans: the log has no rows before 2020-06-01"):
        _run(settings)
