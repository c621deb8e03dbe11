"""ingest in tasks of their own: what several readers take in is what one reads, whatever becomes of them."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipelines import objects, storage
from pipelines.cases import declared_files, declared_sql
from pipelines.contracts import Manifest, Window
from pipelines.data import stretches
from pipelines.errors import ConfigError, TooFewRows
from pipelines.line.step import Run
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.steps import ingest as home_of
from tests import shop
from tests.pipelines.steps.test_in_parts import AS_OF, break_rows, declare
from tests.pipelines.verbs import ingest


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty state, and the case shop with a declared source whose rows lie in no order, some of them broken."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path / "data"))
    path = shop.write_rows(tmp_path / "data" / "shop.csv")
    pl.read_csv(path, infer_schema=False).sample(fraction=1.0, shuffle=True, seed=0).write_csv(path)
    break_rows(tmp_path)
    with shop.installed(tmp_path / "cases") as root:
        (shop.write(root) / "source.py").unlink()
        declare(tmp_path, window_days=9, min_rows=50, fallback_rows=50, max_bad_share=0.5)
        yield tmp_path


def a_run(home: Path, name: str, as_of: datetime = AS_OF) -> Run:
    """A run in a state folder of that name."""
    return Run(load_params("shop"), Settings(home=home / name, data_dir=home / "data"), as_of)


def step(run: Run) -> tuple[Manifest, pl.DataFrame]:
    """The step, and what it refused."""
    made = ingest.run(run.params, run.settings, run.dir, run.as_of)
    return made, pl.read_parquet(run.dir / "ingest" / "quarantine.parquet")


def same(own: tuple[Manifest, pl.DataFrame], theirs: tuple[Manifest, pl.DataFrame]) -> bool:
    """Whether two runs have made the same."""
    return (own[0].key, own[0].facts) == (theirs[0].key, theirs[0].facts) and own[1].equals(theirs[1])


def unread(monkeypatch) -> list[Window]:
    """The windows for which files are read from now on."""
    asked: list[Window] = []
    pieces = declared_files.pieces
    monkeypatch.setattr(declared_files, "pieces", lambda source, of: asked.append(of.window) or pieces(source, of))
    return asked


@pytest.mark.parametrize(
    ("days", "as_of", "parts"), [(1, AS_OF, 9), (4, AS_OF - timedelta(days=2, hours=5), 3), (30, AS_OF, 1)]
)
def test_parts_that_are_merged_are_the_rows_of_one_reader(home, monkeypatch, days, as_of, parts):
    """The same key, facts, partitions and refused rows, in any order of parts; the merge reads nothing of the source.

    Rows without a time and exact repeats are among them, and count once.
    """
    expected = step(a_run(home, "one", as_of))
    assert expected[0].facts["counts"]["refused"] == 2
    assert expected[0].facts["counts"]["repeats"] > 0
    declare(home, mapped_days=days)
    run = a_run(home, "many", as_of)
    names = home_of.days(run)
    assert len(names) == parts
    made = [home_of.part(run, name) for name in reversed(names)]
    assert home_of.part(run, names[-1]) == made[0]
    asked = unread(monkeypatch)
    assert same(step(run), expected)
    assert asked == []
    assert not (run.dir / home_of.PARTS).exists()


def test_parts_are_made_on_machines_that_share_a_store_and_no_disk(home, monkeypatch, tmp_path_factory):
    """Stretches that two machines take in are merged on a third one without its reading the source; none is left."""
    expected = step(a_run(home, "one"))
    declare(home, mapped_days=4)
    store = tmp_path_factory.mktemp("store")

    def machine(name: str) -> Run:
        settings = Settings(home=home / name, data_dir=home / "data", lake=f"file://{store}")
        objects.attach(settings)
        return Run(load_params("shop"), settings, AS_OF)

    try:
        names = home_of.days(machine("scheduler"))
        for number, name in enumerate(names):
            home_of.part(machine(f"worker-{number % 2}"), name)
        asked = unread(monkeypatch)
        last = machine("merger")
        assert same(step(last), expected)
        assert asked == []
        assert not [path for path in store.rglob("*") if path.is_file() and home_of.PARTS in path.parts]
        assert home_of.days(machine("scheduler")) == names
    finally:
        objects._attached.clear()


def _not_made(run: Run, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "failpoint", lambda _, point: point == "manifest" and pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            home_of.part(run, name)


def _torn(run: Run, name: str) -> None:
    home_of.part(run, name)
    (run.dir / home_of.PARTS / name / "quarantine.parquet").write_bytes(b"PAR1torn")


def _no_manifest(run: Run, name: str) -> None:
    home_of.part(run, name)
    path = run.dir / home_of.PARTS / name / storage.MANIFEST
    path.write_bytes(path.read_bytes()[:40])


def _no_rows(run: Run, name: str) -> None:
    made = home_of.part(run, name)
    (run.settings.root / made.facts["partitions"][0]["path"]).unlink()


@pytest.mark.parametrize(
    ("breaks", "at"),
    [
        (lambda *_: None, 0),
        (lambda *_: None, -1),  # with the rows that have no time
        (_not_made, 1),
        (_torn, 1),
        (_no_manifest, 1),
        (_no_rows, 1),
    ],
)
def test_what_a_task_has_not_taken_in_is_read_by_the_step(home, monkeypatch, breaks: Callable[..., None], at: int):
    """A part that is missing, broke off or is damaged is read from the source, and no other one; nothing is lost."""
    expected = step(a_run(home, "one"))
    declare(home, mapped_days=3)
    run = a_run(home, "many")
    names = home_of.days(run)
    for name in names:
        (breaks if name == names[at] else home_of.part)(run, name)
    asked = unread(monkeypatch)
    assert same(step(run), expected)
    assert [stretches.name(window) for window in asked] == [names[at]]


def test_a_source_that_has_changed_meanwhile_is_read_as_it_is(home, monkeypatch):
    """Parts of files that were replaced count for nothing; a part that is made again does."""
    declare(home, mapped_days=3)
    run = a_run(home, "many")
    names = home_of.days(run)
    for name in names:
        home_of.part(run, name)
    path = home / "data" / "shop.csv"
    path.write_text(path.read_text() + "late,2024-02-10T03:30:00Z,red,5.0,5.0,1\n")
    home_of.part(run, names[0])
    asked = unread(monkeypatch)
    merged = step(run)
    assert [stretches.name(window) for window in asked] == ["2024-02-10--2024-02-15"]
    declare(home, mapped_days=None)
    assert same(merged, step(a_run(home, "one")))


def test_parts_count_once(home, monkeypatch):
    """A step that runs again reads the source again, and finds what has come since; so does one without any rows."""
    declare(home, mapped_days=5)
    run = a_run(home, "many")
    for name in home_of.days(run):
        home_of.part(run, name)
    first = step(run)
    asked = unread(monkeypatch)
    assert same(step(run), first)
    assert len(asked) == 1
    early = a_run(home, "early", datetime(2024, 1, 20, tzinfo=UTC))
    path = home / "data" / "shop.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "soon" not in line))
    pl.read_csv(path, infer_schema=False).filter(pl.col("event_time").is_not_null()).write_csv(path)
    for name in home_of.days(early):
        home_of.part(early, name)
    with pytest.raises(TooFewRows, match="no rows before"):
        step(early)
    assert not (early.dir / home_of.PARTS).exists()


@pytest.mark.parametrize(
    ("more", "most"),
    [({"window_days": 2, "min_rows": 100, "fallback_rows": 60}, 1), ({"replay_share": 0.3, "history_rows": 40}, 0)],
)
def test_a_look_back_reads_only_what_no_part_has(home, monkeypatch, more, most):
    """Days before the window are read by the step, once each; those of a case that replays the past are parts too."""
    declare(home, **more)
    expected = step(a_run(home, "one"))
    declare(home, mapped_days=2)
    run = a_run(home, "many")
    names = home_of.days(run)
    for name in names:
        home_of.part(run, name)
    asked = unread(monkeypatch)
    assert same(step(run), expected)
    assert all(window.end <= stretches.named(names[0], AS_OF).start for window in asked)
    assert (len(asked) > 0) == bool(most)


@pytest.mark.parametrize("odd", [None, "2024-02-10 at noon"])
def test_a_database_is_read_in_parts(home, monkeypatch, odd):
    """A table without a watermark: each part asks for its own days; rows without a time come once.

    A text that is no time and is found among some days alone is not lost: then the step reads all by itself.
    """
    rows = pl.read_csv(home / "data" / "shop.csv", infer_schema=False)
    with sqlite3.connect(home / "shop.db") as base:
        base.execute("create table rows (id, event_time, colour, price, weight, sold integer)")
        base.executemany("insert into rows values (?, ?, ?, ?, ?, ?)", rows.rows())
        if odd:
            base.execute("insert into rows values ('odd', ?, 'red', '1.0', '1.0', 1)", (odd,))
    (home / "address").write_text(f"sqlite:///{home / 'shop.db'}")
    source = {"kind": "sql", "url_from": {"file": str(home / "address")}, "table": "rows"}
    _source(home, source)
    expected = step(a_run(home, "one"))
    assert expected[0].facts["counts"]["refused"] == (2 if odd else 1)
    _source(home, source, mapped_days=2)
    run = a_run(home, "many")
    for name in home_of.days(run):
        home_of.part(run, name)
    asked: list[Window] = []
    pieces = declared_sql.pieces
    monkeypatch.setattr(declared_sql, "pieces", lambda of, what: asked.append(what.window) or pieces(of, what))
    assert same(step(run), expected)
    assert len(asked) == bool(odd)


def _source(home: Path, source: dict[str, Any], **more: Any) -> None:
    path = home / "cases" / "shop" / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["source"] = source
    params["dataset"] |= more
    path.write_text(yaml.safe_dump(params))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({}, "a source.py says itself how its rows are read: declare a source"),
        ({"kind": "log"}, "source.kind log has nothing else to read"),
        (
            {"kind": "sql", "url_from": {"env": "X"}, "table": "t", "watermark": {"column": "at"}},
            "source.watermark lets one reader take rows in",
        ),
    ],
)
def test_what_cannot_be_mapped_is_refused(home, source, why):
    """Parameters that ask for parts of what has none are a mistake that says why, when they are read."""
    _source(home, source, mapped_days=2)
    with pytest.raises(ConfigError, match=why):
        load_params("shop")


def test_how_rows_are_read_is_in_no_key(home):
    """A case that is mapped has the parameters, for hashes and records, of one that is not."""
    before = load_params("shop")
    declare(home, mapped_days=3)
    assert storage.digest(load_params("shop")) == storage.digest(before)
    assert load_params("shop").dataset.mapped_days == 3


def test_the_log_has_no_parts(home, monkeypatch):
    """After the first champion rows come from the log, and there is nothing to map; parts of before are forgotten."""
    declare(home, mapped_days=3)
    run = a_run(home, "many")
    home_of.part(run, home_of.days(run)[0])
    monkeypatch.setattr(home_of.ledger, "champion_before", lambda *_: object())
    assert home_of.days(run) == []
    assert not (run.dir / home_of.PARTS).exists()


def test_stretches_cover_a_window_once():
    """Whole days, the last one up to the window's end; a window of many days has longer ones, no more of them."""
    window = Window(start=datetime(2020, 1, 1, tzinfo=UTC), end=datetime(2020, 1, 9, 7, tzinfo=UTC))
    names = [stretches.name(one) for one in stretches.cut(window, 4)]
    assert names == ["2020-01-01--2020-01-01", "2020-01-02--2020-01-05", "2020-01-06--2020-01-09"]
    assert [stretches.named(name, window.end) for name in names] == stretches.cut(window, 4)
    long = Window(start=datetime(1990, 1, 1, tzinfo=UTC), end=window.end)
    assert len(stretches.cut(long, 1)) <= stretches.MOST
    for text in ("yesterday", "2020-01-01", "2020-01-01--soon"):
        with pytest.raises(ConfigError, match="is no stretch of days"):
            stretches.named(text, window.end)
