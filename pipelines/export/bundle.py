"""The bundle: what a version is made of, and everything that a server must know to run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines import runtime
from pipelines.errors import IntegrityError
from pipelines.export.onnx import OPSET, Scored, write_onnx
from pipelines.fields import Fields, from_json, to_json
from pipelines.storage import canonical_json

TOLERANCE = 1e-5
"""Largest difference of a probability between torch and ONNX Runtime; float32 rounding stays below 1e-6."""
_BATCHES = (1, 2, 7, 64, 257)


def write_bundle(model: nn.Module, fields: Fields, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write model.onnx, bundle.json and fields.json to ``folder``; ``about`` joins bundle.json, which is returned.

    bundle.json: ``{case, fields_hash, inputs: [{name, dtype, shape}], output: {name, dtype, shape}, opset, ...about}``
    with -1 for the batch axis.
    """
    write_onnx(model, fields, folder)
    bundle = {
        "case": fields.case,
        "fields_hash": fields.hash,
        "inputs": [
            {"name": "categorical", "dtype": "int64", "shape": [-1, len(fields.categorical)]},
            {"name": "numeric", "dtype": "float32", "shape": [-1, len(fields.numeric)]},
        ],
        "output": {"name": runtime.OUTPUT, "dtype": "float32", "shape": [-1, 1]},
        "opset": OPSET,
        **about,
    }
    (folder / "bundle.json").write_text(canonical_json(bundle))
    (folder / "fields.json").write_text(canonical_json(to_json(fields)))
    return bundle


def read_fields(bundle: Path) -> Fields:
    """The fields that a bundle was trained with; IntegrityError if they do not match the hash it names."""
    fields = from_json(json.loads((bundle / "fields.json").read_text()))
    expected = json.loads((bundle / "bundle.json").read_text())["fields_hash"]
    if fields.hash != expected:
        raise IntegrityError(f"{bundle / 'fields.json'} has hash {fields.hash[:12]}, bundle.json names {str(expected)[:12]}: export the model again")
    return fields


def check_parity(model: nn.Module, fields: Fields, bundle: Path, rows: Mapping[str, NDArray[Any]], seed: int) -> float:
    """The largest difference of a score between torch and ONNX Runtime, over random batches and real ``rows``.

    Raises IntegrityError above ``TOLERANCE``: what would be judged and served is not what was trained.
    """
    scored = Scored(model).eval()
    generator = np.random.default_rng(seed)
    worst = 0.0
    for tensors in (*(random_rows(fields, batch, generator) for batch in _BATCHES), rows):
        if not len(tensors["numeric"]):
            continue
        with torch.no_grad():
            expected = scored(torch.from_numpy(tensors["categorical"]), torch.from_numpy(tensors["numeric"])).double().numpy().reshape(-1)
        worst = max(worst, float(np.abs(expected - runtime.score(bundle, tensors)).max()))
    if not worst <= TOLERANCE:
        raise IntegrityError(
            f"{bundle}: torch and ONNX Runtime differ by {worst:.2e}, at most {TOLERANCE:g} is allowed: do not ship it; check the exporter's version"
        )
    return worst


def random_rows(fields: Fields, rows: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Tensors of ``rows`` rows: codes over whole vocabularies, numbers within their bounds (open sides: +-1,000)."""
    codes = [generator.integers(0, len(field.values), rows) for field in fields.categorical]
    numbers = [generator.uniform(-1e3 if field.low is None else field.low, 1e3 if field.high is None else field.high, rows) for field in fields.numeric]
    return {
        "categorical": np.array(codes, np.int64).reshape(len(codes), rows).T.copy(),
        "numeric": np.array(numbers, np.float32).reshape(len(numbers), rows).T.copy(),
    }
