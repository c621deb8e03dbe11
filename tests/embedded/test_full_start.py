"""PROFILE=full that cannot work says which setting is wrong, and leaves nothing running."""

import shutil
import socket
import tempfile
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from embedded import full, keys, postgres, stack
from embedded.ports import FULL_ONLY, HOST, Ports, variable
from pipelines.errors import ConfigError, Unavailable


@pytest.fixture
def home(monkeypatch):
    """A state folder that PostgreSQL's user can pass through.

    Afterwards nothing of it runs, and no record says that something did.
    """
    monkeypatch.delenv("PERENNIAL_LEDGER_URL", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="perennial-start-"))
    folder.chmod(0o711)
    yield folder
    try:
        assert stack.strays(folder) == 0
        assert not (folder / stack.RECORD).exists()
    finally:
        stack.stop(folder)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def programs():
    """Skipped only where the servers are not installed."""
    try:
        full.require()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", FULL_ONLY)
def test_a_busy_port_is_named(home, programs, name):
    """With a port of the full stack taken, the error names the variable that moves it.

    Not even a secret has been made.
    """
    ports = Ports.free()
    with socket.create_server((HOST, getattr(ports, name))), pytest.raises(Unavailable, match=variable(name)):
        stack.start(home, ports, profile="full")
    assert not (home / "secrets").exists()
    assert not (home / "postgres").exists()


@pytest.mark.parametrize("name", ["postgres_password", "ledger_db_password", "redis_password"])
def test_an_empty_secret_is_named(home, programs, name):
    """A secret without a value is refused with its file, before a server is started or a data folder made."""
    keys.make(home / "secrets")
    (home / "secrets" / name).write_text("")
    with pytest.raises(ConfigError, match=rf"{name} is empty.*delete it"):
        stack.start(home, Ports.free(), profile="full")
    assert not (home / "postgres").exists()


def test_a_secret_that_is_gone_is_named(home):
    """What a process needs and does not find is named by its file."""
    with pytest.raises(ConfigError, match="secrets/redis_password cannot be read"):
        full.secret(home, "redis_password")


@pytest.mark.parametrize("folder", ["lake", "prediction_log", "model_repository"])
def test_a_lake_that_is_away_is_named(home, folder):
    """A folder whose disk is not there is refused with the setting that moves it, before anything starts.

    The folder is a link that leads nowhere.
    """
    (home / folder).symlink_to(home / "not" / "mounted")
    with pytest.raises(ConfigError, match=rf"{folder} cannot be written.*PERENNIAL_HOME"):
        stack.start(home, Ports.free())
    assert not (home / "logs").exists()


def test_an_old_ledger_stops_the_start(home, programs, monkeypatch):
    """Tables of another version end the start with the setting's name.

    PostgreSQL and Redis, which ran by then, are stopped again.
    """
    made = full.make_databases

    def older(home, ports):
        made(home, ports)
        with create_engine(full.urls(home)["ledger"]).begin() as connection:
            connection.execute(text('CREATE TABLE releases ("case" VARCHAR(64), seq INTEGER, "row" TEXT)'))

    monkeypatch.setattr(full, "make_databases", older)
    with pytest.raises(ConfigError, match="table releases lacks hash; set PERENNIAL_LEDGER_URL"):
        stack.start(home, Ports.free(), profile="full")
    assert (home / "logs" / "redis.log").exists()
    assert not (home / "logs" / "mlflow.log").exists()


@pytest.fixture(scope="module")
def urls(programs):
    """Three empty databases."""
    with postgres.server(full.DATABASES) as found:
        yield found


def _revision(url, version):
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (%s)", [version])


@pytest.mark.parametrize(("name", "known"), [("airflow", "d2f4e1b3c5a7"), ("mlflow", "0584bdc529eb")])
def test_a_schema_that_is_too_new_names_its_database(urls, name, known):
    """Empty databases and revisions that the installed package knows are fine.

    A newer one is refused with the database, the package's version and the setting.
    """
    full.check_databases(urls)
    _revision(urls[name], known)
    full.check_databases(urls)
    _revision(urls[name], "f00dfacef00d")
    with pytest.raises(
        ConfigError, match=rf"database {name} .*does not know its revision f00dfacef00d.*STATE=.*{name}_db_url"
    ):
        full.check_databases(urls)
    _revision(urls[name], known)


def test_a_lost_password_is_made_anew(urls):
    """A secret that was deleted comes back with another value: its database takes that one at the next start."""
    found = make_url(urls["ledger"])
    postgres.make_databases(found.port, _superuser(urls), {"mlflow": "another"})
    with psycopg.connect(host=HOST, port=found.port, user="mlflow", password="another", dbname="mlflow") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def _superuser(urls):
    """postgres.server gives all its users one password."""
    return make_url(urls["airflow"]).password
