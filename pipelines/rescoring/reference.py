"""Encoding and inference once more, in the plainest way that there is: what the fast ways must agree with.

An encoder that goes row by row from the bundle's files, and onnx's own evaluator of graphs in numpy. Both are slow, and
say whether a score changed because code or ONNX Runtime did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import derived
from pipelines.encoding import BUNDLE, SCALED_MOST, read_scales, unfolded
from pipelines.fields import Categorical, Fields, as_kind, frame_schema
from pipelines.runtime import MODEL, OUTPUT
from pipelines.text import TOKENIZER

Tensors = Mapping[str, NDArray[Any]]


def tensors(folder: Path, fields: Fields, rows: pl.DataFrame) -> dict[str, NDArray[Any]]:
    """The input tensors of logged rows, texts padded to the longest: what ``encoder`` gives, made another way."""
    found: dict[str, NDArray[Any]] = {}
    if fields.text is not None:
        found |= _tokens(folder, [text or "" for text in rows[fields.text.name].to_list()])
    if not fields.has_table:
        return found
    about = json.loads((folder / BUNDLE).read_text())
    if fields.derived:
        fields = derived.from_json(fields, about.get("formulas"))
    kinds = frame_schema(fields)
    read = rows.select(as_kind(pl.col(name), kinds[name]).alias(name) for name in fields.reads)
    frame = unfolded(read, fields)
    scales = read_scales(about.get("scales", {}))
    codes = np.zeros((rows.height, len(fields.categorical)), np.int64)
    for place, field in enumerate(fields.categorical):
        known: list[Any] = list(field.values) if isinstance(field, Categorical) else [False, True]
        known += [None] if field.missing else []
        for row, value in enumerate(frame[field.name].to_list()):
            codes[row, place] = known.index(value) if value in known else len(known)
    numbers: list[list[float]] = []
    for number in fields.numeric:
        own = [np.nan if value is None else float(value) for value in frame[number.name].to_list()]
        if (by := scales.get(number.name)) is not None:
            own = [min(max((value - by.loc) * by.scale, -SCALED_MOST), SCALED_MOST) for value in own]
        numbers.append(own)
    for vector in fields.vectors:
        numbers += [list(column) for column in zip(*frame[vector.name].to_list(), strict=True)]
    numeric = np.array(numbers, np.float64).reshape(len(numbers), rows.height).T
    return found | {"categorical": codes, "numeric": numeric.astype(np.float32)}


def _tokens(folder: Path, texts: list[str]) -> dict[str, NDArray[np.int64]]:
    from tokenizers import Tokenizer

    from pipelines.text import normalise

    tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text())
    tokenizer.no_padding()
    ids = [tokenizer.encode(normalise(text)).ids for text in texts]
    width = max([1, *map(len, ids)])
    rows = [own + [0] * (width - len(own)) for own in ids]
    mask = [[1] * len(own) + [0] * (width - len(own)) for own in ids]
    return {"input_ids": np.array(rows, np.int64), "attention_mask": np.array(mask, np.int64)}


def scores(folder: Path, given: Tensors) -> NDArray[np.float64]:
    """Scores ``[n, outputs]`` by onnx's evaluator. Raises whatever that raises for a graph that it does not know."""
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(str(folder / MODEL)).run([OUTPUT], dict(given))
    return np.asarray(found, np.float64).reshape(len(found), -1)
