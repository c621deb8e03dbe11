"""`perennial import`: rows that were answered elsewhere come into the prediction log, whole, once, and counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines import segments
from pipelines.cases import load_fields
from pipelines.cli import importing
from pipelines.cli.importing import Given
from pipelines.contracts import ELSEWHERE, Window
from pipelines.data import log
from pipelines.errors import ConfigError, DataError
from pipelines.params_file import load_params
from tests import shop
from tests.declarations import declare, settings
from tests.pipelines.cases.test_declared_log import run

ALL = Window(start=shop.FIRST, end=shop.FIRST + timedelta(days=60))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Shop's rows as data/shop.csv, an empty state, and a shop that has no source but its log."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path / "data"))
    shop.write_rows(tmp_path / "data" / "shop.csv")
    with shop.installed(tmp_path / "cases") as root:
        (shop.write(root) / "source.py").unlink()
        declare(tmp_path, kind="log")
        yield tmp_path


def take(home, name="shop.csv", **more):
    """Import a file of the data folder."""
    return importing.take(load_params("shop"), settings(home), Given(str(home / "data" / name), **more))


def logged(home) -> pl.DataFrame:
    """The rows in the log."""
    return log.read_predictions(settings(home), "shop", ALL)


def labels(home) -> pl.DataFrame:
    """The labels in the log."""
    return log.read_labels(settings(home), "shop", ALL.end)


def test_a_first_training_learns_from_what_was_imported(home):
    """Rows and labels of a file are what a first training takes in, with the file's ids, times and values."""
    answer = take(home)
    assert answer["rows"] == {"delivered": 400, "added": 400, "already_there": 0, "refused": 0, "repeats": 0}
    assert answer["labels"] == {"added": 400, "already_there": 0, "differing": 0}
    rows = logged(home)
    assert rows["version"].unique().to_list() == [ELSEWHERE]
    assert rows["score"].null_count() == rows["prediction"].null_count() == 400
    given = pl.read_csv(home / "data" / "shop.csv")
    assert rows.select("id", "colour", "price", "weight").equals(given.select("id", "colour", "price", "weight"))
    assert labels(home).sort("id").equals(labels(home))
    found = run(home)
    assert (found.facts["origin"], found.facts["rows"], found.facts["labelled"]) == ("log", 360, 337)
    assert log.fate(settings(home), "shop")["predictions"] == {"rows": 400, "torn": 0, "malformed": 0}


def test_the_same_file_twice_adds_nothing_and_a_longer_one_its_new_rows(home):
    """What the log has is left out, row by row and label by label; nothing is written then."""
    text = (home / "data" / "shop.csv").read_text().splitlines(keepends=True)
    (home / "data" / "half.csv").write_text("".join(text[:201]))
    take(home, "half.csv")
    again = take(home, "half.csv")
    assert (again["rows"]["added"], again["rows"]["already_there"], again["segments"]) == (0, 200, [])
    assert again["labels"] == {"added": 0, "already_there": 200, "differing": 0}
    more = take(home)
    assert (more["rows"]["added"], more["labels"]["added"]) == (200, 200)
    assert logged(home).height == labels(home).height == 400


def test_labels_may_come_later_and_are_never_replaced(home):
    """Labels of rows that are there are added; one that differs from the log's is counted, and the log's stays."""
    given = pl.read_csv(home / "data" / "shop.csv")
    given.drop("sold").write_csv(home / "data" / "rows.csv")
    first = take(home, "rows.csv")
    assert (first["rows"]["added"], first["labels"]["added"]) == (400, 0)
    assert take(home)["labels"] == {"added": 400, "already_there": 0, "differing": 0}
    before = labels(home)
    given.with_columns(sold=1 - pl.col("sold")).write_csv(home / "data" / "other.csv")
    assert take(home, "other.csv")["labels"] == {"added": 0, "already_there": 0, "differing": 400}
    assert labels(home).equals(before)


def test_what_the_gateway_would_refuse_is_refused_and_counted(home):
    """Values, ids, times, labels and scores that cannot be are kept aside with reasons; the others are logged."""
    lines = [
        "id,event_time,colour,price,weight,sold,p",
        "a,2024-02-01T00:00:00Z,red,1,1,1,0.5",
        "a,2024-02-01T00:00:00Z,red,2,1,1,0.5",
        "b c,2024-02-01T00:00:00Z,red,1,1,1,0.5",
        "c,yesterday,red,1,1,1,0.5",
        "d,2024-02-01T00:00:00Z,green,1,1,1,0.5",
        "e,2024-02-01T00:00:00Z,red,9999,1,1,0.5",
        "f,2024-02-01T00:00:00Z,red,1,1,7,0.5",
        "g,2024-02-01T00:00:00Z,red,1,1,1,1.5",
        "h,2024-02-01T00:00:00Z,red,1,1,1,0.75",
        "h,2024-02-01T00:00:00Z,red,1,1,1,0.75",
        "i,2024-02-01T00:00:00Z,blue,1,1,,",
    ]
    (home / "data" / "bad.csv").write_text("\n".join(lines) + "\n")
    answer = take(home, "bad.csv", score="p")
    assert answer["rows"] == {"delivered": 11, "added": 2, "already_there": 0, "refused": 8, "repeats": 1}
    assert answer["answered"] == 1
    for word in (
        "id: not unique",
        "id: must be",
        "event_time: not",
        "colour: unknown",
        "price: above",
        "sold:",
        "score:",
    ):
        assert any(reason.startswith(word) for reason in answer["reasons"]), word
    assert pl.read_parquet(answer["refused_rows"]).height == 8
    assert logged(home).select("id", "score", "prediction").rows() == [("h", 0.75, 1), ("i", None, None)]
    assert labels(home)["id"].to_list() == ["h"]


def test_a_file_of_nothing_but_refused_rows_is_an_error(home):
    """Then the log is as it was, and the message says why and where the rows are."""
    (home / "data" / "bad.csv").write_text(
        "id,event_time,colour,price,weight,sold\na,2024-02-01T00:00:00Z,green,1,1,1\n"
    )
    with pytest.raises(DataError, match=r"none of 1 rows can be used: colour: unknown category \(1\); they are in"):
        take(home, "bad.csv")
    assert not list((home / "home" / "prediction_log").rglob("*.jsonl*"))


@pytest.mark.parametrize("form", ["parquet", "json", "csv.gz"])
def test_other_forms_and_names_are_the_same_rows(home, form):
    """Parquet, JSON lines and packed CSV, with columns of other names and times without a zone, give equal rows."""
    take(home)
    rows, known = logged(home), labels(home)
    given = pl.read_csv(home / "data" / "shop.csv").with_columns(pl.col("event_time").str.strip_chars_end("Z"))
    given = given.rename({"id": "Nr.", "event_time": "when", "price": "Preis (€)", "sold": "bought"})
    given = given.with_columns(pl.col("bought").replace_strict({0: "no", 1: "yes"}))
    path = home / "data" / f"other.{form}"
    write = {"parquet": given.write_parquet, "json": given.write_ndjson, "csv.gz": given.write_csv}[form]
    write(path, **({"compression": "gzip"} if form == "csv.gz" else {}))
    columns = (("id", "Nr."), ("event_time", "when"), ("price", "Preis (€)"), ("sold", "bought"))
    again = take(home, path.name, columns=columns, zone="UTC", label_values=("no", "yes"))
    assert again["rows"]["already_there"] == again["labels"]["already_there"] == 400
    other = settings(home).model_copy(update={"home": home / "other"})
    importing.take(
        load_params("shop"), other, Given(str(path), columns=columns, zone="UTC", label_values=("no", "yes"))
    )
    same = log.read_predictions(other, "shop", ALL)
    varied = ("request_id", "received_at")
    assert same.drop(varied).equals(rows.drop(varied))
    assert log.read_labels(other, "shop", ALL.end).equals(known)


def test_what_is_to_be_said_is_said_as_options(home):
    """A zone, a column or a label's texts that are missing are asked for by the options of this command."""
    given = pl.read_csv(home / "data" / "shop.csv")
    for changed, words in (
        (given.with_columns(pl.col("event_time").str.strip_chars_end("Z")), "say it by --zone"),
        (given.rename({"price": "cost"}), "by --id, --time, --label or --column NAME=COLUMN"),
        (given.with_columns(sold=pl.lit("maybe")), "by --label-values"),
    ):
        changed.write_csv(home / "data" / "odd.csv")
        with pytest.raises(DataError, match=words) as caught:
            take(home, "odd.csv")
        assert "params.yaml" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--column cost=x: write FIELD=COLUMN, of the fields colour, price, weight"):
        importing.pairs(["cost=x"], load_fields("shop"))


def test_a_case_with_a_history_of_its_own_takes_none(home):
    """Where rows come from a declared source or code, nothing is imported beside them."""
    declare(home, kind="files", url="shop.csv")
    with pytest.raises(ConfigError, match="an import is for a case whose"):
        take(home)


@pytest.mark.parametrize(("point", "there"), [("written", 0), ("closed", 0)])
def test_a_killed_import_is_whole_after_the_next(home, monkeypatch, point, there):
    """Killed before its segments are seen it leaves no row; killed among them the next import adds what lacks."""
    monkeypatch.setattr(segments, "_YOUNG_SECONDS", 0.0)
    code = (
        "import os; from pathlib import Path; from tests import shop; from tests.pipelines import test_importing as t\n"
        f"home = Path({str(home)!r})\n"
        "with shop.installed(home / 'cases'): t.take(home)"
    )
    env = os.environ | {"PERENNIAL_FAILPOINT": f"segments:{point}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert logged(home).height == there
    answer = take(home)
    assert answer["rows"]["added"] == 400
    assert answer["labels"]["added"] == (0 if point == "closed" else 400)
    assert logged(home).height == labels(home).height == 400
    assert not list((home / "home" / "prediction_log").rglob(".*.open"))
    assert log.fate(settings(home), "shop")["labels"]["rows"] == 400
    assert run(home).facts["labelled"] == 337


def test_the_command_line_takes_a_file(home, capsys):
    """`import shop --from ...` prints what became of the rows."""
    from pipelines.cli import main

    assert main(["import", "shop", "--from", str(home / "data" / "shop.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["added"] == 400


def test_scores_of_classes_are_lists_of_all_probabilities(home):
    """Of classes the likeliest is what was answered; a list that is no distribution, or a single number, is refused."""
    shop.edit(home / "cases" / "shop" / "schema.py", ('label="sold",', 'label="sold", classes=("no", "yes", "later"),'))
    given = pl.read_csv(home / "data" / "shop.csv").with_columns(pl.col("sold").replace_strict({0: "later", 1: "yes"}))
    right, wrong = [0.25, 0.125, 0.625], [0.5, 0.5, 0.5]
    scored = given.with_columns(p=pl.Series([right] * 399 + [wrong]))
    scored.write_parquet(home / "data" / "classes.parquet")
    answer = take(home, "classes.parquet", score="p")
    assert (answer["rows"]["added"], answer["rows"]["refused"]) == (399, 1)
    rows = logged(home)
    assert rows.select("prediction", "score").unique().rows() == [(2, 0.625)]
    assert rows["scores"].to_list() == [right] * 399
    assert set(labels(home)["label"]) == {1, 2}
    given.with_columns(p=0.5).write_csv(home / "data" / "single.csv")
    with pytest.raises(DataError, match="with classes a score is a list of the probabilities of all 3"):
        take(home, "single.csv", score="p")


def test_scores_of_numbers_are_the_numbers(home):
    """What was answered is the number itself, within the bounds of what is predicted."""
    target = 'label="sold", target=Number("EUR", 0, 100),'
    shop.edit(
        home / "cases" / "shop" / "schema.py",
        ('label="sold",', target),
        ("import Categorical, Fields, Numeric", "import Categorical, Fields, Number, Numeric"),
    )
    path = home / "cases" / "shop" / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["gate"] |= {"metric": "rmse", "min_lift": 0.1}
    params["drift"] |= {"min_metric_drop": 0.1}
    params["train"].pop("label_smoothing", None)
    path.write_text(yaml.safe_dump(params))
    given = pl.read_csv(home / "data" / "shop.csv").with_columns(sold=pl.col("sold") * 7.5)
    given.with_columns(p=pl.Series([3.5] * 399 + [101.0])).write_csv(home / "data" / "numbers.csv")
    answer = take(home, "numbers.csv", score="p")
    assert (answer["rows"]["added"], answer["rows"]["refused"]) == (399, 1)
    assert logged(home).select("prediction", "score").unique().rows() == [(3.5, 3.5)]
    assert set(labels(home)["label"]) == {0.0, 7.5}
