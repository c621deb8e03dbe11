"""export: turn the weights into the bundle that is judged, shipped and served."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines import runtime, storage
from pipelines.cases import build_model, load_fields
from pipelines.data import log as prediction_log
from pipelines.data.lake import content_sha256
from pipelines.drift.labels import arrived
from pipelines.drift.profile.spec import load_spec
from pipelines.drift.reference import Basis, write_reference
from pipelines.evaluation.metrics import metrics_of
from pipelines.line.facts import DatasetFacts, ExportFacts, Facts, TrainFacts, chosen_params
from pipelines.line.step import Read, Run, Work
from pipelines.params import EstimatorParams, Params
from pipelines.settings import Settings
from pipelines.text import TOKENIZER

if TYPE_CHECKING:
    from pipelines.export.onnx import Trained


def work(run: Run, read: Read) -> Work:
    """Write the bundle.

    model.onnx, bundle.json, fields.json, contract.json (a row as JSON Schema), spec.json (the feature spec),
    reference.parquet, for texts tokenizer.json, and with ``export.int8`` the variant that does not ship. Facts: what
    bundle.json says, parity with what was trained and its rows, the variants. Raises what
    :func:`pipelines.export.model.export_model` raises.
    """
    train, dataset = TrainFacts.of(read["train"]), DatasetFacts.of(read["dataset"])
    params = chosen_params(run.params, train)

    def write(folder: Path, basis: Basis) -> ExportFacts:
        # Inside: a no-op run must not pay for importing torch.
        from pipelines.export.model import export_model

        fields, holdout = basis.fields, basis.holdout
        if fields.text is not None:
            shutil.copyfile(run.dir / "train" / TOKENIZER, folder / TOKENIZER)
        about: dict[str, Any] = {
            "train_rows": dataset.train_rows,
            "dataset_key": read["dataset"].key,
            "weights_sha256": train.weights_sha256,
        }
        if train.scales:
            about["scales"] = train.scales
        columns = {name: holdout[name].to_list() for name in fields.reads}
        labels = holdout[fields.label].to_numpy()
        made = export_model(
            _trained(run, params, basis),
            fields,
            folder,
            about,
            columns,
            labels,
            params=params,
            metrics=metrics_of(fields),
        )
        scores = runtime.score_rows(folder, fields, columns)
        write_reference(folder, run.dir / "dataset" / "train.parquet", scores, basis)
        (folder / "spec.json").write_text(storage.canonical_json(asdict(basis.spec)))
        return ExportFacts(parity=made.parity, parity_rows=holdout.height, variants=made.variants, **made.about)

    return written_by(write, run)


def written_by(write: Callable[[Path, Basis], Facts], run: Run) -> Work:
    """:func:`work` with something else than a network in its folder (pipelines/replay)."""
    params, settings = run.params, run.settings
    fields = load_fields(params.case)
    spec = load_spec(fields, settings.profile_file(params.case))
    holdout = pl.read_parquet(run.dir / "dataset" / "holdout.parquet")
    basis = Basis(fields, spec, holdout, as_judged(params, settings, run.as_of, holdout), params.gate.slices)
    # Labels of the holdout that a drift run would count come from the log, which no input's key holds.
    known = content_sha256(basis.judged.select("id", fields.label))
    declared = {"fields": fields.features_hash, "profile": spec.version, "judged": known}
    return Work(lambda folder, _key: write(folder, basis), declared)


def as_judged(params: Params, settings: Settings, as_of: datetime, holdout: pl.DataFrame) -> pl.DataFrame:
    """The holdout with the labels that the champion's baseline is made of: those that a drift run would count."""
    fields, age = load_fields(params.case), timedelta(days=params.label_delay_days)
    if holdout.is_empty():
        return holdout
    oldest: datetime = holdout["event_time"].min()  # type: ignore[assignment]
    lines = prediction_log.read_label_lines(settings, params.case, as_of, since=oldest)
    labels = arrived.possible(lines, fields.target)
    return arrived.as_counted(holdout, labels, fields.label, as_of, age, params.drift.min_rows)


def _trained(run: Run, params: Params, basis: Basis) -> Trained:
    """What the training learned: an estimator, or the case's network with its weights."""
    from pipelines.estimators import fitting
    from pipelines.export.onnx import of_estimator, of_torch
    from pipelines.training.weights import load_weights

    if isinstance(params.model, EstimatorParams):
        return of_estimator(fitting.load(run.dir / "train" / fitting.FILE), basis.fields)

    options = {}
    if basis.fields.text is not None:
        # The architecture of a text model suffices: its pre-trained weights are about to be replaced.
        options["pretrained"] = False
    model = build_model(run.case, params.model, basis.fields, **options)
    load_weights(model, run.dir / "train" / "weights.pt")
    return of_torch(model, basis.fields)
