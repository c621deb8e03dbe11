"""Which services a step by hand talks to.

Those of the state folder's own stack, those that somebody named, and no others.
"""

import json
import os
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from embedded import stack
from embedded.ports import Ports
from embedded.processes import launch
from pipelines import cli, ledger, storage
from pipelines.case_files import CASES_ROOT
from pipelines.contracts import Order
from pipelines.errors import ConfigError, Unavailable
from pipelines.params_file import load_params
from pipelines.places import TAG
from pipelines.processes import birth
from pipelines.registry import rest
from pipelines.settings import Settings, read_settings
from tests.pipelines.candidates import CASE, month, registered
from tests.pipelines.conftest import free_port

DEFAULT_PORTS = (5000, 8000, 8001, 8080, 8090)
"""Where `make up` starts its services."""


@contextmanager
def listening(port):
    """A server that takes every request.

    Yields the list of ``(client's port, Authorization)`` of those that it was asked.
    """
    heard = []

    class Anything(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append((self.client_address[1], self.headers.get("Authorization")))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Anything) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield heard
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """No address comes from the environment."""
    for name in Settings.model_fields:
        for variable in (f"PERENNIAL_{name.upper()}", f"PERENNIAL_{name.upper()}_FILE"):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv(TAG, raising=False)


@pytest.fixture
def connects(monkeypatch):
    """The ports that this process connects to, whoever listens there, and its own ports of those connections."""
    asked = []
    connect = socket.socket.connect

    def watched(self, address):
        if isinstance(address, tuple):
            asked.append(address[1])
        connect(self, address)
        if isinstance(address, tuple):
            asked.append(self.getsockname()[1])

    monkeypatch.setattr(socket.socket, "connect", watched)
    return asked


def stand_in(home, *, services=("mlflow",), runs=True, pid=None, **env):
    """What a stack that was started leaves in its state folder; ``runs`` is false where it was killed with kill -9."""
    home.mkdir(parents=True, exist_ok=True)
    pid = pid or os.getpid()
    started = [{"name": name, "pid": pid, "birth": birth(pid) - (not runs), "log": "log"} for name in services]
    (home / "stack.json").write_text(
        json.dumps({"tag": "t", "ports": asdict(Ports()), "traffic": False, "processes": started})
    )
    (home / "env").write_text("".join(f"{name}={value}\n" for name, value in {"PERENNIAL_HOME": home, **env}.items()))
    return read_settings(home=home)


def ask(settings):
    """One question to MLflow."""
    rest.get(settings, "experiments/get-by-name", experiment_name="loans")


def one_epoch(folder):
    """A parameter folder with a training of bank that takes a moment."""
    params = yaml.safe_load((CASES_ROOT / CASE / "variants" / "network" / f"{CASE}.yaml").read_text())
    params["train"]["epochs"] = 1
    folder.mkdir()
    (folder / f"{CASE}.yaml").write_text(yaml.safe_dump(params))
    return folder


def released(settings, version):
    """A version of bank in the ledger, its bundle in place, that no Triton has loaded."""
    run_dir = registered(settings, month(version), version, bias=version / 10)
    about = {
        "candidate_key": storage.read_manifest(run_dir / "export").key,
        "bundle": str((run_dir / "export").relative_to(settings.root)),
    }
    common = {
        "case": CASE,
        "action": "promote",
        "trigger": "manual",
        "reason": "better",
        "actor": "ada",
        "as_of": month(version),
    }
    ledger.append(settings.ledger, Order(**common, **about, after=version - 1, champion=version))


def test_a_server_that_belongs_to_nobody_gets_no_request(tmp_path, monkeypatch, connects, caplog, capfd):
    """Steps by hand without a stack leave alone what listens at the default ports.

    Train goes on and says so once, the others say what they could not do.
    """
    home = tmp_path / "home"
    monkeypatch.setenv("PERENNIAL_HOME", str(home))
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(one_epoch(tmp_path / "params")))
    with ExitStack() as servers:
        strangers = []
        for port in DEFAULT_PORTS:
            with suppress(OSError):  # somebody listens there already: nobody may connect to that one either
                strangers.append(servers.enter_context(listening(port)))
        for version in (1, 2):
            released(read_settings(), version)
        registered(read_settings(), month(3), 3, bias=0.3, champion=2)
        assert cli.main(["train", "--case", CASE, "--as-of", month(3).isoformat()]) == 0
        said = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
        [line] = said
        assert f"goes on without MLflow, the register step completes its run: no MLflow belongs to {home}" in line
        assert "PERENNIAL_MLFLOW_URL" in line
        for arguments, words in (
            (["rollout", "--as-of", month(3).isoformat()], f"no Triton belongs to {home}"),
            (["rollback", "--reason", "worse"], f"no Triton belongs to {home}"),
            (["reconcile"], f"bank is not reconciled. Triton's versions: no Triton belongs to {home}"),
            (["reconcile"], f"MLflow's aliases: no MLflow belongs to {home}"),
            (["register", "--as-of", month(3).isoformat()], f"no MLflow belongs to {home}"),
        ):
            capfd.readouterr()
            assert cli.main([arguments[0], "--case", CASE, *arguments[1:]]) == 1
            assert words in capfd.readouterr().err.splitlines()[-1]
    assert not set(connects) & set(DEFAULT_PORTS)
    # Other programs of this machine may ask there too.
    assert not {client for heard in strangers for client, _ in heard} & set(connects)


def test_each_state_talks_to_its_own_stack(tmp_path):
    """Of two stacks each state folder asks its own MLflow.

    One whose MLflow was killed asks nobody, even if another stack's took its port.
    """
    one, other = free_port(), free_port()
    with listening(one) as first, listening(other) as second:
        ask(stand_in(tmp_path / "one", PERENNIAL_MLFLOW_URL=f"http://127.0.0.1:{one}"))
        assert (len(first), len(second)) == (1, 0)
        ask(stand_in(tmp_path / "other", PERENNIAL_MLFLOW_URL=f"http://127.0.0.1:{other}"))
        assert (len(first), len(second)) == (1, 1)
        for gone in (
            stand_in(tmp_path / "killed", runs=False, PERENNIAL_MLFLOW_URL=f"http://127.0.0.1:{one}"),
            stand_in(tmp_path / "half", services=("triton",), PERENNIAL_MLFLOW_URL=f"http://127.0.0.1:{one}"),
            read_settings(home=tmp_path / "nothing"),
        ):
            with pytest.raises(Unavailable, match=f"no MLflow belongs to {gone.root}: start its stack"):
                ask(gone)
        assert (len(first), len(second)) == (1, 1)


def test_a_stopped_stack_is_no_address_but_still_the_state(tmp_path):
    """After `make down` no service has an address.

    Ledger, key and parameters stay those that the state was made with.
    """
    (tmp_path / "secret").write_text("postgresql+psycopg://ledger:p@127.0.0.1:5433/ledger\n")
    (tmp_path / "params").mkdir()
    text = (CASES_ROOT / "loans" / "params.yaml").read_text().replace("epochs:", "epochs: 1 #")
    (tmp_path / "params" / "loans.yaml").write_text(text)
    home = tmp_path / "home"
    process = launch("any", ["sleep", "60"], dict(os.environ), tmp_path / "log")
    running = stand_in(
        home,
        pid=process.pid,
        services=("triton", "gateway", "api-server"),
        PERENNIAL_TRITON_GRPC="127.0.0.1:2",
        PERENNIAL_GATEWAY_URL="http://127.0.0.1:3",
        PERENNIAL_AIRFLOW_URL="http://127.0.0.1:4",
        PERENNIAL_LEDGER_URL_FILE=tmp_path / "secret",
        PERENNIAL_API_KEY_FILE=tmp_path / "key",
        PERENNIAL_PARAMS_DIR=tmp_path / "params",
    )
    assert (running.triton_grpc, running.gateway_url) == ("127.0.0.1:2", "http://127.0.0.1:3")
    assert stack.stop(home) == 0
    stopped = read_settings(home=home)
    assert {stopped.triton_grpc, stopped.gateway_url, stopped.airflow_url, stopped.mlflow_url} == {""}
    for settings in (running, stopped):
        assert settings.ledger.startswith("postgresql+psycopg://ledger:p@")
        assert settings.key_file == tmp_path / "key"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PERENNIAL_HOME", str(home))
        assert load_params("loans").train.epochs == 1
        monkeypatch.setenv("PERENNIAL_LEDGER_URL", "")
        assert read_settings().ledger == f"sqlite:///{home / 'ledger.db'}"
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match="PERENNIAL_LEDGER_URL_FILE"):
        read_settings(home=home)


def test_what_somebody_named_wins_and_gets_no_login_of_the_stack(tmp_path, monkeypatch):
    """An address in the environment is asked instead of the stack's, without the stack's password.

    An empty one means nobody.
    """
    (tmp_path / "password").write_text("geheim\n")
    own, named = free_port(), free_port()
    login = {"PERENNIAL_MLFLOW_USERNAME": "perennial", "PERENNIAL_MLFLOW_PASSWORD_FILE": tmp_path / "password"}
    with listening(own) as ours, listening(named) as theirs:
        ask(stand_in(tmp_path / "home", PERENNIAL_MLFLOW_URL=f"http://127.0.0.1:{own}", **login))
        assert ours[-1][1].startswith("Basic ")
        monkeypatch.setenv("PERENNIAL_MLFLOW_URL", f"http://127.0.0.1:{named}")
        ask(read_settings(home=tmp_path / "home"))
        assert [authorisation for _, authorisation in theirs] == [None]
        monkeypatch.setenv("PERENNIAL_MLFLOW_URL", "")
        with pytest.raises(Unavailable, match="no MLflow belongs"):
            ask(read_settings(home=tmp_path / "home"))
        assert (len(ours), len(theirs)) == (1, 1)


def test_the_stacks_own_processes_go_by_their_environment_alone(tmp_path, monkeypatch):
    """A process that the stack started, or a container, is given everything.

    The files of the state folder add nothing.
    """
    given = {
        "PERENNIAL_MLFLOW_URL": "http://127.0.0.1:1",
        "PERENNIAL_TRITON_CLIENT": "key",
        "PERENNIAL_TRITON_GRPC": "127.0.0.1:2",
    }
    monkeypatch.setenv(TAG, "t")
    settings = stand_in(tmp_path, services=("mlflow", "triton"), **given)
    assert (settings.mlflow_url, settings.triton_grpc, settings.triton_client) == ("", "", None)


def test_a_record_that_cannot_be_read_is_no_stack(tmp_path):
    """A damaged stack.json gives no address, and stops no command that needs none."""
    stand_in(tmp_path, PERENNIAL_MLFLOW_URL="http://127.0.0.1:1")
    for text in ("{", "[]", '{"processes": [1]}', '{"processes": [{"name": "mlflow", "pid": "x", "birth": 1}]}'):
        (tmp_path / "stack.json").write_text(text)
        assert read_settings(home=tmp_path).mlflow_url == ""
