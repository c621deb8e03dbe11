"""Params say *what*: a case's parameters, as typed blocks; each is part of the keys of the steps that declare it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from pipelines.contracts import Instant
from pipelines.params.base import Days, Strict, ascending, not_below
from pipelines.params.drift import AlertParams, DriftParams, HeadroomParams, NewData, ReplayParams
from pipelines.params.gate import METRICS, MORE_IS_BETTER, Bins, GateParams, Metric, SliceBy, edges_of, fields_of
from pipelines.params.rollout import (
    LABEL,
    PRESETS,
    ExperimentParams,
    GuardParams,
    HoldParams,
    Preset,
    RolloutParams,
    ShadowParams,
)
from pipelines.params.serving import DEFAULT_SERVING, Batching, Cache, Device, Queue, ServingParams, Slo
from pipelines.params.sources import (
    DECLARED,
    Columns,
    Declared,
    DeltaSource,
    FilesSource,
    IcebergSource,
    LogSource,
    SqlSource,
    UrlFrom,
    Watermark,
    declared,
    source_kind,
)
from pipelines.params.times import EventTimes, Schedule, too_high
from pipelines.params.training import (
    MODELS,
    AnyModel,
    Choices,
    DatasetParams,
    Dimension,
    EncoderParams,
    EstimatorParams,
    ExportParams,
    MixedModelParams,
    ModelName,
    ModelParams,
    Resources,
    SearchParams,
    TextModelParams,
    TrainParams,
    WordsParams,
    family_of,
    holds_model,
)

__all__ = [
    "DECLARED",
    "DEFAULT_SERVING",
    "LABEL",
    "METRICS",
    "MODELS",
    "MORE_IS_BETTER",
    "PRESETS",
    "AlertParams",
    "AnyModel",
    "Batching",
    "Bins",
    "Cache",
    "Choices",
    "Columns",
    "DatasetParams",
    "DeltaSource",
    "Device",
    "Dimension",
    "DriftParams",
    "EncoderParams",
    "EstimatorParams",
    "EventTimes",
    "ExperimentParams",
    "ExportParams",
    "FilesSource",
    "GateParams",
    "GuardParams",
    "HeadroomParams",
    "HoldParams",
    "IcebergSource",
    "LogSource",
    "Metric",
    "MixedModelParams",
    "ModelParams",
    "NewData",
    "Params",
    "Preset",
    "Queue",
    "ReplayParams",
    "Resources",
    "RolloutParams",
    "SearchParams",
    "ServingParams",
    "ShadowParams",
    "SliceBy",
    "Slo",
    "SqlSource",
    "Strict",
    "TextModelParams",
    "TrainParams",
    "UrlFrom",
    "Watermark",
    "WordsParams",
    "edges_of",
    "family_of",
    "fields_of",
    "not_below",
    "too_high",
]


class Params(Strict):
    """All parameters of one case, read from ``cases/<case>/params.yaml``."""

    case: str
    period: Annotated[tuple[Instant, Instant | None], AfterValidator(ascending)]
    label_delay_days: Days
    training_rows: Literal["log", "source"] = "log"
    schedule: Schedule
    dataset: DatasetParams
    model: AnyModel
    models: Annotated[dict[ModelName, AnyModel], AfterValidator(holds_model)] = Field(
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
        | Annotated[dict[str, Any], AfterValidator(declared), Tag("declared")],
        Discriminator(source_kind),
    ] = {}
    """A declared source (:attr:`declared_source`), else settings of the case's own, e.g. the generator's drift kind.

    Each of those has to be named somewhere in the case's code.
    """

    @property
    def declared_source(self) -> Declared | None:
        """Where rows come from without any code of the case; None: it has a source.py."""
        if source_kind(self.source) == "own":
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
