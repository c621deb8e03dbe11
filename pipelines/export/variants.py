"""A bundle's model at other precisions, and what each of them costs: bytes, milliseconds, answers."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import runtime
from pipelines.encoding import Columns, encoder
from pipelines.export.bundle import evenly
from pipelines.export.onnx import strip
from pipelines.fields import Fields
from pipelines.runtime import MODEL

FP32, INT8 = "model.fp32.onnx", "model.int8.onnx"
"""Names of the variants that do not ship; the one that does is ``model.onnx``."""
BATCHES = {1: 9, 32: 3}
"""Rows of a measured call, and how many calls the median is of."""
Metrics = Callable[[NDArray[Any], NDArray[np.float64]], Mapping[str, float | None]]


def write_int8(folder: Path) -> Path:
    """Write ``model.int8.onnx``: the weights of ``model.onnx`` as int8, activations quantised as they come.

    Dynamic quantisation of ONNX Runtime; equal models give equal bytes.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load(folder / MODEL)
    # Shapes that the exporter noted are no longer true behind the quantised operators.
    del proto.graph.value_info[:]
    target, root = folder / INT8, logging.getLogger()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / MODEL
        onnx.save(proto, source)
        level = root.level
        root.setLevel(logging.ERROR)  # it recommends a preparation that gains nothing here
        try:
            quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        finally:
            root.setLevel(level)
    quantised = onnx.load(target)
    strip(quantised)
    target.write_bytes(quantised.SerializeToString(deterministic=True))
    return target


def ship_int8(folder: Path) -> None:
    """Let ``model.onnx`` be the int8 variant, and keep the other one as ``model.fp32.onnx``."""
    os.replace(folder / MODEL, folder / FP32)
    os.replace(folder / INT8, folder / MODEL)


def cost(folder: Path, model: str, fields: Fields, rows: Columns) -> dict[str, Any]:
    """``{file, bytes, latency_ms}``: median milliseconds on one thread by the rows of a call, over real ``rows``; encoding is not in them."""
    encode, count = encoder(fields, folder), len(rows[fields.names[0]])
    found: dict[str, Any] = {"file": model, "bytes": (folder / model).stat().st_size}
    if not count:
        return found
    latency = {}
    for size, calls in BATCHES.items():
        chosen = evenly(rows, size * calls)
        have = len(chosen[fields.names[0]])
        batches = [encode({name: [column[(call * size + row) % have] for row in range(size)] for name, column in chosen.items()}) for call in range(calls)]
        runtime.score(folder, batches[0], model=model)
        latency[str(size)] = round(statistics.median(_milliseconds(folder, model, batch) for batch in batches), 4)
    return {**found, "latency_ms": latency}


def _milliseconds(folder: Path, model: str, tensors: Mapping[str, NDArray[Any]]) -> float:
    began = perf_counter()
    runtime.score(folder, tensors, model=model)
    return 1000 * (perf_counter() - began)


def difference(label: NDArray[Any], fp32: NDArray[np.float64], int8: NDArray[np.float64], metrics: Metrics) -> dict[str, Any]:
    """What quantisation changes on labelled rows: share of equal predictions, largest change of a score, change of each metric."""
    if not len(label):
        return {"rows": 0, "label_agreement": None, "score_change": None, "metrics": {}}
    before, after = metrics(label, fp32), metrics(label, int8)
    changes = {name: new - old for name, old in before.items() if old is not None and (new := after.get(name)) is not None}
    return {
        "rows": len(label),
        "label_agreement": float(np.mean(predictions(fp32) == predictions(int8))),
        "score_change": float(np.abs(fp32 - int8).max()),
        "metrics": changes,
    }


def predictions(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The predicted label ``[n]`` of scores ``[n]`` (1 from a half on) or ``[n, K]`` (the likeliest class)."""
    found = scores.argmax(axis=1) if scores.ndim == 2 else scores >= 0.5
    return np.asarray(found, np.int64)
