"""What a family of models costs: fit, export, bytes, parity, a row and a thousand rows in ONNX Runtime, the gateway.

Tables have the fields of `bank` with holes and undeclared values, four flags and four derived features, and rows drawn
as in `bench-rows`; texts are short reports of `triage`. One thread; all times are the processor's. `make bench-models`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.bench import rows
from benchmarks.bench.families import ONE_CORE, short_texts
from benchmarks.record import goal, record
from pipelines import runtime
from pipelines.cases import build_model, load_fields
from pipelines.encoding import encoder, find_scales
from pipelines.estimators import fitting
from pipelines.export.bundle import TOLERANCE, check_parity, write_bundle
from pipelines.export.onnx import Trained, of_estimator, of_torch
from pipelines.fields import Fields
from pipelines.params import EstimatorParams, ModelParams, TrainParams, WordsParams
from pipelines.text import TOKENIZER
from pipelines.training import estimator
from pipelines.training.dataset import as_rows
from pipelines.training.fit import fit

CASE = "bank"
TRAINED = 5000
FIRST = 300
LARGE = 1000
TIMES = {1: 400, LARGE: 20}
"""Rows of a call, and how many calls are measured."""
NETWORK = "tabular network"
NETWORK_TRAINS = TrainParams(epochs=4, batch_size=128, learning_rate=0.002, weight_decay=0.1, threads=1)
BOOSTED = {"n_estimators": 100, "learning_rate": 0.05}
OF_TABLES: dict[str, EstimatorParams | ModelParams] = {
    NETWORK: ModelParams(hidden=(32,), embedding=4, dropout=0.3),
    "LightGBM": EstimatorParams(kind="estimator", family="lightgbm", parameters=BOOSTED),
    "XGBoost": EstimatorParams(kind="estimator", family="xgboost", parameters=BOOSTED),
    "histogram gradient boosting": EstimatorParams(
        kind="estimator", family="sklearn:HistGradientBoostingClassifier", parameters={"max_iter": 100}
    ),
    "random forest": EstimatorParams(
        kind="estimator", family="sklearn:RandomForestClassifier", parameters={"min_samples_leaf": 5}
    ),
    "logistic regression": EstimatorParams(
        kind="estimator", family="sklearn:LogisticRegression", parameters={"max_iter": 300}
    ),
}
OF_TEXTS = {
    "words + logistic regression": EstimatorParams(
        kind="estimator", family="sklearn:LogisticRegression", parameters={"max_iter": 300}, words=WordsParams()
    )
}
Columns = dict[str, list[Any]]


def main() -> None:
    """Measure every family, and write benchmarks/results/models.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.models", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls; nothing is written")
    options = parser.parse_args()
    began = time.perf_counter()
    found = []
    for fields, columns, models in ((*_table(), OF_TABLES), (*_texts(), OF_TEXTS)):
        for name, model in models.items():
            print(name, flush=True)
            found.append({"name": name, **_measured(model, fields, columns, 10 if options.quick else 1)})
    worst = max(row["parity"] for row in found)
    record(
        "models",
        rows=found,
        goals=[goal("largest difference between a family and its graph", worst, TOLERANCE)],
        seconds=time.perf_counter() - began,
        packages=("torch", "onnxruntime", "lightgbm", "xgboost-cpu", "scikit-learn", "skl2onnx", "onnxmltools"),
        keep=not options.quick,
    )


def _table() -> tuple[Fields, Columns]:
    """Drawn rows, and a label that hangs on two of their values by chance."""
    fields = rows.with_derived(rows.wider(rows.opened(load_fields(CASE))))
    generator = np.random.default_rng(0)
    frame = pl.DataFrame([rows.drawn_row(fields, generator) for _ in range(TRAINED)], infer_schema_length=None)
    lean = frame["age"].fill_null(62) / 15 - 4 + (frame["contact"].fill_null("") == "cellular")
    label = generator.random(TRAINED) < 1 / (1 + np.exp(-lean.to_numpy()))
    numbered = {"id": [str(number) for number in range(TRAINED)], fields.label: label.astype(int).tolist()}
    return fields, frame.to_dict(as_series=False) | numbered


def _texts() -> tuple[Fields, Columns]:
    fields, reports = short_texts()
    return fields, reports.select(*fields.reads, fields.label).to_dict(as_series=False)


def _measured(model: EstimatorParams | ModelParams, fields: Fields, columns: Columns, shorter: int) -> dict[str, Any]:
    """A family's costs in processor time; calls are medians, of ``shorter`` times fewer of them."""
    scales = find_scales(fields, columns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = {"scales": {field: asdict(scale) for field, scale in scales.items()}}
        # What is imported once is part of neither.
        first = {field: own[:FIRST] for field, own in columns.items()}
        write_bundle(_trained(model, fields, first, scales, folder), fields, folder, about)
        began = time.process_time()
        trained = _trained(model, fields, columns, scales, folder)
        fitted = time.process_time()
        write_bundle(trained, fields, folder, about)
        exported = time.process_time()
        asked = {field: columns[field] for field in fields.reads}
        parity = check_parity(trained, fields, folder, asked, seed=0)
        encode = encoder(fields, folder)
        tensors = {size: encode({field: own[:size] for field, own in asked.items()}) for size in TIMES}
        body = [{field.name: columns[field.name][0] for field in fields.fields}]
        sent = rows.request(fields, body, encode)
        calls: dict[str, tuple[int, Callable[[], object]]] = {
            "us a row": (1, partial(runtime.score, folder, tensors[1])),
            f"us {LARGE} rows": (LARGE, partial(runtime.score, folder, tensors[LARGE])),
            "us a row, gateway and model": (1, lambda: runtime.score(folder, sent())),
        }
        return {
            "fit s": round(fitted - began, 2),
            "export s": round(exported - fitted, 2),
            "bytes": (folder / runtime.MODEL).stat().st_size,
            "parity": float(f"{parity:.2g}"),
            **{what: _median(work, TIMES[size] // shorter) for what, (size, work) in calls.items()},
        }


def _trained(
    model: EstimatorParams | ModelParams, fields: Fields, columns: Columns, scales: Any, folder: Path
) -> Trained:
    if isinstance(model, EstimatorParams):
        estimator.train(model, ONE_CORE, fields, columns, scales, folder, nullcontext)
        return of_estimator(fitting.load(folder / fitting.FILE), fields)
    own = as_rows(fields, columns, scales, folder / TOKENIZER)
    return of_torch(fit(partial(build_model, CASE, model, fields), own, NETWORK_TRAINS).model, fields)


def _median(work: Callable[[], object], times: int) -> float:
    """Microseconds of the processor of one call: a busy machine makes it wait, and that is not counted."""
    found = rows.measure({"": work}, max(3, times))[""]
    return round(float(np.median(found)) * 1e6, 1)


if __name__ == "__main__":
    main()
