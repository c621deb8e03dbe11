"""What may go wrong with a declared source, kind by kind: a clear message, nothing half taken in, all on the next try.

Stores and connections that break off have tests of their own beside this one (test_declared.py, _stores, _watermark).
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
import yaml
from deltalake import write_deltalake
from pyiceberg.catalog import load_catalog

from pipelines.cases import part
from pipelines.cases.columns import batches
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.params_file import load_params
from tests.declarations import AS_OF, ROWS, declare, settings, typed, web

SECRET = "my-secret-words"


@dataclass(frozen=True)
class Kind:
    """A kind of source: how rows are put where it reads them, and what can be done to them."""

    called: str
    """What messages call it by."""
    put: Callable[[Path, pl.DataFrame], dict]
    """Write the rows in place of those that are there; returns the declaration."""
    gone: Callable[[Path], None]
    """Take them away."""
    cut: Callable[[Path], None] | None = None
    """Leave half of what was written; None: it cannot be, as its writes are transactions."""


def _put_csv(home: Path, rows: pl.DataFrame) -> dict:
    rows.write_csv(home / "data" / "a.csv")
    return {"kind": "files", "url": "a.csv"}


def _put_parquet(home: Path, rows: pl.DataFrame) -> dict:
    rows.write_parquet(home / "data" / "a.parquet")
    return {"kind": "files", "url": "a.parquet"}


def _put_known_files(home: Path, rows: pl.DataFrame) -> dict:
    return _put_csv(home, rows) | {"watermark": "version"}


def _put_sql(home: Path, rows: pl.DataFrame) -> dict:
    engine = sa.create_engine(f"sqlite:///{home / 'shop.db'}")
    named = rows.with_columns(written=pl.col("event_time"))
    kinds = {"event_time": sa.DateTime(), "written": sa.DateTime(), "price": sa.Float(), "weight": sa.Float()}
    kinds["sold"] = sa.Integer()
    table = sa.Table(
        "orders", sa.MetaData(), *(sa.Column(name, kinds.get(name, sa.String())) for name in named.columns)
    )
    with engine.begin() as connection:
        table.drop(connection, checkfirst=True)
        table.create(connection)
        connection.execute(table.insert(), named.to_dicts())
    engine.dispose()
    (home / "address").write_text(f"sqlite:///{home / 'shop.db'}")
    return {"kind": "sql", "table": "orders", "url_from": {"file": str(home / "address")}, "time_zone": "UTC"}


def _put_marked(home: Path, rows: pl.DataFrame) -> dict:
    return _put_sql(home, rows) | {"watermark": {"column": "written"}}


def _drop_table(home: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{home / 'shop.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE orders"))
    engine.dispose()


def _put_delta(home: Path, rows: pl.DataFrame) -> dict:
    shutil.rmtree(home / "data" / "orders", ignore_errors=True)
    write_deltalake(str(home / "data" / "orders"), rows.to_arrow())
    return {"kind": "delta", "url": "orders"}


def _put_iceberg(home: Path, rows: pl.DataFrame) -> dict:
    properties = {"type": "sql", "uri": f"sqlite:///{home / 'catalog.db'}", "warehouse": f"file://{home / 'warehouse'}"}
    catalog = load_catalog("w", **properties)
    catalog.create_namespace_if_not_exists("sales")
    if catalog.table_exists("sales.orders"):
        catalog.drop_table("sales.orders")
    data = rows.to_arrow()
    catalog.create_table("sales.orders", schema=data.schema).append(data)
    (home / "catalog").write_text(yaml.safe_dump(properties | {"token": SECRET}))
    return {"kind": "iceberg", "catalog": "w", "table": "sales.orders", "catalog_from": {"file": str(home / "catalog")}}


def _drop_iceberg(home: Path) -> None:
    properties = yaml.safe_load((home / "catalog").read_text())
    load_catalog("w", **properties).drop_table("sales.orders")


def _halve(pattern: str) -> Callable[[Path], None]:
    def cut(home: Path) -> None:
        for path in home.glob(pattern):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


KINDS = {
    "csv": Kind("a.csv", _put_csv, lambda home: (home / "data" / "a.csv").unlink(), _halve("data/a.csv")),
    "parquet": Kind(
        "a.parquet", _put_parquet, lambda home: (home / "data" / "a.parquet").unlink(), _halve("data/a.parquet")
    ),
    "files with a watermark": Kind(
        "a.csv", _put_known_files, lambda home: (home / "data" / "a.csv").unlink(), _halve("data/a.csv")
    ),
    "sql": Kind("orders", _put_sql, _drop_table),
    "sql with a watermark": Kind("orders", _put_marked, _drop_table),
    "delta": Kind(
        "orders", _put_delta, lambda home: shutil.rmtree(home / "data" / "orders"), _halve("data/orders/*.parquet")
    ),
    "iceberg": Kind("sales.orders", _put_iceberg, _drop_iceberg, _halve("warehouse/**/*.parquet")),
}


def rows_of(home: Path) -> pl.DataFrame:
    """The rows of the shop's days."""
    module, params = part("shop", "source"), load_params("shop")
    window = Window(start=AS_OF - timedelta(days=20), end=AS_OF)
    return module.rows(module.resolve(settings(home), params), window, params)


@contextmanager
def refused(home: Path, kind: type[Exception] | tuple[type[Exception], ...], *words: str) -> Iterator[None]:
    """What is done in the block makes reading fail so, and nothing of it stays."""
    yield
    with pytest.raises(kind) as caught:
        rows_of(home)
    assert all(word in str(caught.value) for word in ("shop: ", *words)), str(caught.value)
    assert SECRET not in str(caught.value)
    kept = [path for path in (home / "home").rglob("*") if path.is_file() and path.suffix == ".parquet"]
    assert not kept


@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_there_is_named(home, name):
    """A missing file or table is told with its name, and with it the next try gets all rows."""
    kind = KINDS[name]
    declare(home, **kind.put(home, typed(home)))
    with refused(home, (ConfigError, DataError), kind.called):
        kind.gone(home)
    kind.put(home, typed(home))
    assert rows_of(home).height == ROWS


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_schema_is_named(home, name):
    """A column that was renamed is told with those that there are; named back, the next try gets all rows."""
    kind = KINDS[name]
    declare(home, **kind.put(home, typed(home)))
    with refused(home, DataError, "has no column colour, but color"):
        kind.put(home, typed(home).rename({"colour": "color"}))
    kind.put(home, typed(home))
    assert rows_of(home).height == ROWS


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_type_is_no_silent_one(home, name):
    """A label that became text is told with what to declare; a number again, the next try gets all rows."""
    kind = KINDS[name]
    declare(home, **kind.put(home, typed(home)))
    with refused(home, DataError, "sold holds 'yes'"):
        kind.put(home, typed(home).with_columns(sold=pl.lit("yes")))
    kind.put(home, typed(home))
    assert rows_of(home).height == ROWS


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.cut])
def test_what_is_half_written_is_not_taken_in(home, name):
    """A file that breaks off leaves nothing, and whole the next try gets all rows."""
    kind = KINDS[name]
    declare(home, **kind.put(home, typed(home)))
    with refused(home, DataError, "cannot be read" if name in {"delta", "iceberg"} else "half written"):
        kind.cut(home)
    kind.put(home, typed(home))
    assert rows_of(home).height == ROWS


NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("source", "secret", "kind", "words"),
    [
        ({"kind": "files", "url": "ftp://host/a.csv"}, "", ConfigError, "choose https, s3, gs or abfs"),
        ({"kind": "files", "url": f"http://{NOWHERE}/a.csv"}, "", Unavailable, "does not answer"),
        ({"kind": "delta", "url": f"https://{NOWHERE}/orders"}, "", ConfigError, "choose s3"),
        ({"kind": "sql", "table": "t"}, f"postgresql://me:{SECRET}@{NOWHERE}/x", Unavailable, "does not answer"),
        ({"kind": "sql", "table": "t"}, f"postgresql://me:{SECRET}@host:port/x", ConfigError, "holds no address"),
        ({"kind": "sql", "table": "t"}, f"{SECRET}", ConfigError, "holds no address"),
        ({"kind": "sql", "table": "t"}, f"mysql+none://me:{SECRET}@host/x", ConfigError, "driver of mysql+none"),
        ({"kind": "sql", "table": "t"}, "sqlite:///none.db", ConfigError, "there is no such file"),
        (
            {"kind": "sql", "table": "t", "watermark": {"column": "w"}},
            f"postgresql://me:{SECRET}@{NOWHERE}/x",
            Unavailable,
            "does not answer",
        ),
        (
            {"kind": "iceberg", "catalog": "w", "table": "t.t"},
            SECRET,
            ConfigError,
            "does not hold the catalogue's properties",
        ),
        (
            {"kind": "iceberg", "catalog": "w", "table": "t.t"},
            f"type: rest\nuri: http://{NOWHERE}\ntoken: {SECRET}",
            Unavailable,
            "does not answer",
        ),
        (
            {"kind": "iceberg", "catalog": "w", "table": "t.t"},
            f"type: sql\nuri: postgresql+psycopg://me:{SECRET}@{NOWHERE}/x",
            Unavailable,
            "does not answer",
        ),
        (
            {"kind": "iceberg", "catalog": "w", "table": "t.t"},
            f"type: nothing\ntoken: {SECRET}",
            ConfigError,
            "cannot be used",
        ),
        ({"kind": "iceberg", "catalog": "unheard_of", "table": "t.t"}, None, ConfigError, "cannot be used"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_without_its_secret(home, monkeypatch, source, secret, kind, words):
    """What is no address, and where nobody answers: two things to do, and no password in either message."""
    monkeypatch.setattr("pipelines.cases.taken.PAUSE_SECONDS", 0.0)
    if secret is not None and source["kind"] in {"sql", "iceberg"}:
        (home / "address").write_text(secret)
        source = source | {{"sql": "url_from"}.get(source["kind"], "catalog_from"): {"file": str(home / "address")}}
    declare(home, **source)
    with refused(home, kind, words):
        pass


def test_a_login_that_a_catalogue_refuses_is_told_without_it(home):
    """A REST catalogue that answers 401 is told as a refused login."""
    with web() as (server, url):
        server.files["/v1/config?warehouse=None"] = (401, b"{}", 2)
        server.files["/v1/config"] = (401, b"{}", 2)
        (home / "catalog").write_text(f"type: rest\nuri: {url}\ntoken: {SECRET}\n")
        catalog_from = {"file": str(home / "catalog")}
        declare(home, kind="iceberg", catalog="w", table="sales.orders", catalog_from=catalog_from)
        with refused(home, ConfigError, "refuses the login"):
            pass


@pytest.mark.parametrize(
    "url",
    [
        f"https://host/a.csv?X-Amz-Signature={SECRET}",
        f"https://host/a.csv?sig={SECRET}&sv=1",
        f"s3://me:{SECRET}@box/a.csv",
    ],
)
def test_an_address_with_a_login_in_it_is_no_parameter(home, url):
    """A signed address is a secret: it is refused when parameters are loaded, and not repeated."""
    declare(home, kind="files", url=url)
    with pytest.raises(ConfigError, match="parameters hold no secrets") as caught:
        load_params("shop")
    assert SECRET not in str(caught.value)


def test_a_batch_that_panics_is_no_end_of_rows(tmp_path):
    """Rows of a file that was cut off after its schema was read are an error, not those that came until then."""
    path = tmp_path / "a.parquet"
    pl.DataFrame({"row": range(300_000)}).write_parquet(path, row_group_size=50_000)
    frame = pl.scan_parquet(path)
    frame.collect_schema()
    assert sum(batch.height for batch in batches(frame, 50_000)) == 300_000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(pl.exceptions.ComputeError):
        list(batches(frame, 50_000))


def test_batches_that_nobody_takes_any_more_are_not_read_on(tmp_path):
    """Who stops taking batches leaves no thread behind, and a later reading is whole."""
    frame = pl.LazyFrame({"row": range(1_000)})
    before = threading.active_count()
    taken = batches(frame, 10)
    assert next(taken).height > 0
    taken.close()
    assert threading.active_count() == before
    assert pl.concat(batches(frame, 10)).height == 1_000
