"""A bundle's model at other precisions, and what each of them costs: bytes, milliseconds, answers."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Collection, Mapping
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

# Names of the variants that do not ship; the one that does is ``model.onnx``.
FP32 = "model.fp32.onnx"
INT8 = "model.int8.onnx"
LARGE = 1024
"""Weights with fewer numbers stay as they are."""
LEVELS = 127
"""The largest int8: the scale is symmetric."""
BATCHES = {1: 9, 32: 3}
"""Rows of a measured call, and how many calls the median is of."""
Metrics = Callable[[NDArray[Any], NDArray[np.float64]], Mapping[str, float | None]]


def write_int8(folder: Path) -> Path:
    """Write ``model.int8.onnx``: ``model.onnx`` with its large weights as int8, one scale for each output.

    Equal models give equal bytes.

    ONNX Runtime makes them float32 again when it loads the file, so that all arithmetic is the fp32 model's: a quarter
    of the bytes at its speed. Activations stay what they are. Quantised with a scale per tensor, a row's answer hangs
    on the rows beside it; with one per row, on float32's last digit, wherever that decides how a number is rounded.
    """
    import onnx

    proto = onnx.load(folder / MODEL)
    weights = {
        tensor.name: tensor
        for tensor in proto.graph.initializer
        if len(tensor.dims) == 2 and np.prod(tensor.dims) >= LARGE
    }
    first: list[Any] = []
    for name, axis in _inputs(proto.graph, weights).items():
        tensor = weights[name]
        values = onnx.numpy_helper.to_array(tensor)
        proto.graph.initializer.remove(tensor)
        scale = np.abs(values).max(axis=axis, keepdims=True) / np.float32(LEVELS)
        scale[scale == 0] = 1.0
        parts = {f"{name}.int8": np.round(values / scale).astype(np.int8), f"{name}.scale": scale.astype(np.float32)}
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, part) for part, value in parts.items())
        quantised, scales = parts
        # Not DequantizeLinear: ONNX Runtime does not fold that, and would compute it anew for every call.
        first += [
            onnx.helper.make_node("Cast", [quantised], [f"{name}.float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [f"{name}.float", scales], [name]),
        ]
    nodes = [*first, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    strip(proto)
    onnx.checker.check_model(proto)
    (folder / INT8).write_bytes(proto.SerializeToString(deterministic=True))
    return folder / INT8


def _inputs(graph: Any, weights: Collection[str]) -> dict[str, int]:
    """The weights that matrix products and tables use, and the axis over which one scale holds.

    One scale is for all weights of an output, or for a row of a table.
    """
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in weights:
            found[node.input[0]] = 1
        elif node.op_type in {"MatMul", "Gemm"} and node.input[1] in weights:
            is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            found[node.input[1]] = int(is_transposed)
    return found


def ship_int8(folder: Path) -> None:
    """Let ``model.onnx`` be the int8 variant, and keep the other one as ``model.fp32.onnx``."""
    os.replace(folder / MODEL, folder / FP32)
    os.replace(folder / INT8, folder / MODEL)


def cost(folder: Path, model: str, fields: Fields, rows: Columns) -> dict[str, Any]:
    """What a variant costs: ``{file, bytes, latency_ms}``.

    ``latency_ms`` has the median milliseconds on one thread by the rows of a call, over real ``rows``, without their
    encoding; it is left out if there are none.
    """
    encode = encoder(fields, folder)
    found: dict[str, Any] = {"file": model, "bytes": (folder / model).stat().st_size}
    if not len(rows[fields.inputs[0]]):
        return found
    latency = {}
    for size, calls in BATCHES.items():
        chosen = evenly(rows, size * calls)
        have = len(chosen[fields.inputs[0]])
        batches = [
            encode(
                {name: [column[(call * size + row) % have] for row in range(size)] for name, column in chosen.items()}
            )
            for call in range(calls)
        ]
        runtime.score(folder, batches[0], model=model)
        latency[str(size)] = round(statistics.median(_milliseconds(folder, model, batch) for batch in batches), 4)
    return {**found, "latency_ms": latency}


def _milliseconds(folder: Path, model: str, tensors: Mapping[str, NDArray[Any]]) -> float:
    began = perf_counter()
    runtime.score(folder, tensors, model=model)
    return 1000 * (perf_counter() - began)


def difference(
    label: NDArray[Any],
    fp32: NDArray[np.float64],
    int8: NDArray[np.float64],
    metrics: Metrics,
    *,
    number: bool = False,
) -> dict[str, Any]:
    """What quantisation changes on labelled rows.

    These are the share of equal predictions (of a ``number`` None), the largest change of a score, and the change of
    each metric.
    """
    if not len(label):
        return {"rows": 0, "label_agreement": None, "score_change": None, "metrics": {}}
    before = metrics(label, fp32)
    after = metrics(label, int8)
    changes = {
        name: new - old for name, old in before.items() if old is not None and (new := after.get(name)) is not None
    }
    return {
        "rows": len(label),
        "label_agreement": None if number else float(np.mean(predictions(fp32) == predictions(int8))),
        "score_change": float(np.abs(fp32 - int8).max()),
        "metrics": changes,
    }


def predictions(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The predicted label ``[n]`` of scores ``[n]`` (1 from a half on) or ``[n, K]`` (the likeliest class)."""
    if scores.ndim == 2:
        return np.asarray(scores.argmax(axis=1), np.int64)
    return np.asarray(scores >= 0.5, np.int64)
