"""Files and tables in a real S3 store (moto): read, read again when they changed, or a clear error."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from deltalake import write_deltalake

from pipelines.cases import declared_files, part
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError, Unavailable
from pipelines.params_file import load_params
from tests.declarations import AS_OF, ROWS, declare, facts, settings, typed
from tests.stores import BUCKET, s3


@pytest.fixture(scope="module")
def server():
    """One server for this file."""
    with s3() as found:
        yield found


@pytest.fixture
def store(server):
    """The server, with an empty bucket."""
    server.take_logins()
    for one in server.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        server.client.delete_object(Bucket=BUCKET, Key=one["Key"])
    return server


def rows_of(home) -> pl.DataFrame:
    """The rows of the shop's days."""
    module, params = part("shop", "source"), load_params("shop")
    window = Window(start=AS_OF - timedelta(days=20), end=AS_OF)
    return module.rows(module.resolve(settings(home), params), window, params)


def copies(home):
    """The copies that are kept."""
    return [path for path in (home / "home" / "data").rglob("*") if path.is_file() and path.suffix != ".json"]


def data(home, more: bytes = b"") -> bytes:
    """The shop's CSV."""
    return (home / "data" / "shop.csv").read_bytes() + more


def test_a_pattern_in_a_store_reads_all_objects_but_hidden_ones_and_folders(home, store):
    """Objects of one day each are one source, copied once; one that is new or was changed is copied then."""
    rows = typed(home)
    for (day,), own in rows.group_by(pl.col("event_time").dt.date()):
        store.put(f"days/{day}.csv", own.write_csv().encode())
    store.put("days/_2024-02-20.csv", b"half")
    store.put("days/old.csv/2024-02-20.txt", b"another form")
    declare(home, kind="files", url=f"s3://{BUCKET}/days/*.csv")
    assert rows_of(home).height == ROWS
    assert len(copies(home)) == 17
    assert set(facts(home)["files"]) == {f"s3://{BUCKET}/days/2024-02-{day:02d}.csv" for day in range(1, 18)}
    kept = {path.name for path in copies(home)}
    first = rows.filter(pl.col("event_time").dt.day() == 1)
    store.put("days/2024-02-01.csv", first.with_columns(price=pl.lit(3.0)).write_csv().encode())
    found = rows_of(home)
    assert found.filter(pl.col("event_time").dt.day() == 1)["price"].unique().to_list() == [3.0]
    assert len({path.name for path in copies(home)} - kept) == 1


def test_a_refused_login_is_said_and_mended(home, store):
    """A login that the store does not know is told without its secret, nothing is kept, and the next try gets all."""
    declare(home, kind="files", url=store.put("a.csv", data(home)))
    store.refuse_logins()
    with pytest.raises(ConfigError, match="refuses the login") as caught:
        rows_of(home)
    assert "my-secret-words" not in str(caught.value)
    assert not copies(home)
    store.take_logins()
    assert rows_of(home).height == ROWS


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-such-box/a.csv", "there is nothing at s3://no-such-box/a.csv"),
        (f"s3://{BUCKET}/b.csv", f"there is nothing at s3://{BUCKET}/b.csv"),
        (f"s3://{BUCKET}/days/*.csv", f"no file matches s3://{BUCKET}/days/[*].csv"),
        ("s3://no-such-box/days/*.csv", "no file matches s3://no-such-box/days/[*].csv"),
    ],
)
def test_what_is_not_in_the_store_is_named(home, store, url, words):
    """A missing bucket, a missing object and a pattern that nothing matches are told with their address."""
    declare(home, kind="files", url=url)
    with pytest.raises(DataError, match=words):
        rows_of(home)


def test_an_object_that_changes_while_it_is_copied_is_tried_again(home, store, monkeypatch):
    """Nothing is kept of a copy that may be half of one version and half of another; the next try gets the new one."""
    declare(home, kind="files", url=store.put("a.csv", data(home)))
    summed = declared_files._version
    changed = []

    def version(info):
        if not changed:
            changed.append(store.put("a.csv", data(home, b"shop-x,2024-02-02T00:30:00Z,red,1,1,1\n")))
        return summed(info)

    monkeypatch.setattr(declared_files, "_version", version)
    with pytest.raises(Unavailable, match=r"changed while it was copied|broke off"):
        rows_of(home)
    assert not copies(home)
    assert rows_of(home).height == ROWS + 1


def test_a_store_that_is_away_may_be_tried_again(home, store, monkeypatch):
    """Nobody at the store's address is no mistake in the data."""
    declare(home, kind="files", url=store.put("a.csv", data(home)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="does not answer"):
        rows_of(home)


def test_a_delta_table_in_a_store_is_read_where_it_lies(home, store, monkeypatch):
    """The table's own files are read of the store; a refused login and a table that is not there are told."""
    url = f"s3://{BUCKET}/orders"
    write_deltalake(url, typed(home).to_arrow(), storage_options={"AWS_S3_ALLOW_UNSAFE_RENAME": "true"})
    declare(home, kind="delta", url=url)
    assert rows_of(home).height == ROWS
    assert facts(home)["version"] == 0
    declare(home, kind="delta", url=f"s3://{BUCKET}/none")
    with pytest.raises(DataError, match="is not there"):
        rows_of(home)
    declare(home, kind="delta", url=url)
    store.refuse_logins()
    with pytest.raises(ConfigError, match="refuses the login"):
        rows_of(home)


@pytest.mark.parametrize("kind", ["files", "delta"])
@pytest.mark.parametrize("told", ["file", "connection"])
def test_a_store_may_have_a_login_of_its_own(home, store, monkeypatch, kind, told):
    """A login that a file or a connection tells is used where the environment has none."""
    url = f"s3://{BUCKET}/orders"
    if kind == "delta":
        write_deltalake(url, typed(home).to_arrow(), storage_options={"AWS_S3_ALLOW_UNSAFE_RENAME": "true"})
    else:
        url = store.put("a.csv", data(home))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    names = ("key", "secret") if kind == "files" else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    (home / "login").write_text(f"{names[0]}: somebody\n{names[1]}: my-secret-words\n")
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", "aws://somebody:my-secret-words@")
    given = {"file": str(home / "login")} if told == "file" else {"connection": "lake"}
    declare(home, kind=kind, url=url, login_from=given)
    assert rows_of(home).height == ROWS
    store.refuse_logins()
    with pytest.raises(ConfigError, match=r"refuses the login.*source.login_from") as caught:
        rows_of(home)
    assert "my-secret-words" not in str(caught.value)


def test_a_login_that_is_none_is_not_repeated(home, store):
    """What stands in a login's place and is none is told by where it stands."""
    (home / "login").write_text("my-secret-words")
    declare(home, kind="files", url=f"s3://{BUCKET}/a.csv", login_from={"file": str(home / "login")})
    with pytest.raises(ConfigError, match=r"does not hold the login of a store as YAML") as caught:
        rows_of(home)
    assert "my-secret-words" not in str(caught.value)
