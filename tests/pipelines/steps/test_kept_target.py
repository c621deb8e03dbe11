"""Steps and imports are held to what the numbers in a case's rows meant when they were written."""

from __future__ import annotations

import json
import shutil
import sys

import polars as pl
import pytest
import yaml

from pipelines import cli
from pipelines.cases import load_fields, part
from pipelines.cases.surveying import survey
from pipelines.cli import importing
from pipelines.cli.importing import Given
from pipelines.contracts import Window
from pipelines.data import lake
from pipelines.errors import ConfigError
from pipelines.params_file import load_params
from tests import shop
from tests.declarations import AS_OF, declare, settings
from tests.pipelines.data import loglines
from tests.pipelines.verbs import ingest, validate
from tests.serving.gateway.world import release

CLASSES = '("no", "yes", "maybe")'
MOVED = '("yes", "no", "maybe")'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Shop's rows as data/shop.csv, what was sold in words, an empty state, and a shop whose source is declared."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path / "data"))
    path = shop.write_rows(tmp_path / "data" / "shop.csv")
    with shop.installed(tmp_path / "cases") as root:
        (shop.write(root) / "source.py").unlink()
        rows = pl.read_csv(path)
        rows.with_columns(pl.col("sold").replace_strict({0: "no", 1: "yes"})).write_csv(path)
        yield tmp_path


def schema(home, *changes):
    """Change the declared fields, as another process finds them."""
    shop.edit(home / "cases" / "shop" / "schema.py", *changes)
    for name in [name for name in sys.modules if name.startswith("pipelines.cases.shop")]:
        del sys.modules[name]
    shutil.rmtree(home / "cases" / "shop" / "__pycache__", ignore_errors=True)


def ingested(home, params=None):
    """The rows of a run, as ingest took them in."""
    where = settings(home)
    made = ingest.run(params or load_params("shop"), where, where.run_dir("shop", AS_OF), AS_OF)
    return lake.read_days(where, made.facts["partitions"])


def serve(home):
    """Log the rows that the source has, and their labels; from now on the log is what there is to learn from."""
    module, params, fields = part("shop", "source"), load_params("shop"), load_fields("shop")
    where = settings(home)
    rows = module.rows(module.resolve(where, params), Window(start=params.period[0], end=AS_OF), params)
    loglines.write(where, "shop", "predictions", "a", loglines.predictions(rows, fields))
    loglines.write(where, "shop", "labels", "a", loglines.labels(rows, fields))
    declare(home, kind="log")


def problem(home):
    """What the survey says of the case."""
    [case] = survey(settings(home), ["shop"])
    return case.problem


def test_logged_labels_are_not_read_as_other_classes(home, capfd):
    """A run whose classes have moved since its rows were logged stops before it reads them; put back, it goes on.

    The survey, and so /readyz, status and Airflow, say the same. Classes at the end are no matter.
    """
    declare(home, kind="files", url="shop.csv")
    schema(home, ('label="sold",', f'label="sold", classes={CLASSES},'))
    serve(home)
    before = ingested(home)
    assert set(before["sold"].drop_nulls()) == {0, 1}
    schema(home, (CLASSES, MOVED))
    with pytest.raises(ConfigError, match=r"0 was 'no' \(lake/shop/target.json\) and is 'yes' now"):
        ingested(home)
    with pytest.raises(ConfigError, match="put the order of that file back and append new classes at its end"):
        validate.run(load_params("shop"), settings(home), settings(home).run_dir("shop", AS_OF), AS_OF)
    assert "0 was 'no' (lake/shop/target.json) and is 'yes' now" in problem(home)
    assert cli.main(["ingest", "--case", "shop", "--as-of", "2024-02-16"]) == 2
    assert "ConfigError: shop: its rows keep a class as its position" in capfd.readouterr().err
    schema(home, (MOVED, CLASSES.replace(")", ', "later")')))
    assert problem(home) == ""
    assert ingested(home).equals(before)
    assert json.loads((home / "home/lake/shop/target.json").read_text())["classes"] == ["no", "yes", "maybe", "later"]


def test_rows_of_a_gateway_bind_a_step_too(home):
    """What a gateway has remembered beside its log holds for steps, which have not seen the case before."""
    declare(home, kind="files", url="shop.csv")
    schema(home, ('label="sold",', f'label="sold", classes={CLASSES},'))
    serve(home)
    kept = {"classes": ["yes", "no", "maybe"], "unit": None, "texts": {}}
    (settings(home).prediction_log / "shop" / "target.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match=r"0 was 'yes' \(prediction_log/shop/target.json\) and is 'no' now"):
        ingested(home)


def test_before_there_are_rows_in_the_log_a_source_is_read_anew(home):
    """Until anything was logged or released nothing keeps a position: the source's rows follow the declaration."""
    declare(home, kind="files", url="shop.csv", label_values=["no", "yes"])
    before = ingested(home)["sold"]
    declare(home, kind="files", url="shop.csv", label_values=["yes", "no"])
    assert (ingested(home)["sold"] == 1 - before).all()
    assert problem(home) == ""
    assert not list((home / "home").rglob("target.json"))


def test_the_texts_of_a_binary_label_keep_their_numbers(home):
    """Once a champion has learned that yes is 1, a source whose texts change places is refused; new texts are not."""
    declare(home, kind="files", url="shop.csv", label_values=["no", "yes"])
    path = home / "cases" / "shop" / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"training_rows": "source"}))
    before = ingested(home)
    release(settings(home), 1, case="shop")
    assert ingested(home).equals(before)
    declare(home, kind="files", url="shop.csv", label_values=["yes", "no"])
    words = r"keep the label 'yes' as 1 \(lake/shop/target.json\), and label_values make it 0 now: put their order back"
    with pytest.raises(ConfigError, match=words):
        ingested(home)
    assert "put their order back" in problem(home)
    text = (home / "data" / "shop.csv").read_text().replace(",no\n", ",N\n").replace(",yes\n", ",Y\n")
    (home / "data" / "shop.csv").write_text(text)
    declare(home, kind="files", url="shop.csv", label_values=["N", "Y"])
    assert ingested(home)["sold"].equals(before["sold"])
    declare(home, kind="files", url="shop.csv", label_values=["yes", "no"])
    with pytest.raises(ConfigError, match="put their order back"):
        ingested(home)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (f"Classes({CLASSES})", "of a binary label .* and one of 3 classes is"),
        ('Number("EUR")', r"a number \(EUR\) is"),
    ],
)
def test_logged_labels_are_not_read_as_another_kind(home, target, words):
    """A 1 that was logged of a binary label is neither the second class nor an amount."""
    declare(home, kind="files", url="shop.csv", label_values=["no", "yes"])
    serve(home)
    ingested(home)
    params = load_params("shop")
    schema(
        home,
        ("import Categorical", "import Classes, Number, Categorical"),
        ('label="sold",', f'label="sold", target={target},'),
    )
    with pytest.raises(ConfigError, match=f"{words} declared now: put the target back, or declare a new case"):
        ingested(home, params)


def test_a_state_of_before_is_taken_as_it_is_declared(home):
    """Rows of which nobody has remembered anything, and no champion says it, are those of the first declaration."""
    declare(home, kind="files", url="shop.csv")
    schema(home, ('label="sold",', f'label="sold", classes={CLASSES},'))
    serve(home)
    schema(home, (CLASSES, MOVED))
    assert ingested(home).height
    assert json.loads((home / "home/lake/shop/target.json").read_text())["classes"] == ["yes", "no", "maybe"]


def test_an_import_is_held_to_the_one_before(home):
    """Rows whose label texts change places, or whose classes have moved, are not taken in beside those of before."""
    declare(home, kind="log")

    def take(*values):
        return importing.take(
            load_params("shop"), settings(home), Given(str(home / "data" / "shop.csv"), label_values=values)
        )

    assert take("no", "yes")["labels"]["added"] == 400
    with pytest.raises(ConfigError, match="keep the label 'yes' as 1"):
        take("yes", "no")
    assert take("no", "yes")["labels"]["already_there"] == 400
    schema(home, ('label="sold",', f'label="sold", classes={CLASSES},'))
    with pytest.raises(ConfigError, match="one of 3 classes is declared now"):
        take()


def test_an_import_that_takes_in_nothing_binds_nobody(home):
    """Label texts in a wrong order, given with a file that is not there, do not refuse the right order afterwards."""
    declare(home, kind="log")

    def take(name, *values):
        given = Given(str(home / "data" / name), label_values=values)
        return importing.take(load_params("shop"), settings(home), given)["labels"]

    assert take("shop.csv", "no", "yes")["added"] == 400
    text = (home / "data" / "shop.csv").read_text().replace(",no\n", ",N\n").replace(",yes\n", ",Y\n")
    (home / "data" / "letters.csv").write_text(text)
    with pytest.raises(ConfigError, match="is no file"):
        take("leters.csv", "Y", "N")
    assert take("letters.csv", "N", "Y") == {"added": 0, "already_there": 400, "differing": 0}


def test_a_file_that_cannot_be_read_is_told(home):
    """What was remembered is not guessed at where its file is damaged."""
    declare(home, kind="files", url="shop.csv", label_values=["no", "yes"])
    serve(home)
    ingested(home)
    (home / "home/lake/shop/target.json").write_text("{}")
    assert "lake/shop/target.json cannot be read" in problem(home)
