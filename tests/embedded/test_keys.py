"""embedded/keys.py: `make secrets` makes every secret once, for its owner's eyes.

It composes what is made of others.
"""

import base64
import configparser
import hashlib
import json
import signal
import subprocess
import sys

import pytest

from embedded.keys import MADE, MLFLOW_USER, ROOT, composed, main, make


def test_everything_is_made_once(tmp_path):
    """All files are made, each with a value of its own but for the webhook.

    A second call changes and says nothing new.
    """
    folder = tmp_path / "secrets"
    new = make(folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(new) == set(before)
    values = [before[name] for name in MADE if name != "alert_webhook"]
    assert all(len(value.strip()) >= 32 for value in values)
    assert len(set(values)) == len(values)
    assert not [name for name, value in before.items() if value != value.strip()], (
        "Airflow keeps what a command prints to the last byte"
    )
    assert make(folder) == []
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    """After SIGKILL while a secret is published, the next run makes it and leaves no copy of it beside."""
    folder = tmp_path / "secrets"
    code = """
import os, pathlib, signal, sys
from embedded import keys

os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
keys.make(pathlib.Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.glob(".*"))) == 1
    make(folder)
    assert list(folder.glob(".*")) == []


def test_only_the_owner_enters(tmp_path):
    """The folder is closed to others; the files in it can be read by the services' users, who get them one by one."""
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    make(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_two_stacks_share_nothing(tmp_path):
    """No value is a default that another stack would have too."""
    make(tmp_path / "a")
    make(tmp_path / "b")
    for name in MADE:
        assert name == "alert_webhook" or (tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text()


def test_a_deleted_file_is_made_anew_with_all_that_is_made_of_it(tmp_path):
    """To change a password its file is deleted: what holds it follows, everything else stays."""
    make(tmp_path)
    old = {path.name: path.read_text() for path in tmp_path.iterdir()}
    (tmp_path / "ledger_db_password").unlink()
    assert make(tmp_path) == ["ledger_db_password"]
    changed = {path.name for path in tmp_path.iterdir() if path.read_text() != old[path.name]}
    assert changed == {"ledger_db_password", "ledger_db_url"}


def test_what_is_composed_says_the_same(tmp_path):
    """Addresses, login files and the gateway's hash hold the very passwords of the files that they are made of."""
    make(tmp_path, postgres="db:1", redis="cache:2")
    own = {path.name: path.read_text().strip() for path in tmp_path.iterdir()}
    assert own["ledger_db_url"] == f"postgresql+psycopg://ledger:{own['ledger_db_password']}@db:1/ledger"
    assert own["celery_broker_url"] == f"redis://:{own['redis_password']}@cache:2/0"
    assert json.loads(own["airflow_passwords"]) == {
        "admin": own["airflow_admin_password"],
        "watcher": own["airflow_watcher_password"],
    }
    auth = configparser.ConfigParser()
    auth.read_string(own["mlflow_auth"])
    assert (auth["mlflow"]["admin_username"], auth["mlflow"]["admin_password"]) == (MLFLOW_USER, own["mlflow_password"])
    assert auth["mlflow"]["database_uri"] == own["mlflow_db_url"]
    assert own["gateway_api_key_hashes"] == "sha256:" + hashlib.sha256(own["gateway_api_key"].encode()).hexdigest()
    assert len(base64.urlsafe_b64decode(own["airflow_fernet_key"])) == 32
    assert len(own["airflow_jwt_secret"]) >= 64
    assert set(composed(own)) <= set(own)


def test_mlflow_remembers_a_login(tmp_path, monkeypatch):
    """MLflow itself reads from its login file that a password which was right is not checked anew for a minute.

    And by whom.
    """
    from mlflow.server.auth.config import read_auth_config

    make(tmp_path)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "mlflow_auth"))
    read = read_auth_config()
    assert (read.auth_cache_ttl_seconds, read.admin_username) == (60, MLFLOW_USER)


def test_the_gateway_takes_the_hash_for_the_key(tmp_path):
    """What the gateway is given lets in who has the key, though the key itself is not in it."""
    from serving.gateway.protections import read_keys

    make(tmp_path)
    assert read_keys(tmp_path / "gateway_api_key_hashes") == read_keys(tmp_path / "gateway_api_key")


@pytest.mark.parametrize("text", ["", "p@ss/word"])
def test_a_password_that_breaks_an_address_is_refused(tmp_path, text, capsys):
    """A password by hand that is empty, or would end an address, is refused by name before it is used."""
    (tmp_path / "ledger_db_password").write_text(text)
    assert main(["--folder", str(tmp_path)]) == 1
    assert "ledger_db_password" in capsys.readouterr().err
    assert not (tmp_path / "ledger_db_url").exists()


def test_no_value_is_printed(tmp_path, capsys):
    """What is said names files and shows no value."""
    assert main(["--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "postgres_password" in said
    assert not [name for name in MADE if (value := (tmp_path / name).read_text().strip()) and value in said]


def test_it_needs_nothing_installed(tmp_path):
    """`make secrets` works before `make setup`: the module imports the standard library alone."""
    command = [
        sys.executable,
        "-S",
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from embedded.keys import main; sys.exit(main(sys.argv[1:]))",
    ]
    assert subprocess.run([*command, "--folder", tmp_path], check=False, capture_output=True).returncode == 0
