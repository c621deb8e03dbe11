"""The scales of a case's profiles.

Made by its first dataset, frozen from then on, asked for before anything is trained.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipelines.cases import load_fields
from pipelines.drift.profile.spec import freeze_spec, load_spec
from pipelines.errors import ConfigError, DataError, TooFewRows
from pipelines.fields import Categorical, Fields, Numeric, Text
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop
from tests.pipelines.verbs import dataset, export, ingest, profile, train, validate

AS_OF = datetime(2024, 2, 17, tzinfo=UTC)
REPORTS = Fields("reports", (Text("report"),), "urgent")
TEXTS = pl.DataFrame(
    {
        "id": ["a", "b", "c"],
        "report": ["a heap overflow", "an overflow in the heap", "path traversal"],
        "urgent": [0, 1, 0],
    }
)


@pytest.fixture
def case(tmp_path):
    """A case whose folder holds no profile.json."""
    with shop.installed(tmp_path / "cases") as root:
        folder = shop.write(root)
        (folder / "profile.json").unlink()
        yield folder


@pytest.fixture
def settings(tmp_path):
    """A state folder, and the rows of the case."""
    shop.write_rows(tmp_path / "data" / "shop.csv")
    return Settings(home=tmp_path / "state", data_dir=tmp_path / "data")


def run(settings, as_of, *steps):
    """Some steps of a run of the case."""
    params = load_params("shop")
    return [step.run(params, settings, settings.run_dir("shop", as_of), as_of) for step in steps]


def test_the_line_makes_the_scales_of_a_case(case, settings):
    """The first dataset freezes the scales of its training rows in the state folder, whole line and drift go by them.

    Later runs leave them as they are.
    """
    fields, path, run_dir = load_fields("shop"), settings.profile_file("shop"), settings.run_dir("shop", AS_OF)
    before = sorted(case.glob("*.*"))
    with pytest.raises(TooFewRows, match="the first training freezes the scales"):
        run(settings, AS_OF, profile)
    run(settings, AS_OF, ingest, validate, dataset)
    frozen = path.read_bytes()
    rows = pl.read_parquet(run_dir / "dataset" / "train.parquet")
    assert json.loads(frozen)["price"]["loc"] == pytest.approx(rows["price"].quantile(0.5, "linear"))
    run(settings, AS_OF, train, export, profile)
    spec = json.loads((run_dir / "export" / "spec.json").read_text())
    assert spec["version"] == load_spec(fields, path).version
    run(settings, AS_OF - timedelta(days=4), ingest, validate, dataset)
    run(settings, AS_OF, dataset)
    assert path.read_bytes() == frozen
    assert sorted(case.glob("*.*")) == before


def test_the_folder_of_the_case_comes_first(case, settings):
    """A profile.json in the case's folder is used and never written.

    One that does not cover the fields ends the run before it trains.
    """
    run(settings, AS_OF, ingest, validate, dataset)
    own = '{"price": {"loc": 0.0, "scale": 1.0}}'
    (case / "profile.json").write_text(own)
    with pytest.raises(ConfigError, match="has no scale for weight"):
        run(settings, AS_OF, dataset)
    assert (case / "profile.json").read_text() == own
    (case / "profile.json").write_text(own[:-1] + ', "weight": {"loc": 0.0, "scale": 1.0}}')
    run(settings, AS_OF, dataset)
    assert load_spec(load_fields("shop"), settings.profile_file("shop")).scales["weight"].loc == 0.0


def test_missing_scales_are_missed_before_the_training(case, settings):
    """Scales that were lost after the dataset are asked for before anything is trained.

    The error names the step that makes them again.
    """
    assert case.exists()
    run(settings, AS_OF, ingest, validate, dataset)
    settings.profile_file("shop").unlink()
    with pytest.raises(ConfigError, match="run the step 'dataset' again"):
        run(settings, AS_OF, train)
    run(settings, AS_OF, dataset, train)


def test_of_two_first_runs_one_freezes(tmp_path):
    """Where another run freezes its scales meanwhile, those hold for both."""
    fields, settings = Fields("lamp", (Numeric("watt"),), "broken"), Settings(home=tmp_path)
    early = []

    def late() -> pl.DataFrame:
        early.append(freeze_spec(fields, settings, lambda: pl.DataFrame({"watt": [1.0, 2.0, 3.0]})))
        return pl.DataFrame({"watt": [100.0, 200.0, 300.0]})

    assert freeze_spec(fields, settings, late) == early[0]
    assert early[0].scales["watt"].loc == 2.0
    assert [path.name for path in settings.profile_file("lamp").parent.iterdir()] == ["profile.json"]


def test_a_number_that_is_declared_later_gets_a_scale(tmp_path):
    """A case of categories freezes an empty file.

    A number declared later is added, and what was frozen before stays.
    """
    settings, colour = Settings(home=tmp_path), Categorical("colour", ("red", "blue"))
    one = Fields("lamp", (colour,), "broken")
    rows = pl.DataFrame({"colour": ["red"] * 3, "watt": [1.0, 2.0, 3.0], "volt": [6.0, 12.0, 24.0]})
    assert freeze_spec(one, settings, lambda: rows).scales.keys() == {"score"}
    two = replace(one, fields=(colour, Numeric("watt")))
    assert freeze_spec(two, settings, lambda: rows).scales["watt"].loc == 2.0
    three = replace(one, fields=(colour, Numeric("watt"), Numeric("volt")))
    found = freeze_spec(three, settings, lambda: rows.with_columns(watt=pl.lit(7.0))).scales
    assert (found["watt"].loc, found["volt"].loc) == (2.0, 12.0)


def test_a_text_has_its_words_frozen(tmp_path):
    """Of a text the line freezes vocabulary, words and projections without being told its name.

    Without a word it refuses.
    """
    settings = Settings(home=tmp_path)
    with pytest.raises(DataError, match="no finite value"):
        freeze_spec(REPORTS, settings, lambda: TEXTS.with_columns(report=pl.lit("?")))
    assert not settings.profile_file("reports").exists()
    spec = freeze_spec(REPORTS, settings, lambda: TEXTS)
    assert spec.vocabulary[:2] == ("heap", "overflow")
    assert {"report.words", "report.projection8"} <= spec.scales.keys()


@pytest.mark.parametrize("given", [(), ("reprot",), ("urgent",)])
def test_the_command_writes_no_empty_profile(tmp_path, given):
    """Without the name of a text, or with one that is none, the command fails with the names there are.

    It leaves no file; with it, it works.
    """
    TEXTS.write_parquet(tmp_path / "train.parquet")
    command = [
        sys.executable,
        "-m",
        "pipelines.drift.profile.spec",
        str(tmp_path / "train.parquet"),
        str(tmp_path / "profile.json"),
    ]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "report" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "profile.json").exists()
    if not given:
        subprocess.run([*command, "report"], capture_output=True, text=True, check=True)
        assert load_spec(REPORTS, tmp_path / "profile.json").vocabulary
