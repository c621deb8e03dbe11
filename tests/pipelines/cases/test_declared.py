"""pipelines/cases/declared.py: rows without a source.py, from files, a web server and databases, or a clear error."""

from __future__ import annotations

import gzip
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
import yaml

from pipelines.cases import part
from pipelines.cases.surveying import survey
from pipelines.data import lake
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.params_file import load_params
from tests import shop
from tests.declarations import AS_OF, ROWS, csv, declare, facts, refused, settings, taken, typed, web
from tests.pipelines.verbs import ingest

# --- declarations -------------------------------------------------------------------------------


def test_a_case_with_a_declared_source_is_whole(home):
    """The survey finds nothing wrong with a case that has no source.py and declares one."""
    assert [case.problem for case in survey(settings(home), ["shop"])] == [""]


def test_both_are_one_too_many(home):
    """A declared source beside a source.py is an error that says so, in the survey and for who reads."""
    (home / "cases" / "shop" / "source.py").write_text(shop.SOURCE)
    words = "params.yaml declares a source, and there is pipelines/cases/shop/source.py: remove one of them"
    assert words in survey(settings(home), ["shop"])[0].problem
    with pytest.raises(ConfigError, match=words):
        part("shop", "source")


def test_neither_is_an_error(home):
    """Without both a case says that it needs one of them."""
    path = home / "cases" / "shop" / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"source": {}}))
    assert "source.py is missing: write it, as the cases beside it have one, or declare a source" in (
        survey(settings(home), ["shop"])[0].problem
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "file", "url": "a.csv"}, "source.kind: 'file' is no kind of source: did you mean 'files'?"),
        ({"kind": "files"}, "url: Field required"),
        ({"kind": "files", "url": ""}, "url is empty"),
        ({"kind": "files", "url": "a.csv", "formt": "csv"}, "formt: there is no such key"),
        ({"kind": "files", "url": "a.csv", "format": "xlsx"}, "format: Input should be 'parquet', 'csv' or 'json'"),
        ({"kind": "files", "url": "a.csv", "columns": {"time": "t"}}, "source.columns.time: a row has no 'time'"),
        ({"kind": "files", "url": "a.csv", "columns": {"sold": None}}, "columns.sold names no column"),
        ({"kind": "files", "url": "a.csv", "time_zone": "Mars"}, "'Mars' is no time zone"),
        ({"kind": "files", "url": "a.csv", "label_values": [False, True]}, "label_values.0: Input should be a valid"),
        ({"kind": "files", "url": "https://me:secret@host/a.csv"}, "parameters hold no secrets"),
        ({"kind": "sql", "url_from": {"env": "A"}, "table": "t", "query": "q"}, "a table or a query, one of both"),
        ({"kind": "sql", "url_from": {"env": "A", "file": "b"}, "table": "t"}, "url_from: give one of {file: path}"),
        ({"kind": "sql", "url_from": "postgresql://me:secret@host/db", "table": "t"}, "url_from"),
    ],
)
def test_a_mistake_in_a_declaration_is_named(home, source, words):
    """What cannot be a source is refused when parameters are loaded, with its key; a secret is not repeated."""
    declare(home, **source)
    with pytest.raises(ConfigError) as caught:
        load_params("shop")
    assert words in str(caught.value)
    assert "secret@" not in str(caught.value)


def test_settings_of_a_cases_own_source_stay_what_they_are():
    """Parameters with settings of today keep them as they are, in their dump too, and are no declared source."""
    params = load_params("loans")
    given = yaml.safe_load((shop.REAL / "loans" / "params.yaml").read_text())["source"]
    assert params.source == json.loads(json.dumps(given, default=str)) == params.model_dump(mode="json")["source"]
    assert params.declared_source is None
    assert load_params("bank").model_dump(mode="json")["source"] == {}


def test_a_declaration_comes_back_from_its_dump(home):
    """A training's record holds a declared source as the file gives it."""
    params = load_params("shop")
    assert params.alone(params.model).source == {"kind": "files", "url": "shop.csv"}


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "json", "jsonl"])
def test_every_format_gives_the_same_rows(home, form):
    """CSV, gzipped CSV, Parquet and JSON lines of the same rows are the same partitions, checksummed."""
    expected = taken(home)
    assert expected.height == ROWS
    path = home / "data" / f"orders.{form}"
    if form == "parquet":
        typed(home).write_parquet(path, row_group_size=100)
    elif form == "csv.gz":
        path.write_bytes(gzip.compress((home / "data" / "shop.csv").read_bytes()))
    elif form == "csv":
        path.write_bytes((home / "data" / "shop.csv").read_bytes())
    else:
        pl.read_csv(home / "data" / "shop.csv").write_ndjson(path)
    declare(home, kind="files", url=f"orders.{form}")
    found = taken(home)
    assert found.equals(expected)
    sha256 = lake.hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts(home)["files"] == {f"orders.{form}": sha256}


def test_a_pattern_reads_all_files_but_hidden_ones(home):
    """Files of one day each are one source; what a writer has not renamed yet is passed over."""
    expected = taken(home)
    folder = home / "data" / "days"
    folder.mkdir()
    for (day,), rows in typed(home).group_by(pl.col("event_time").dt.date()):
        rows.write_parquet(folder / f"{day}.parquet")
    (folder / ".2024-02-20.parquet").write_bytes(b"PAR1")
    declare(home, kind="files", url="days/*.parquet")
    assert taken(home).equals(expected)
    assert len(facts(home)["files"]) == 17


@pytest.mark.parametrize("between", [" ", "T"])
def test_a_zone_of_hours_alone_is_one(home, between):
    """Times as PostgreSQL writes them, `2024-02-01 00:00:00+01`, are read in a CSV; the rows are those of before."""
    expected = taken(home)
    rows = csv(home)
    there = rows["event_time"].str.to_datetime(time_zone="UTC").dt.convert_time_zone("Etc/GMT-1")
    rows.with_columns(event_time=there.dt.strftime(f"%Y-%m-%d{between}%H:%M:%S+01")).write_csv(home / "data" / "a.csv")
    declare(home, kind="files", url="a.csv")
    assert taken(home).equals(expected)


def test_columns_have_names_of_their_own(home):
    """Names, a zone, numbers as times, texts as labels and a column of label times are declared."""
    rows = typed(home).rename({"id": "number", "sold": "Verkauft?"})
    rows = rows.with_columns(
        pl.col("Verkauft?").replace_strict({0: "nein", 1: "ja"}),
        at=pl.col("event_time").dt.convert_time_zone("Europe/Berlin").dt.replace_time_zone(None),
        known=pl.col("event_time").dt.epoch("s") + 7200,
    ).drop("event_time")
    expected = taken(home)
    rows.with_columns(known="known").write_parquet(home / "data" / "a.parquet")
    columns = {"id": "number", "event_time": "at", "sold": "Verkauft?", "label_time": "known"}
    more = {"time_zone": "Europe/Berlin", "time_unit": "s", "label_values": ["nein", "ja"]}
    declare(home, kind="files", url="a.parquet", columns=columns, **more)
    found = taken(home)
    assert found.drop("label_time", "sold").equals(expected.drop("label_time", "sold"))
    known = found.drop_nulls("sold")
    assert (known["label_time"] - known["event_time"]).unique().to_list() == [timedelta(hours=2)]
    assert known.height == found.height - 1  # that of the last hour is known at 01:00


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("event_time", pl.col("event_time").dt.replace_time_zone(None), ("without a time zone", "source.time_zone")),
        ("event_time", pl.col("event_time").dt.date(), ("without a time zone", "source.time_zone")),
        ("event_time", pl.col("event_time").dt.epoch("s"), ("whose unit could be any", "source.time_unit")),
        ("event_time", pl.col("event_time").dt.strftime("%Y-%m-%d %H:%M:%S"), ("without a time zone", "2024-02-")),
        ("event_time", pl.col("event_time").dt.epoch("s").cast(pl.String), ("a number whose unit could be any",)),
        ("sold", pl.col("sold").replace_strict({0: "no", 1: "yes"}), ("sold holds", "source.label_values")),
        ("id", pl.int_range(pl.len()) + 0.5, ("not only whole numbers",)),
        ("price", pl.col("event_time"), ("price holds Datetime", "by a query, or write a source.py")),
    ],
)
def test_a_column_that_would_have_to_be_guessed_at_is_refused(home, column, values, words):
    """Times without a zone, numbers as times, texts as labels: the column, a value or type, and what to declare."""
    typed(home).with_columns(values.alias(column)).write_parquet(home / "data" / "a.parquet")
    declare(home, kind="files", url="a.parquet")
    refused(home, DataError, "a.parquet", *words)


def test_a_text_that_is_no_label_is_named(home):
    """With declared label values another text is an error that shows it."""
    typed(home).with_columns(pl.col("sold").replace_strict({0: "no", 1: "Yes"})).write_csv(home / "data" / "a.csv")
    declare(home, kind="files", url="a.csv", label_values=["no", "yes"])
    refused(home, DataError, "'Yes', which is none of no, yes")


def test_ids_that_are_made_are_those_of_the_content(home):
    """Without ids rows get one of time and fields: the same from every format and order, without the label."""
    declare(home, kind="files", url="shop.csv", columns={"id": None})
    first = taken(home)
    assert first["id"].n_unique() == ROWS
    assert first["id"].str.contains("^[0-9a-f]{32}$").all()
    changed = typed(home).drop("id").with_columns(sold=None).reverse()
    changed.write_parquet(home / "data" / "a.parquet")
    declare(home, kind="files", url="a.parquet", columns={"id": None})
    assert taken(home)["id"].equals(first["id"])
    # What they are for good: a row that is read in a year has the same one.
    assert first["id"][0] == FIRST_ID


FIRST_ID = "c9471602fd1406bc1fb796d46c76954a"


def test_ids_as_floats_are_whole_numbers(home):
    """A column of ids that pandas made floats of gives ids without a point."""
    typed(home).with_columns(id=pl.int_range(pl.len()) * 1.0).write_parquet(home / "data" / "a.parquet")
    declare(home, kind="files", url="a.parquet")
    assert taken(home)["id"].head(3).to_list() == ["0", "1", "2"]


def test_single_values_that_cannot_be_read_are_refused_alone(home):
    """One time that is none is one refused row, as it came; the others are taken in."""
    rows = csv(home).with_columns(
        event_time=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("soon")).otherwise("event_time")
    )
    rows.write_csv(home / "data" / "shop.csv")
    where = settings(home)
    manifest = ingest.run(load_params("shop"), where, where.run_dir("shop", AS_OF), AS_OF)
    assert manifest.facts["rows"] == ROWS - 1
    assert manifest.facts["reasons"] == {"event_time: not an ISO 8601 time with a time zone": 1}
    assert "soon" in pl.read_parquet(where.run_dir("shop", AS_OF) / "ingest" / "quarantine.parquet")["as_delivered"][0]


def test_a_file_that_is_not_there_says_where_it_was_looked_for(home):
    """A missing file names the folders and what to do."""
    declare(home, kind="files", url="oders.csv")
    refused(home, DataError, "no file oders.csv in", str(home / "data"), "PERENNIAL_DATA_DIR")


def test_a_missing_column_is_named(home):
    """A changed schema names the column, the file, what it has, and what to do."""
    csv(home).rename({"colour": "color"}).write_csv(home / "data" / "shop.csv")
    refused(home, DataError, "shop.csv has no column colour, but color, event_time", "source.columns")


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "json"])
def test_a_half_written_file_is_refused_and_then_taken_whole(home, form):
    """A file that breaks off leaves nothing; the next try, when it is whole, gets all."""
    path = home / "data" / f"orders.{form}"
    if form == "parquet":
        typed(home).write_parquet(path)
    elif form == "json":
        typed(home).write_ndjson(path)
    else:
        data = (home / "data" / "shop.csv").read_bytes()
        path.write_bytes(gzip.compress(data) if form == "csv.gz" else data)
    whole = path.read_bytes()
    path.write_bytes(whole[: -len(b"500.5,1.25,1\n")])
    declare(home, kind="files", url=path.name)
    refused(home, DataError, path.name, "half written")
    path.write_bytes(whole)
    assert taken(home).height == ROWS


def test_a_file_that_changes_while_it_is_read_is_refused(home, monkeypatch):
    """A file that is another one after its checksum is no source of anything; trying again may help."""
    once = []

    def summed(path):
        found = lake.hashlib.sha256(path.read_bytes()).hexdigest()
        if not once:
            once.append(path)
            with path.open("a") as file:
                file.write("shop-x,2024-02-02T00:00:00Z,red,1,1,1\n")
        return found

    monkeypatch.setattr("pipelines.cases.declared_files.file_sha256", summed)
    refused(home, Unavailable, "shop.csv changed while it was read")
    assert taken(home).height == ROWS + 1


# --- a web server -------------------------------------------------------------------------------


def test_a_file_of_a_web_server_is_copied_once_for_each_version(home):
    """Rows are those of the file; it is fetched again only when it has changed, and checksummed."""
    expected = taken(home)
    data = (home / "data" / "shop.csv").read_bytes()
    with web() as (server, url):
        server.files["/a.csv"] = (200, data, len(data))
        declare(home, kind="files", url=f"{url}/a.csv")
        assert taken(home).equals(expected)
        assert facts(home)["files"] == {f"{url}/a.csv": lake.hashlib.sha256(data).hexdigest()}
        gets = [one for one in server.asked if one[0] == "GET"]
        assert len(gets) == 1, server.asked
        more = data + b"shop-x,2024-02-02T00:30:00Z,red,1,1,1\n"
        server.files["/a.csv"] = (200, more, len(more))
        assert taken(home).height == ROWS + 1


def test_a_download_that_breaks_off_leaves_nothing_and_is_tried_again(home):
    """A connection that ends early is told as one that may be tried again, and no copy is kept of it."""
    data = (home / "data" / "shop.csv").read_bytes()
    with web() as (server, url):
        server.files["/a.csv"] = (200, data, len(data) // 2)
        declare(home, kind="files", url=f"{url}/a.csv")
        refused(home, Unavailable, f"{url}/a.csv", "try again")
        assert not [path for path in (home / "home" / "data").rglob("*") if path.is_file()]
        server.files["/a.csv"] = (200, data, len(data))
        assert taken(home).height == ROWS


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(404, DataError, "there is nothing at"), (403, ConfigError, "refuses the login"), (503, Unavailable, "try again")],
)
def test_what_a_web_server_refuses_is_said(home, status, kind, words):
    """A missing file, a refused login and a server in trouble are three different things to do."""
    with web() as (server, url):
        server.files["/a.csv"] = (status, b"", 0)
        declare(home, kind="files", url=f"{url}/a.csv")
        refused(home, kind, words)


def test_an_address_where_nobody_answers_may_be_tried_again(home):
    """A server that is away is no mistake in the data."""
    with web() as (_, url):
        pass
    declare(home, kind="files", url=f"{url}/a.csv")
    refused(home, Unavailable, "does not answer")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/a.parquet", "needs the Python package s3fs"),
        ("gs://bucket/a.parquet", "needs the Python package gcsfs"),
        ("abfs://box@account/a.parquet", "needs the Python package adlfs"),
        ("ftp://host/a.parquet", "choose https, s3, gs or abfs"),
    ],
)
def test_a_protocol_that_cannot_be_read_names_what_it_needs(home, url, words, monkeypatch):
    """A store whose library is not installed names the library, an unknown protocol those that there are."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    declare(home, kind="files", url=url)
    refused(home, ConfigError, words)


# --- databases ----------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def database(home, request):
    """The address of a database with the table orders, which holds the shop's rows."""
    url = f"sqlite:///{home / 'shop.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("schema")
    fill(home, url)
    (home / "address").write_text(f"{url}\n")
    return url


def fill(home: Path, url: str) -> None:
    """Make the table."""
    rows = typed(home)
    engine = sa.create_engine(url)
    table = sa.Table(
        "orders",
        sa.MetaData(),
        sa.Column("number", sa.String, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("colour", sa.String),
        sa.Column("price", sa.Numeric(10, 2)),
        sa.Column("weight", sa.Float),
        sa.Column("sold", sa.Boolean),
    )
    table.create(engine)
    named = rows.rename({"id": "number", "event_time": "at"}).with_columns(pl.col("sold").cast(pl.Boolean))
    with engine.begin() as connection:
        connection.execute(table.insert(), named.to_dicts())
    engine.dispose()


SQL = {"kind": "sql", "table": "orders", "columns": {"id": "number", "event_time": "at"}, "time_zone": "UTC"}


def test_a_table_gives_the_rows_of_its_files(home, database, monkeypatch):
    """A table and a query give the rows that the CSV gives, read in many chunks; no message has the password."""
    expected = taken(home)
    monkeypatch.setattr("pipelines.cases.declared_sql.CHUNK", 50)
    declare(home, **SQL, url_from={"file": str(home / "address")})
    assert taken(home).equals(expected)
    said = json.dumps(facts(home))
    assert "orders of" in said
    assert "@" not in said
    query = "select number as id, at as event_time, colour, price, weight, sold from orders where ':x' <> '%' ;"
    monkeypatch.setenv("SHOP_DB", database)
    declare(home, kind="sql", query=query, url_from={"env": "SHOP_DB"}, time_zone="UTC")
    assert taken(home).equals(expected)


def test_only_the_window_is_asked_for(home, database, monkeypatch):
    """Rows of other days stay in the database."""
    declare(home, **SQL, url_from={"file": str(home / "address")})
    source = part("shop", "source")
    params = load_params("shop")
    seen = []
    frame = source.declared_sql._frame
    monkeypatch.setattr(source.declared_sql, "_frame", lambda chunk, *more: seen.extend(chunk) or frame(chunk, *more))
    window = source.Window(start=datetime(2024, 2, 5, tzinfo=UTC), end=datetime(2024, 2, 6, tzinfo=UTC))
    assert source.rows(source.resolve(settings(home), params), window, params).height == 24
    assert len(seen) <= 5 * 24


def test_a_table_that_is_not_there_is_named(home, database):
    """A missing table is an error that names it and no password; with it the next try gets all."""
    declare(home, **(SQL | {"table": "oders"}), url_from={"file": str(home / "address")})
    refused(home, ConfigError, "oders", "is not there")
    declare(home, **SQL, url_from={"file": str(home / "address")})
    assert taken(home).height == ROWS


def test_changed_columns_are_named(home, database):
    """A column that the table has no more is named with those it has."""
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE orders RENAME COLUMN colour TO color"))
    engine.dispose()
    declare(home, **SQL, url_from={"file": str(home / "address")})
    refused(home, DataError, "has no column colour, but at, color")


def test_a_reading_that_breaks_off_leaves_nothing(home, schema, monkeypatch):
    """A connection that dies in the middle may be tried again, and the next try gets all."""
    fill(home, schema)
    (home / "address").write_text(schema)
    monkeypatch.setattr("pipelines.cases.declared_sql.CHUNK", 20)
    declare(home, **SQL, url_from={"file": str(home / "address")})
    with monkeypatch.context() as patch:
        module = part("shop", "source").declared_sql
        frame, seen = module._frame, []

        def killing(chunk, *more):
            if len(seen) == 3:
                engine = sa.create_engine(schema)
                with engine.begin() as connection:
                    ours = "FROM pg_stat_activity WHERE application_name = 'perennial'"
                    connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {ours}"))
                engine.dispose()
            seen.append(len(chunk))
            return frame(chunk, *more)

        patch.setattr(module, "_frame", killing)
        refused(home, Unavailable, "does not answer")
    assert taken(home).height == ROWS


def test_a_refused_login_is_said_without_the_password(home, schema):
    """A wrong password is one line that tells what to mend, and does not repeat it."""
    url = sa.make_url(schema).set(username="nobody_here", password="wrong-secret")
    (home / "address").write_text(url.render_as_string(hide_password=False))
    declare(home, **SQL, url_from={"file": str(home / "address")})
    with pytest.raises(ConfigError) as caught:
        taken(home)
    assert "nobody_here" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


def test_a_server_that_is_away_may_be_tried_again(home):
    """Nothing at the address is no mistake in the data."""
    with web() as (server, _):
        port = server.server_port
    (home / "address").write_text(f"postgresql+psycopg://me:secret@127.0.0.1:{port}/shop")
    declare(home, **SQL, url_from={"file": str(home / "address")})
    refused(home, Unavailable, "does not answer")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"file": "secrets/none"}, "secrets/none, which cannot be read"),
        ({"env": "NOT_SET_AT_ALL"}, "the variable NOT_SET_AT_ALL, which is empty or not set"),
        ({"connection": "shop"}, "the connection shop (AIRFLOW_CONN_SHOP; those that Airflow keeps"),
    ],
)
def test_an_address_that_is_not_told_is_asked_for(home, given, words):
    """A file that is not there, and a variable that is not set, are named with what belongs there."""
    declare(home, **SQL, url_from=given)
    refused(home, ConfigError, words)


def test_an_address_that_is_none_is_not_repeated(home, monkeypatch):
    """What stands in a secret's place is in no message, even if it is no address; an unknown driver is named."""
    monkeypatch.setenv("SHOP_DB", "my-secret-words")
    declare(home, **SQL, url_from={"env": "SHOP_DB"})
    with pytest.raises(ConfigError) as caught:
        taken(home)
    assert "my-secret-words" not in str(caught.value)
    monkeypatch.setenv("SHOP_DB", "oracle://me:my-secret-words@host/db")
    with pytest.raises(ConfigError, match="the driver of oracle is not installed") as caught:
        taken(home)
    assert "my-secret-words" not in str(caught.value)


@pytest.mark.parametrize("form", ["uri", "json"])
def test_an_airflow_connection_is_an_address(home, schema, form, monkeypatch):
    """A connection of the environment, in either form that Airflow takes, leads to the table."""
    fill(home, schema)
    url = sa.make_url(schema)
    options = url.query["options"]
    if form == "uri":
        login = f"{url.username}:{url.password or ''}@{url.host}:{url.port}"
        text = f"postgres://{login}/{url.database}?options={options.replace('=', '%3D')}"
    else:
        parts = {"conn_type": "postgres", "login": url.username, "password": url.password, "host": url.host}
        text = json.dumps(parts | {"port": url.port, "schema": url.database, "extra": json.dumps({"options": options})})
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", text)
    declare(home, **SQL, url_from={"connection": "shop"})
    assert taken(home).height == ROWS
