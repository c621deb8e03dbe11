"""A PostgreSQL server of our own on 127.0.0.1.

Debian's package, a data folder below the state, a database and an owner for each user. The server refuses to run as
root, so root starts it as the package's user (else nobody). Nothing of a system-wide server is used: no socket in
/var/run, no cluster in /etc/postgresql, TCP with SCRAM passwords only.
"""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedded.ports import HOST, Ports
from embedded.processes import Started, alive, end_leaders, last_lines, launch
from pipelines.errors import ConfigError, Unavailable

INSTALLED = Path("/usr/lib/postgresql")
OLDEST = 15
PACKAGE = "postgresql-15"
SUPERUSER = "postgres"
START_SECONDS = 60.0
SETTINGS = ("max_connections=200", "shared_buffers=128MB", "log_min_duration_statement=1000")
_USERS = ("postgres", "nobody")


def find() -> Path:
    """The folder of the newest server's programs; ConfigError naming the Debian package if there is none."""
    versions = sorted(
        (int(folder.name), folder / "bin")
        for folder in INSTALLED.glob("[0-9]*")
        if os.access(folder / "bin" / "postgres", os.X_OK)
    )
    if not versions or versions[-1][0] < OLDEST:
        raise ConfigError(
            f"there is no PostgreSQL {OLDEST} in {INSTALLED}: install Debian's package, `apt-get install {PACKAGE}`"
        )
    return versions[-1][1]


def owner() -> str | None:
    """As whom the server runs: None for the caller, a name where the caller is root."""
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ConfigError(
        f"PostgreSQL refuses to run as root, and none of the users {', '.join(_USERS)} exists: "
        "run this as an ordinary user"
    )


def let_in(folder: Path) -> None:
    """Let the server's user, where it is not the caller, pass through ``folder``.

    By its group alone, which may not list it.
    """
    if (user := owner()) is not None:
        os.chown(folder, -1, pwd.getpwnam(user).pw_gid)
        folder.chmod(0o710)


def prepare(folder: Path, password: str) -> Path:
    """Make the data folder ``folder/data`` (once) and return it.

    ConfigError if the server's user cannot reach it, or another version made it.
    """
    programs, user = find(), owner()
    data = folder / "data"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        closed = subprocess.run(["test", "-x", str(folder)], check=False, **_as(user)).returncode
        if closed:
            raise ConfigError(
                f"{folder} cannot be reached by {user}, as whom PostgreSQL runs: "
                "choose another state folder (STATE=), or run as an ordinary user"
            )
    version = data / "PG_VERSION"
    if version.exists():
        maker = version.read_text().strip()
        own = programs.parent.name
        if maker != own:
            raise ConfigError(
                f"{data} was made by PostgreSQL {maker}, here is {own}: install postgresql-{maker}, "
                f"or delete {folder} with what is in it"
            )
        return data
    word = folder / "password"
    word.write_text(password)
    try:
        if user is not None:
            os.chown(word, pwd.getpwnam(user).pw_uid, -1)
        word.chmod(0o600)
        options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--no-sync")
        argv = [
            str(programs / "initdb"),
            "--pgdata",
            str(data),
            "--username",
            SUPERUSER,
            "--pwfile",
            str(word),
            *options,
        ]
        made = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            **_as(user),
        )
    finally:
        word.unlink()
    if made.returncode:
        raise ConfigError(
            f"initdb of {data} ended with {made.returncode}: {(made.stderr or made.stdout).strip()[-600:]}"
        )
    return data


def command(data: Path, port: int) -> list[str]:
    """The server's argument list; it listens on 127.0.0.1 alone."""
    fixed = (f"listen_addresses={HOST}", f"port={port}", "unix_socket_directories=", *SETTINGS)
    drop = []
    if user := owner():
        drop = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    return [*drop, str(find() / "postgres"), "-D", str(data), *[part for setting in fixed for part in ("-c", setting)]]


def ready(port: int) -> bool:
    """Whether the server takes connections."""
    done = subprocess.run(
        [str(find() / "pg_isready"), f"--host={HOST}", f"--port={port}", "--quiet", "--timeout=2"], check=False
    )
    return done.returncode == 0


def make_databases(port: int, password: str, owners: Mapping[str, str]) -> None:
    """A database and a role of the same name for each of ``owners`` (name: password), where they are missing.

    Nobody may enter another's. Raises ConfigError if the superuser's password is not the one that the data folder was
    made with.
    """
    import psycopg
    from psycopg import sql

    try:
        with psycopg.connect(
            host=HOST,
            port=port,
            user=SUPERUSER,
            password=password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=10,
        ) as connection:
            for name, word in owners.items():
                who, login = sql.Identifier(name), sql.Literal(word)
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
                    connection.execute(
                        sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 100").format(
                            who
                        )
                    )
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(who, login)
                )  # a secret that was lost is a new one now
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                    connection.execute(
                        sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(who, who)
                    )
                    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(who))
    except psycopg.OperationalError as error:
        if "password" in str(error):
            raise ConfigError(
                f"PostgreSQL on port {port} refuses the password in secrets/postgres_password: restore that file, "
                "or delete the data"
            ) from error
        raise Unavailable(f"PostgreSQL on port {port} does not answer: {error}") from error


def schema_version(url: str) -> str | None:
    """Alembic's revision of the database ``url``; None if nothing has been made in it yet."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=10) as connection:
        if connection.execute("SELECT to_regclass('alembic_version')").fetchone() != (None,):
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if found is not None:
                return str(found[0])
    return None


@contextmanager
def server(names: tuple[str, ...] = ("ledger",)) -> Iterator[dict[str, str]]:
    """A server for the length of a ``with`` block, in a folder of its own: the URL of each database.

    For tests and benchmarks.
    """
    with tempfile.TemporaryDirectory(prefix="perennial-postgres-") as temporary:
        root = Path(temporary)
        let_in(root)
        password = secrets.token_urlsafe(16)
        port = Ports.free().postgres
        process = launch(
            "postgres", command(prepare(root / "postgres", password), port), {"PATH": os.defpath}, root / "log"
        )
        try:
            wait(process, port)
            make_databases(port, password, dict.fromkeys(names, password))
            yield {name: f"postgresql+psycopg://{name}:{password}@{HOST}:{port}/{name}" for name in names}
        finally:
            stop(process, signal.SIGQUIT)  # nobody wants the data in order


def wait(process: Started, port: int, deadline: float = START_SECONDS) -> None:
    """Return when the server takes connections; Unavailable with its log's last lines if it ends or is too slow."""
    end = time.monotonic() + deadline
    while not ready(port):
        if not alive(process) or time.monotonic() > end:
            raise Unavailable(
                f"PostgreSQL did not become ready within {deadline:g} s; "
                f"the end of {process.log}:\n{last_lines(Path(process.log))}"
            )
        time.sleep(0.1)


def stop(process: Started, number: signal.Signals = signal.SIGINT, grace: float = 20.0) -> None:
    """A fast shutdown: clients are cut off, the data is left in order (SIGQUIT: as it is)."""
    end_leaders([replace(process, stop=number)], grace)


def _as(user: str | None) -> dict[str, Any]:
    """The arguments of subprocess that make it run as ``user``."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
