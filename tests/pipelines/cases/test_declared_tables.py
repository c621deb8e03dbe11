"""Declared Delta and Iceberg tables, of real tables here: the version that was read is told, other files stay shut."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog

from pipelines.cases import part
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.params_file import load_params
from tests.declarations import AS_OF, declare, facts, settings, typed


def rows_of(home, since=AS_OF - timedelta(days=20), until=AS_OF) -> pl.DataFrame:
    """The rows of a window."""
    module, params = part("shop", "source"), load_params("shop")
    return module.rows(module.resolve(settings(home), params), Window(start=since, end=until), params)


def halves(home) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The shop's rows before and after the tenth of February."""
    rows = typed(home)
    return rows.filter(pl.col("event_time").dt.day() < 10), rows.filter(pl.col("event_time").dt.day() >= 10)


@pytest.fixture
def delta(home):
    """A Delta table of two versions, a file each; returns its folder."""
    folder = home / "data" / "orders"
    for half in halves(home):
        write_deltalake(str(folder), half.to_arrow(), mode="append")
    declare(home, kind="delta", url="orders")
    return folder


@pytest.fixture
def iceberg(home):
    """An Iceberg table of two snapshots in an SQL catalogue; returns the catalogue."""
    properties = {
        "type": "sql",
        "uri": f"sqlite:///{home / 'catalog.db'}",
        "warehouse": f"file://{home / 'warehouse'}",
        "s3.secret-access-key": "my-secret-words",
    }
    catalog = load_catalog("w", **properties)
    catalog.create_namespace("sales")
    first, second = (half.to_arrow() for half in halves(home))
    catalog.create_table("sales.orders", schema=first.schema).append(first)
    catalog.load_table("sales.orders").append(second)
    (home / "catalog").write_text(yaml.safe_dump(properties))
    declare(home, **ICEBERG, catalog_from={"file": str(home / "catalog")})
    return catalog


ICEBERG = {"kind": "iceberg", "catalog": "w", "table": "sales.orders"}


def test_a_delta_table_gives_the_rows_of_its_files(home, delta):
    """All rows of the newest version, or of a declared one; ingest's facts say which it was."""
    expected = rows_of_csv(home)
    assert rows_of(home).equals(expected)
    about = facts(home)
    assert (about["version"], about["table"]) == (1, str(DeltaTable(str(delta)).metadata().id))
    declare(home, kind="delta", url="orders", version=0)
    assert rows_of(home).equals(expected.filter(pl.col("event_time").dt.day() < 10))


def rows_of_csv(home) -> pl.DataFrame:
    """The rows as they come of the CSV."""
    kept = (home / "cases" / "shop" / "params.yaml").read_text()
    declare(home, kind="files", url="shop.csv")
    found = rows_of(home)
    (home / "cases" / "shop" / "params.yaml").write_text(kept)
    return found


def test_files_of_other_days_of_a_delta_table_stay_shut(home, delta):
    """A window of early days needs no file of later ones: it is read though that one is gone; all of it is not."""
    later = pl.DataFrame(DeltaTable(str(delta)).get_add_actions(flatten=True)).sort("min.event_time")["path"][1]
    (delta / later).unlink()
    early = datetime(2024, 2, 5, tzinfo=UTC)
    assert rows_of(home, until=early).height == 4 * 24
    with pytest.raises(Unavailable, match="a file of it is gone"):
        rows_of(home)
    declare(home, kind="delta", url="orders", version=1)
    with pytest.raises(DataError, match="declare a newer version"):
        rows_of(home)


def test_a_tables_name_says_nothing_of_what_went_wrong(home, delta):
    """A file that is gone is told as that, though folder and file are called what a store says of a refused login."""
    odd = home / "data" / "permission-401"
    delta.rename(odd)
    gone = next(odd.glob("part-*.parquet"))
    log = odd / "_delta_log" / "00000000000000000001.json"
    for path in (log, log.with_name("00000000000000000000.json")):
        path.write_text(path.read_text().replace(gone.name, "part-0-4f1a-403c-credential.parquet"))
    gone.unlink()
    declare(home, kind="delta", url="permission-401")
    with pytest.raises(Unavailable, match="a file of it is gone"):
        rows_of(home)


def test_rows_that_were_deleted_of_a_delta_table_are_gone(home, delta):
    """The newest version is what the table says, whatever lies in its folder."""
    DeltaTable(str(delta)).delete("price > 500")
    assert rows_of(home).equals(rows_of_csv(home).filter(pl.col("price") <= 500))


def test_an_iceberg_table_gives_the_rows_of_its_files(home, iceberg):
    """All rows of the newest snapshot, or of a declared one; ingest's facts say which it was, and no secret."""
    expected = rows_of_csv(home)
    assert rows_of(home).equals(expected)
    table = iceberg.load_table("sales.orders")
    about = facts(home)
    assert (about["snapshot"], about["table"]) == (
        str(table.current_snapshot().snapshot_id),
        str(table.metadata.table_uuid),
    )
    assert "my-secret-words" not in json.dumps(about)
    first = table.snapshots()[0].snapshot_id
    declare(home, **ICEBERG, catalog_from={"file": str(home / "catalog")}, snapshot=first)
    assert rows_of(home).equals(expected.filter(pl.col("event_time").dt.day() < 10))


def test_files_of_other_days_of_an_iceberg_table_stay_shut(home, iceberg):
    """A window of early days needs no file of later ones: it is read though that one is gone; all of it is not."""
    table = iceberg.load_table("sales.orders")
    for task in table.scan(row_filter="event_time >= '2024-02-10T00:00:00+00:00'").plan_files():
        (home / task.file.file_path.removeprefix(f"file://{home}/")).unlink()
    assert rows_of(home, until=datetime(2024, 2, 5, tzinfo=UTC)).height == 4 * 24
    with pytest.raises(DataError, match="a file of it is gone"):
        rows_of(home)


def test_rows_that_were_deleted_of_an_iceberg_table_are_gone(home, iceberg):
    """The newest snapshot is what the table says."""
    iceberg.load_table("sales.orders").delete("price > 500")
    assert rows_of(home).equals(rows_of_csv(home).filter(pl.col("price") <= 500))


def test_an_iceberg_table_without_a_snapshot_has_no_rows(home, iceberg):
    """A table that nobody has written to yet is empty, and no mistake."""
    iceberg.create_table("sales.empty", schema=halves(home)[0].to_arrow().schema)
    declare(home, **(ICEBERG | {"table": "sales.empty"}), catalog_from={"file": str(home / "catalog")})
    assert rows_of(home).is_empty()


def test_a_catalogue_may_be_a_connection_of_airflow(home, iceberg, monkeypatch):
    """The catalogue's address and login are those of a connection, with the rest in its extra."""
    properties = yaml.safe_load((home / "catalog").read_text())
    uri = properties.pop("uri")
    given = {"conn_type": "iceberg", "host": uri, "password": "pw", "login": "me", "extra": properties}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(given))
    declare(home, **ICEBERG, catalog_from={"connection": "warehouse"})
    assert rows_of(home).height == 360


@pytest.mark.parametrize(
    ("library", "source"),
    [("deltalake", {"kind": "delta", "url": "orders"}), ("pyiceberg", ICEBERG)],
)
def test_a_library_that_is_not_installed_is_named(home, monkeypatch, library, source):
    """Without its package a kind of table says which one it needs, and the extra that brings it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.catalog", None)
    declare(home, **source)
    with pytest.raises(ConfigError, match=f"needs the Python package {library}.*as the extra {source['kind']}"):
        rows_of(home)
