"""Settings say *where*: the environment variables ``PERENNIAL_*``, and never part of a key."""

from __future__ import annotations

import getpass
import os
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipelines import hosts, places
from pipelines.case_files import own_profile
from pipelines.contracts import Instant
from pipelines.errors import ConfigError, Unavailable
from pipelines.installation import typed

Kind = TypeVar("Kind", bound=BaseSettings)


class _FromFiles(PydanticBaseSettingsSource):
    """``PERENNIAL_<NAME>_FILE`` names a file that holds the setting's value.

    How a secret reaches a container without standing in its environment.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - pydantic's signature
        """The file's text, or None if no variable names one.

        ConfigError names the variable if it cannot be read or is empty.
        """
        variable = f"PERENNIAL_{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        return (_held(variable, path) if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """The settings that files hold."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class _FromState(PydanticBaseSettingsSource):
    """The state folder's own stack, as it was started (places.py).

    What belongs to the state, and the addresses of the services that run. An address that somebody named otherwise
    takes the service's login from here with it: no password goes to a host that it was not meant for.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - pydantic's signature
        """The stack's value of a setting, or None."""
        variable = f"PERENNIAL_{field_name.upper()}"
        if variable in self._given:
            return self._given[variable], field_name, False
        path = self._given.get(f"{variable}_FILE")
        return (_held(f"{variable}_FILE in {self._home / places.ENV}", path) if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """The settings that nobody gave otherwise and the stack has."""
        self._home = (
            Path(self.current_state.get("home", self.settings_cls.model_fields["home"].default)).expanduser().resolve()
        )
        self._given = places.variables(self._home)
        if not self._given:
            return {}
        alive = places.running(self._home)
        wanted = list(places.KEPT)
        for service in places.SERVICES:
            if service.process in alive and not any(name in self.current_state for name in service.addresses):
                wanted += [*service.addresses, *service.beside]
        fields = self.settings_cls.model_fields
        found = {name: self.get_field_value(fields[name], name)[0] for name in wanted if name not in self.current_state}
        return {name: value for name, value in found.items() if value is not None}


def _held(variable: str, path: str) -> str:
    """The text of the file that a variable names; ConfigError names the variable if it cannot be read or is empty."""
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{variable} names {path}, which cannot be read ({error}): make the file (`make secrets`), or unset the "
            "variable"
        ) from error
    if not text:
        raise ConfigError(
            f"{variable} names {path}, which is empty: write the value into it (`make secrets`), or unset the variable"
        )
    return text


class Settings(BaseSettings):
    """Where things are: the environment variables ``PERENNIAL_*``. Never part of a key.

    Each can also come from a file that ``PERENNIAL_<NAME>_FILE`` names; the plain variable wins. A service's address
    that nobody gives is that of the stack which runs on the state folder ``home``, else empty: what listens at some
    port by chance is nobody's.
    """

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", frozen=True, extra="ignore", allow_inf_nan=False)

    home: Path = places.HOME
    data_dir: Path | None = None
    params_dir: Path | None = None
    """A folder whose ``<case>.yaml`` stands in for the case's own params.yaml."""
    rdzv_endpoint: str = ""
    """``host:port`` where the ranks of several nodes meet; empty: this node alone."""
    nodes: int = Field(default=1, gt=0)
    node_rank: int = Field(default=0, ge=0)
    lake: str = ""
    """Where lake and artefacts lie that several machines share, like ``s3://bucket/prefix``; empty: here alone."""
    ledger_url: str = ""
    mlflow_url: str = ""
    airflow_url: str = ""
    gateway_url: str = ""
    triton_grpc: str = ""
    triton_metrics: str = ""
    triton_client: SecretStr | None = None
    """Who we are for Triton, in PEM: a private key, its certificate, the certificate of the authority that Triton's own
    comes from. Whoever has it may ask for inferences and load models; None: a plain channel, for a Triton that takes
    one.
    """
    mlflow_public_url: str = ""
    """Where people's browsers find MLflow; empty: where programs do."""
    grafana_url: str = ""
    """Where people's browsers find Grafana; empty: there is none."""
    mlflow_username: str = ""
    mlflow_password: SecretStr | None = None
    airflow_username: str = ""
    airflow_password: SecretStr | None = None
    limits_url: SecretStr | None = None
    """``redis://:password@host:port/1``: where the gateway's workers count requests together.

    Empty: each counts its own.
    """
    api_key_file: Path | None = None
    allowed_hosts: str = ""
    """Further names, comma-separated and without ports, to which Airflow, MLflow and the gateway answer, and whose
    pages may write to Airflow and the gateway. Known without it: the loopback's names, the address that a client has
    connected to, and the hosts in the services' own addresses.
    """
    actor: str = ""
    connections: str = "auto"
    """Which Airflow connections tasks go by.

    ``auto`` those that exist, ``none``, or a list (``ledger_default,mlflow_default``), which have to exist.
    """
    alert_webhook: SecretStr | None = None
    """A URL that takes ``{"text": ...}`` (Slack, Mattermost, Teams).

    A secret: it is in no log, no ledger, no message.
    """
    alert_mail: str = ""
    """``smtp://host:port/from@example.org/to@example.org``; empty: no e-mail."""
    runbooks: str = "docs/runbooks.md"
    """Where the runbooks can be read; a rule's section is added after ``#``."""
    schedules: bool = True
    """False leaves every DAG to triggers and people: a replay brings its own clock."""
    log_segment_seconds: float = Field(default=60.0, gt=0)
    log_segment_bytes: int = Field(default=64 * 2**20, gt=0)
    log_close_seconds: float = Field(default=10.0, ge=0)
    """How long a step waits for the gateway to close segments that hold rows.

    Then it goes on without them, and says so.
    """

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_hosts(cls, text: str) -> str:
        hosts.listed(text)
        return text

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code first, then the environment, then files, then the state folder's own stack."""
        return init_settings, env_settings, _FromFiles(settings_cls), _FromState(settings_cls)

    @cached_property
    def root(self) -> Path:
        """The absolute state folder."""
        return self.home.expanduser().resolve()

    @property
    def ledger(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{self.root / 'ledger.db'}"

    def address(self, name: str) -> str:
        """Where a service is, by the setting's name.

        Raises Unavailable if nobody has said it and no stack that runs belongs to the state folder.
        """
        found: str = getattr(self, name).rstrip("/")
        if not found:
            raise Unavailable(
                f"no {places.title(name)} belongs to {self.root}: start its stack (`{typed('up', self.root)}`), "
                f"or set PERENNIAL_{name.upper()} to where it is"
            )
        return found

    @property
    def lake_dir(self) -> Path:
        """Content-addressed day partitions, quarantine and profiles."""
        return self.root / "lake"

    @property
    def prediction_log(self) -> Path:
        """The gateway's segments: ``<case>/predictions`` and ``<case>/labels``."""
        return self.root / "prediction_log"

    def log_request(self, case: str) -> Path:
        """The file that asks the gateway to close a case's open segments: beside the log, which steps may only read."""
        return self.root / "log_requests" / case

    @property
    def model_repository(self) -> Path:
        """Triton's model repository."""
        return self.root / "model_repository"

    @property
    def key_file(self) -> Path:
        """The gateway's API key (one line, mode 600)."""
        return self.api_key_file or self.root / "api_key"

    def profile_file(self, case: str) -> Path:
        """The frozen scales of a case's profiles.

        Profile.json in its folder, else the one that its first dataset left in the lake.
        """
        return own_profile(case) or self.lake_dir / case / "profile.json"

    def run_dir(self, case: str, as_of: Instant) -> Path:
        """The folder of all steps of one case at one ``as_of``: the identity of a run."""
        return self.root / "artefacts" / case / as_of.strftime("%Y%m%dT%H%M%SZ")

    @property
    def who(self) -> str:
        """Who acts: ``PERENNIAL_ACTOR``, else the login name."""
        try:
            return self.actor or getpass.getuser()
        except OSError:  # a container's user may have no name
            return f"uid {os.getuid()}"


def read_settings(**given: Any) -> Settings:
    """The environment's settings; ``given`` ones win.

    Raises ConfigError naming the variables that hold nothing usable.
    """
    return from_environment(Settings, **given)


def from_environment(kind: type[Kind], **given: Any) -> Kind:
    """The values of one class of settings; ``given`` ones win.

    Raises ConfigError naming the variables that hold nothing usable.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        prefix = kind.model_config["env_prefix"]
        mistakes = "; ".join(
            f"{prefix}{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise ConfigError(f"the environment has {error.error_count()} mistake(s): {mistakes}") from error
