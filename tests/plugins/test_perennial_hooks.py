"""perennial/airflow/hooks.py: a task goes by Airflow's connections where there are any, else by its environment."""

import json

import pytest
from airflow.sdk.exceptions import AirflowFailException

from perennial.airflow.hooks import LedgerHook, TritonHook, connection_json, settings
from perennial.airflow.operators import StepOperator
from pipelines.cases.addresses import asking
from pipelines.cases.declared_sql import resolve
from pipelines.errors import ConfigError, Unavailable
from pipelines.line.order import INGEST
from pipelines.params import SqlSource, UrlFrom
from pipelines.settings import Settings


def test_without_connections_the_environment_counts(monkeypatch):
    """No connection changes nothing, not even a value."""
    monkeypatch.setenv("PERENNIAL_TRITON_GRPC", "triton:8001")
    assert settings() == Settings()


def test_a_connection_is_taken_whole(monkeypatch):
    """Places and logins come from the connections.

    A secret of the environment does not go to a host that a connection names.
    """
    monkeypatch.setenv("PERENNIAL_TRITON_CLIENT", "of another server")
    monkeypatch.setenv("AIRFLOW_CONN_TRITON_DEFAULT", "http://triton.example.org:8100")
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", "https://ada:s%2Fcret@mlflow.example.org")
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER_DEFAULT", "postgres://led:p%40ss@db.example.org/ledger?sslmode=require")
    found = settings()
    assert (found.triton_grpc, found.triton_client) == ("triton.example.org:8100", None)
    assert (found.mlflow_url, found.mlflow_username, found.mlflow_password.get_secret_value()) == (
        "https://mlflow.example.org",
        "ada",
        "s/cret",
    )
    assert found.ledger == "postgresql+psycopg://led:p%40ss@db.example.org:5432/ledger?sslmode=require"


def test_a_password_is_the_clients_key_of_triton(monkeypatch):
    """Who we are for Triton is its connection's password."""
    monkeypatch.setenv("AIRFLOW_CONN_TRITON_DEFAULT", '{"conn_type": "generic", "host": "triton", "password": "key"}')
    assert (settings().triton_grpc, settings().triton_client.get_secret_value()) == ("triton:8001", "key")


def _typed(kind, **fields):
    return json.dumps({"conn_type": kind, **fields})


def test_a_connection_of_a_provider_s_type_says_what_one_of_an_old_type_says(monkeypatch):
    """What the forms keep, empty boxes included, and what people made as generic, http or postgres: equal settings."""
    pem = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n"
    forms = {
        "triton": _typed("perennial_triton", host="triton", port=8100, extra=json.dumps({"private_key": pem})),
        "mlflow": _typed("perennial_mlflow", host="mlflow", schema="https", login="ada", password="s/cret", extra="{}"),
        "ledger": _typed(
            "perennial_ledger",
            host="db",
            schema="ledger",
            login="led",
            password="p@ss",
            extra=json.dumps({"sslmode": "require", "sslrootcert": None, "application_name": ""}),
        ),
    }
    old = {
        "triton": _typed("generic", host="triton", port=8100, password=pem),
        "mlflow": "https://ada:s%2Fcret@mlflow",
        "ledger": "postgres://led:p%40ss@db/ledger?sslmode=require",
    }
    found = []
    for connections in (forms, old):
        for name, connection in connections.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}_DEFAULT", connection)
        found.append(settings())
    assert found[0] == found[1]
    assert found[0].ledger == "postgresql+psycopg://led:p%40ss@db:5432/ledger?sslmode=require"
    assert found[0].triton_client.get_secret_value() == pem


def test_a_hook_reads_a_connection_of_any_name_and_says_whether_its_service_answers(monkeypatch):
    """Each hook takes a connection's id; Airflow's button tells what is wrong, and raises nothing."""
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", _typed("perennial_ledger", host="127.0.0.1", port=1, schema="l"))
    assert LedgerHook("other").get_conn().ledger == "postgresql+psycopg://127.0.0.1:1/l"
    worked, said = LedgerHook("other").test_connection()
    assert not worked
    assert "the ledger postgresql+psycopg://127.0.0.1:1/l does not answer" in said
    assert TritonHook().test_connection() == (
        False,
        "Airflow has handed over no connection triton_default: make it, or take it out of PERENNIAL_CONNECTIONS",
    )


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("https://proxy.example.org/mlflow", None, "https://proxy.example.org/mlflow"),
        ("mlflow", 5000, "http://mlflow:5000"),
    ],
)
def test_mlflow_may_stand_behind_a_path(monkeypatch, host, port, expected):
    """The host may be a whole URL; a bare one means http."""
    port = "null" if port is None else port
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "generic", "host": "{host}", "port": {port}}}')
    assert settings().mlflow_url == expected


@pytest.mark.parametrize(
    ("name", "uri", "what"),
    [
        ("triton_default", "http://", "has no host.*PERENNIAL_TRITON_GRPC"),
        ("mlflow_default", '{"conn_type": "generic", "host": "https://ada:x@mlflow"}', "login in its host"),
        ("triton_default", '{"conn_type": "generic", "host": "http://triton"}', "only a name or an address"),
        ("mlflow_default", '{"conn_type": "generic", "host": "ftp://mlflow"}', "only http and https"),
        ("mlflow_default", "http://ada@mlflow:5000", "login without a password.*PERENNIAL_MLFLOW_URL"),
        ("ledger_default", "mysql://led:x@db/ledger", "type 'mysql'.*PERENNIAL_LEDGER_URL"),
        ("ledger_default", "postgres://led:x@db", "names no database"),
    ],
)
def test_a_wrong_connection_is_named(monkeypatch, name, uri, what):
    """A connection that cannot be used fails the task at once.

    The error names its id, what is wrong and the setting that it stands in for.
    """
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", uri)
    with pytest.raises(ConfigError, match=f"{name} .*{what}"):
        settings()
    with pytest.raises(AirflowFailException, match=name):
        StepOperator(task_id="ingest", step=INGEST, case="bank").execute({"params": {}})


def test_who_relies_on_a_connection_does_not_end_up_elsewhere(monkeypatch):
    """A named connection that Airflow does not hand over is an error that is tried again.

    The environment never takes its place.
    """
    monkeypatch.setenv("PERENNIAL_CONNECTIONS", "mlflow_default,ledger_default")
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", "http://mlflow:5000")
    with pytest.raises(Unavailable, match="ledger_default"):
        settings()


def test_connections_can_be_left_alone(monkeypatch):
    """`none` asks Airflow for no connection.

    A name that stands for nothing is an error that lists those that do.
    """
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", "http://mlflow:5000")
    monkeypatch.setenv("PERENNIAL_CONNECTIONS", "none")
    assert settings() == Settings()
    monkeypatch.setenv("PERENNIAL_CONNECTIONS", "mlflow_defualt")
    with pytest.raises(ConfigError, match="mlflow_defualt: only triton_default, mlflow_default, ledger_default"):
        settings()


def test_a_task_asks_airflow_for_the_connections_of_a_declared_source(monkeypatch, tmp_path):
    """A connection that is no variable comes from where Airflow keeps it; outside of a task it is not seen."""
    (tmp_path / "connections.json").write_text(
        '{"warehouse": {"conn_type": "postgres", "host": "db", "login": "me", "password": "p:w", "schema": "sales"}}'
    )
    monkeypatch.setenv("AIRFLOW__WORKERS__SECRETS_BACKEND", "airflow.secrets.local_filesystem.LocalFilesystemBackend")
    monkeypatch.setenv(
        "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS", f'{{"connections_file_path": "{tmp_path / "connections.json"}"}}'
    )
    declared = SqlSource(kind="sql", url_from={"connection": "warehouse"}, table="orders")
    with pytest.raises(ConfigError, match="seen by its tasks alone"):
        resolve(declared, Settings(home=tmp_path), "shop")
    with asking(connection_json):
        found = resolve(declared, Settings(home=tmp_path), "shop")
        assert found.url.render_as_string(hide_password=False) == "postgresql+psycopg://me:p%3Aw@db/sales"
        assert "p:w" not in str(found.facts())
        with pytest.raises(Unavailable, match="Airflow has handed over no connection nowhere"):
            resolve(declared.model_copy(update={"url_from": UrlFrom(connection="nowhere")}), Settings(), "shop")
