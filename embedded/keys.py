"""`make secrets`: every password and key of the full stack, one file each, made once. Standard library only.

The folder may be entered by its owner alone (0700). Compose's files can be read by any user (0644): a file-based
compose secret keeps its mode, and the services run as users of their own. Those of a state folder are 0600. Nothing
here has a default that works elsewhere: a deleted file is made anew, with another value; a file that is there is never
changed, except for those that are only composed of others.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from embedded import certificates

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "compose" / "secrets"
AIRFLOW_USERS = {"admin": "admin", "watcher": "viewer"}
"""Airflow's users and their roles: a person (and the seed), and the exporter."""
MLFLOW_USER = "perennial"
LOGIN_SECONDS = "60"
"""How long each of MLflow's workers remembers a login that was right.

A password that another worker has changed holds so long too.
"""
_WORD = re.compile(r"[A-Za-z0-9_-]+")


def _password() -> str:
    return secrets.token_urlsafe(32)


MADE: dict[str, Callable[[], str]] = {
    "postgres_password": _password,
    "airflow_db_password": _password,
    "mlflow_db_password": _password,
    "ledger_db_password": _password,
    "airflow_fernet_key": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "airflow_jwt_secret": lambda: secrets.token_hex(64),
    "airflow_session_key": lambda: secrets.token_hex(32),
    **{f"airflow_{user}_password": _password for user in AIRFLOW_USERS},
    "mlflow_password": _password,
    "mlflow_session_key": lambda: secrets.token_hex(32),
    "gateway_api_key": _password,
    "redis_password": _password,
    "grafana_admin_password": _password,
    "alert_webhook": str,  # empty: nobody outside is told, see docs/compose.md
}
"""Files with a value of their own, and what makes it."""
TRITON = ("triton_authority", "triton_server_certificate", "triton_server_key", "triton_client")
"""Files of one issue of certificates (certificates.py), made together.

Triton reads the first three, its clients the last.
"""
OWNER_ONLY, SERVICES = 0o600, 0o644
"""The modes of secrets: of a state folder, and of compose, whose services have users of their own."""


def composed(own: dict[str, str], postgres: str = "postgres:5432", redis: str = "redis:6379") -> dict[str, str]:
    """The files that are made of others: addresses with their passwords, and the forms that services want to read."""
    urls = {
        f"{user}_db_url": f"postgresql+psycopg://{user}:{own[f'{user}_db_password']}@{postgres}/{user}"
        for user in ("airflow", "mlflow", "ledger")
    }
    auth = {
        "default_permission": "READ",
        "database_uri": urls["mlflow_db_url"],
        "admin_username": MLFLOW_USER,
        "admin_password": own["mlflow_password"],
    }
    auth["authorization_function"] = "mlflow.server.auth:authenticate_request_basic_auth"
    # Checking a password takes a third of a second, and a training's record some fifty requests.
    auth["auth_cache_ttl_seconds"] = LOGIN_SECONDS
    return urls | {
        "airflow_passwords": json.dumps({user: own[f"airflow_{user}_password"] for user in AIRFLOW_USERS}),
        "mlflow_auth": "\n".join(["[mlflow]", *(f"{name} = {value}" for name, value in auth.items())]),
        # The gateway knows what a key hashes to; only who calls it needs the key.
        "gateway_api_key_hashes": "sha256:" + hashlib.sha256(own["gateway_api_key"].encode()).hexdigest(),
        "redis_auth": f"requirepass {own['redis_password']}",
        "celery_broker_url": f"redis://:{own['redis_password']}@{redis}/0",
        "limits_url": f"redis://:{own['redis_password']}@{redis}/1",
        "celery_result_url": f"db+{urls['airflow_db_url']}",
    }


def make(folder: Path, postgres: str = "postgres:5432", redis: str = "redis:6379", mode: int = SERVICES) -> list[str]:
    """Make what is missing in ``folder`` and compose the rest anew, all files with ``mode``.

    Returns the names of the new files. Raises ValueError naming the file if a value would not survive in an address (a
    password by hand with ``@`` in it).
    """
    new = make_triton(folder, mode)
    own = {}
    for name, value in MADE.items():
        path = folder / name
        if not path.exists():
            _write(path, value(), mode)
            new.append(name)
        path.chmod(mode)
        own[name] = path.read_text().strip()
        if "password" in name and not _WORD.fullmatch(own[name]):
            raise ValueError(
                f"{path} is empty or holds other characters than letters, digits, - and _: delete it: "
                "`make secrets`, or the next start of PROFILE=full, makes it anew"
            )
    for name, text in composed(own, postgres, redis).items():
        path = folder / name
        if not path.exists():
            new.append(name)
        if not path.exists() or path.read_text() != text:
            _write(path, text, mode)
        path.chmod(mode)
    return new


def make_triton(folder: Path, mode: int = OWNER_ONLY) -> list[str]:
    """Make Triton's certificates in ``folder`` if one is missing; returns the names of the new files.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if all((folder / name).exists() for name in TRITON):
        return []
    for name, text in zip(TRITON, certificates.issue(), strict=True):
        _write(folder / name, text.strip(), mode)
    return list(TRITON)


def _write(path: Path, text: str, mode: int) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.*"):  # by a killed one: nobody else writes here now
            left.unlink()
        work = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "w") as file:
            file.write(text)  # no newline at the end: Airflow takes it for a part of what a command prints
        work.chmod(mode)
        os.replace(work, path)
    finally:
        os.close(folder)


def main(arguments: list[str] | None = None) -> int:
    """Make the files and say which ones are new, never what is in them."""
    parser = argparse.ArgumentParser(prog="python -m embedded.keys", description="make the full stack's secrets")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they lie (compose/secrets)")
    folder = parser.parse_args(arguments).folder
    try:
        new = make(folder)
    except (OSError, ValueError) as error:
        print(f"make secrets: {error}", file=sys.stderr)
        return 1
    if new:
        print(f"{folder}: {', '.join(new)}")
    else:
        print(f"{folder}: all there, nothing changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
