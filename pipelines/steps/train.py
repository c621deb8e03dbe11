"""train: fit the case's model to the training rows, in this process or on several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import storage
from pipelines.cases import load_fields, part
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest
from pipelines.fields import encode

STEP_VERSION = 1
ROOMS = ("pipelines.training.fit", "pipelines.training.loop", "pipelines.training.weights", "pipelines.cases.tabular", "pipelines.fields")


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write ``weights.pt`` to ``run_dir/train``; equal inputs give equal weights on a machine.

    Raises TrainingDiverged if a loss is not finite.
    """
    del settings  # a step's signature; nothing outside the run is read
    fields = load_fields(params.case)
    dataset = storage.read_manifest(run_dir / "dataset")
    declared = {"model": params.model.model_dump(mode="json"), "train": params.train.model_dump(mode="json"), "fields": fields.hash}
    key = storage.step_key("train", STEP_VERSION, {"dataset": dataset.key}, declared)

    def build(folder: Path) -> Mapping[str, Any]:
        # Inside: a no-op run must not pay for importing torch.
        from pipelines.training.fit import fit
        from pipelines.training.loop import as_rows
        from pipelines.training.weights import save_weights, weights_sha256

        frame = pl.read_parquet(run_dir / "dataset" / "train.parquet")
        rows = as_rows(encode(fields, {name: frame[name].to_list() for name in fields.names}), frame[fields.label].to_numpy())
        model, curve = fit(lambda: part(params.case, "model").build(params.model, fields), rows, params.train)
        save_weights(model, folder / "weights.pt")
        return {
            "epochs": len(curve),
            "loss_first": curve[0],
            "loss_last": curve[-1],
            "curve": curve,
            "weights_sha256": weights_sha256(model),
            "ranks": params.train.ranks,
            "rows": len(rows),
        }

    return storage.commit(run_dir / "train", case=params.case, as_of=as_of, key=key, inputs={"dataset": dataset.key}, build=build)
