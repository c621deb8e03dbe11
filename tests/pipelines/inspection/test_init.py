"""`python -m pipelines init` and `try`: a case that works, or a message that says what to do."""

from __future__ import annotations

import importlib
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import cli
from pipelines.cases import load_case
from pipelines.cases.surveying import survey
from pipelines.settings import Settings
from tests import shop
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


BIG = {"wide": "parquet", "tall": "csv"}
"""Looked at in one kind of file, as they take long."""


OFTEN = [(shape, "parquet") for shape in SHAPES if shape not in {*BIG, "flags", "dates"}]
"""What differs from its CSV by how it is read alone."""


@pytest.mark.parametrize(
    ("shape", "ending"),
    [
        pytest.param(shape, ending, marks=[pytest.mark.long] if (shape, ending) in OFTEN else [])
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


def _number(frame: pl.DataFrame) -> pl.DataFrame:
    """A label that is a number, the newest of which have not arrived."""
    spent = 3.0 * frame["age"].to_numpy() + draws().normal(0, 20, frame.height)
    return frame.with_columns(churned=pl.Series(spent).scatter(list(range(ROWS - 30, ROWS)), None))


@pytest.mark.parametrize(
    ("make", "metric"),
    [
        (lambda: customers(3_000), "log_loss"),
        (lambda: _number(customers(ROWS, due=[datetime(2024, 1, 1 + row % 28) for row in range(ROWS)])), "rmse"),
        (
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
def test_the_line_is_played_to_the_verdict(make, metric, tmp_path, capfd):
    """A label of each kind, with holes, moments and a text: a verdict and metrics beside the baseline's."""
    make().write_parquet(tmp_path / "rows.parquet")
    with shop.installed(tmp_path / "cases"):
        assert cli.main(asked("churn", tmp_path / "rows.parquet")) == 0, capfd.readouterr().err
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
    assert f"exportPERENNIAL_CASES={folders}&&python-mpipelinestryleave" in told
    assert told.count("exportPERENNIAL_CASES") == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.txt", b"", "ends with .txt"),
        ("rows.parquet", b"PAR1 half", "cannot be read as parquet"),
        ("rows.csv", b"key,at\n", "has no rows"),
    ],
)
def test_a_file_that_is_none_is_told(name, data, words, tmp_path, capfd):
    """Another kind of file, one that is half written and one without rows are one clear line."""
    (tmp_path / name).write_bytes(data)
    with shop.installed(tmp_path / "cases"):
        assert cli.main(asked("churn", tmp_path / name)) != 0
    assert words in capfd.readouterr().err.splitlines()[-1]
