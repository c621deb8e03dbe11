"""What a version answered when it was judged: its holdout's rows with their scores, kept by the step evaluate.

They were made from the same bundle long ago. A version that gives them still is what it was: bundle, encoder and
runtime. A score of the log that does not come out then is the log's, or that of what answered in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import PerennialError
from pipelines.rescoring.versions import Version

ROWS, TEXTS = 2_000, 100
"""Rows that are scored again; of texts fewer, as each takes milliseconds."""
TOLERANCE = 1e-5
"""How far its scores may be off, in the measure of a replay: batches were others, and so may be the processor."""


@dataclass(frozen=True)
class Witness:
    """Rows, and the scores ``[n, outputs]`` that the version gave them when it was judged."""

    rows: pl.DataFrame
    scores: NDArray[np.float64]


def witness(version: Version) -> Witness | None:
    """The kept rows of a version; None where the folders of its run do not hold them any more."""
    run_dir, fields = version.folder.parent, version.fields
    try:
        [path, *_] = [
            path
            for path in sorted(run_dir.glob("evaluate*"))
            if storage.read_manifest(path).inputs.get("export") == version.key
        ]
        dataset = storage.find(run_dir / "dataset", storage.read_manifest(path).inputs["dataset"])
        kept = pl.read_parquet(path / "scores.parquet")
        rows = pl.read_parquet(dataset / "holdout.parquet")
    except (PerennialError, OSError, KeyError, ValueError, pl.exceptions.PolarsError):
        return None
    if not rows.height or not rows["id"].equals(kept["id"]):
        return None
    most = ROWS if fields.text is None else TEXTS
    some = np.unique(np.linspace(0, rows.height - 1, min(rows.height, most)).astype(int)).tolist()
    told = kept["challenger"][some]
    scores = np.array(told.to_list(), np.float64).reshape(len(some), -1)
    return None if scores.shape[1] != fields.outputs else Witness(rows[some], scores)
