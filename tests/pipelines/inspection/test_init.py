"""`perennial init` and `try`: a case that works, or a message that says what to do."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
import yaml

from pipelines import cli, installation
from pipelines.cases import load_case
from pipelines.cases.sampling import stride
from pipelines.cases.surveying import survey
from pipelines.cli import looking, trying
from pipelines.cli.options import build_parser
from pipelines.drift.profile.spec import load_spec
from pipelines.settings import Settings
from tests import shop
from tests.pipelines.cases.test_declared import web
from tests.pipelines.inspection.frames import customers, draws
from tests.pipelines.verbs import ingest, validate

ROWS = 1_500
RNG = draws()
AS_OF = datetime(2024, 7, 1, tzinfo=UTC)
WORDS = np.array(["the", "customer", "asked", "twice", "about", "an", "invoice", "and", "left"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder, set as the environment sets it."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "state"))
    for name in ("PERENNIAL_DATA_DIR", "PERENNIAL_CASES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(case: str, path: Path, *more: str) -> list[str]:
    """The command line of a case that is made of the file."""
    return ["init", case, "--from", str(path), "--label", "churned", "--time", "at", "--id", "key", *more]


def texts(rows: int = ROWS) -> list[str]:
    """Free text."""
    return [" ".join(RNG.choice(WORDS, 7)) for _ in range(rows)]


def tall() -> pl.DataFrame:
    """A hundred thousand rows."""
    return customers(100_000)


def wide() -> pl.DataFrame:
    """Three hundred columns, a third of them with holes."""
    return customers(
        ROWS,
        **{
            f"n{number}": [
                None if number % 3 == 0 and row % 9 == 0 else float(value) for row, value in enumerate(drawn)
            ]
            for number, drawn in enumerate(RNG.normal(0, 3, (296, ROWS)))
        },
    )


SHAPES = {
    "wide": wide,
    "tall": tall,
    "text": lambda: customers(ROWS, note=texts()),
    "commas": lambda: customers(ROWS, price=[f"{value:.2f}".replace(".", ",") for value in RNG.normal(0, 3, ROWS)]),
    "dates": lambda: customers(ROWS, since=[f"{1 + row % 28:02d}.{1 + row % 12:02d}.2019" for row in range(ROWS)]),
    "flags": lambda: customers(ROWS, active=RNG.integers(0, 2, ROWS), paid=RNG.choice(["yes", "no"], ROWS)),
    "floats": lambda: customers(
        ROWS,
        customer_id=[None if row % 50 == 0 else float(10_000 + row // 2) for row in range(ROWS)],
        store_id=[float(row % 5) for row in range(ROWS)],
    ),
    "rare": lambda: customers(ROWS).with_columns(churned=pl.Series([*["a", "b", "c"] * 499, "a", "b", "once"])),
    "empty": lambda: customers(ROWS, nothing=[None] * ROWS, blank=[""] * ROWS, same=["x"] * ROWS),
    "mixed": lambda: customers(
        ROWS,
        amount=["unknown" if row % 300 == 7 else f"{value:.2f}" for row, value in enumerate(RNG.uniform(0, 9, ROWS))],
        code=[str(value) if row % 3 else f"w{value}" for row, value in enumerate(RNG.integers(0, 9_000, ROWS))],
    ),
    "twice": lambda: pl.concat([customers(ROWS), customers(ROWS).head(200)]),
}


CODE = ("dates", "floats", "commas")
"""What a declared source cannot say."""
BIG = {"wide": "parquet", "tall": "csv"}
"""Looked at in one kind of file, as they take long."""


OFTEN = [(shape, "parquet") for shape in SHAPES if shape not in {*BIG, "flags", "dates"}]
"""What differs from its CSV by how it is read alone."""


@pytest.mark.parametrize(
    ("shape", "ending"),
    [
        pytest.param(shape, ending, marks=[pytest.mark.long] if shape in BIG or (shape, ending) in OFTEN else [])
        for shape in SHAPES
        for ending in ("csv", "parquet")
        if BIG.get(shape, ending) == ending
    ],
)
def test_a_table_of_each_shape_gives_a_case_that_works(shape, ending, tmp_path, capfd):
    """Nothing is wrong with the case, and of its rows ingest and validation keep at least 95%."""
    frame, case = SHAPES[shape](), f"{shape}_rows"
    path = tmp_path / f"rows.{ending}"
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    with shop.installed(tmp_path / "cases"):
        code = cli.main(asked(case, path))
        out, err = capfd.readouterr()
        assert code == 0, err
        answer = json.loads(out)
        assert {found.name: found.problem for found in survey()} == {case: ""}
        params = load_case(case).params
        settings = Settings(home=tmp_path / "state")
        run_dir = settings.run_dir(case, AS_OF)
        assert ("source.py" in answer["source"]) == (shape in CODE)
        assert load_spec(load_case(case).fields).scales.keys() >= {"age"}
        came = ingest.run(params, settings, run_dir, AS_OF)
        kept = validate.run(params, settings, run_dir, AS_OF)
    assert kept.facts["bad_share"] <= 0.05
    assert came.facts["labelled"] > 0
    counts = answer["rows"]
    assert counts["read"] == frame.height == counts["kept"] + counts["refused"] + counts["repeats"]
    assert counts["kept"] >= 0.95 * frame.unique().height
    assert len(answer["next"]) == 3
    assert f"try {case}" in answer["next"][0]
    _told(shape, answer)


def _told(shape: str, answer: dict) -> None:
    """What must not be guessed in silence."""
    told = " ".join(answer["look_at"])
    if shape == "empty":
        assert set(answer["left_out"]) == {"nothing", "blank", "same"}
    if shape == "rare":
        assert "'once' (1)" in told
    if shape == "mixed":
        assert set(answer["left_out"]) == {"code"}
        assert "5 rows hold no number, such as 'unknown'" in told
        assert answer["rows"]["refused"] == 5
    if shape == "dates":
        assert "since: " in told
        assert "read as midnight in UTC" in told
    if shape == "twice":
        assert answer["rows"]["repeats"] == 200


@pytest.mark.long
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "text"])  # a text is tried below
def test_a_case_of_each_shape_trains(shape, tmp_path, capfd):
    """What init makes of each shape goes to a verdict, whose model beats knowing nothing."""
    SHAPES[shape]().write_csv(tmp_path / "rows.csv")
    with shop.installed(tmp_path / "cases"):
        assert cli.main(asked("churn", tmp_path / "rows.csv")) == 0, capfd.readouterr().err
        capfd.readouterr()
        assert cli.main(["try", "churn"]) == 0, capfd.readouterr().err
    answer = json.loads(capfd.readouterr().out)
    judged = next(one for one in answer["metrics"] if one["metric"] == answer["judged_by"])
    if shape != "rare":  # its labels hang on nothing
        assert judged["model"] < judged["baseline"]
        assert answer["decision"] == "promote", answer["reason"]


def _number(frame: pl.DataFrame) -> pl.DataFrame:
    """A label that is a number, the newest of which have not arrived."""
    spent = 3.0 * frame["age"].to_numpy() + draws().normal(0, 20, frame.height)
    return frame.with_columns(churned=pl.Series(spent).scatter(list(range(ROWS - 30, ROWS)), None))


def _in_parquet(tmp_path: Path, frame: pl.DataFrame) -> list[str]:
    frame.write_parquet(tmp_path / "rows.parquet")
    return ["--from", str(tmp_path / "rows.parquet")]


def _in_json(tmp_path: Path, frame: pl.DataFrame) -> list[str]:
    """Two files of a pattern."""
    for part in range(2):
        frame.filter(pl.int_range(pl.len()) % 2 == part).write_ndjson(tmp_path / f"rows-{part}.jsonl")
    return ["--from", str(tmp_path / "rows-*.jsonl")]


def _in_a_database(tmp_path: Path, frame: pl.DataFrame, url: str = "") -> list[str]:
    """A table, whose address stands in a file below the state folder; in SQLite times are texts."""
    kinds = {"key": "text", "at": "timestamptz", "age": "integer", "plan": "text", "churned": "text"}
    columns = ", ".join(f"{name} {kinds[name]}" for name in frame.columns)
    if not url:
        url, columns = f"sqlite:///{tmp_path / 'warehouse.db'}", ", ".join(frame.columns)
        frame = frame.with_columns(pl.selectors.datetime().dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"create table customers ({columns})"))
        rows = frame.to_dicts()
        values = ", ".join(f":{name}" for name in frame.columns)
        connection.execute(sa.text(f"insert into customers values ({values})"), rows)
    engine.dispose()
    secrets = tmp_path / "state" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "warehouse").write_text(f"{url}\n")
    return ["--from", "file:secrets/warehouse", "--table", "customers"]


@pytest.mark.parametrize(
    ("put", "make", "metric"),
    [
        (_in_a_database, lambda: customers(3_000), "log_loss"),
        (
            _in_parquet,
            lambda: _number(customers(ROWS, due=[datetime(2024, 1, 1 + row % 28) for row in range(ROWS)])),
            "rmse",
        ),
        (
            _in_json,
            lambda: (
                customers(ROWS, note=texts())
                .with_columns(
                    churned=pl.when(pl.col("age") < 40)
                    .then(pl.lit("low"))
                    .when(pl.col("age") < 60)
                    .then(pl.lit("mid"))
                    .otherwise(pl.col("plan"))
                )
                .with_columns(age=pl.col("age") + pl.Series(RNG.integers(-12, 13, ROWS)))
            ),
            "log_loss",
        ),
    ],
)
def test_the_line_is_played_to_the_verdict(put, make, metric, tmp_path, capfd):
    """A label of each kind, of files and a table, with holes, moments and a text: a verdict, and a baseline's metrics.

    No code reads the rows, and no address is written down.
    """
    given = ["init", "churn", *put(tmp_path, make()), "--label", "churned", "--time", "at", "--id", "key"]
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(given) == 0, capfd.readouterr().err
        assert not (root / "churn" / "source.py").exists()
        assert "warehouse.db" not in "".join(path.read_text() for path in (root / "churn").glob("*.*"))
        capfd.readouterr()
        assert cli.main(["try", "churn"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["judged_by"] == metric
    judged = next(one for one in answer["metrics"] if one["metric"] == metric)
    assert judged["model"] < judged["baseline"]
    assert answer["decision"] == "promote", answer["reason"]
    assert answer["rows"]["train"] > 0.5 * answer["rows"]["kept"]
    steps = ["ingest", "validate", "dataset", "train", "export", "evaluate", "gate"]
    assert sorted(answer["seconds"]) == sorted(steps)
    assert all(f"{number}/7 {step}" in err for number, step in enumerate(steps, start=1))
    # The state of the person who asked has nothing of it but its own folder.
    assert not (tmp_path / "state" / "ledger.db").exists()


def test_the_test_that_comes_with_a_case_passes(tmp_path, capfd):
    """What init writes beside a case for its repository finds nothing wrong with it, and is no part of its code."""
    from pipelines.cases.code import code_sha256

    path = tmp_path / "rows.csv"
    customers(ROWS).write_csv(path)
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(asked("churn", path)) == 0, capfd.readouterr().err
        own = importlib.import_module("pipelines.cases.churn.test_churn")
        own.test_the_case_can_be_loaded()
        own.test_its_rows_keep_the_contract()
        before = code_sha256("churn")
        (root / "churn" / "test_churn.py").unlink()
        assert code_sha256("churn") == before
        # Half of its rows with a value out of bounds are told.
        pl.read_csv(path).with_columns(age=pl.col("age") - 40).write_csv(path)
        with pytest.raises(AssertionError, match="age: below 0"):
            own.test_its_rows_keep_the_contract()


def test_ids_are_made_where_there_are_none(tmp_path, capfd):
    """Without --id a row is named by what it holds: the same in a second look, and equal rows are one."""
    frame = customers(ROWS).drop("key")
    path = tmp_path / "rows.parquet"
    pl.concat([frame, frame.head(10)]).write_parquet(path)
    given = ["init", "churn", "--from", str(path), "--label", "churned", "--time", "at"]
    with shop.installed(tmp_path / "cases"):
        assert cli.main(given) == 0, capfd.readouterr().err
    answer = json.loads(capfd.readouterr().out)
    assert answer["rows"]["repeats"] == 10
    assert "equal rows are one" in " ".join(answer["look_at"])


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        ({"nope": 1}, ["--without", "plans"], "did you mean 'plan'"),
        ({"known": None}, [], "know the answer: known"),
        ({"amount": "many"}, [], "rows would be refused: amount"),
    ],
)
def test_what_cannot_work_leaves_nothing(change, more, words, tmp_path, capfd):
    """A wrong name, a leak, too many rows that break the contract: one line that says what to do, and no folder."""
    frame = customers(ROWS)
    if "known" in change:
        frame = frame.with_columns(known=pl.col("churned") * 2)
    if "amount" in change:
        holes = [float("inf") if row % 10 == 0 else 1.5 * row for row in range(ROWS)]
        frame = frame.with_columns(amount=pl.Series(holes))
    frame.write_parquet(tmp_path / "rows.parquet")
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(asked("churn", tmp_path / "rows.parquet", *more)) != 0
        assert list(root.iterdir()) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err.splitlines()[-1]


def test_a_table_without_a_usable_column_says_why_of_each(tmp_path, capfd):
    """Where every column is left out, the error says of each why."""
    frame = customers(ROWS).select("key", "at", "churned").with_columns(rate=pl.Series([f"{n}%" for n in range(ROWS)]))
    frame.write_csv(tmp_path / "rows.csv")
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(asked("churn", tmp_path / "rows.csv")) != 0
        assert list(root.iterdir()) == []
    said = capfd.readouterr().err.splitlines()[-1]
    assert "no fields to predict from" in said
    assert "rate: numbers as people write them" in said


def test_names_with_umlauts_and_names_that_stand_twice(tmp_path, capfd):
    """A field is called as its column, umlauts written out; a header that names two columns alike is told."""
    head, _, body = customers(ROWS).write_csv().partition("\n")
    for name in ("age", "plan"):
        head = head.replace(name, "Größe (m²)")
    (tmp_path / "rows.csv").write_text(f"{head}\n{body}")
    with shop.installed(tmp_path / "cases"):
        assert cli.main(asked("churn", tmp_path / "rows.csv")) == 0
        assert load_case("churn").fields.names == ("Groesse_m2", "Groesse_m2__duplicated_0")
    assert "the header names Größe (m²) more than once" in " ".join(json.loads(capfd.readouterr().out)["look_at"])


def test_a_folder_that_is_there_is_not_touched(tmp_path, capfd):
    """A second init of the same name, and the name of a module of the project, are refused."""
    customers(ROWS).write_parquet(tmp_path / "rows.parquet")
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(asked("churn", tmp_path / "rows.parquet")) == 0
        (root / "churn" / "schema.py").write_text("# mine\n")
        assert cli.main(asked("churn", tmp_path / "rows.parquet")) == 2
        assert (root / "churn" / "schema.py").read_text() == "# mine\n"
        assert cli.main(asked("tabular", tmp_path / "rows.parquet")) == 2
        assert cli.main(asked("class", tmp_path / "rows.parquet")) == 2
    err = capfd.readouterr().err
    assert "is there already" in err
    assert "the name of a module" in err
    assert "is no name for a case" in err


def test_a_case_may_be_put_elsewhere(tmp_path, capfd, monkeypatch):
    """--to names the folder, else the first of PERENNIAL_CASES; a folder that it lacks is told to be added there."""
    customers(ROWS).write_parquet(tmp_path / "rows.parquet")
    monkeypatch.setenv("PERENNIAL_CASES", f"{tmp_path / 'mine'}:{tmp_path / 'other'}")
    with shop.installed(tmp_path / "cases"):
        assert cli.main(asked("churn", tmp_path / "rows.parquet")) == 0
        assert cli.main(asked("leave", tmp_path / "rows.parquet", "--to", str(tmp_path / "there"))) == 0
    assert (tmp_path / "mine" / "churn" / "schema.py").exists()
    assert (tmp_path / "there" / "leave" / "params.yaml").exists()
    told = "".join(capfd.readouterr().out.split())
    folders = ":".join(str(tmp_path / name) for name in ("mine", "other", "there"))
    assert f"exportPERENNIAL_CASES={folders}&&" in told
    assert "-mpipelinestryleave" in told
    assert told.count("exportPERENNIAL_CASES") == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.txt", b"", "ends with .txt"),
        ("rows.parquet", b"PAR1 half", "cannot be read as parquet"),
        ("rows.csv", b"key,at\n", "has no rows"),
        ("rows.csv", b"# exported\nkey,at\nk,1\n", "drop lines above it"),
        ("rows.csv", b"key,at\ncaf\xe9,1\n", "save it as UTF-8"),
        ("rows.json", b'[{"key": "k", "at": "1"}]', "one JSON object a line"),
    ],
)
def test_a_file_that_is_none_is_told(name, data, words, tmp_path, capfd):
    """Another kind of file, one that is half written and one without rows are one clear line."""
    (tmp_path / name).write_bytes(data)
    with shop.installed(tmp_path / "cases"):
        assert cli.main(asked("churn", tmp_path / name)) != 0
    assert words in capfd.readouterr().err.splitlines()[-1]


def test_of_a_large_table_a_sample_is_looked_at(tmp_path, capfd, monkeypatch):
    """Rows evenly spaced are looked at, with every label there is; what is said of time and volume is said of all."""
    monkeypatch.setattr(looking, "MOST", 1_000)
    monkeypatch.setattr(looking, "FEWEST", 1_000)
    frame = customers(6_000)
    passed_over = next(row for row in range(4_000, 6_000) if row * stride(6_000) % 6_000 >= 1_000)
    classes = pl.Series(["a", "b", "c"] * 2_000).scatter(passed_over, "once")
    frame = frame.with_columns(churned=classes)
    frame.write_parquet(tmp_path / "rows.parquet")
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(asked("churn", tmp_path / "rows.parquet")) == 0, capfd.readouterr().err
        case = load_case("churn")
        text = (root / "churn" / "schema.py").read_text()
    answer = json.loads(capfd.readouterr().out)
    assert answer["looked_at"] == 1_001
    assert "6,000 rows, at from 2024-01-01 to 2024-06-28; 1,001 of them were looked at" in text
    assert case.fields.classes == ("a", "b", "c", "once")
    assert case.params.drift.window == "week"  # a day has 33 rows, not 6
    # What is kept is tried on the newest days, read whole as every run will.
    assert 0 < answer["rows"]["read"] == answer["rows"]["kept"] < 6_000


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_a_large_table_in_a_database_a_sample_is_looked_at(kind, tmp_path, capfd, monkeypatch, request):
    """The database hands over rows spread over time; their number and time are those of the whole table or query."""
    monkeypatch.setattr(looking, "MOST", 1_000)
    passed_over = next(row for row in range(4_000) if (row + 1) * stride(4_000) % 4_000 >= 1_000)
    frame = customers(4_000).with_columns(churned=pl.Series(["a", "b", "c", "b"] * 1_000).scatter(passed_over, "once"))
    frame = frame.sort("key")  # in another order than time
    if kind == "postgresql":
        _in_a_database(tmp_path, frame, request.getfixturevalue("schema"))
        given = ["--from", "file:secrets/warehouse", "--query", "select * from customers where plan <> ':none'"]
    else:
        _in_a_database(tmp_path, frame)
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", f"sqlite:///{tmp_path / 'warehouse.db'}")
        given = ["--from", "connection:warehouse", "--table", "customers"]
    with shop.installed(tmp_path / "cases"):
        asked_for = ["init", "churn", *given, "--label", "churned", "--time", "at", "--id", "key"]
        assert cli.main(asked_for) == 0, capfd.readouterr().err
        case = load_case("churn")
    answer = json.loads(capfd.readouterr().out)
    assert answer["looked_at"] == 1_001
    assert case.fields.classes == ("a", "b", "c", "once")
    told = case.params.declared_source.url_from
    assert (told.connection, told.file) in {("warehouse", None), (None, "secrets/warehouse")}
    assert case.params.period[0] == datetime(2024, 1, 1, tzinfo=UTC)


def test_a_file_of_a_web_server_is_looked_at(tmp_path, capfd):
    """An address of https or http is fetched once, and declared as it is; its mark between columns is found."""
    data = customers(ROWS).write_csv(separator=";").encode()
    with web() as (server, url), shop.installed(tmp_path / "cases") as root:
        server.files["/rows.csv"] = (200, data, len(data))
        given = ["init", "churn", "--from", f"{url}/rows.csv", "--label", "churned", "--time", "at", "--id", "key"]
        assert cli.main(given) == 0, capfd.readouterr().err
        source = yaml.safe_load((root / "churn" / "params.yaml").read_text())["source"]
    assert source["url"] == f"{url}/rows.csv"
    assert source["separator"] == ";"
    assert sum(asked_for[0] == "GET" for asked_for in server.asked) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["postgresql://me:secret@host/db", "--table", "t"], "keep it in a variable or a file"),
        (["postgresql://me:secret@host/db"], "of a database say --table or --query"),
        (["env:NOBODY_SET_THIS", "--table", "t"], "NOBODY_SET_THIS, which is empty or not set"),
        (["nothing-of-this-name", "--query", "select 1"], "neither a file nor a variable"),
        (["file:secrets/warehouse", "--table", "clients"], "what is asked for is not there"),
        (["file:secrets/warehouse", "--table", "customers", "--query", "select 1"], "give one of both"),
        (["file:secrets/warehouse", "--query", "select age from customers"], "has no column at, but age"),
    ],
)
def test_an_address_that_cannot_be_used_is_told(given, words, tmp_path, capfd):
    """A login on the command line, none at all, and a table or column that is not there: one line, and no case."""
    _in_a_database(tmp_path, customers(120))
    with shop.installed(tmp_path / "cases") as root:
        asked_for = ["init", "churn", "--from", *given, "--label", "churned", "--time", "at"]
        assert cli.main(asked_for) != 0
        assert list(root.iterdir()) == []
    err = capfd.readouterr().err
    assert words in err.splitlines()[-1]
    assert "secret@" not in err


def test_rows_that_nothing_tells_apart_are_told(tmp_path, capfd):
    """Without --id equal rows count once, which is told where they are many; with different labels they are refused."""
    plain = customers(ROWS).select("plan", "churned", at=pl.col("at").dt.truncate("1d"))
    plain.write_parquet(tmp_path / "rows.parquet")
    given = ["init", "churn", "--from", str(tmp_path / "rows.parquet"), "--label", "churned", "--time", "at"]
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(given) != 0
        assert list(root.iterdir()) == []
        assert "name what tells them apart with --id" in capfd.readouterr().err.splitlines()[-1]
        plain.with_columns(churned=pl.col("at").dt.ordinal_day() * 7 % 3 % 2).write_parquet(tmp_path / "rows.parquet")
        assert cli.main(given) == 0
    answer = json.loads(capfd.readouterr().out)
    once = plain.select("plan", "at").unique().height
    assert answer["rows"]["kept"] == once
    assert f"{ROWS - once:,} of {ROWS:,} rows are equal to another" in " ".join(answer["look_at"])


def test_a_file_is_pinned_where_dvc_is(tmp_path, capfd, monkeypatch):
    """--pin leaves what DVC knows the file by beside it; without a repository of DVC nothing is written at all."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    folder = tmp_path / "own"
    folder.mkdir()
    customers(200).write_parquet(folder / "rows.parquet")
    with shop.installed(tmp_path / "cases") as root:
        assert cli.main(asked("churn", folder / "rows.parquet", "--pin")) == 2
        assert list(root.iterdir()) == []
        assert "dvc init" in capfd.readouterr().err.splitlines()[-1]
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)
        assert cli.main(asked("churn", folder / "rows.parquet", "--pin")) == 0, capfd.readouterr().err
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert Path(answer["pinned"]) == folder / "rows.parquet.dvc"
    assert yaml.safe_load((folder / "rows.parquet.dvc").read_text())["outs"][0]["path"] == "rows.parquet"


def test_the_next_commands_are_those_of_who_asked(tmp_path, capfd, monkeypatch):
    """The installed command names itself, and a case lands where one stands if there is no other place for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation, "CHECKOUT", False)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    customers(ROWS).write_parquet(tmp_path / "rows.parquet")
    with shop.installed(tmp_path / "theirs"):
        assert cli.main(asked("churn", Path("rows.parquet")), prog="perennial") == 0, capfd.readouterr().err
    answer = json.loads(capfd.readouterr().out)
    assert (tmp_path / "cases" / "churn" / "schema.py").exists()
    assert answer["next"] == [
        "perennial try churn",
        "perennial replay churn",
        "perennial up",
    ]
    # Each of them is a command that there is.
    parse = build_parser().parse_args
    assert parse(["try", "churn"]).case == parse(["replay", "churn"]).case == parse(["replay", "--case", "churn"]).case
    with pytest.raises(SystemExit):
        parse(["replay"])


def test_a_bar_shows_on_a_terminal_and_plain_lines_elsewhere():
    """Somebody at a terminal sees how many steps are done; a file gets no bar."""
    import io

    from rich.console import Console

    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, color_system=None, width=80)
        with trying._bar(console) as at:
            at("ingest")
            at("validate")
            console.print("1/7 ingest")
        assert ("1/7 validate" in " ".join(out.getvalue().split())) == terminal
        assert "1/7 ingest" in out.getvalue()
