"""pipelines/cases/taken.py: with a watermark rows are asked for once, and none that came late or changed is lost."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from pipelines.cases import part
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.params_file import load_params
from tests.declarations import AS_OF, declare, settings, typed
from tests.pipelines.verbs import ingest

SQL = {"kind": "sql", "table": "orders", "columns": {"event_time": "at"}, "time_zone": "UTC"}
MARKED = SQL | {"watermark": {"column": "written", "overlap_hours": 6}}
WRITTEN = datetime(2024, 2, 17, 16, tzinfo=UTC)
"""The newest watermark of the first rows."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(home, request, monkeypatch):
    """An engine with the table orders, which holds the shop's rows, each written an hour after its event."""
    url = f"sqlite:///{home / 'shop.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("schema")
    monkeypatch.setattr("pipelines.cases.taken.PAUSE_SECONDS", 0.0)
    with closing(Orders(home, url)) as orders:
        yield orders


class Orders:
    """The table orders of a database, and how many rows were read of it."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self.engine = sa.create_engine(url)
        self.table = sa.Table(
            "orders",
            sa.MetaData(),
            sa.Column("id", sa.String),
            sa.Column("at", sa.DateTime(timezone=True)),
            sa.Column("colour", sa.String),
            sa.Column("price", sa.Float),
            sa.Column("weight", sa.Float),
            sa.Column("sold", sa.Integer),
            sa.Column("written", sa.DateTime(timezone=True)),
        )
        self.table.create(self.engine)
        rows = typed(home).rename({"event_time": "at"}).with_columns(written=pl.col("at") + pl.duration(hours=1))
        self.put(*rows.to_dicts())
        (home / "address").write_text(url)

    def close(self) -> None:
        """Let the database go."""
        self.engine.dispose()

    def put(self, *rows: dict) -> None:
        """Write new rows."""
        with self.engine.begin() as connection:
            connection.execute(self.table.insert(), list(rows))

    def change(self, name: str, **values) -> None:
        """Write one row anew."""
        with self.engine.begin() as connection:
            connection.execute(self.table.update().where(self.table.c.id == name).values(**values))


def order(number: int, at: datetime, written: datetime | None, **values) -> dict:
    """A row."""
    plain = {"colour": "red", "price": 1.0, "weight": 2.0, "sold": None}
    return {"id": f"late-{number}", "at": at, "written": written} | plain | values


def rows_of(home: Path, until: datetime = AS_OF, since: datetime = AS_OF - timedelta(days=20)) -> pl.DataFrame:
    """The rows of a window."""
    module, params = part("shop", "source"), load_params("shop")
    return module.rows(module.resolve(settings(home), params), Window(start=since, end=until), params)


def read(home: Path, source: dict, until: datetime = AS_OF, since: datetime = AS_OF - timedelta(days=20)):
    """The rows of a window, and how many came from the database."""
    declare(home, **source, url_from={"file": str(home / "address")})
    module = part("shop", "source")
    seen = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        frame = module.declared_sql._frame
        patch.setattr(
            module.declared_sql,
            "_frame",
            lambda chunk, *more: frame([row for row in chunk if next(seen) >= 0], *more),
        )
        return rows_of(home, until, since), next(seen)


@contextmanager
def warnings_of(caplog):
    """What is warned of in the block."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found: list[str] = []
        yield found
        found += [record.getMessage() for record in caplog.records]


def test_only_what_is_new_is_asked_for_and_nothing_is_lost(home, database):
    """After each change the rows are those of a whole reading, of which few came from the database."""
    hour = timedelta(hours=1)
    whole, _ = read(home, SQL)
    assert whole.height == 360
    assert read(home, MARKED)[0].equals(whole)
    changes = [
        lambda: None,
        lambda: database.change("shop-30", sold=1, price=7.0, written=WRITTEN + 30 * hour),
        lambda: database.put(order(1, AS_OF - 9 * hour, WRITTEN + 31 * hour)),
        # Committed late: it was written before the newest that was seen, by less than the overlap.
        lambda: database.put(order(2, AS_OF - 200 * hour, WRITTEN + 26 * hour)),
        lambda: database.put(order(3, AS_OF - 100 * hour, None), order(4, None, WRITTEN + 33 * hour)),
        # Another event time: on another day.
        lambda: database.change("late-1", at=AS_OF - 99 * hour, written=WRITTEN + 40 * hour),
    ]
    for number, change in enumerate(changes):
        change()
        expected, _ = read(home, SQL)
        found, asked = read(home, MARKED)
        assert found.equals(expected), number
        # Times of SQLite are texts, which are asked for by whole days.
        assert asked <= (60 if "sqlite" in database.url else 8), (number, asked)
    # Another window: its new days whole, the others not.
    database.put(order(5, AS_OF + 2 * hour, WRITTEN + 41 * hour))
    later = AS_OF + timedelta(days=1)
    expected, _ = read(home, SQL, until=later)
    found, asked = read(home, MARKED, until=later)
    assert found.equals(expected)
    assert asked <= (150 if "sqlite" in database.url else 24 + 8)
    # Earlier ones as they are by now.
    assert read(home, MARKED, until=AS_OF - 50 * hour)[0].equals(read(home, SQL, until=AS_OF - 50 * hour)[0])


def test_rows_that_are_committed_later_than_the_overlap_are_what_it_does_not_cover(home):
    """The overlap is the promise: a row with a watermark that is older still is missed; a longer one gets it."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")) as database:
        database.put(order(1, AS_OF - timedelta(hours=5), WRITTEN + timedelta(hours=100)))
        read(home, MARKED)
        database.put(order(2, AS_OF - timedelta(hours=4), WRITTEN + timedelta(hours=50)))
        assert "late-2" not in read(home, MARKED)[0]["id"]
        assert "late-2" in read(home, MARKED | {"watermark": {"column": "written", "overlap_hours": 48}})[0]["id"]


def test_a_watermark_in_the_future_is_told_and_loses_nothing(home, caplog):
    """A clock that is ahead moves nothing past what the next rows have; the message names the value."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")) as database:
        database.put(order(1, AS_OF - timedelta(hours=5), datetime(2099, 1, 1, tzinfo=UTC)))
        with warnings_of(caplog) as said:
            read(home, MARKED)
        assert any("2099-01-01" in text and "lies in the future" in text for text in said)
        database.put(order(2, AS_OF - timedelta(hours=4), datetime.now(UTC)))
        found, asked = read(home, MARKED)
        assert {"late-1", "late-2"} <= set(found["id"])
        assert asked == 2


def test_a_reading_that_was_killed_goes_on_where_it_stopped(home):
    """After a SIGKILL in the middle the days that were taken in are not asked for again, and no row lacks."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")):
        declare(home, **MARKED, url_from={"file": str(home / "address")})
        code = (
            "import sys; from pathlib import Path; from datetime import *\n"
            "from pipelines.contracts import Window; from pipelines.cases import part, taken\n"
            "from pipelines.params_file import load_params; from pipelines.settings import read_settings\n"
            "module, params = part('shop', 'source'), load_params('shop')\n"
            "window = Window(start=datetime(2024, 1, 27, tzinfo=UTC), end=datetime(2024, 2, 16, tzinfo=UTC))\n"
            "module.rows(module.resolve(read_settings(), params), window, params)\n"
        )
        environment = os.environ | {
            "PERENNIAL_FAILPOINT": "taken:2024-02-08",
            "PERENNIAL_CASES": str(home / "cases"),
            "PERENNIAL_HOME": str(home / "home"),
        }
        died = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr
        found, asked = read(home, MARKED)
        assert found.equals(read(home, SQL)[0])
        # Of the first seven days nothing; SQLite's times are texts and are asked for a day wider.
        assert 8 * 24 <= asked <= 11 * 24
        folder = next((home / "home" / "data" / "sources" / "shop").glob("rows-*"))
        assert len(list(folder.glob("*.json"))) == 15


def test_a_connection_that_breaks_is_tried_again(home, schema, monkeypatch, caplog):
    """A server that ends the connection in the middle is asked again at once, from where the reading stopped."""
    monkeypatch.setattr("pipelines.cases.taken.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("pipelines.cases.declared_sql.CHUNK", 24)
    with closing(Orders(home, schema)) as database:
        declare(home, **MARKED, url_from={"file": str(home / "address")})
        module = part("shop", "source")
        frame, seen = module.declared_sql._frame, []

        def killing(chunk, *more):
            seen.append(len(chunk))
            if len(seen) == 8:
                ours = "FROM pg_stat_activity WHERE application_name = 'perennial'"
                with database.engine.begin() as connection:
                    connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {ours}"))
            return frame(chunk, *more)

        monkeypatch.setattr(module.declared_sql, "_frame", killing)
        with warnings_of(caplog) as said:
            found = rows_of(home)
        assert found.height == 360
        assert any("what was read is kept" in text for text in said)
        monkeypatch.setattr(module.declared_sql, "_frame", frame)
        assert found.equals(read(home, SQL)[0])


def test_what_does_not_come_back_is_told(home):
    """A database that stays away is an error that may be tried again."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")):
        (home / "address").write_text("postgresql+psycopg://me:secret@127.0.0.1:9/shop")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipelines.cases.taken.PAUSE_SECONDS", 0.0)
            with pytest.raises(Unavailable, match="does not answer") as caught:
                read(home, MARKED)
        assert "secret" not in str(caught.value)


def test_a_day_that_was_damaged_is_read_again(home, caplog):
    """A file that is not what its record says is no source of rows: the day is asked for again, and it is told."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")) as database:
        database.put(order(1, AS_OF - timedelta(hours=5), WRITTEN + timedelta(hours=100)))
        expected, _ = read(home, MARKED)
        folder = next((home / "home" / "data" / "sources" / "shop").glob("rows-*"))
        [path] = folder.glob("2024-02-08-*.parquet")
        path.write_bytes(path.read_bytes()[:-10])
        [gone] = folder.glob("2024-02-09-*.parquet")
        gone.unlink()
        with warnings_of(caplog) as said:
            found, asked = read(home, MARKED)
        assert found.equals(expected)
        assert 2 * 24 < asked <= 5 * 24 + 1  # a day wider, as SQLite's times are texts
        assert sum("is gone or damaged" in text for text in said) == 2


def test_a_table_without_any_watermark_is_read_whole(home, caplog):
    """Rows that have no watermark are read each time, and that is told; so nothing is lost when they get one."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")) as database:
        with database.engine.begin() as connection:
            connection.execute(database.table.update().values(written=None))
        with warnings_of(caplog) as said:
            assert read(home, MARKED)[0].height == 360
        assert any("no row has a watermark" in text for text in said)
        database.put(order(1, AS_OF - timedelta(hours=5), None))
        assert "late-1" in read(home, MARKED)[0]["id"]


def test_another_declaration_reads_anew(home):
    """What was taken in under other names is not used; a longer overlap uses it."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")):
        read(home, MARKED)
        swapped = MARKED | {"columns": {"event_time": "at", "price": "weight", "weight": "price"}}
        assert read(home, swapped)[0]["price"].to_list() == read(home, SQL)[0]["weight"].to_list()
        assert len(list((home / "home" / "data" / "sources" / "shop").glob("rows-*"))) == 2
        read(home, MARKED | {"watermark": {"column": "written"}})
        assert len(list((home / "home" / "data" / "sources" / "shop").glob("rows-*"))) == 2


def test_a_step_that_is_run_again_has_the_same_rows_until_new_ones_came(home):
    """The same as_of gives the same key and partitions; rows that came late give another key."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")) as database:
        declare(home, **MARKED, url_from={"file": str(home / "address")})
        where, params = settings(home), load_params("shop")
        folder = where.run_dir("shop", AS_OF)
        first = ingest.run(params, where, folder, AS_OF)
        assert first.facts["source"]["watermark"] == MARKED["watermark"]
        assert ingest.run(params, where, folder, AS_OF) == first
        database.put(order(1, AS_OF - timedelta(hours=5), WRITTEN + timedelta(hours=1)))
        again = ingest.run(params, where, folder, AS_OF)
        assert again.key != first.key
        assert again.facts["rows"] == first.facts["rows"] + 1


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        (MARKED | {"watermark": {"column": "price"}}, ConfigError, "the watermark price holds numbers"),
        (MARKED | {"watermark": {"column": "colour"}}, DataError, "colour holds 'red', which is no time"),
        (MARKED | {"watermark": {"column": "changed"}}, DataError, "name another one in source.watermark.column"),
        (MARKED | {"columns": {"id": None, "event_time": "at"}}, ConfigError, "watermark needs an id"),
        ({"kind": "delta", "url": "t", "watermark": {"column": "w"}}, ConfigError, "delta takes no watermark"),
        ({"kind": "iceberg", "catalog": "c", "table": "t", "watermark": "w"}, ConfigError, "iceberg takes no water"),
        ({"kind": "files", "url": "t", "watermark": "mtime"}, ConfigError, "watermark: Input should be 'version'"),
    ],
)
def test_what_cannot_be_a_watermark_is_refused_by_name(home, source, kind, words):
    """Counters, texts, missing columns and sources that have versions of their own: each with why."""
    with closing(Orders(home, f"sqlite:///{home / 'shop.db'}")):
        given = source if source["kind"] != "sql" else source | {"url_from": {"file": str(home / "address")}}
        declare(home, **given)
        with pytest.raises(kind) as caught:
            rows_of(home)
        assert words in str(caught.value)


# --- files --------------------------------------------------------------------------------------


def test_files_that_did_not_change_are_neither_hashed_nor_opened_again(home, monkeypatch):
    """Of files of a day each only those that are new, changed, or may hold rows of the window are touched."""
    folder = home / "data" / "days"
    folder.mkdir()
    rows = typed(home)
    for (day,), own in rows.group_by(pl.col("event_time").dt.date()):
        own.write_csv(folder / f"{day}.csv")
        os.utime(folder / f"{day}.csv", (1.7e9, 1.7e9))
    declare(home, kind="files", url="days/*.csv", watermark="version")
    module = part("shop", "source").declared_files
    hashed, opened = [], []
    summed, scanned = module.file_sha256, module._scanned
    monkeypatch.setattr(module, "file_sha256", lambda path: hashed.append(path.name) or summed(path))
    monkeypatch.setattr(module, "_scanned", lambda file, *more: opened.append(file.path.name) or scanned(file, *more))
    whole = rows_of(home)
    assert whole.height == 360
    assert len(hashed) == 17
    hashed.clear(), opened.clear()
    late = rows_of(home, since=AS_OF - timedelta(days=2))
    assert late.equals(whole.tail(48))
    assert (hashed, opened) == ([], ["2024-02-14.csv", "2024-02-15.csv"])
    # A row of another day comes in an old file, which is young now: it is looked at each time until it has rested.
    path = folder / "2024-02-01.csv"
    path.write_text(path.read_text() + "late-1,2024-02-15T12:30:00Z,red,1.5,1.25,1\n")
    for _ in range(2):
        hashed.clear()
        assert "late-1" in rows_of(home, since=AS_OF - timedelta(days=2))["id"]
        assert hashed == ["2024-02-01.csv"]
    os.utime(path, (1.71e9, 1.71e9))
    rows_of(home)
    hashed.clear()
    assert "late-1" in rows_of(home, since=AS_OF - timedelta(days=2))["id"]
    assert hashed == []
    # Nothing of the window in any file: no rows, and no error.
    assert rows_of(home, since=AS_OF + timedelta(days=90), until=AS_OF + timedelta(days=91)).is_empty()


def test_notes_of_files_that_were_damaged_are_made_again(home):
    """What cannot be read of the notes is as if it had never been."""
    declare(home, kind="files", url="shop.csv", watermark="version")
    os.utime(home / "data" / "shop.csv", (1.7e9, 1.7e9))
    whole = rows_of(home)
    [notes] = (home / "home" / "data" / "sources" / "shop").glob("files-*.json")
    text = notes.read_text()
    notes.write_text(text[:20])
    assert rows_of(home).equals(whole)
    assert notes.read_text() == text
