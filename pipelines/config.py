"""Params say *what* (the case's YAML, part of every key); Settings say *where* (environment only)."""

from __future__ import annotations

import difflib
import getpass
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.contracts import Instant
from pipelines.errors import ConfigError

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


class ModelParams(Strict):
    """The tabular network: embeddings for categories, a multilayer perceptron above."""

    hidden: tuple[int, ...]
    embedding: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)


class TrainParams(Strict):
    """The optimisation; ``ranks`` above 1 trains with DistributedDataParallel."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    seed: int
    ranks: int = Field(gt=0)


class GateParams(Strict):
    """The rules of promotion, as data. ``min_lift`` is in units of ``metric``."""

    metric: Literal["log_loss"]
    min_lift: float
    confidence: float = Field(gt=0, lt=1)
    draws: int = Field(ge=100)
    seed: int
    slices: tuple[str, ...]
    min_slice_rows: int = Field(gt=0)


class DriftParams(Strict):
    """Windows, tests and the retrain policy of ../drift/policy.py."""

    window: Literal["day", "week", "month"]
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
    report_rows: int = Field(gt=0)
    ignore: tuple[str, ...] = ()
    """Fields that are profiled and shown but never decide: those that move by construction, like the month."""


class Params(Strict):
    """All parameters of one case, read from ``cases/<case>/params.yaml``."""

    case: str
    period: tuple[Instant, Instant | None]
    label_delay_days: float = Field(ge=0)
    training_rows: Literal["log", "source"] = "log"
    schedule: Schedule
    dataset: DatasetParams
    model: ModelParams
    train: TrainParams
    gate: GateParams
    drift: DriftParams
    source: dict[str, str | int | float | bool | None] = {}
    """Settings of the case's own source, e.g. the generator's drift kind."""

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if self.drift.confirm > self.drift.out_of:
            raise ValueError(f"drift.confirm is {self.drift.confirm} of {self.drift.out_of} windows: lower it")
        return self


def case_names() -> list[str]:
    """The installed cases: every folder under ``cases/`` with a params.yaml, in alphabetical order."""
    return sorted(path.parent.name for path in CASES_ROOT.glob("*/params.yaml"))


def load_params(case: str, path: Path | None = None) -> Params:
    """Read and check a case's parameters; an unknown case or key raises ConfigError naming it."""
    if path is None:
        if case not in case_names():
            near = difflib.get_close_matches(case, case_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(case_names())}"
            raise ConfigError(f"unknown case {case!r}: {hint}")
        path = CASES_ROOT / case / "params.yaml"
    try:
        # Through JSON on purpose: YAML reads 2e-5 as text and dates as dates, JSON mode knows one way only.
        return Params.model_validate_json(json.dumps(yaml.safe_load(path.read_text()), default=str))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: every case needs a params.yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ConfigError(f"{path} has {len(lines)} mistake(s): " + "; ".join(lines)) from error


class Settings(BaseSettings):
    """Where things are: the environment variables ``PERENNIAL_*``. Never part of a key."""

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", frozen=True, extra="ignore")

    home: Path = Path("runs/local")
    data_dir: Path | None = None
    ledger_url: str = ""
    mlflow_url: str = "http://127.0.0.1:5000"
    airflow_url: str = "http://127.0.0.1:8080"
    gateway_url: str = "http://127.0.0.1:8090"
    triton_http: str = "127.0.0.1:8000"
    triton_grpc: str = "127.0.0.1:8001"
    triton_metrics: str = "127.0.0.1:8002"
    api_key_file: Path | None = None
    actor: str = ""
    schedules: bool = True
    """False leaves every DAG to triggers and people: a replay brings its own clock."""
    log_segment_seconds: float = Field(default=60.0, gt=0)
    log_segment_bytes: int = Field(default=64 * 2**20, gt=0)

    @cached_property
    def root(self) -> Path:
        """The absolute state folder."""
        return self.home.expanduser().resolve()

    @property
    def ledger(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{self.root / 'ledger.db'}"

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
