"""One MLflow run and one model version per judged candidate, found again by its key.

The run is the one that the train step opened. A training that is judged a second time, against another champion
or by other rules, is another candidate: it gets a run of its own, made from what is on the disk.

The version is of a logged model, which has the run's metrics, and files that answer raw rows elsewhere (model.py).

Every write can be repeated: run, model and version are searched by tag before they are made, parameters are written
once, a metric point carries ``as_of`` as its time and is the same point when it is written again, artefacts are
replaced by themselves. A process may die anywhere; running again completes what is there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import storage
from pipelines.errors import IntegrityError
from pipelines.fields import Fields
from pipelines.files import work_folder
from pipelines.registry import live, model
from pipelines.registry.client import KEY, connect
from pipelines.registry.opening import flat
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

DIGEST_LENGTH = 36
"""MLflow keeps this much of a data set's digest."""
MODELS = "models:/"
"""How the source of a version begins whose files are a logged model's."""
_BATCH = 900

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """What is recorded.

    ``key`` is the gate manifest's, ``train`` the train manifest's; ``steps`` is the file of the training's curves by
    optimiser step, ``curves`` maps a metric to its values by epoch from 1. ``about`` is the verdict in a sentence: the
    description of run and version.
    """

    case: str
    fields: Fields
    as_of: datetime
    key: str
    train: str
    bundle: Path
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]
    steps: Path
    tags: Mapping[str, str]
    dataset: Mapping[str, Any]
    dataset_key: str
    artefacts: Sequence[Path]
    about: str
    compared: Sequence[live.Child] = ()
    """What the training chose from, for where MLflow was not there to be told."""


def numbers(value: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among nested facts: MLflow takes no None, and a NaN says nothing."""
    return {name: float(item) for name, item in flat(value).items() if isinstance(item, int | float) and isfinite(item)}


def record(settings: Settings, candidate: Candidate) -> tuple[str, int]:
    """Make or complete the candidate's run and version; returns ``(run id, version)``.

    Raises DataError if the bundle's model is not ONNX, IntegrityError if it is not the one that was exported,
    Unavailable if MLflow is down.
    """
    with connect(settings) as client:
        run = _run(client, candidate)
        storage.failpoint("register", "run")
        version = _version(client, candidate)
        logged = _logged(client, run, candidate, version)
        _measure(client, run, candidate, logged)
        [found] = [
            found
            for found in live.find(settings, candidate.case, candidate.train, candidate.as_of)
            if found["info"]["run_id"] == run.info.run_id
        ]
        live.complete(settings, live.read(found), candidate.steps)
        if candidate.compared:
            live.tell_children(settings, candidate.case, candidate.as_of, run.info.run_id, candidate.compared)
        for path in candidate.artefacts:
            client.log_artifact(run.info.run_id, str(path))
        if version is None:
            version = _make_version(client, run, candidate, _uploaded(client, candidate, logged))
        else:
            client.update_model_version(candidate.case, version.version, candidate.about)
        storage.failpoint("register", "version")
        client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id, int(version.version)


def settle(
    settings: Settings, case: str, key: str, train: str, as_of: datetime, run_id: str, version: int
) -> list[str]:
    """Make ``run_id`` and ``version`` the only ones of ``key``; returns what was deleted.

    No other run of its training is left without a verdict. Two tries of one step that ran at once may each have made a
    run: the committed manifest says which one counts. Raises IntegrityError if MLflow lost that one.
    """
    with connect(settings) as client:
        versions = client.search_model_versions(f"name='{case}' and tags.`{KEY}`='{key}'")
        runs = [*_runs(client, case, {KEY: key}), *_unjudged(client, case, train, as_of)]
        if run_id not in [run.info.run_id for run in runs] or version not in [int(found.version) for found in versions]:
            raise IntegrityError(
                f"MLflow at {settings.mlflow_url} has lost run {run_id} or version {version} of {case}: "
                "restore its database; version numbers are never reused"
            )
        deleted = []
        kept = None
        for found in versions:
            if int(found.version) == version:
                kept = _model_id(found)
            else:
                client.delete_model_version(case, found.version)
                deleted.append(f"version {found.version}")
        for logged in _logged_models(client, case, key):
            if logged.model_id != kept:
                client.delete_logged_model(logged.model_id)
                deleted.append(f"model {logged.model_id}")
        for run in runs:
            if run.info.run_id != run_id:
                client.delete_run(run.info.run_id)
                deleted.append(f"run {run.info.run_id}")
    return deleted


def _unjudged(client: MlflowClient, case: str, train: str, as_of: datetime) -> list[Run]:
    """The runs of a training that no register step has taken yet, oldest first."""
    return [
        run
        for run in _runs(client, case, {live.TRAIN: train, live.AS_OF: as_of.isoformat()})
        if KEY not in run.data.tags
    ]


def _runs(client: MlflowClient, case: str, tags: Mapping[str, str]) -> list[Run]:
    """The runs with these tags, oldest first."""
    experiment = client.get_experiment_by_name(case)
    if experiment is None:
        return []
    asked = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(
        client.search_runs(
            [experiment.experiment_id], asked, order_by=["attributes.start_time ASC", "attributes.run_id ASC"]
        )
    )


def _run(client: MlflowClient, candidate: Candidate) -> Run:
    from mlflow.entities import RunTag

    own = {
        live.NOTE: candidate.about,
        KEY: candidate.key,
        live.TRAIN: candidate.train,
        live.AS_OF: candidate.as_of.isoformat(),
    }
    found = _runs(client, candidate.case, {name: own[name] for name in (KEY, live.TRAIN, live.AS_OF)})
    if found:
        return found[0]
    tags = {**candidate.tags, **own}
    if unjudged := _unjudged(client, candidate.case, candidate.train, candidate.as_of):
        client.log_batch(unjudged[0].info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        return unjudged[0]
    log.warning(
        "MLflow has no run of the training %s of %s: it is made up for from what is on the disk",
        candidate.train[:12],
        candidate.case,
    )
    return client.create_run(
        _experiment(client, candidate.case), tags=tags, run_name=f"{candidate.case} {candidate.as_of:%Y-%m-%d %H:%M}"
    )


def _experiment(client: MlflowClient, case: str) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(case)) is None:
        try:
            return str(client.create_experiment(case))
        except MlflowException:
            if (found := client.get_experiment_by_name(case)) is None:  # not the race of two first runs
                raise
    return str(found.experiment_id)


def _measure(client: MlflowClient, run: Run, candidate: Candidate, logged: LoggedModel | None) -> None:
    """Parameters, metrics and data set of a run; the metrics are the logged model's, too, if the run has made it."""
    from mlflow.entities import Metric, Param

    moment = int(candidate.as_of.timestamp() * 1000)
    # The train step says what a training cost, once per try.
    metrics = {
        name: value
        for name, value in candidate.metrics.items()
        if not (name.startswith("cost.") and name in run.data.metrics)
    }
    own = logged.model_id if logged is not None and logged.source_run_id == run.info.run_id else None
    points = [Metric(name, value, moment, 0, model_id=own) for name, value in metrics.items()]
    points += [
        Metric(name, value, moment, epoch)
        for name, curve in candidate.curves.items()
        for epoch, value in enumerate(curve, start=1)
    ]
    params = [Param(name, value) for name, value in candidate.params.items() if name not in run.data.params]
    client.log_batch(run.info.run_id, metrics=points[:_BATCH], params=params)
    for start in range(_BATCH, len(points), _BATCH):
        client.log_batch(run.info.run_id, metrics=points[start : start + _BATCH])
    client.log_inputs(run.info.run_id, [_dataset(candidate)])


def _dataset(candidate: Candidate) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"key": candidate.dataset_key, "path": f"{candidate.bundle.parent.name}/dataset"})
    dataset = Dataset(
        name=candidate.case,
        digest=candidate.dataset_key[:DIGEST_LENGTH],
        source_type="perennial",
        source=source,
        profile=storage.canonical_json(candidate.dataset),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _version(client: MlflowClient, candidate: Candidate) -> ModelVersion | None:
    """The candidate's version, the first one if there are several."""
    found = client.search_model_versions(f"name='{candidate.case}' and tags.`{KEY}`='{candidate.key}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _make_version(client: MlflowClient, run: Run, candidate: Candidate, logged: LoggedModel) -> ModelVersion:
    _registered_model(client, candidate.case)
    return client.create_model_version(
        candidate.case,
        f"{MODELS}{logged.model_id}",
        run.info.run_id,
        tags={**candidate.tags, KEY: candidate.key},
        description=candidate.about,
        model_id=logged.model_id,
    )


def _logged(client: MlflowClient, run: Run, candidate: Candidate, version: ModelVersion | None) -> LoggedModel | None:
    """The candidate's logged model, made if there is none; None of a version from before there were any.

    Of two that were made at once the older one stays.
    """
    if version is not None:
        own = _model_id(version)
        return None if own is None else client.get_logged_model(own)
    if found := _logged_models(client, candidate.case, candidate.key):
        return found[0]
    tags = {**candidate.tags, KEY: candidate.key}
    made = client.create_logged_model(run.info.experiment_id, candidate.case, run.info.run_id, tags)
    storage.failpoint("register", "model")
    found = _logged_models(client, candidate.case, candidate.key)
    if found[0].model_id != made.model_id:
        client.delete_logged_model(made.model_id)
    return found[0]


def _logged_models(client: MlflowClient, case: str, key: str) -> list[LoggedModel]:
    """The logged models of a candidate, oldest first."""
    experiment = client.get_experiment_by_name(case)
    if experiment is None:
        return []
    found = client.search_logged_models([experiment.experiment_id], f"tags.`{KEY}` = '{key}'")
    return sorted(found, key=lambda one: (one.creation_timestamp, one.model_id))


def _model_id(version: ModelVersion) -> str | None:
    """The logged model of a version; None of one from before there were any, whose files are its run's."""
    source = str(version.source)
    return source.removeprefix(MODELS) if source.startswith(MODELS) else None


def _uploaded(client: MlflowClient, candidate: Candidate, logged: LoggedModel | None) -> LoggedModel:
    """The logged model with its files: what is ready has them all."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    assert logged is not None  # only a version goes without
    if logged.status == LoggedModelStatus.READY:
        return logged
    storage.read_manifest(candidate.bundle)
    about = Model(run_id=logged.source_run_id, artifact_path=logged.artifact_location, model_id=logged.model_id)
    # Beside the bundle: what a killed try left is swept there.
    with work_folder(candidate.bundle.parent / "model") as folder:
        model.write(folder / "model", candidate.bundle, candidate.fields, about)
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
    storage.failpoint("register", "uploaded")
    _link(client, logged.source_run_id, logged.model_id)
    storage.failpoint("register", "linked")
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _link(client: MlflowClient, run: str, logged: str) -> None:
    """Make a logged model an output of its run, once: MLflow refuses it twice, and two tries may be at it."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    def linked() -> bool:
        outputs = client.get_run(run).outputs
        return outputs is not None and logged in [made.model_id for made in outputs.model_outputs]

    if linked():
        return
    try:
        client.log_outputs(run, [LoggedModelOutput(logged, 0)])
    except MlflowException:
        if not linked():
            raise


def _registered_model(client: MlflowClient, case: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(case)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
