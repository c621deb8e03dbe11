"""Train a version again from its record, in a folder of its own, and compare weights and every layer below them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from pipelines import runtime, storage
from pipelines.contracts import Manifest
from pipelines.errors import ConfigError, IntegrityError
from pipelines.evaluation.metrics import metrics_of
from pipelines.export.scoring import read_fields
from pipelines.files import file_sha256, work_folder
from pipelines.line import runner
from pipelines.line.order import DATASET, EVALUATE, EXPORT, TRAIN
from pipelines.line.step import Run
from pipelines.params import Params
from pipelines.reproduction.find import METRICS, RECORD, Version, find
from pipelines.reproduction.layers import LAYERS, Training, differences
from pipelines.settings import Settings

FACTS = ("strategy", "precision", "ranks", "steps", "stopped", "rows")
"""What the train step says about how it ran; times are not among them."""
log = logging.getLogger(__name__)


def reproduce(settings: Settings, case: str, number: int) -> dict[str, Any]:
    """Train version ``number`` of a case again, from its record and its rows.

    Returns ``{case, version, as_of, identical, layer, reason, weights: {recorded, reproduced}, differences}``:
    ``identical`` if weights and holdout metrics are the recorded ones bit by bit, else ``layer`` is the first
    of ``LAYERS`` that differs. Raises what :func:`pipelines.reproduction.find.find` raises, and ConfigError if
    this code does not understand the recorded parameters.
    """
    version = find(settings, case, number)
    params = recorded_params(version)
    made = version.manifests[TRAIN.name]
    settings.root.mkdir(parents=True, exist_ok=True)
    # Beside the artefacts: the disk that held the first training holds the second one, too.
    with work_folder(settings.root / f"reproduce.{case}.{number}") as scratch:
        again = scratch / "run"
        again.mkdir()
        _link_upstream(version.folders[DATASET.name], again)
        log.info("training %s version %d again, as recorded at %s", case, number, made.as_of.isoformat())
        runner.run(TRAIN, Run(_stopping_where(made, params), settings, made.as_of, folder=again))
        runner.run(EXPORT, Run(params, settings, made.as_of, folder=again))
        recorded, found = _training(version.folders, version.manifests), _repeated(version, again)
    layers = differences(recorded, found)
    same = recorded.weights == found.weights
    identical = same and "evaluation" not in layers
    first = None
    if not identical:
        first = next(iter(layers), None)
    return {
        "case": case,
        "version": number,
        "as_of": made.as_of.isoformat(),
        "identical": identical,
        "layer": first,
        "reason": _reason(first, layers, recorded.weights, same=same, identical=identical),
        "weights": {"recorded": recorded.weights, "reproduced": found.weights},
        "differences": layers,
    }


def _link_upstream(folder: Path, again: Path) -> None:
    """Link a committed folder, and those that it was made from as far as they are there, into another run's folder.

    Files that are not what was committed are taken as they are, under a manifest of their own: it is the comparison
    that finds them, and says what follows from them.
    """
    made = storage.read_manifest(folder, verify=False)
    if (target := again / made.step).exists():
        return
    try:
        storage.read_manifest(folder)
        target.symlink_to(folder)
    except IntegrityError as error:
        log.warning("%s", error)
        for name in made.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(folder / name)
        found = {name: file_sha256(target / name) for name in made.files if (target / name).exists()}
        storage.write_manifest(target, made.model_copy(update={"files": found}))
    for step, key in made.inputs.items():
        with suppress(IntegrityError):
            _link_upstream(storage.find(folder.parent / step, key, verify=False), again)


def _stopping_where(made: Manifest, params: Params) -> Params:
    """The parameters that stop a training where its minutes were spent.

    How many steps a minute holds is no fact of the model.
    """
    if made.facts.get("stopped") != "budget":
        return params
    return params.model_copy(
        update={"train": params.train.model_copy(update={"budget_minutes": None, "stop_after": made.facts["steps"]})}
    )


def recorded_params(version: Version) -> Params:
    """The parameters that the version was trained with. Raises ConfigError if they are no parameters to this code."""
    path = version.folders[TRAIN.name] / RECORD
    try:
        return Params.model_validate_json(json.dumps(json.loads(path.read_text())["configuration"]["params"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        commit = version.manifests[TRAIN.name].provenance.get("commit")
        raise ConfigError(
            f"{path} holds no parameters that this code understands ({error}): "
            f"check out commit {commit}, which trained it"
        ) from error


def _training(folders: Mapping[str, Path], manifests: Mapping[str, Manifest]) -> Training:
    """The training that left these folders, as its layers."""
    made = manifests[TRAIN.name]
    record = json.loads((folders[TRAIN.name] / RECORD).read_text())
    evaluation = {"model.onnx": manifests[EXPORT.name].files["model.onnx"]}
    if EVALUATE.name in manifests:
        evaluation |= manifests[EVALUATE.name].facts["challenger"]
    layers = {
        "code": {**record.get("code", {}), "features": record.get("features", {})},
        "data": {
            **record.get("data", {}),
            "files": manifests[DATASET.name].files,
            "started_from": _but(record.get("artefacts", {}), "weights"),
        },
        "environment": record.get("environment", {}),
        # Without the parameters: they came from the record, but for where a spent budget stopped them. What was chosen
        # among others is trained again alone.
        "execution": {
            **_but(record.get("configuration", {}), "params", "choice"),
            **{name: made.facts[name] for name in FACTS if name in made.facts},
        },
        "evaluation": evaluation,
    }
    return Training(layers, str(made.facts["weights_sha256"]), _curve(folders[TRAIN.name] / METRICS, made))


def _but(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in names}


def _repeated(version: Version, again: Path) -> Training:
    """The second training as its layers: rows as they are on the disk now, metrics of its own model."""
    manifests = {
        DATASET.name: version.manifests[DATASET.name],
        **{step.name: storage.read_manifest(again / step.name) for step in (TRAIN, EXPORT)},
    }
    found = _training({step: again / step for step in manifests}, manifests)
    files = {name: file_sha256(version.folders[DATASET.name] / name) for name in version.manifests[DATASET.name].files}
    judged = {"model.onnx": manifests[EXPORT.name].files["model.onnx"]}
    if EVALUATE.name in version.manifests:
        judged |= json.loads(
            storage.canonical_json(_metrics(again / EXPORT.name, version.folders[DATASET.name] / "holdout.parquet"))
        )
    layers = {**found.layers, "data": {**found.layers["data"], "files": files}, "evaluation": judged}
    return Training(layers, found.weights, found.curve)


def _metrics(bundle: Path, holdout: Path) -> Mapping[str, float | None]:
    fields = read_fields(bundle)
    rows = pl.read_parquet(holdout)
    return metrics_of(fields)(
        rows[fields.label].to_numpy(),
        runtime.score_rows(bundle, fields, {name: rows[name].to_list() for name in fields.reads}),
    )


def _curve(path: Path, made: Manifest) -> list[tuple[int, float]]:
    """``(step, loss)`` of every optimiser step, or the losses that a training without a loop tells.

    Validations have no loss.
    """
    if not path.exists():
        return list(enumerate(made.facts.get("curve", []), start=1))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(int(line["step"]), float(line["loss"])) for line in lines if "loss" in line]


def _reason(
    first: str | None, layers: Mapping[str, list[dict[str, Any]]], weights: str, *, same: bool, identical: bool
) -> str:
    if identical:
        return f"trained again, the weights have the recorded sha256 {weights[:12]}"
    if first is None:
        return (
            f"the weights differ from {weights[:12]}, and no layer ({', '.join(LAYERS)}) does: "
            "something that is not recorded changes them"
        )
    shown = "; ".join(
        f"{row['what']}: {str(row['recorded'])[:60]} recorded, {str(row['found'])[:60]} found"
        for row in layers[first][:3]
    )
    if same:
        return f"the weights are the same, but {first} differs: {shown}"
    return f"{first} differs: {shown}"
