"""export: turn the weights into the bundle that is judged, shipped and served."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import runtime, storage
from pipelines.cases import build_model, load_fields
from pipelines.data import log as prediction_log
from pipelines.data.lake import content_sha256
from pipelines.drift.labels import arrived as label_evidence
from pipelines.drift.profile.counts import to_bytes
from pipelines.drift.profile.spec import Spec, load_spec
from pipelines.drift.reference import FILE, reference_profile
from pipelines.encoding import BUNDLE
from pipelines.errors import IntegrityError
from pipelines.evaluation.metrics import metrics
from pipelines.fields import Fields
from pipelines.line.facts import DatasetFacts, ExportFacts, Facts, TrainFacts
from pipelines.line.step import Read, Run, Work
from pipelines.params import Params
from pipelines.settings import Settings
from pipelines.text import TOKENIZER

if TYPE_CHECKING:
    from pipelines.encoding import Columns


log = logging.getLogger(__name__)


def work(run: Run, read: Read) -> Work:
    """Write the bundle.

    model.onnx, bundle.json, fields.json, contract.json (a row as JSON Schema), spec.json (the feature spec),
    reference.parquet, for texts tokenizer.json, and with ``export.int8`` the variant that does not ship. Facts:
    ``parity`` (largest difference of a probability to torch), ``variants`` (of each its bytes, latency and how much an
    answer hangs on its ``neighbours`` in a batch, and of int8 what it changes on the holdout and why it was
    ``refused``, if it was: then fp32 ships). Raises IntegrityError if ONNX Runtime does not answer what torch answers,
    or hangs on neighbours in fp32.
    """
    params, run_dir = run.params, run.dir
    train, dataset = TrainFacts.of(read["train"]), DatasetFacts.of(read["dataset"])

    def write(folder: Path, basis: Basis) -> ExportFacts:
        fields, holdout = basis.fields, basis.holdout
        # Inside: a no-op run must not pay for importing torch.
        from pipelines.export.bundle import check_parity, write_bundle
        from pipelines.training.weights import load_weights

        if fields.text is not None:
            shutil.copyfile(run_dir / "train" / TOKENIZER, folder / TOKENIZER)
        # The architecture of a text model suffices: its pre-trained weights are about to be replaced.
        fresh = {} if fields.text is None else {"pretrained": False}
        model = build_model(params.case, params.model, fields, **fresh)
        load_weights(model, run_dir / "train" / "weights.pt")
        about: dict[str, Any] = {
            "train_rows": dataset.train_rows,
            "dataset_key": read["dataset"].key,
            "weights_sha256": train.weights_sha256,
        }
        if train.scales:
            about["scales"] = train.scales
        bundle = write_bundle(model, fields, folder, about)
        columns = {name: holdout[name].to_list() for name in fields.names}
        worst = check_parity(model, fields, folder, columns, params.train.seed)
        variants = _variants(params, fields, folder, columns, holdout[fields.label].to_numpy())
        if params.export.int8:
            bundle["precision"] = next(name for name, variant in variants.items() if variant["file"] == runtime.MODEL)
            (folder / BUNDLE).write_text(storage.canonical_json(bundle))
        write_reference(folder, run, basis, runtime.score_rows(folder, fields, columns))
        (folder / "spec.json").write_text(storage.canonical_json(asdict(basis.spec)))
        return ExportFacts(parity=worst, parity_rows=holdout.height, variants=variants, **bundle)

    return written_by(write, run)


@dataclass(frozen=True)
class Basis:
    """What a bundle's reference is made of: ``judged`` is the holdout with the labels of the champion's baseline."""

    fields: Fields
    spec: Spec
    holdout: pl.DataFrame
    judged: pl.DataFrame


def written_by(write: Callable[[Path, Basis], Facts], run: Run) -> Work:
    """:func:`work` with something else than a network in its folder (pipelines/replay)."""
    params, settings = run.params, run.settings
    fields = load_fields(params.case)
    spec = load_spec(fields, settings.profile_file(params.case))
    holdout = pl.read_parquet(run.dir / "dataset" / "holdout.parquet")
    basis = Basis(fields, spec, holdout, as_judged(params, settings, run.as_of, holdout))
    # Labels of the holdout that a drift run would count come from the log, which no input's key holds.
    known = content_sha256(basis.judged.select("id", fields.label))
    declared = {"fields": fields.hash, "profile": spec.version, "judged": known}
    return Work(lambda folder, _key: write(folder, basis), declared)


def write_reference(folder: Path, run: Run, basis: Basis, scores: NDArray[np.float64]) -> None:
    """Write what drift is measured against: the training rows, and the model's ``scores`` of the holdout."""
    rows = pl.read_parquet(run.dir / "dataset" / "train.parquet")
    reference = reference_profile(rows, scores, basis.fields, basis.spec, basis.judged)
    (folder / FILE).write_bytes(to_bytes(reference))


def as_judged(params: Params, settings: Settings, as_of: datetime, holdout: pl.DataFrame) -> pl.DataFrame:
    """The holdout with the labels that the champion's baseline is made of.

    Those that a drift run would count, by the same rule.
    """
    fields, age = load_fields(params.case), timedelta(days=params.label_delay_days)
    if holdout.is_empty():
        return holdout
    oldest: datetime = holdout["event_time"].min()  # type: ignore[assignment]
    lines = prediction_log.read_label_lines(settings, params.case, as_of, since=oldest)
    labels = label_evidence.possible(lines, len(fields.classes))
    return label_evidence.as_counted(holdout, labels, fields.label, as_of, age, params.drift.min_rows)


def _variants(params: Params, fields: Fields, folder: Path, columns: Columns, label: Any) -> dict[str, Any]:
    """Make the declared variants of the fp32 model.onnx, measure them, and let the declared one be model.onnx.

    Raises IntegrityError if an fp32 answer hangs on the rows beside it; an int8 variant whose answers do is not
    shipped.
    """
    from pipelines.export import variants
    from pipelines.export.bundle import NEIGHBOURS, TOLERANCE, neighbours

    files, beside = {"fp32": runtime.MODEL}, {"fp32": neighbours(fields, folder, columns, params.train.seed)}
    if not beside["fp32"] <= TOLERANCE:
        raise IntegrityError(
            f"{folder / runtime.MODEL}: a row's score changes by {beside['fp32']:.2e} with the rows beside it: "
            "take out of the model what mixes rows"
        )
    refused = None
    if params.export.int8:
        files["int8"] = variants.write_int8(folder).name
        scores = {name: runtime.score_rows(folder, fields, columns, model=file) for name, file in files.items()}
        change = variants.difference(label, scores["fp32"], scores["int8"], metrics)
        beside["int8"] = neighbours(fields, folder, columns, params.train.seed, variants.INT8)
        if not beside["int8"] <= NEIGHBOURS:
            refused = (
                f"a row's score changes by {beside['int8']:.2e} with the rows beside it, {NEIGHBOURS:g} is allowed"
            )
            log.warning("%s: the int8 variant does not ship: %s", params.case, refused)
        elif params.export.ship == "int8":
            variants.ship_int8(folder)
            files = {"fp32": variants.FP32, "int8": runtime.MODEL}
    found = {name: variants.cost(folder, file, fields, columns) for name, file in files.items()}
    if params.export.int8:
        found["int8"] |= {"change": change, "refused": refused}
    return {name: {**measured, "neighbours": beside[name]} for name, measured in found.items()}
