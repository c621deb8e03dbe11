"""evaluate: score the holdout with the bundle that would ship, and with the champion's, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import ledger, runtime, storage
from pipelines.cases import load_fields
from pipelines.config import Params, Settings
from pipelines.contracts import Manifest
from pipelines.evaluation.metrics import metrics
from pipelines.evaluation.slices import slices
from pipelines.fields import encode

STEP_VERSION = 1
ROOMS = ("pipelines.evaluation.metrics", "pipelines.evaluation.slices", "pipelines.fields", "pipelines.runtime")


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime) -> Manifest:
    """Write ``scores.parquet`` (id, label, challenger, champion, declared slice columns) to ``run_dir/evaluate``.

    The champion is the release before ``as_of``, scored anew on the same rows from its own bundle; a metric
    from another holdout would not be comparable. Raises IntegrityError if its bundle is missing.
    """
    fields = load_fields(params.case)
    dataset = storage.read_manifest(run_dir / "dataset")
    export = storage.read_manifest(run_dir / "export")
    champion = ledger.champion_before(settings.ledger, params.case, as_of)
    inputs = {"dataset": dataset.key, "export": export.key}
    declared = {"champion": None if champion is None else champion.candidate_key, "slices": params.gate.slices, "fields": fields.hash}
    key = storage.step_key("evaluate", STEP_VERSION, inputs, declared)

    def build(folder: Path) -> Mapping[str, Any]:
        rows = pl.read_parquet(run_dir / "dataset" / "holdout.parquet")
        label = rows[fields.label].to_numpy()
        challenger = _scores(run_dir / "export", rows)
        opponent = None if champion is None else _scores(storage.find(settings.root / champion.bundle, champion.candidate_key), rows)
        base = np.full(rows.height, dataset.facts["base_rate"])
        scored = rows.select(
            "id",
            pl.col(fields.label).alias("label"),
            pl.Series("challenger", challenger, dtype=pl.Float64),
            pl.Series("champion", opponent if opponent is not None else [None] * rows.height, dtype=pl.Float64),
            *params.gate.slices,
        )
        scored.write_parquet(folder / "scores.parquet")
        return {
            "n": rows.height,
            "positives": int(label.sum()),
            "challenger": metrics(label, challenger),
            "champion": None if opponent is None else metrics(label, opponent),
            "base_rate": {"rate": dataset.facts["base_rate"], **metrics(label, base)},
            "slices": {
                name: {
                    "n": int(mask.sum()),
                    "challenger": metrics(label[mask], challenger[mask]),
                    "champion": None if opponent is None else metrics(label[mask], opponent[mask]),
                }
                for name, mask in slices(rows, params.gate.slices).items()
            },
            "opponent": None if champion is None else {"version": champion.champion, "candidate_key": champion.candidate_key, "seq": champion.seq},
        }

    return storage.commit(run_dir / "evaluate", case=params.case, as_of=as_of, key=key, inputs=inputs, build=build)


def _scores(bundle: Path, rows: pl.DataFrame) -> Any:
    """Scores ``[n]`` of a bundle, encoded with the fields it was trained with, which may be older than the case's."""
    from pipelines.export.bundle import read_fields

    if rows.is_empty():
        return np.empty(0)
    own = read_fields(bundle)
    return runtime.score(bundle, encode(own, {name: rows[name].to_list() for name in own.names if name in rows.columns}))
