"""Where a task finds its services: in Airflow's connections where somebody has made them, else in the environment.

A connection (page, secrets backend or ``AIRFLOW_CONN_<ID>``) is taken whole: what it leaves open is not filled in from
the environment, so that a password never goes to a host that it was not meant for. Only tasks read connections; the
gateway and the exporters go by ``PERENNIAL_*`` alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from pipelines.errors import ConfigError, PerennialError, Unavailable
from pipelines.settings import Settings, read_settings

if TYPE_CHECKING:
    from airflow.sdk import Connection


class ServiceHook(BaseHook):
    """What an Airflow connection says about one service, in the words of Settings.

    Its connection type has a form where this package is installed (provider.py). A connection of another type that
    says the same is as good.
    """

    conn_name_attr = "conn_id"
    default_conn_name = ""
    conn_type = ""
    hook_name = ""
    setting = ""
    """The variable that the connection stands in for."""

    def __init__(self, conn_id: str = "", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.conn_id = conn_id or self.default_conn_name

    def get_conn(self) -> Settings:
        """This process's settings with what the connection says.

        ConfigError for a connection that is wrong, Unavailable if Airflow hands over none of this id.
        """
        return read_settings(**self.places(needed=True))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the service answers, and what to tell: the button of Airflow's form, where it is enabled."""
        try:
            return True, self.ask(self.get_conn())
        except PerennialError as error:
            return False, str(error)

    @abstractmethod
    def ask(self, settings: Settings) -> str:
        """Ask the service something harmless; raises what is wrong with it."""

    @abstractmethod
    def read(self, connection: Connection, host: str) -> dict[str, Any]:
        """The settings that the connection to ``host`` gives; ConfigError if they cannot be read from it."""

    def places(self, *, needed: bool) -> dict[str, Any]:
        """What the connection says; without one nothing, or Unavailable if it is ``needed``."""
        name = self.conn_id
        try:
            connection = self.get_connection(name)
        except AirflowNotFoundException as error:
            # Airflow says this also when its API did not answer: who relies on a connection must not end up elsewhere.
            if needed:
                raise Unavailable(
                    f"Airflow has handed over no connection {name}: make it, or take it out of PERENNIAL_CONNECTIONS"
                ) from error
            return {}
        if not connection.host:
            raise self.wrong("has no host")
        if "@" in connection.host:  # it would be shown wherever the address is
            raise self.wrong("has a login in its host, which belongs into its own fields")
        return self.read(connection, connection.host)

    def wrong(self, what: str) -> ConfigError:
        """The error of a connection that cannot be used."""
        return ConfigError(
            f"the Airflow connection {self.conn_id} {what}: mend it, or delete it to go by {self.setting}"
        )


class TritonHook(ServiceHook):
    """Triton: host and gRPC port, and who we are for it.

    That is PERENNIAL_TRITON_CLIENT's PEM text: ``private_key`` of the extra field, which the form has a box for, or the
    password.
    """

    default_conn_name = "triton_default"
    conn_type = "perennial_triton"
    hook_name = "Triton (Perennial)"
    setting = "PERENNIAL_TRITON_GRPC"

    def read(self, connection: Connection, host: str) -> dict[str, Any]:
        """Address, key and certificates."""
        if "/" in host:
            raise self.wrong(f"has the host {host!r}: only a name or an address can be used")
        return {
            "triton_grpc": f"{host}:{connection.port or 8001}",
            "triton_client": connection.extra_dejson.get("private_key") or connection.password or None,
        }

    def ask(self, settings: Settings) -> str:
        """Its version."""
        from pipelines.deploy import triton

        return f"Triton {triton.version(settings)} answers"


class MlflowHook(ServiceHook):
    """MLflow: host (or its whole URL), port and login; the schema or the type ``https`` asks for TLS."""

    default_conn_name = "mlflow_default"
    conn_type = "perennial_mlflow"
    hook_name = "MLflow (Perennial)"
    setting = "PERENNIAL_MLFLOW_URL"

    def read(self, connection: Connection, host: str) -> dict[str, Any]:
        """URL and login."""
        if connection.login and not connection.password:
            raise self.wrong("has a login without a password")
        if connection.password and not connection.login:
            raise self.wrong("has a password without a login")
        url = host
        if "://" not in url:
            scheme = "https" if "https" in {connection.schema, connection.conn_type} else "http"
            url = f"{scheme}://{host}"
        elif not url.startswith(("http://", "https://")):
            raise self.wrong(f"has the host {url!r}: only http and https can be used")
        if connection.port:
            url = f"{url.rstrip('/')}:{connection.port}"
        return {
            "mlflow_url": url,
            "mlflow_username": connection.login or "",
            "mlflow_password": connection.password or None,
        }

    def ask(self, settings: Settings) -> str:
        """Its experiments, which need the login."""
        from pipelines.registry.client import connect

        with connect(settings) as client:
            client.search_experiments(max_results=1)
        return "MLflow answers, and takes the login"


class LedgerHook(ServiceHook):
    """The ledger: a PostgreSQL database (the schema), its login, and libpq's options in the extra field."""

    default_conn_name = "ledger_default"
    conn_type = "perennial_ledger"
    hook_name = "Ledger (Perennial, PostgreSQL)"
    setting = "PERENNIAL_LEDGER_URL"

    def read(self, connection: Connection, host: str) -> dict[str, Any]:
        """The URL, with its login."""
        from sqlalchemy import URL

        if connection.conn_type not in {self.conn_type, "postgres", "postgresql", "generic"}:
            raise self.wrong(f"has the type {connection.conn_type!r}: only postgres can be used")
        if not connection.schema:
            raise self.wrong("names no database (its schema)")
        # A form keeps what nobody has filled in as null or as an empty text.
        options = {name: str(value) for name, value in connection.extra_dejson.items() if value not in (None, "")}
        url = URL.create(
            "postgresql+psycopg",
            connection.login,
            connection.password,
            host,
            connection.port or 5432,
            connection.schema,
            options,
        )
        return {"ledger_url": url.render_as_string(hide_password=False)}

    def ask(self, settings: Settings) -> str:
        """Its tables, which are made where there are none."""
        from pipelines import ledger

        ledger.check(settings.ledger)
        return "the ledger answers, and has its tables"


HOOKS = {hook.default_conn_name: hook for hook in (TritonHook, MlflowHook, LedgerHook)}


def connection_json(name: str) -> str | None:
    """An Airflow connection as JSON, for a declared source; None if Airflow hands over none of this id."""
    try:
        return str(BaseHook.get_connection(name).as_json())
    except AirflowNotFoundException:
        return None


def settings(names: Collection[str] = tuple(HOOKS)) -> Settings:
    """The settings of this task: the environment's, and where ``PERENNIAL_CONNECTIONS`` lets it the connections'.

    Each connection is one question to Airflow's API; others than those of ``names`` are not asked for. ConfigError for
    a connection that is wrong or that nobody knows.
    """
    own = read_settings()
    asked = {"auto": tuple(HOOKS), "none": ()}.get(own.connections, own.connections.replace(",", " ").split())
    if unknown := set(asked) - HOOKS.keys():
        raise ConfigError(
            f"PERENNIAL_CONNECTIONS names {', '.join(sorted(unknown))}: "
            f"only {', '.join(HOOKS)}, auto or none can be used"
        )
    found: dict[str, Any] = {}
    for name in asked:
        if name in names:
            found |= HOOKS[name]().places(needed=own.connections != "auto")
    if found:
        return read_settings(**found)
    return own


def ledger_of_task() -> str | None:
    """The ledger that this task knows: its connection's, the environment's, or the file in the state folder.

    None where there is none of these: an Airflow that has nothing of the loop but the provider.
    """
    found = settings([LedgerHook.default_conn_name])
    if found.ledger_url or found.ledger_file.exists():
        return found.ledger
    return None
