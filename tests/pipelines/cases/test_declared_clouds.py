"""Files in Google Cloud Storage and in Azure (emulators): read, read again when they changed, or a clear error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import uuid4

import polars as pl
import pytest
import yaml

from pipelines.cases import declared_files
from pipelines.errors import ConfigError, DataError, Unavailable
from tests.clouds import Cloud, abfs, gs, missing
from tests.declarations import ROWS, declare, facts, taken, typed
from tests.pipelines.cases.test_declared_stores import copies, data, rows_of

CLOUDS = [
    pytest.param(make, id=name, marks=pytest.mark.skipif(bool(why := missing(name)), reason=why))
    for name, make in (("gs", gs), ("abfs", abfs))
]


@pytest.fixture(scope="module", params=CLOUDS)
def cloud(request):
    """One emulator for this file."""
    with request.param() as found:
        yield found


@dataclass(frozen=True)
class Folder:
    """A part of a cloud that no other test has."""

    cloud: Cloud
    name: str

    def put(self, key: str, content: bytes) -> str:
        """Write an object; returns its address."""
        return self.cloud.put(f"{self.name}/{key}", content)

    def url(self, key: str) -> str:
        """The address of an object, or of a pattern."""
        return self.cloud.url(f"{self.name}/{key}")


@pytest.fixture
def folder(cloud):
    """An empty folder in the cloud."""
    return Folder(cloud, uuid4().hex)


@pytest.fixture
def login(home, folder):
    """Where the login is told: a secret file."""
    return told(home, folder.cloud.login)


def told(home, plain):
    """A file that holds a login."""
    (home / "login").write_text(yaml.safe_dump(plain))
    return {"file": str(home / "login")}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_pattern_reads_all_objects_but_hidden_ones_and_folders(home, folder, login, form):
    """Objects of one day each are one source, taken in whole and copied once; one that was changed is copied again."""
    rows = typed(home)
    for (day,), own in rows.group_by(pl.col("event_time").dt.date()):
        (home / "own.parquet").unlink(missing_ok=True)
        own.write_parquet(home / "own.parquet")
        whole = (home / "own.parquet").read_bytes() if form == "parquet" else own.write_csv().encode()
        folder.put(f"days/{day}.{form}", whole)
    folder.put(f"days/_2024-02-20.{form}", b"half")
    folder.put(f"days/old.{form}/2024-02-20.txt", b"another form")
    declare(home, kind="files", url=folder.url(f"days/*.{form}"), login_from=login)
    assert rows_of(home).height == ROWS
    assert taken(home).height == ROWS
    assert len(copies(home)) == 17
    assert len(facts(home)["files"]) == 17
    kept = {path.name for path in copies(home)}
    if form == "csv":
        first = rows.filter(pl.col("event_time").dt.day() == 1)
        folder.put("days/2024-02-01.csv", first.with_columns(price=pl.lit(3.0)).write_csv().encode())
        found = rows_of(home)
        assert found.filter(pl.col("event_time").dt.day() == 1)["price"].unique().to_list() == [3.0]
        assert len({path.name for path in copies(home)} - kept) == 1


def test_what_is_not_there_is_named(home, folder, login):
    """A missing bucket, a missing object and a pattern that nothing matches are told with their address."""
    for url, words in (
        (folder.cloud.url("a.csv", "no-such-box"), "there is nothing at"),
        (folder.url("b.csv"), "there is nothing at"),
        (folder.url("days/*.csv"), "no file matches"),
    ):
        declare(home, kind="files", url=url, login_from=login)
        with pytest.raises(DataError, match=words) as caught:
            rows_of(home)
        assert url in str(caught.value)


@pytest.mark.parametrize("pattern", ["a.csv", "*.csv"])
@pytest.mark.parametrize("kind", ["none", "wrong"])
def test_a_refused_login_is_said_and_mended(home, folder, monkeypatch, kind, pattern):
    """No login and a wrong one are told without a secret, nothing is kept, and the next try gets all."""
    if folder.cloud.protocol == "gs":
        monkeypatch.setattr("gcsfs.retry.is_retriable", lambda _: False)  # it asks for half a minute
    folder.put("a.csv", data(home))
    given = {"login_from": told(home, folder.cloud.wrong)} if kind == "wrong" else {}
    declare(home, kind="files", url=folder.url(pattern), **given)
    with pytest.raises(ConfigError, match=r"refuses the login.*source.login_from") as caught:
        rows_of(home)
    for secret in json.dumps(folder.cloud.wrong).split("\\n"):
        assert len(secret) < 40 or secret not in str(caught.value)
    assert not copies(home)
    declare(home, kind="files", url=folder.url(pattern), login_from=told(home, folder.cloud.login))
    assert rows_of(home).height == ROWS


def test_an_airflow_connection_is_a_login(home, folder, monkeypatch):
    """What the connection of the cloud's own Airflow provider holds is the login."""
    folder.put("a.csv", data(home))
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", folder.cloud.connection)
    declare(home, kind="files", url=folder.url("*.csv"), login_from={"connection": "lake"})
    assert rows_of(home).height == ROWS


def test_an_object_that_changes_while_it_is_copied_is_tried_again(home, folder, login, monkeypatch):
    """Nothing is kept of a copy that may be half of one version and half of another; the next try gets the new one."""
    folder.put("a.csv", data(home))
    declare(home, kind="files", url=folder.url("*.csv"), login_from=login)
    version = declared_files._version
    changed = []

    def changing(info):
        if not changed:
            changed.append(folder.put("a.csv", data(home, b"shop-x,2024-02-02T00:30:00Z,red,1,1,1\n")))
        return version(info)

    monkeypatch.setattr(declared_files, "_version", changing)
    with pytest.raises(Unavailable, match=r"changed while it was copied|broke off"):
        rows_of(home)
    assert not copies(home)
    assert rows_of(home).height == ROWS + 1


@pytest.mark.long
def test_a_cloud_that_is_away_may_be_tried_again(home, folder):
    """Nobody at the store's address is no mistake in the data; the libraries ask for a minute before they say so."""
    folder.put("a.csv", data(home))
    declare(home, kind="files", url=folder.url("a.csv"), login_from=told(home, folder.cloud.away))
    with pytest.raises(Unavailable, match="does not answer"):
        rows_of(home)
