"""export: turn the weights into the bundle that is judged, shipped and served."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import runtime, storage
from pipelines.cases import load_fields, part
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest
from pipelines.drift.profile import to_bytes
from pipelines.drift.reference import FILE, reference_profile
from pipelines.drift.spec import load_spec
from pipelines.fields import encode

STEP_VERSION = 2
ROOMS = (
    "pipelines.export.onnx",
    "pipelines.export.bundle",
    "pipelines.cases.tabular",
    "pipelines.drift.profile",
    "pipelines.drift.reference",
    "pipelines.drift.spec",
    "pipelines.fields",
    "pipelines.runtime",
)


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write the bundle (model.onnx, bundle.json, fields.json, reference.parquet) to ``run_dir/export``.

    Raises IntegrityError if ONNX Runtime does not answer what torch answers.
    """
    del settings  # a step's signature; nothing outside the run is read
    fields = load_fields(params.case)
    train = storage.read_manifest(run_dir / "train")
    dataset = storage.read_manifest(run_dir / "dataset")
    inputs = {"dataset": dataset.key, "train": train.key}
    spec = load_spec(fields)
    key = storage.step_key("export", STEP_VERSION, inputs, {"fields": fields.hash, "profile": spec.version})

    def build(folder: Path) -> Mapping[str, Any]:
        # Inside: a no-op run must not pay for importing torch.
        from pipelines.export.bundle import check_parity, write_bundle
        from pipelines.training.weights import load_weights

        model = part(params.case, "model").build(params.model, fields)
        load_weights(model, run_dir / "train" / "weights.pt")
        about = {"train_rows": dataset.facts["train_rows"], "dataset_key": dataset.key, "weights_sha256": train.facts["weights_sha256"]}
        bundle = write_bundle(model, fields, folder, about)
        holdout = pl.read_parquet(run_dir / "dataset" / "holdout.parquet")
        tensors = encode(fields, {name: holdout[name].to_list() for name in fields.names})
        worst = check_parity(model, fields, folder, tensors, params.train.seed)
        scores = runtime.score(folder, tensors) if holdout.height else np.empty(0)
        reference = reference_profile(pl.read_parquet(run_dir / "dataset" / "train.parquet"), scores, fields, spec, holdout)
        (folder / FILE).write_bytes(to_bytes(reference))
        return {"parity": worst, "parity_rows": holdout.height, **bundle}

    return storage.commit(run_dir / "export", case=params.case, as_of=as_of, key=key, inputs=inputs, build=build)
